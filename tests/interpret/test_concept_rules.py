import pytest

from picollm_core.interpret.concept_rules import (
    RULE_CONCEPTS,
    WORD_CONCEPTS,
    hero_name,
    name_words,
    quotations,
    rule_spans,
    sentences,
    words,
)


def text_of(text: str, name: str) -> list[str]:
    return [text[a:b] for a, b in rule_spans(text)[name]]


@pytest.mark.parametrize("text", ["", "\n", '"', "Once upon a time there was a cat."])
def test_every_concept_has_spans_inside_any_text(text):
    found = rule_spans(text)
    assert tuple(found) == RULE_CONCEPTS
    assert set(WORD_CONCEPTS) < set(RULE_CONCEPTS)
    assert all(0 <= a <= b <= len(text) for spans in found.values() for a, b in spans)


def test_of_two_phrases_that_begin_alike_the_longer_one_is_found_and_never_part_of_a_word():
    text = "The fox cub saw a fox, not an ox or foxes."
    assert [text[a:b] for a, b in words(text, ["fox", "fox cub", "ox"])] == ["fox cub", "fox", "ox"]


def test_quotations_pair_straight_and_curly_marks_inside_one_paragraph():
    for text in ('He said, "Go on!" and left.', "He said, “Go on!” and left."):
        assert [text[a + 1 : b] for a, b in quotations(text)] == ["Go on!"]
    assert text_of('Mum said,"Go on!"', "quote:inside") == ["Go on!"]
    assert text_of('"Hi!" "Bye!"', "quote:inside") == ["Hi!", "Bye!"]


def test_a_mark_without_a_partner_in_its_paragraph_begins_and_ends_nothing():
    assert quotations('It was 5 feet 3" tall.') == []
    assert quotations('"Oh, he said.\n"Come!" she said.') == [(14, 20)]
    assert text_of('"Oh, he said. "Come!" she said.', "quote:inside") == ["Come!"]
    assert quotations("so” he said") == []
    assert quotations('It "began.\nIt ended" there.') == []


def test_the_marks_themselves_are_not_inside():
    text = 'Tom said, "Hi Anna!"'
    assert text_of(text, "quote:inside") == ["Hi Anna!"]
    assert text_of(text, "quote:opens") == text_of(text, "quote:closes") == ['"']


def test_sentences_end_at_marks_and_lines_but_not_at_titles_or_before_small_letters():
    text = 'Mr. Wood came. "Stop!" said Tom. Did he? Yes!\nThe end'
    assert [text[a:b] for a, b in sentences(text)] == [
        "Mr. Wood came.", '"Stop!" said Tom.', "Did he?", "Yes!", "The end",
    ]  # fmt: skip
    assert text_of(text, "sentence:first_of_story") == ["Mr. Wood came."]
    assert sentences("") == []
    assert sentences("  \n ") == []


def test_the_hero_is_the_first_repeated_name_that_is_not_only_at_the_start_of_sentences_or_the_one_called_so():
    assert hero_name("One day, Tim met Sue. Sue hugged Tim.") == "Tim"
    assert hero_name("There was a girl named Anna. It rained.") == "Anna"
    assert hero_name("Suddenly it rained. Suddenly Ben saw Max. Then Max saw Ben.") == "Ben"
    assert hero_name("On Monday Mom and Kim sang. On Monday Mom and Kim danced.") == "Kim"
    assert hero_name("A dog ran. It was fun.") == ""
    assert hero_name("One day Sue saw Tim, and Tim sang.") == "Tim"
    assert text_of("One day, Tim met Sue. Sue hugged Tim.", "mention:hero") == ["Tim", "Tim"]


def test_names_are_words_capitalised_inside_a_sentence_and_then_count_everywhere():
    assert name_words('Today I saw Anna. "Come!" said Mr. Poe. On Friday Anna left.') == {"Anna", "Mr", "Poe"}
    assert text_of("Anna ran. We love Anna.", "mention:name") == ["Anna", "Anna"]


def test_pronouns_and_word_groups_are_whole_words():
    text = "She gave him its hat; the shed was red, and Ruby said so to her mom."
    assert text_of(text, "pronoun:female") == ["She", "her"]
    assert text_of(text, "pronoun:male") == ["him"]
    assert text_of(text, "pronoun:neuter") == ["its"]
    assert text_of(text, "word:color") == ["red"]
    assert text_of(text, "word:clothes") == ["hat"]
    assert text_of(text, "word:kin") == ["mom"]
    assert text_of(text, "word:said") == ["said"]


def test_once_upon_a_time_counts_at_the_beginning_only():
    name = "story:once_upon_a_time"
    assert text_of("Once upon a time, a cat ran.", name) == ["Once upon a time"]
    assert text_of("He read: Once upon a time.", name) == []
