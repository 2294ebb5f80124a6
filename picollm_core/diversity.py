"""How varied generated text is, and how much it repeats itself: counts over token ids, comparable by construction."""

from collections.abc import Iterable, Iterator, Sequence

from picollm_core.config import require

Samples = Sequence[Sequence[int]]


def _ngrams(tokens: Sequence[int], n: int) -> Iterable[tuple[int, ...]]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def _first_tokens(samples: Samples, budget: int) -> Iterator[Sequence[int]]:
    """The samples in their order, the last one cut, so that they hold exactly `budget` tokens together."""
    require(budget >= 1, f"budget is {budget}; it must be at least 1 token")
    available = sum(map(len, samples))
    require(available >= budget, f"budget is {budget} tokens but the samples hold {available}; draw more, or lower it")
    for sample in samples:
        if budget > 0:
            yield sample[:budget]
            budget -= len(sample)


def distinct_n(samples: Samples, n: int, budget: int) -> float:
    """Different n-grams / all n-grams of the first `budget` tokens of the samples: 1 means that none occurs twice.

    Li et al. 2016 (arXiv 1510.03055) up to the denominator, which here is the number of n-grams, so that 1
    can be reached. The ratio falls as text grows: only values at the same budget can be compared, which is why a budget
    must be given and must be met. n-grams lie within one sample, so the order of the samples makes none.
    Raises ValueError when the samples hold fewer than `budget` tokens, when no n-gram fits, and for n or budget < 1.
    """
    require(n >= 1, f"n is {n}; it must be at least 1")
    seen: set[tuple[int, ...]] = set()
    total = 0
    for sample in _first_tokens(samples, budget):
        seen.update(_ngrams(sample, n))
        total += max(0, len(sample) - n + 1)
    require(total > 0, f"no sample holds {n} tokens within the budget of {budget}; there is no {n}-gram to count")
    return len(seen) / total


def distinct_table(samples: Samples, budget: int, orders: Iterable[int] = range(1, 6)) -> dict[int, float]:
    """n -> `distinct_n` for every order, at the one `budget`."""
    return {n: distinct_n(samples, n, budget) for n in orders}


def repetition_rate(samples: Samples, n: int = 4, length: int | None = None) -> float:
    """Share of a sample's n-grams that occurred earlier in the same sample, averaged over samples.

    That is 1 - different / all n-grams of each continuation: seq-rep-n of Welleck et al. 2019 (arXiv 1908.04319).
    It grows with the length of a sample; `length` cuts all of them to their first `length` tokens for a comparison.
    Raises ValueError when a sample is shorter than `length` or than n, when there is none, and for n < 1.
    """
    require(n >= 1, f"n is {n}; it must be at least 1")
    require(len(samples) > 0, "there are 0 samples; give at least one")
    shortest = min(map(len, samples))
    needed = n if length is None else length
    require(needed >= n, f"length is {length}; it must be at least n={n}")
    require(shortest >= needed, f"the shortest sample has {shortest} tokens but {needed} are needed; leave it out")
    cut = [sample[:length] for sample in samples]
    return sum(1 - len(set(_ngrams(tokens, n))) / (len(tokens) - n + 1) for tokens in cut) / len(cut)
