"""Figures about features can be read, show what they were given, and refuse what they cannot show honestly."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from picollm_core.interpret.feature_evidence import Context
from picollm_core.interpret.feature_html import activation_colour
from picollm_core.plots_features import MAX_LABEL, excerpt, plot_feature_contexts, plot_firing
from tests.legible import assert_legible

PIECES = ("Tom", " saw", " a", " $ball$", ".\n", "He", " gave", " it", " to", " Lily", ".")
VALUES = (0.0, 0.0, 0.5, 2.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)


def context(repeat=1, peak=3, begins=True, ends=False) -> Context:
    return Context(0, PIECES * repeat, VALUES * repeat, peak, begins, ends)


def densities(size=400, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).beta(0.4, 30, size) * (np.arange(size) >= size // 10)


FIGURES = {
    "one": lambda: plot_feature_contexts([("feature 1: a ball, F1 0.93", context())], title="T"),
    "ten": lambda: plot_feature_contexts([("L" * 60, context(4, 25))] * 10, title="T" * 90),
    "longest label": lambda: plot_feature_contexts([("feature " * 10, context())] * 4, title="T"),
    "plain": lambda: plot_feature_contexts([("a", PIECES, VALUES, 3), ("b", ["x"], [-1.0], 0)], title="T"),
    "firing": lambda: plot_firing({"TopK, k = 32": densities(), "neurons": densities(128, 1)}, title="T" * 90),
    "most arms": lambda: plot_firing(
        {f"{'an arm of the longest name':33s}{i}": densities() for i in range(4)}, title="T"
    ),
    "one arm": lambda: plot_firing({"a": [0.001]}, title="T"),
    "none fires": lambda: plot_firing({"a": [0.0, 0.0]}, title="T"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_texts_are_large_stay_on_the_page_and_do_not_overlap(name):
    assert_legible(FIGURES[name]())


def boxes(axes, filled=True) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_fill() == filled]


def words(axes) -> list[Text]:
    return [text for text in axes.texts if "Mono" in str(text.get_fontfamily())]


def test_tokens_are_shaded_by_activation_over_the_highest_of_their_line_and_the_peak_is_framed():
    axes = plot_feature_contexts([("a", context()), ("b", PIECES, np.array(VALUES) / 100, 7)], title="T").axes[0]
    colours = [activation_colour(share) for share in (0.25, 1.0, 0.5)]
    assert [to_hex(box.get_facecolor()).upper() for box in boxes(axes)] == 2 * colours
    frames = boxes(axes, filled=False)
    assert [(frame.get_x(), frame.get_width()) for frame in frames] == [(9, 7), (25, 3)]
    assert [text.get_text() for text in words(axes) if text.get_fontweight() == "bold"] == [" $ball$", " it"]


def test_a_feature_below_zero_is_blue_and_the_note_says_so():
    def notes(values):
        return plot_feature_contexts([("a", ["x", " y"], values, 0)], title="T").texts[-1].get_text()

    figure = plot_feature_contexts([("a", ["x", " y"], [-2.0, 1.0], 0)], title="T")
    assert to_hex(boxes(figure.axes[0])[0].get_facecolor()).upper() == activation_colour(-1.0)
    assert "blue: below 0" in notes([-2.0, 1.0])
    assert "blue" not in notes([2.0, 1.0])


def test_text_stays_as_it_is_with_line_ends_as_signs_and_every_letter_in_its_box():
    figure = plot_feature_contexts([("a", context(ends=True))], title="T")
    figure.draw_without_rendering()
    shown = words(figure.axes[0])
    assert "".join(text.get_text() for text in shown) == "".join(PIECES).replace("\n", "↵")
    for text, after in itertools.pairwise(shown):
        assert Text.get_window_extent(text).x1 <= Text.get_window_extent(after).x0 + 2  # pixels


def test_a_line_is_cut_around_its_peak_and_marked_where_text_is_left_out():
    row = ("a", context(4, peak=25))
    for width in (20, 40, 60, 90):
        label, cut = excerpt(row, width)
        text = "".join(cut.pieces)
        assert label == "a"
        assert len(text) <= width
        assert cut.pieces[cut.peak] == " $ball$"
        assert cut.activations[cut.peak] == 2.0
        assert len(cut.pieces) == len(cut.activations)
        assert text.startswith("… ")
        assert text.endswith("…")
        assert not text.startswith("…  ")
    before = len("".join(excerpt(row, 60)[1].pieces[: excerpt(row, 60)[1].peak]))
    assert before > 60 - before - len(" $ball$")  # what led to the peak says more than what follows


def test_a_line_is_filled_from_the_side_that_has_text_left():
    first, last = excerpt(("a", context(4, peak=0)), 40)[1], excerpt(("a", context(4, peak=43, ends=True)), 40)[1]
    assert first.pieces[0] == "Tom"
    assert last.pieces[-1] == "."
    for cut in (first, last):
        assert len("".join(cut.pieces)) > 40 - len(" $ball$") - 3


def test_marks_of_omission_stand_where_the_story_goes_on():
    def ends(begins, ends):
        pieces = excerpt(("a", context(begins=begins, ends=ends)), 90)[1].pieces
        return pieces[0].strip() == "…", pieces[-1] == "…"

    assert ends(True, True) == (False, False)
    assert ends(True, False) == (False, True)
    assert ends(False, True) == (True, False)
    plain = excerpt(("a", PIECES, VALUES, 3), 90)[1].pieces
    assert (plain[0], plain[-1]) == ("Tom", ".")


def test_a_token_that_is_longer_than_a_line_is_cut_too():
    cut = excerpt(("a", ["x" * 50, " y"], [1.0, 0.0], 0), 20)[1]
    assert len("".join(cut.pieces)) <= 20
    assert cut.pieces[cut.peak].endswith("x…")


def test_features_that_no_slide_can_show_are_refused():
    row = ("a", context())
    for rows, message in (
        ([], "0 features"),
        ([row] * 11, "11 features; a slide shows 1 to 10"),
        ([("L" * (MAX_LABEL + 1), context())], f"has {MAX_LABEL + 1} characters"),
        ([("a", ["x"], [1.0, 2.0], 0)], "'a' has 1 pieces and 2 activations"),
        ([("a", ["x"], [1.0], 1)], "the peak of 'a' is 1, but it has 1 pieces"),
        ([("a", [], [], 0)], "the peak of 'a' is 0, but it has 0 pieces"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_feature_contexts(rows, title="T")


def test_bars_are_shares_of_all_features_so_that_with_the_dead_ones_they_add_up_to_one():
    values = densities()
    axes = plot_firing({"TopK": values}, title="T").axes[0]
    shares, edges, _ = axes.patches[0].get_data()
    assert shares.sum() == pytest.approx((values > 0).mean())
    assert edges[0] <= values[values > 0].min()
    assert edges[-1] == 1
    for share, low, high in zip(shares, edges, edges[1:], strict=False):
        assert share == pytest.approx(((values >= low) & (values < high)).mean())
    assert axes.get_xscale() == "log"


def test_the_share_that_never_fires_and_the_median_of_the_others_are_written():
    axes = plot_firing({"TopK": [0.0, 0.001, 0.01, 0.1, 0.0]}, title="T").axes[0]
    assert axes.get_title("left") == "TopK"
    assert axes.get_title("right") == "5 features, 40% never fire, median 1%"
    assert axes.lines[0].get_xdata()[0] == pytest.approx(0.01)
    dead = plot_firing({"a": [0.0, 0.0]}, title="T").axes[0]
    assert dead.get_title("right") == "2 features, 100% never fire"
    assert not dead.lines


def test_arms_stand_below_each_other_on_the_same_axes():
    figure = plot_firing({"a": densities(), "b": densities(50, 1) / 10}, title="T")
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim() == second.get_ylim()
    assert (first.patches[0].get_data().edges == second.patches[0].get_data().edges).all()
    assert first.patches[0].get_facecolor() != second.patches[0].get_facecolor()


def test_a_feature_that_fires_at_every_token_is_counted():
    assert plot_firing({"a": [1.0, 1.0]}, title="T").axes[0].patches[0].get_data().values.sum() == 1


def test_densities_that_are_none_are_refused():
    for arms, message in (
        ({}, "0 arms; a slide shows 1 to 4"),
        ({str(i): [0.1] for i in range(5)}, "5 arms"),
        ({"a": []}, r"a has densities of shape \(0,\)"),
        ({"a": [[0.1]]}, r"a has densities of shape \(1, 1\)"),
        ({"a": [0.1, 1.5]}, r"a has a density of \[1\.5\]; a share of tokens is 0 to 1"),
        ({"a": [float("nan")]}, "a has a density of"),
        ({"a" * 35: [0.1]}, "has 35 characters; at most 34 fit"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_firing(arms, title="T")


def test_a_figure_needs_a_title():
    for draw in (
        lambda: plot_feature_contexts([("a", context())], title=" "),
        lambda: plot_firing({"a": [0.1]}, title=" "),
    ):
        with pytest.raises(ValueError, match="title is empty"):
            draw()
