"""Three families of number sequences: text so regular that a working pipeline must learn it within minutes.

Every line holds 12 to 30 numbers of one family, separated by single spaces:

    counting   5 6 7 8 9 ...            start in 0..99, step 1
    stepping   4 11 18 25 32 ...        start in 0..99, step in 2..9
    cycle      42 7 30 42 7 30 42 ...   2 to 5 different numbers in 0..99, the second below the first, repeated

What the numbers seen so far on the line determine, which is all that a perfect model can know:

- The first number is never determined, nor is the second: family, step and pattern are still open.
- Two numbers tell the family: a difference of 1 is counting, a larger one stepping, a negative one a cycle.
- Counting and stepping are certain from the third number on. So "0 1 2 3 4" can only go on " 5 6 7".
- A cycle is certain once its first number has come back, and from the sixth number on in any case. Before that the
  next number may be a new one or the return.
- The end of a line is not determined: each length from 12 to 30 is equally likely when a line is drawn.

So accuracy on determined numbers must reach 1, and on the others it can't. A model that sees one number can't tell the
families apart. One that sees two gets every step, but is misled where a cycle happens to rise by 1 to 9 inside, and
can't follow cycles of three or more that it has not memorised. All families together take a window of five numbers,
because a cycle has to be copied from that far back.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

N_LINES = 3_000
LENGTHS = range(12, 31)
STARTS = range(100)
STEPS = range(2, 10)
PERIODS = range(2, 6)


def _pick(rng: random.Random, values: range) -> int:
    # random() is the one method whose stream Python promises to keep; randrange and sample may change.
    return values[int(rng.random() * len(values))]


def _counting(rng: random.Random, length: int) -> list[int]:
    start = _pick(rng, STARTS)
    return [start + i for i in range(length)]


def _stepping(rng: random.Random, length: int) -> list[int]:
    start, step = _pick(rng, STARTS), _pick(rng, STEPS)
    return [start + i * step for i in range(length)]


def _cycle(rng: random.Random, length: int) -> list[int]:
    period = _pick(rng, PERIODS)
    pattern: list[int] = []
    while len(pattern) < period:
        number = _pick(rng, STARTS)
        if number not in pattern:
            pattern.append(number)
    # The first step goes down, so that two numbers are enough to tell a cycle from the families that grow.
    pattern[:2] = sorted(pattern[:2], reverse=True)
    return [pattern[i % period] for i in range(length)]


FAMILIES = {"counting": _counting, "stepping": _stepping, "cycle": _cycle}


def _lines(n: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    draws = list(FAMILIES.values())
    seen: set[str] = set()
    while len(seen) < n:
        numbers = draws[_pick(rng, range(len(draws)))](rng, _pick(rng, LENGTHS))
        line = " ".join(map(str, numbers))
        if line not in seen:
            seen.add(line)
            yield line


def three_sequences(n: int = N_LINES, seed: int = 0) -> Iterator[str]:
    """Draw `n` different lines of numbers; the family of each draw is chosen evenly among the three above.

    The same seed gives the same lines on every machine and Python version, and a smaller `n` gives the first of them.
    A line that comes up again is drawn anew. Since there are only 1,900 counting lines, their share is a little under
    a third at the default `n` (28%) and sinks as `n` grows.

    Raises ValueError when n < 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}; ask for at least 1 line")
    return _lines(n, seed)


def next_number(numbers: Sequence[int]) -> int | None:
    """The number that must follow the beginning `numbers` of a line, if the line goes on.

    None where the visible numbers leave more than one possibility, or where they fit no family (as a model's
    samples may). Steps and numbers outside the ranges above are continued by the same rules.
    """
    if len(numbers) < 2:
        return None
    step = numbers[1] - numbers[0]
    if step > 0:
        grows = all(b - a == step for a, b in pairwise(numbers))
        return numbers[-1] + step if grows else None
    longest = PERIODS[-1]
    period = numbers.index(numbers[0], 1) if numbers[0] in numbers[1:] else longest
    if not PERIODS[0] <= period <= min(longest, len(numbers)):
        return None
    pattern = numbers[:period]
    repeats = len(set(pattern)) == period and all(x == pattern[i % period] for i, x in enumerate(numbers))
    return pattern[len(numbers) % period] if repeats else None


def write_three_sequences(path: str | Path, n: int = N_LINES, seed: int = 0) -> None:
    """Write three_sequences(n, seed) to `path` in ASCII, one line each, ended by a line feed on every system.

    Missing folders are made; an existing file is replaced. Raises ValueError when n < 1.
    """
    text = "".join(f"{line}\n" for line in three_sequences(n, seed))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="ascii", newline="\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `python -m picollm_core.three_sequences PATH`; the defaults rewrite data/3seqs.txt."""
    parser = argparse.ArgumentParser(prog="python -m picollm_core.three_sequences", description=main.__doc__)
    parser.add_argument("path", type=Path, help="file to write, for example data/3seqs.txt")
    parser.add_argument("--n", type=int, default=N_LINES, help="number of lines (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        write_three_sequences(options.path, options.n, options.seed)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
