"""Figures of arms: the numbers that are drawn, the intervals, the looks, and bad tables."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from picollm_core.figure_style import save_figure
from picollm_core.plots_arms import (
    COLOURS,
    arm_look,
    mean_interval,
    plot_arm_intervals,
    plot_arm_lines,
    summarise_arms,
)


def table(seeds: int = 3, arms=("RoPE", "ALiBi", "none")) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = [(arm, s, x, 3 - i - 0.01 * x + 0.1 * generator.normal())
            for i, arm in enumerate(arms) for s in range(seeds) for x in (16, 32, 64)]  # fmt: skip
    return pd.DataFrame(rows, columns=["arm", "seed", "length", "loss"])


def texts(figure) -> str:
    return "\n".join(text.get_text() for axes in figure.axes for text in [*axes.texts, axes.xaxis.label])


def test_the_interval_is_student_s_and_absent_for_one_seed():
    values = [1.0, 2.0, 4.0]
    mean, low, high = mean_interval(values)
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (mean, low, high) == pytest.approx((7 / 3, *expected))
    one = mean_interval([5.0])
    assert one[0] == 5
    assert math.isnan(one[1])
    assert math.isnan(one[2])


def test_summaries_have_a_row_an_arm_and_place_in_the_order_given():
    summary = summarise_arms(table(), "loss", "length")
    assert summary["arm"].drop_duplicates().tolist() == ["RoPE", "ALiBi", "none"]
    assert len(summary) == 9
    assert set(summary["seeds"]) == {3}
    own = table().query("arm == 'ALiBi' and length == 32")["loss"]
    row = summary.query("arm == 'ALiBi' and length == 32").iloc[0]
    assert (row["mean"], row["low"], row["high"]) == pytest.approx(mean_interval(own.tolist()))


def test_missing_values_are_left_out_of_a_mean():
    data = table()
    data.loc[0, "loss"] = float("nan")
    summary = summarise_arms(data, "loss", "length").set_index(["arm", "length"])
    assert (summary.loc[("RoPE", 16), "seeds"], summary.loc[("RoPE", 32), "seeds"]) == (2, 3)


def test_lines_are_the_means_in_distinct_looks_with_bands_and_names_at_their_ends():
    figure = plot_arm_lines(
        table(), "length", "loss", title="T", x_label="tokens", y_label="nats", log_x=True, marks={"trained": 32}
    )
    (axes,) = figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    summary = summarise_arms(table(), "loss", "length")
    for line, (_, own) in zip(lines, summary.groupby("arm", sort=False), strict=True):
        assert line.get_ydata() == pytest.approx(own["mean"].to_numpy())
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}) == 3
    assert len(axes.collections) == 3
    assert all(name in texts(figure) for name in ("RoPE", "ALiBi", "none", "trained"))
    assert [tick for tick in axes.get_xticks() if tick in (16, 32, 64)] == [16, 32, 64]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["mean of 3 seeds", "95% interval of the mean over seeds"]


def test_one_seed_has_no_legend_for_an_interval_that_is_not_there():
    assert plot_arm_lines(table(1), "length", "loss", title="T", x_label="x", y_label="y").axes[0].get_legend() is None
    figure = plot_arm_intervals(table(1).query("length == 16"), "loss", title="T", label="nats")
    assert "one seed" in texts(figure)


def test_a_logarithmic_axis_of_less_than_a_decade_still_has_numbers():
    figure = plot_arm_lines(table(arms=("a",)), "length", "loss", title="T", x_label="x", y_label="y", log_y=True)
    figure.canvas.draw()
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels(which="both")]
    assert sum(bool(label) for label in labels) >= 2
    assert not any("$" in label for label in labels)


def test_intervals_show_every_seed_the_mean_and_the_floor():
    data = table(5).query("length == 64")
    figure = plot_arm_intervals(data, "loss", title="T", label="bits per byte", floors={"counting": 1.5})
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["RoPE", "ALiBi", "none"]
    shown = texts(figure)
    for mean in summarise_arms(data, "loss")["mean"]:
        assert f"{mean:.4g}" in shown
    assert "counting" in shown
    assert "95% interval" in shown
    dots = [line for line in axes.lines if len(line.get_xdata()) == 5]
    assert len(dots) == 3


def test_figures_can_be_saved(tmp_path):
    figure = plot_arm_lines(table(), "length", "loss", title="T", x_label="x", y_label="y", floors={"counts": 1.0})
    assert len(save_figure(figure, "lines", tmp_path)) == 3


def test_more_arms_than_looks_are_refused():
    names = [f"arm {i}" for i in range(len(COLOURS) + 1)]
    with pytest.raises(ValueError, match=f"{len(names)} arms; at most {len(COLOURS)} can be told apart"):
        arm_look(names)


@pytest.mark.parametrize("draw", [plot_arm_lines, plot_arm_intervals])
def test_tables_without_the_columns_or_rows_are_refused(draw):
    labels = {"label": "y"} if draw is plot_arm_intervals else {"x": "length", "x_label": "x", "y_label": "y"}
    with pytest.raises(ValueError, match="seed"):
        draw(table().drop(columns="seed"), y="loss", title="T", **labels)
    with pytest.raises(ValueError, match=r"no rows|empty"):
        draw(table().iloc[:0], y="loss", title="T", **labels)


@pytest.mark.parametrize(("low", "high", "shown"), [(0.4, 4.4, 4), (3.0, 7.0, 3), (2e-3, 900.0, 5)])
def test_a_logarithmic_axis_has_numbers_to_read(low, high, shown):
    table = pd.DataFrame({"arm": "a", "seed": 0, "x": [1, 2, 3], "y": [low, (low * high) ** 0.5, high]})
    axes = plot_arm_lines(table, "x", "y", title="t", x_label="x", y_label="y", log_y=True).axes[0]
    bottom, top = axes.get_ylim()
    places = [place for place in axes.yaxis.get_majorticklocs() if bottom <= place <= top]
    assert len([text for text in axes.yaxis.get_major_formatter().format_ticks(places) if text]) >= shown
