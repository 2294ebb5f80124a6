"""Figures about memories show what they were given, and refuse what a slide cannot show."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from picollm_core.figure_style import SIZE_INCHES
from picollm_core.plots_mixers import SIGNED, plot_half_lives, plot_signed_maps
from tests.legible import visible

TOKENS = ["<start>", "Tom", " had", " a", " $ball$", "."]
FOCUS = {"softmax": 1, "GLA": 2}


def maps(length=6, heads=2):
    found = np.random.default_rng(0).normal(size=(2, heads, length, length)) / length
    return {"softmax": np.tril(np.abs(found[0])), "GLA": np.tril(found[1]).tolist()}


def lives():
    rows = [(mixer, 1, head, 3.0, 9.0, 700.0, 16.0) for mixer in ("GLA", "DeltaNet") for head in (1, 2)]
    return pd.DataFrame(rows, columns=["mixer", "layer", "head", "low", "median", "high", "start"])


def images(figure):
    return [axes.images[0] for axes in figure.axes if axes.images]


def test_every_head_is_drawn_and_the_one_in_focus_twice():
    figure = plot_signed_maps(maps(), TOKENS, title="T", focus=FOCUS)
    assert tuple(figure.get_size_inches()) == SIZE_INCHES
    drawn = [image.get_array() for image in images(figure)]
    assert len(drawn) == 2 + 4
    softmax, gla = (np.asarray(own) for own in maps().values())
    for found, own in zip(drawn, [softmax[0], softmax[0], softmax[1], gla[1], gla[0], gla[1]], strict=True):
        assert np.allclose(found.filled(0), own)
        assert found.mask.tolist() == np.triu(np.ones_like(own, dtype=bool), 1).tolist(), "later tokens are left out"


def test_zero_is_white_and_signs_have_colours_of_their_own_on_one_scale():
    figure = plot_signed_maps(maps(), TOKENS, title="T", focus=FOCUS, largest=0.4)
    assert {(image.norm.vmin, image.norm.vmax) for image in images(figure)} == {(-0.4, 0.4)}
    assert min(SIGNED(0.5)[:3]) > 0.99
    assert len({to_hex(SIGNED(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)}) == 5


def test_tokens_and_names_can_be_read():
    said = [text.get_text() for text in visible(plot_signed_maps(maps(), TOKENS, title="T", focus=FOCUS))]
    assert {"softmax, head 1", "GLA, head 2", "<start>", "Tom", "␣$ball$", "token that reads"} <= set(said)
    assert said.count("Tom") == 3, "on both axes of the first large map and below the second"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"maps": {}}, "0 mixers"),
        ({"maps": dict.fromkeys("abcde", np.eye(6)[None])}, "5 mixers"),
        ({"tokens": ["a"] * 17}, "17 tokens"),
        ({"tokens": TOKENS[:5]}, r"shape \(2, 6, 6\)"),
        ({"maps": maps(heads=7), "focus": FOCUS}, r"heads up to 6"),
        ({"focus": {"softmax": 3, "GLA": 1}}, "softmax is 3; it has heads 1 to 2"),
        ({"focus": {"softmax": 1}}, "GLA is 0"),
    ],
)
def test_maps_that_a_slide_cannot_show_are_refused(changes, said):
    given = {"maps": maps(), "tokens": TOKENS, "title": "T", "focus": FOCUS} | changes
    with pytest.raises(ValueError, match=said):
        plot_signed_maps(given.pop("maps"), given.pop("tokens"), **given)


def test_half_lives_show_median_range_and_start_of_every_head():
    figure = plot_half_lives(lives(), title="T")
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    lines = [line.get_xdata() for line in axes.lines]
    assert [list(map(float, np.atleast_1d(x))) for x in lines] == [[3, 700], [9], [16]] * 4
    said = [text.get_text() for text in visible(figure)]
    assert {"GLA, layer 1, head 1", "DeltaNet, layer 1, head 2", "10", "500", "median before training"} <= set(said)
    assert len({axes.lines[row].get_color() for row in (1, 10)}) == 2, "mixers have colours of their own"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (lives().drop(columns="start"), "start"),
        (lives()[:0], "table is empty"),
        (pd.concat([lives()] * 6), "24 heads"),
        (lives().assign(low=0.0), "shortest half-life is 0"),
        (lives().assign(start=float("nan")), "half-life"),
    ],
)
def test_half_lives_that_cannot_be_drawn_are_refused(table, said):
    with pytest.raises(ValueError, match=said):
        plot_half_lives(table, title="T")


def test_lives_over_many_decades_are_numbered_by_powers_of_ten_alone():
    narrow, wide = lives(), lives()
    wide.loc[0, "high"] = 600_000.0
    for table, steps in ((narrow, {2.0, 2.5}), (wide, {10.0})):
        figure = plot_half_lives(table, title="T")
        figure.canvas.draw()
        low, high = figure.axes[0].get_xlim()
        places = [place for place in figure.axes[0].get_xticks() if low <= place <= high]
        assert {round(b / a, 1) for a, b in itertools.pairwise(places)} == steps
    assert "600,000" not in [label.get_text() for label in figure.axes[0].get_xticklabels()]
