"""The number sequences: what is drawn, what is determined, and the file that ships."""

import os
import random
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm_core.three_sequences import LENGTHS, main, next_number, three_sequences, write_three_sequences

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "data" / "3seqs.txt"


def numbers_of(line: str) -> list[int]:
    return [int(number) for number in line.split(" ")]


def family_of(numbers: list[int]) -> str:
    """Recognised from the whole line, independently of the generator's code; fails for a line of no family."""
    steps = {b - a for a, b in pairwise(numbers)}
    if len(steps) == 1:
        (step,) = steps
        assert 1 <= step <= 9
        return "counting" if step == 1 else "stepping"
    period = next(p for p in range(2, 6) if numbers[p:] == numbers[:-p])
    assert len(set(numbers[:period])) == period
    assert numbers[1] < numbers[0]
    return "cycle"


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return list(three_sequences())


def test_every_line_belongs_to_one_family_and_has_12_to_30_numbers(lines: list[str]) -> None:
    assert len(lines) == 3000
    assert {len(numbers_of(line)) for line in lines} == set(LENGTHS) == set(range(12, 31))
    families = [family_of(numbers_of(line)) for line in lines]
    shares = {family: families.count(family) / len(families) for family in families}
    assert shares.keys() == {"counting", "stepping", "cycle"}
    assert all(0.27 < share < 0.38 for share in shares.values()), shares


def test_no_line_comes_twice(lines: list[str]) -> None:
    assert len(set(lines)) == len(lines)


def test_the_course_prompt_is_always_continued_by_counting_on(lines: list[str]) -> None:
    continued = [line for line in lines if line.startswith("0 1 2 3 4 ")]
    assert len(continued) >= 5
    assert all(line.startswith("0 1 2 3 4 5 6 7 ") for line in continued)
    assert next_number([0, 1, 2, 3, 4]) == 5


def test_determined_numbers_are_those_that_the_lines_show(lines: list[str]) -> None:
    determined = 0
    for numbers in map(numbers_of, lines):
        for i, actual in enumerate(numbers):
            predicted = next_number(numbers[:i])
            determined += predicted is not None
            assert predicted in (None, actual)
    assert sum(len(numbers_of(line)) for line in lines) == 62_410
    assert determined == 53_985


@given(st.lists(st.integers(0, 99), min_size=2, max_size=4, unique=True))
def test_an_unreturned_cycle_leaves_the_next_number_open_and_its_return_settles_it(pattern: list[int]) -> None:
    pattern[:2] = sorted(pattern[:2], reverse=True)
    assert next_number(pattern) is None
    assert next_number([*pattern, pattern[0]]) == pattern[1]


@pytest.mark.parametrize(
    ("numbers", "following"),
    [
        ([], None),
        ([7], None),
        ([7, 8], 9),
        ([4, 11], 18),
        ([4, 11, 19], None),  # no steady step
        ([7, 7], None),
        ([9, 1, 2, 3, 4], 9),  # five different numbers are the longest pattern
        ([9, 1, 2, 3, 4, 5], None),
        ([9, 1, 2, 9, 3], None),  # returned, then broke the pattern
        ([9, 1, 1, 9], None),  # a pattern has no number twice
    ],
)
def test_next_number_at_the_edges(numbers: list[int], following: int | None) -> None:
    assert next_number(numbers) == following


def test_a_seed_names_its_lines_whatever_else_draws_random_numbers() -> None:
    random.seed(1)
    first = list(three_sequences(50, seed=3))
    random.seed(2)
    assert list(three_sequences(50, seed=3)) == first
    assert list(three_sequences(50, seed=4)) != first


def test_a_smaller_n_gives_the_first_lines(lines: list[str]) -> None:
    assert list(three_sequences(40)) == lines[:40]
    assert list(islice(three_sequences(3000), 40)) == lines[:40]


@pytest.mark.parametrize("n", [0, -3])
def test_fewer_than_one_line_is_refused_at_the_call(n: int) -> None:
    with pytest.raises(ValueError, match=f"n is {n}; ask for at least 1"):
        three_sequences(n)


def test_the_shipped_file_is_regenerated_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "3seqs.txt"
    write_three_sequences(path)
    assert path.read_bytes() == SHIPPED.read_bytes()
    assert SHIPPED.stat().st_size < 300_000


def test_the_module_runs_as_a_command_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "picollm_core.three_sequences", "3seqs.txt"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "3seqs.txt").read_bytes() == SHIPPED.read_bytes()


def test_the_command_takes_n_and_seed(tmp_path: Path) -> None:
    main([str(tmp_path / "few.txt"), "--n", "4", "--seed", "9"])
    assert (tmp_path / "few.txt").read_text().splitlines() == list(three_sequences(4, seed=9))


def test_the_command_names_bad_input_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, named in (([str(tmp_path / "a.txt"), "--n", "0"], "n is 0"), ([str(tmp_path)], str(tmp_path))):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert named in capsys.readouterr().err
    assert not (tmp_path / "a.txt").exists()
