"""The figures about norms show what they are given and refuse what a logarithmic axis or a cell cannot hold."""

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from picollm_core.figure_style import SIZE_INCHES, TEXT_POINTS
from picollm_core.plots_arms import arm_look
from picollm_core.plots_norms import DIVERGED, plot_gradient_panels, plot_rate_maps

PANELS = {"title": "T", "x_label": "layers", "y_label": "gradient norm"}
MAPS = {"title": "T", "floor": 6.0, "value_label": "nats per token", "row_label": "rate", "column_label": "warm-up"}


def gradients(seeds=3, panels=("paper", "ours")) -> pd.DataFrame:
    rows = [
        (panel, arm, seed, depth, (1 + place) * depth**power * (1 + seed / 10))
        for place, panel in enumerate(panels)
        for arm, power in (("pre", -0.5), ("post", 0.0))
        for seed in range(seeds)
        for depth in (2, 8, 32)
    ]
    return pd.DataFrame(rows, columns=["panel", "arm", "seed", "depth", "gradient"])


def gradient_panels(table=None, **settings):
    return plot_gradient_panels(gradients() if table is None else table, "depth", "gradient", **(PANELS | settings))


def cells(**changes) -> pd.DataFrame:
    rows = [
        (p, r, w, 5.0 + y, "learns")
        for p in ("pre", "post")
        for y, r in enumerate(("0.01", "0.1"))
        for w in ("0%", "50%")
    ]
    table = pd.DataFrame(rows, columns=["panel", "row", "column", "value", "outcome"])
    table.loc[2, ["value", "outcome"]] = [float("nan"), "diverged"]
    return table.assign(**changes)


def boxes(axes, filled=True):
    return [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_fill() == filled]


def test_every_panel_has_a_line_of_means_an_arm_on_a_common_axis():
    figure = gradient_panels()
    left, right = figure.axes
    assert [axes.get_title(loc="left") for axes in (left, right)] == ["paper", "ours"]
    assert left.get_yscale() == "log"
    assert left.get_ylim() == right.get_ylim()
    pre, post = left.lines
    assert pre.get_ydata().tolist() == pytest.approx([1.1 * depth**-0.5 for depth in (2, 8, 32)])
    assert post.get_ydata().tolist() == pytest.approx([1.1] * 3)
    assert (pre.get_color(), post.get_color()) == tuple(look["color"] for look in arm_look(["pre", "post"]).values())
    assert len(left.collections) == 2  # bands of the intervals
    assert tuple(figure.get_size_inches()) == SIZE_INCHES


def test_the_guide_has_the_slope_it_is_named_for_and_makes_both_axes_logarithmic():
    figure = gradient_panels(slope=-0.5)
    for axes in figure.axes:
        guide = axes.lines[-1].get_ydata()
        assert guide[-1] / guide[0] == pytest.approx((32 / 2) ** -0.5)
        assert axes.get_xscale() == "log"
        assert axes.get_xticks().tolist() == [2, 8, 32]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named[:3] == ["pre", "post", "slope -0.5"]
    assert "95% interval" in named[3]
    assert "(3)" in named[3]


def test_one_seed_has_no_interval_and_the_legend_says_none():
    figure = gradient_panels(gradients(seeds=1))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pre", "post"]


def test_gradients_that_no_logarithm_takes_and_too_many_panels_are_refused():
    with pytest.raises(ValueError, match="the least value is 0;"):
        gradient_panels(gradients().replace({"seed": {1: 0}}).assign(gradient=0.0))
    with pytest.raises(ValueError, match="4 panels; a slide shows at most 3"):
        gradient_panels(gradients(panels=("a", "b", "c", "d")))
    with pytest.raises(ValueError, match="no column panel"):
        gradient_panels(gradients().drop(columns="panel"))


def test_every_cell_stands_in_its_place_with_its_loss_or_the_word_diverged():
    figure = plot_rate_maps(cells(), **MAPS)
    left, right = figure.axes
    assert {text.get_position(): text.get_text() for text in left.texts} == {
        (0, 0): "5.00",
        (1, 0): "5.00",
        (0, 1): "diverged",
        (1, 1): "6.00",
    }
    assert [label.get_text() for label in left.get_yticklabels()] == ["0.01", "0.1"]
    assert [label.get_text() for label in right.get_xticklabels()] == ["0%", "50%"]
    assert min(text.get_fontsize() for axes in figure.axes for text in axes.texts) >= TEXT_POINTS - 1
    assert "6.00" in figure.get_supxlabel()


def test_shade_is_the_depth_below_word_frequencies_and_orange_is_diverged():
    left, right = plot_rate_maps(cells(), **MAPS).axes
    colours = [to_hex(box.get_facecolor()) for box in boxes(left)]
    assert colours[2] == DIVERGED.lower()
    low, at_the_floor = boxes(right)[0].get_facecolor(), boxes(right)[2].get_facecolor()
    assert sum(low[:3]) < sum(at_the_floor[:3])
    above = plot_rate_maps(cells().assign(value=lambda t: t.value + 9), **MAPS).axes[1]
    assert len({box.get_facecolor() for box in boxes(above)}) == 1  # nothing below the floor: nothing to shade
    assert len(boxes(left, filled=False)) == 2  # a tie: both lowest cells


def test_a_map_in_which_all_diverged_is_drawn_without_a_best():
    figure = plot_rate_maps(cells(outcome="diverged"), **MAPS)
    assert {text.get_text() for axes in figure.axes for text in axes.texts} == {"diverged"}
    assert not boxes(figure.axes[0], filled=False)


def test_cells_that_cannot_be_shown_are_refused():
    with pytest.raises(ValueError, match="1 cells have no finite value"):
        plot_rate_maps(cells(outcome="stuck"), **MAPS)
    with pytest.raises(ValueError, match="4 cells occur twice"):
        plot_rate_maps(cells(panel="pre"), **MAPS)
    with pytest.raises(ValueError, match="no column outcome"):
        plot_rate_maps(cells().drop(columns="outcome"), **MAPS)
