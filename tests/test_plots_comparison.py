"""Bands over seeds and named points: what is drawn is what the table says, and can be read."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from picollm_core.figure_style import FAMILY_COLOURS
from picollm_core.plots_comparison import INTERVAL, RANGE, plot_bands, plot_scatter
from tests.test_plots import texts, visible

ENDS = {"kgram": 3.3, "lstm": 3.2, "transformer": 3.0}


def history(seeds: int = 3, families=("kgram", "lstm", "transformer")) -> pd.DataFrame:
    """Loss curves that fall to the family's end plus 0.1 times the seed, measured at every tenth step."""
    step = np.arange(1, 101)
    rows = []
    for family, seed in itertools.product(families, range(seeds)):
        loss = np.where(step % 10 == 0, ENDS[family] + 0.1 * seed + 5 * np.exp(-step / 8), np.nan)
        columns = {"run": f"{family} pico", "family": family, "seed": seed, "step": step, "tokens": step * 4096}
        rows.append(pd.DataFrame(columns | {"val_loss": loss}))
    return pd.concat(rows, ignore_index=True)


def points(**changes) -> pd.DataFrame:
    table = {
        "model": ["pico", "tiny", "small", "pico"],
        "family": ["lstm", "lstm", "lstm", "kgram"],
        "parameters": [270e3, 550e3, 2.9e6, 266e3],
        "bits": [1.06, 1.0, 0.9, 1.061],
        "low": [1.05, 0.99, 0.89, 1.05],
        "high": [1.07, 1.01, 0.91, 1.07],
    }
    return pd.DataFrame(table | changes)


def scatter(table=None, **changes) -> Figure:
    arguments = {"title": "T", "x_label": "weights", "y_label": "bits per byte"} | changes
    return plot_scatter(points() if table is None else table, "parameters", "bits", **arguments)


CROWD = points(
    model=[f"model number {i}" for i in range(4)],
    parameters=[300e3, 301e3, 302e3, 303e3],
    bits=[1.0, 1.001, 1.0, 1.001],
)
FIGURES = {
    "bands": lambda: plot_bands(history(), title="T", floors={"counting 4-grams": 3.1, "unigram": 5.5}),
    "one seed": lambda: plot_bands(history(seeds=1), title="T"),
    "scatter": lambda: scatter(interval=("low", "high"), interval_means="95%", floors={"counting": 0.97}),
    "crowd": lambda: scatter(CROWD, connect=False),
    "linear": lambda: scatter(log_x=False),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_is_large_enough_on_the_page_and_covers_no_other(name):
    figure = FIGURES[name]()
    boxes = {text: Text.get_window_extent(text) for text in visible(figure)}
    page = figure.bbox
    for text, box in boxes.items():
        assert text.get_fontsize() >= 14
        assert page.x0 <= box.x0 < box.x1 <= page.x1, text
        assert page.y0 <= box.y0 < box.y1 <= page.y1, text
    for (a, box_a), (b, box_b) in itertools.combinations(boxes.items(), 2):
        assert not box_a.padded(-2).overlaps(box_b), (a, b)


def test_line_is_the_mean_over_seeds_and_band_their_range():
    axes = plot_bands(history(), title="T").axes[0]
    line = next(line for line in axes.lines if to_hex(line.get_color()).upper() == FAMILY_COLOURS["lstm"])
    assert len(line.get_xdata()) == 10, "only where it was measured"
    assert line.get_ydata()[-1] == pytest.approx(3.2 + 0.1, abs=1e-3)
    band = axes.collections[1].get_paths()[0].vertices
    last = band[np.isclose(band[:, 0], 100 * 4096)][:, 1]
    assert (last.min(), last.max()) == pytest.approx((3.2, 3.4), abs=1e-3)


def test_interval_is_students_and_the_legend_says_so():
    figure = plot_bands(history(), title="T", band_means=INTERVAL)
    band = figure.axes[0].collections[1].get_paths()[0].vertices
    last = band[np.isclose(band[:, 0], 100 * 4096)][:, 1]
    half = 4.302652729911275 * 0.1 / 3**0.5  # t quantile for 2 degrees of freedom
    assert (last.min(), last.max()) == pytest.approx((3.3 - half, 3.3 + half), abs=1e-3)
    assert {"mean of 3 seeds", INTERVAL} <= set(texts(figure))
    assert RANGE in texts(plot_bands(history(), title="T"))


def test_one_seed_has_neither_band_nor_legend():
    axes = plot_bands(history(seeds=1), title="T").axes[0]
    assert len(axes.lines) == 3
    assert not axes.collections
    assert axes.get_legend() is None


def test_runs_may_have_different_numbers_of_seeds():
    table = pd.concat([history(3, ["lstm"]), history(1, ["kgram"])])
    assert "mean of 1 to 3 seeds" in texts(plot_bands(table, title="T"))


def test_floors_are_in_view_and_named_and_the_first_fall_is_not_unless_asked_for():
    figure = plot_bands(history(), title="T", floors={"unigram": 7.0}, x="step")
    low, high = figure.axes[0].get_ylim()
    assert low < 3.0 < 7.0 < high < 8
    assert {"unigram", "lstm pico", "optimiser steps"} <= set(texts(figure))
    assert plot_bands(history(), title="T", y_max=9).axes[0].get_ylim()[1] == 9


def test_seconds_of_seeds_differ_and_are_averaged_point_by_point():
    table = history(2, ["lstm"])
    table["seconds"] = table["step"] * np.where(table["seed"] == 0, 1.0, 3.0)
    line = plot_bands(table, title="T", x="seconds").axes[0].lines[0]
    assert line.get_xdata()[-1] == 200


@pytest.mark.parametrize(
    ("table", "arguments", "message"),
    [
        (history().drop(columns="seed"), {}, "no column seed"),
        (history().iloc[:0], {}, "table is empty"),
        (history(), {"x": "hours"}, "x is 'hours'; choose one of tokens, step, seconds"),
        (history(), {"y": "perplexity"}, "no column perplexity"),
        (history(), {"band_means": "spread"}, "band_means is 'spread'; choose 'range over seeds'"),
        (history().iloc[:-30], {}, "run 'transformer pico' has 10, 10, 7 values of val_loss in its 3 seeds"),
        (history().assign(val_loss=np.nan), {}, "has 0, 0, 0 values of val_loss"),
        (history().assign(family="rnn"), {}, "no colour for family 'rnn'"),
    ],
)
def test_bands_refuse_what_they_cannot_draw(table, arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_bands(table, **{"title": "T"} | arguments)


def test_points_are_named_coloured_and_joined_by_family_in_the_order_of_x():
    axes = scatter(points().iloc[[2, 0, 1, 3]]).axes[0]
    joined = next(line for line in axes.lines if len(line.get_xdata()) == 3 and line.get_linestyle() == "-")
    assert list(joined.get_xdata()) == [270e3, 550e3, 2.9e6]
    names = {(text.get_text(), text.xy): to_hex(text.get_color()).upper() for text in axes.texts}
    assert names["tiny", (550e3, 1.0)] == FAMILY_COLOURS["lstm"]
    assert names["pico", (266e3, 1.061)] == FAMILY_COLOURS["kgram"]
    markers = {line.get_marker() for line in axes.lines if line.get_linestyle() == "None"}
    assert len(markers) == 2, "families differ in more than colour"
    assert not [line for line in scatter(connect=False).axes[0].lines if line.get_linestyle() == "-"]


def test_whiskers_are_defined_on_the_axis_and_missing_where_there_is_no_interval():
    figure = scatter(points(low=[1.05, np.nan, 0.89, 1.05]), interval=("low", "high"), interval_means="95% bootstrap")
    assert "weights; whiskers: 95% bootstrap" in texts(figure)
    spans = sorted(np.ptp(segment[:, 1]) for c in figure.axes[0].collections for segment in c.get_segments())
    assert spans == pytest.approx([0.01, 0.02, 0.02, 0.02])


def test_floors_of_points_are_named_and_in_view():
    figure = scatter(floors={"entropy": 0.5})
    assert "entropy" in texts(figure)
    assert figure.axes[0].get_ylim()[0] < 0.5


def test_one_point_alone_can_be_drawn():
    assert "pico" in texts(scatter(points().iloc[:1]))


@pytest.mark.parametrize(
    ("table", "arguments", "message"),
    [
        (points().drop(columns="bits"), {}, "no column bits"),
        (points().iloc[:0], {}, "table is empty"),
        (points(), {"interval": ("low", "high")}, "interval_means"),
        (points(bits=[1.0, np.nan, 1.0, 1.0]), {}, r"rows without finite \(and positive x\) values: tiny"),
        (points(parameters=[0, 1, 2, 3]), {}, r"positive x\) values: pico"),
        (pd.concat([points()] * 6), {}, "24 points"),
        (points(family="rnn"), {}, "no colour for family 'rnn'"),
    ],
)
def test_points_refuse_what_they_cannot_draw(table, arguments, message):
    with pytest.raises(ValueError, match=message):
        scatter(table, **arguments)


def test_zero_is_a_place_on_a_linear_axis():
    assert scatter(points(parameters=[0, 1, 2, 3]), log_x=False).axes[0].get_xlim()[0] < 0
