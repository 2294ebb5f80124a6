"""A story is set as it reads: whole words, no token lost, in letters as large as the space allows."""

import pytest

from picollm_core.story_layout import GAP_POINTS, MONO_WIDTH, SIZES, lay_out, set_in_lines

TOKENS = ["<start>", "Once", " up", "on", " a", " time", ",", " Tom", " ran", "."]


def lines(tokens, width) -> list[str]:
    """What stands on each line."""
    found: dict[int, str] = {}
    for line, column, text in set_in_lines(tokens, width):
        assert column == len(found.get(line, ""))  # each token begins where the one before ends
        found[line] = found.get(line, "") + text
    return [found[line] for line in range(len(found))]


def test_lines_end_at_words_and_never_inside_one():
    assert lines(TOKENS, 100) == ["<start>Once upon a time, Tom ran."]
    assert lines(TOKENS, 18) == ["<start>Once upon a", "time, Tom ran."]
    assert lines(TOKENS, 13) == ["<start>Once", "upon a time,", "Tom ran."]


@pytest.mark.parametrize("width", range(7, 40))
def test_no_line_is_too_long_and_every_token_is_set_once(width):
    places = set_in_lines(TOKENS, width)
    assert all(len(line) <= width for line in lines(TOKENS, width))
    assert [text.strip() for _, _, text in places] == [token.strip() for token in TOKENS]


def test_line_ends_of_the_text_are_marked_and_end_the_line_once():
    assert lines(["<s>", "Hi", ".", "\n", "\n", "Bye", "\n", " ok"], 40) == ["<s>Hi.↵↵", "Bye↵", "ok"]
    assert lines(["a", "\n"], 40) == ["a↵"]


def test_a_word_longer_than_a_line_is_broken_between_its_tokens():
    assert lines(["<s>", " aaaa", "bbbb", "cccc", " d"], 9) == ["<s>", "aaaabbbb", "cccc d"]


def test_a_token_of_one_space_or_of_nothing_still_takes_a_place():
    assert [text for _, _, text in set_in_lines(["", " ", "x\t"], 20)] == ["(empty)", " ", "x\\t"]


def test_letters_are_as_large_as_the_height_allows():
    short = lay_out(TOKENS, 800, 300)
    assert short.points == SIZES[0]
    tall = lay_out(TOKENS * 12, 800, 300)
    assert tall.points < SIZES[0]
    for layout in (short, tall):
        last = max(spot.line for spot in layout.spots)
        assert (last + 1) * layout.pitch + GAP_POINTS <= 300
        assert max(spot.right for spot in layout.spots) * MONO_WIDTH * layout.points <= 800
    larger = SIZES[SIZES.index(tall.points) - 1]
    needed = max(line for line, _, _ in set_in_lines(TOKENS * 12, int(800 / (MONO_WIDTH * larger)))) + 1
    assert needed * (1.3 * larger + GAP_POINTS) + GAP_POINTS > 300


def test_boxes_of_two_lines_leave_the_gap_between_them():
    layout = lay_out(TOKENS, 300, 400)
    first, second = (next(spot for spot in layout.spots if spot.line == line) for line in (0, 1))
    assert (second.top - first.bottom) * layout.pitch == pytest.approx(GAP_POINTS)
    assert first.middle == (first.left + first.right) / 2


def test_a_story_that_does_not_fit_is_refused_with_what_would():
    with pytest.raises(ValueError, match=r"1000 tokens take \d+ lines; a slide holds 7, so show a part"):
        lay_out(TOKENS * 100, 800, 300)
