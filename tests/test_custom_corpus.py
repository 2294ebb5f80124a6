"""The custom corpus: its form, that no two lines are alike, and that every file has words of its own."""

import re
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "data" / "custom_corpus"
README = FOLDER.parent / "README.md"

MARKED_WORDS = {
    "field_notes": ("heron", "moss", "reeds", "ditch", "otter"),
    "mini_stories": ("tuva", "nilo", "bean", "plum", "wagon", "kite"),
    "observatory_journal": ("meteorite", "telescope", "dome", "mirror", "exposure"),
    "city_archive": ("tram", "metro", "drone", "archive", "clerk"),
    "harbor_diary": ("lighthouse", "tide", "buoy", "ferry", "petrel"),
}

TEXTS = {path.stem: path.read_bytes() for path in sorted(FOLDER.glob("*.txt"))}
LINES = {name: text.decode("utf-8").splitlines() for name, text in TEXTS.items()}
EVERY_LINE = [line for lines in LINES.values() for line in lines]

each_file = pytest.mark.parametrize("name", MARKED_WORDS)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def shingles(line: str, size: int = 5) -> set[tuple[str, ...]]:
    """All runs of `size` words."""
    found = words(line)
    return {tuple(found[i : i + size]) for i in range(len(found) - size + 1)}


def jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b)


def content_words(lines: list[str]) -> set[str]:
    return {word for word in words(" ".join(lines)) if len(word) > 4}


def test_there_are_exactly_the_five_files_and_at_least_320_lines() -> None:
    assert TEXTS.keys() == MARKED_WORDS.keys()
    assert len(EVERY_LINE) >= 320


def test_no_line_comes_twice_in_the_whole_collection() -> None:
    assert [line for line, count in Counter(EVERY_LINE).items() if count > 1] == []


@each_file
def test_a_file_has_60_lines_or_more_one_example_each(name: str) -> None:
    assert len(LINES[name]) >= 60
    assert TEXTS[name].endswith(b"\n")
    assert not TEXTS[name].endswith(b"\n\n")
    assert TEXTS[name].isascii()
    assert not set(TEXTS[name]) & set(b"\r\t")


@each_file
def test_every_line_is_trimmed_ends_as_a_sentence_and_has_20_to_60_words(name: str) -> None:
    wrong = [
        line
        for line in LINES[name]
        if not re.fullmatch(r'["A-Z0-9].*[.!?]"?', line) or "  " in line or not 20 <= len(line.split()) <= 60
    ]
    assert wrong == []
    assert all(line.count('"') % 2 == 0 for line in LINES[name])


@each_file
def test_openings_vary(name: str) -> None:
    first = [words(line)[:1] for line in LINES[name]]
    assert [a for a, b in pairwise(first) if a == b] == []
    openings = Counter(tuple(words(line)[:3]) for line in LINES[name])
    assert max(openings.values()) <= 3


def test_no_two_lines_are_near_duplicates() -> None:
    sets = [shingles(line) for line in EVERY_LINE]
    alike = [(i, j) for (i, a), (j, b) in combinations(enumerate(sets), 2) if a & b and jaccard(a, b) >= 0.5]
    assert [(EVERY_LINE[i], EVERY_LINE[j]) for i, j in alike] == []


def test_near_duplicates_would_be_noticed() -> None:
    line = EVERY_LINE[0]
    changed = line.rsplit(" ", 1)[0] + " something."
    assert jaccard(shingles(line), shingles(changed)) >= 0.5
    assert jaccard(shingles(line), shingles(EVERY_LINE[1])) < 0.1


@each_file
def test_marked_words_are_frequent_at_home_and_absent_elsewhere(name: str) -> None:
    elsewhere = Counter(words(" ".join(line for other in LINES if other != name for line in LINES[other])))
    at_home = Counter(words(" ".join(LINES[name])))
    for word in MARKED_WORDS[name]:
        assert at_home[word] >= 4, word
        assert elsewhere[word] == 0, word
    assert at_home[MARKED_WORDS[name][0]] >= 10
    assert all(word in README.read_text(encoding="utf-8").lower() for word in MARKED_WORDS[name])


def test_any_two_files_share_less_than_a_quarter_of_their_longer_words() -> None:
    for a, b in combinations(LINES, 2):
        assert jaccard(content_words(LINES[a]), content_words(LINES[b])) < 0.25, (a, b)


def test_the_readme_states_the_true_counts() -> None:
    text = README.read_text(encoding="utf-8")
    for name, lines in LINES.items():
        assert f"| `{name}.txt` | {len(lines)} |" in text
    assert f"5 files, {len(EVERY_LINE)} lines, {sum(len(line.split()) for line in EVERY_LINE):,}" in text
    lengths = [len(line.split()) for line in EVERY_LINE]
    assert f"{min(lengths)} to {max(lengths)} words" in text
