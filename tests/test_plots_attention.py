"""Figures about attention can be read, show what they were given, and refuse what they cannot show honestly."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from picollm_core.figure_style import FAMILY_COLOURS
from picollm_core.plots_attention import plot_attention_heads, plot_decoding_times, plot_input_gradients
from tests.legible import assert_legible, visible

TOKENS = ["<start>", "Once", " upon", " a", " time", " there", " was", " a", " $girl$", " because", "."]


def patterns(n_layer=2, n_head=2, length=11) -> np.ndarray:
    weights = np.tril(np.random.default_rng(0).random((n_layer, n_head, length, length)) ** 4)
    return weights / weights.sum(-1, keepdims=True)


def gradients(time=9, batch=2) -> np.ndarray:
    values = np.zeros((time, batch, time))
    values[:, 0] = np.tril(10 ** np.random.default_rng(0).uniform(-2, 1, (time, time)))
    return values


def times() -> pd.DataFrame:
    rows = [(n, "from the state", 2.0, 1.9, 2.1) for n in (16, 256)]
    rows += [(n, "whole text again", n / 8, n / 9, n / 7) for n in (256, 16)]
    return pd.DataFrame(rows, columns=["length", "way", "milliseconds", "low", "high"])


FIGURES = {
    "heads": lambda: plot_attention_heads(patterns(), TOKENS, title="T", focus=(2, 1), note="on 50 stories"),
    "one head": lambda: plot_attention_heads(patterns(1, 1), TOKENS, title="T"),
    "six by six": lambda: plot_attention_heads(patterns(6, 6), TOKENS, title="T" * 90),
    "twelve by twelve": lambda: plot_attention_heads(patterns(12, 12), TOKENS, title="T"),
    "gradients": lambda: plot_input_gradients(gradients(), title="T"),
    "long gradients": lambda: plot_input_gradients(gradients(40, 3), title="T"),
    "times": lambda: plot_decoding_times(times(), title="T"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_texts_are_large_stay_on_the_page_and_do_not_overlap(name):
    assert_legible(FIGURES[name]())


def test_every_head_is_drawn_with_its_own_weights_and_later_tokens_are_no_weights():
    figure = plot_attention_heads(patterns(2, 3), TOKENS, title="T", focus=(2, 3))
    drawn = [image.get_array() for axes in figure.findobj(Axes) for image in axes.images]
    wanted = patterns(2, 3)
    assert len(drawn) == 7  # six small and one large
    for weights in wanted.reshape(6, len(TOKENS), -1):
        assert any(np.allclose(np.tril(image.filled(0)), weights) for image in drawn)
    assert sum(np.allclose(image.filled(0), wanted[1, 2]) for image in drawn) == 2  # the large one is the focus
    assert all(np.array_equal(image.mask, np.triu(np.ones_like(wanted[0, 0]), 1)) for image in drawn)


def test_tokens_stand_on_both_axes_as_they_are_with_spaces_that_show():
    shown = [text.get_text() for text in visible(plot_attention_heads(patterns(), TOKENS, title="T", note="on 9"))]
    for token in ("<start>", "␣upon", "␣$girl$"):
        assert shown.count(token) == 2
    assert "layer 1, head 1" in shown
    assert any(text.endswith("\non 9") for text in shown)


def test_the_map_of_the_focus_has_a_frame_of_another_colour():
    figure = plot_attention_heads(patterns(), TOKENS, title="T", focus=(2, 1))
    frames = [to_hex(axes.spines["top"].get_edgecolor()).upper() for axes in figure.findobj(Axes)]
    assert frames.count(FAMILY_COLOURS["kgram"]) == 1


def test_weights_that_were_rounded_are_accepted_and_other_numbers_are_not():
    plot_attention_heads(patterns().round(3).tolist(), TOKENS, title="T")
    with pytest.raises(ValueError, match="not attention weights"):
        plot_attention_heads(patterns() * 2, TOKENS, title="T")
    with pytest.raises(ValueError, match="not attention weights"):
        plot_attention_heads(np.where(patterns() > 0.5, -patterns(), patterns()), TOKENS, title="T")


def test_what_does_not_fit_together_or_on_a_slide_is_refused():
    with pytest.raises(ValueError, match=r"do not go with 2 tokens"):
        plot_attention_heads(patterns(), TOKENS[:2], title="T")
    with pytest.raises(ValueError, match="focus is layer 3, head 1; there are 2 layers of 2 heads"):
        plot_attention_heads(patterns(), TOKENS, title="T", focus=(3, 1))
    with pytest.raises(ValueError, match="at most 12 each way"):
        plot_attention_heads(patterns(13, 1), TOKENS, title="T")
    with pytest.raises(ValueError, match="20 tokens"):
        plot_attention_heads(patterns(1, 1, 21), ["a"] * 21, title="T")


def test_exact_zeros_of_a_gradient_are_left_out_and_counted():
    figure = plot_input_gradients(gradients(), title="T")
    own, other = (axes.images[0].get_array() for axes in figure.axes[:2])
    assert np.array_equal(own.mask, np.triu(np.ones((9, 9)), 1))
    assert other.mask.all()
    shown = [text.get_text() for text in visible(figure)]
    assert {"its own story\n36 of 81 exactly 0", "another story of the batch\n81 of 81 exactly 0"} <= set(shown)


def test_gradients_of_another_shape_or_without_any_effect_are_refused():
    with pytest.raises(ValueError, match=r"\(9, 2, 9\) with row 2"):
        plot_input_gradients(gradients(), title="T", row=2)
    with pytest.raises(ValueError, match=r"give \(T, B, T\)"):
        plot_input_gradients(gradients()[:4], title="T")
    with pytest.raises(ValueError, match="every gradient is zero"):
        plot_input_gradients(np.zeros((3, 1, 3)), title="T")


def test_times_start_at_zero_and_each_way_is_a_named_line_in_order_of_length():
    axes = plot_decoding_times(times(), title="T").axes[0]
    assert axes.get_ylim()[0] == 0
    assert [line.get_xdata().tolist() for line in axes.lines] == [[16, 256], [16, 256]]
    assert axes.lines[1].get_ydata().tolist() == [2, 32]
    assert {"from the state", "whole text again"} <= {text.get_text() for text in axes.texts}
    assert len(axes.collections) == 2  # a band each


def test_times_without_their_columns_or_with_a_third_way_are_refused():
    with pytest.raises(ValueError, match="no column high"):
        plot_decoding_times(times().drop(columns="high"), title="T")
    third = times().assign(way=["a", "b", "c", "c"])
    with pytest.raises(ValueError, match="3 ways"):
        plot_decoding_times(third, title="T")
