"""The plain-text notation of plots and word lists."""

import pytest

from picollm_core.storyworld.notation import article, read_lists, read_template


def test_articles_follow_the_first_sound() -> None:
    nouns = ["owl", "ball", "unicorn", "hour", "umbrella", "honest child", "used cup", "ukulele", "underground cave"]
    assert [article(noun).split()[0] for noun in nouns] == ["an", "a", "a", "an", "an", "an", "a", "a", "an"]


@pytest.mark.parametrize("template", ["a [b", "a ]b", "a | b", "a {b", "[a|[b]"])
def test_brackets_that_do_not_pair_up_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match="pair up"):
        read_template(template)


def test_word_lists_refuse_repeated_words_and_missing_fields() -> None:
    with pytest.raises(ValueError, match="repeats ball"):
        read_lists("[toys]\nball, owl\n[toys]\nball")
    with pytest.raises(ValueError, match="has 1 fields, the header names 2"):
        read_lists("[places: name | at]\npark")
