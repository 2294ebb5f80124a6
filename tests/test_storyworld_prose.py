"""The prose of the shipped grammar: size, vocabulary, grammar, typography."""

import re
from collections import Counter

import pytest

from picollm_core.storyworld import generate_stories, load_grammar
from picollm_core.storyworld.grammar import Choice, Mention, Phase
from picollm_core.storyworld.notation import article

SAMPLE = 5_000


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(generate_stories(SAMPLE, seed=3))


def gaps(items: tuple) -> tuple[int, int]:
    """The fewest and the most gaps between words that a sequence can hold."""
    low = high = 0
    for item in items:
        if isinstance(item, Phase):
            continue
        if isinstance(item, Choice):
            ranges = [gaps(option) for option in item.options]
        else:
            ranges = [(len(s.split(" ")) - 1 if s.strip() else 1,) * 2 for s in _strings(item)]
        low, high = low + min(r[0] for r in ranges), high + max(r[1] for r in ranges)
    return low, high


def _strings(item: str | Mention) -> tuple[str, ...]:
    return (item,) if isinstance(item, str) else item.strings


def test_there_are_at_least_24_plots() -> None:
    assert len(load_grammar().plots) >= 24


def test_no_story_that_can_be_told_has_fewer_than_80_or_more_than_250_words() -> None:
    for name, items in load_grammar().plots.items():
        low, high = gaps(items)
        assert 80 <= low + 1 <= high + 1 <= 250, (name, low + 1, high + 1)


def test_told_stories_have_80_to_250_words(texts: list[str]) -> None:
    lengths = [len(text.split()) for text in texts]
    assert 80 <= min(lengths) <= max(lengths) <= 250


def test_5000_stories_use_at_least_1500_words(texts: list[str]) -> None:
    words = Counter(word for text in texts for word in re.findall(r"[a-z]+", text.lower()))
    assert len(words) >= 1_500
    assert sum(count >= 5 for count in words.values()) >= 1_500


def test_every_plot_has_at_least_eight_beats_of_two_or_more_variants() -> None:
    for items in load_grammar().plots.values():
        assert sum(isinstance(item, Choice) and _variants(item) >= 2 for item in items) >= 8


def _variants(choice: Choice) -> int:
    """Alternatives of a beat, looking through a beat that is one rule."""
    single = len(choice.options) == 1 and [item for item in choice.options[0] if isinstance(item, Choice)]
    return max(map(_variants, single)) if single else len(choice.options)


def test_every_word_list_is_used() -> None:
    used: set[str] = set()

    def visit(items: tuple) -> None:
        for item in items:
            if isinstance(item, Choice):
                for option in item.options:
                    visit(option)
            elif isinstance(item, Mention):
                used.add(item.list_name)

    for items in load_grammar().plots.values():
        visit(items)
    assert used == set(load_grammar().lists)


def test_articles_agree_with_the_next_word(texts: list[str]) -> None:
    for text in texts:
        for found, word in re.findall(r"\b([Aa]n?) ([A-Za-z]+)", text):
            assert article(word).split()[0] == found.lower(), f"{found} {word}"


def test_sentences_begin_with_capitals_and_stories_end_with_a_full_stop(texts: list[str]) -> None:
    for text in texts:
        assert text[0].isupper()
        assert re.search(r"[.!?]\"?$", text)
        late = re.findall(r"[.!?]\s+\"?[a-z]\w*", text)
        assert not late, late


def test_quotation_marks_pair_up_within_each_paragraph_and_enclose_sentences(texts: list[str]) -> None:
    for text in texts:
        for paragraph in text.split("\n"):
            assert paragraph.count('"') % 2 == 0
        for quote in re.findall(r'"([^"]*)"', text):
            assert quote[0].isalpha(), quote
            assert quote[-1] in ",.!?", quote


def test_typography_is_clean(texts: list[str]) -> None:
    for text in texts:
        assert text.isascii()
        assert not re.search(r"  | \n|\n |\n{3}| [,.!?;:]|[,.!?]{2}|[{}<>\[\]|_*#]", text)
        assert "\t" not in text


def test_no_word_is_written_twice_in_a_row(texts: list[str]) -> None:
    doubled = Counter(m for text in texts for m in re.findall(r"\b(\w+) \1\b", text))
    assert not doubled


def test_sentence_openings_vary(texts: list[str]) -> None:
    openings = Counter(text.split(". ")[0].split(" ")[0] for text in texts)
    assert max(openings.values()) < 0.5 * SAMPLE
    firsts = Counter(" ".join(s.split()[:2]) for text in texts for s in re.split(r"(?<=[.!?])\s+", text))
    assert firsts.most_common(1)[0][1] < 0.05 * sum(firsts.values())


def test_heroes_of_both_genders_get_their_own_pronouns(texts: list[str]) -> None:
    girls = re.compile(r"\b(?:girl|sister) (?:named|called) (\w+)")
    boys = re.compile(r"\b(?:boy|brother) (?:named|called) (\w+)")
    female = {name for text in texts for name in girls.findall(text)}
    male = {name for text in texts for name in boys.findall(text)}
    assert len(female) > 40
    assert len(male) > 40
    assert not female & male
