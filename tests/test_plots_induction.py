"""The figure of heads that learn to repeat shows every seed, their mean and both losses, on one axis of updates."""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from picollm_core.figure_style import SIZE_INCHES
from picollm_core.plots_arms import arm_look
from picollm_core.plots_induction import SHADE, plot_induction
from tests.legible import visible

STEPS = [0, 100, 200, 300]


def rows(seeds=3, arms=("1 layer", "2 layers")):
    made = [
        (arm, seed, step, place * (step / 400 + seed / 100), 9 - step / 100 - place, math.nan if step == 0 else 5.0)
        for place, arm in enumerate(arms)
        for seed in range(seeds)
        for step in STEPS
    ]
    return pd.DataFrame(made, columns=["arm", "seed", "step", "induction", "second", "loss"])


def thick(axes):
    return [line for line in axes.lines if line.get_linewidth() > 3]


def thin(axes):
    return [line for line in axes.lines if line.get_linewidth() < 2]


def test_every_seed_is_a_thin_line_and_their_mean_a_thick_one():
    figure = plot_induction(rows(), title="T")
    upper, lower = figure.axes
    assert tuple(figure.get_size_inches()) == SIZE_INCHES
    assert (len(thin(upper)), len(thick(upper))) == (6, 2)
    assert (len(thin(lower)), len(thick(lower))) == (12, 4)
    one, two = thick(upper)
    assert one.get_ydata().tolist() == [0] * 4
    assert two.get_ydata().tolist() == pytest.approx([step / 400 + 0.01 for step in STEPS])
    assert [line.get_color() for line in (one, two)] == [look["color"] for look in arm_look(["1", "2"]).values()]
    second, training = thick(lower)[1], thick(lower)[3]
    assert second.get_ydata().tolist() == [8, 7, 6, 5]
    assert training.get_xdata().tolist() == STEPS[1:], "no training loss before the first update"
    assert second.get_linestyle() != training.get_linestyle()


def test_one_seed_has_no_thin_lines_and_the_legend_does_not_promise_them():
    figure = plot_induction(rows(seeds=1), title="T")
    assert not any(thin(axes) for axes in figure.axes)
    assert not any("seeds" in text.get_text() for text in visible(figure))
    assert any("each of 3 seeds" in text.get_text() for text in visible(plot_induction(rows(), title="T")))


def test_arms_are_named_at_their_ends_with_what_is_drawn():
    upper, lower = plot_induction(rows(), title="T").axes
    named = [{text.get_text() for text in axes.texts} for axes in (upper, lower)]
    assert named[0] == {"1 layer", "2 layers"}
    assert named[1] == {f"{arm}: {what}" for arm in ("1 layer", "2 layers") for what in ("2nd copy", "training")}
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("induction score", "loss (nats a token)")
    assert lower.get_xlabel() == "updates"


def test_names_of_lines_that_end_together_stand_apart():
    figure = plot_induction(rows().assign(induction=0.02, second=6.0), title="T")
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = sorted((Text.get_window_extent(text) for text in axes.texts), key=lambda box: box.y0)
        assert all(low.y1 < high.y0 for low, high in pairwise(boxes))


def test_the_span_is_shaded_in_both_panels_and_explained():
    figure = plot_induction(rows(), title="T", span=(120, 180))
    for axes in figure.axes:
        (patch,) = axes.patches
        assert to_hex(patch.get_facecolor()).upper() == SHADE
        assert (patch.get_x(), patch.get_x() + patch.get_width()) == (120, 180)
    assert any(text.get_text() == "losses fall fastest" for text in visible(figure))
    assert not any(axes.patches for axes in plot_induction(rows(), title="T").axes)


def test_the_first_fall_of_the_losses_does_not_flatten_the_rest():
    table = rows()
    table.loc[table["step"] == 0, "second"] = 1_000.0
    upper, lower = plot_induction(table, title="T").axes
    assert lower.get_ylim()[1] < 10
    assert upper.get_ylim()[1] > table["induction"].max()
    assert upper.get_ylim()[1] >= 0.5, "scores near zero must look near zero"
    assert upper.get_xlim() == lower.get_xlim() == (0, 300)


@pytest.mark.parametrize(
    ("table", "settings", "said"),
    [
        (rows().drop(columns="second"), {}, "second"),
        (rows().head(0), {}, "empty"),
        (rows(arms=("a", "b", "c", "d", "e")), {}, "5 arms"),
        (rows(), {"span": (200, 100)}, "from 200 to 100"),
        (rows(), {"title": " "}, "title"),
    ],
)
def test_what_cannot_be_drawn_is_refused(table, settings, said):
    with pytest.raises(ValueError, match=said):
        plot_induction(table, **({"title": "T"} | settings))


def test_a_loss_that_was_not_measured_is_left_out():
    figure = plot_induction(rows().assign(loss=np.nan), title="T")
    assert {text.get_text() for text in figure.axes[1].texts} == {"1 layer: 2nd copy", "2 layers: 2nd copy"}
