"""Figures for the arms of an experiment: one colour, line and mark an arm, with 95% intervals over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from picollm_core.config import require
from picollm_core.figure_style import INK, QUIET, EndLabel, label_ends, new_figure, use_style
from picollm_core.plots import draw_floors, require_columns

# Okabe & Ito's colours in an order that keeps neighbours apart, each with a line and a mark of its own
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#8E5A99", "#B07A00", "#3C3C3C", "#56B4E9", "#CC79A7")
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 3)), "-", (0, (5, 2)), "-")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
INTERVAL = "95% interval of the mean over seeds"


def arm_look(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, linestyle and marker of every arm, in the order given. ValueError for more arms than there are."""
    require(
        len(names) <= len(COLOURS),
        f"{len(names)} arms; at most {len(COLOURS)} can be told apart, so draw fewer at once",
    )
    return {
        name: {"color": colour, "linestyle": line, "marker": mark}
        for name, colour, line, mark in zip(names, COLOURS, LINES, MARKS, strict=False)
    }


def mean_interval(samples: Sequence[float]) -> tuple[float, float, float]:
    """Mean of one value a seed and the ends of Student's 95% interval, which are NaN for one seed."""
    from scipy import stats  # slow to import and needed nowhere else

    sample = np.asarray(samples, dtype=float)
    mean, count = float(sample.mean()), len(sample)
    if count < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, count - 1) * sample.std(ddof=1) / count**0.5)
    return mean, mean - half, mean + half


def summarise_arms(table: pd.DataFrame, y: str, x: str | None = None) -> pd.DataFrame:
    """Columns arm, x (where given), mean, low, high and seeds of `y` over the seeds of every arm (and every x).

    `table` is tidy: arm, seed, y (and x), one row each; missing values of y are left out. Arms keep their order.
    Raises ValueError for missing columns and an empty table.
    """
    keys = ["arm"] if x is None else ["arm", x]
    require_columns(table, [*keys, "seed", y])
    rows = [
        (*(key if isinstance(key, tuple) else (key,)), *mean_interval(own[y].tolist()), own["seed"].nunique())
        for key, own in table.dropna(subset=[y]).groupby(keys, sort=False)
    ]
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high", "seeds"])


def _plain(value: float, _: int) -> str:
    return f"{value:g}"


def _number_powers(axis: Axis, means: pd.Series) -> None:
    """Plain numbers on a logarithmic axis: a few to read however little it spans, powers of ten where more crowd."""
    span = means.max() / means.min()
    subs = (1, 1.5, 2, 3, 4, 5, 7) if span < 5 else (1, 2, 3, 5) if span < 30 else (1, 2, 5) if span < 300 else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_plain))


def plot_arm_lines(
    table: pd.DataFrame,
    x: str,
    y: str,
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    marks: Mapping[str, float] | None = None,
    floors: Mapping[str, float] | None = None,
    y_limits: tuple[float, float] | None = None,
) -> Figure:
    """Mean of `y` against `x` for every arm in a band of its 95% interval over seeds; arms are named at their ends.

    `table` is tidy: columns arm, seed, x, y. `marks` become labelled vertical lines at places on x, `floors` labelled
    horizontal ones. Up to 20 places on x are shown as marks too; with `log_x` they become the ticks. An arm of one
    seed has no band. `y_limits` cuts the view. Raises ValueError for missing columns, no rows, and too many arms.
    """
    summary = summarise_arms(table, y, x)
    look = arm_look(list(dict.fromkeys(summary["arm"])))
    with use_style():
        figure, axes = new_figure(title)
        labels: list[EndLabel] = []
        for arm, own in summary.groupby("arm", sort=False):
            own, style = own.sort_values(x), dict(look[str(arm)])
            if len(own) > 20:
                style.pop("marker")
            axes.plot(own[x], own["mean"], markersize=9, **style)
            axes.fill_between(own[x], own["low"], own["high"], color=style["color"], alpha=0.2, linewidth=0)
            labels.append(EndLabel(str(arm), own[x].iloc[-1], own["mean"].iloc[-1], style["color"]))
        if log_x:
            axes.set_xscale("log", base=2)
        if log_y:
            axes.set_yscale("log")
            _number_powers(axes.yaxis, summary["mean"])
        if log_x and summary[x].nunique() <= 12:
            axes.set_xticks(sorted(summary[x].unique()))
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        if y_limits is not None:
            axes.set_ylim(*y_limits)
        for text, place in (marks or {}).items():
            axes.axvline(place, color=QUIET, linewidth=1.5, linestyle=(0, (2, 2)))
            axes.annotate(text, (place, 0.985), xycoords=("data", "axes fraction"), xytext=(6, 0),
                          textcoords="offset points", va="top", color=INK, fontsize=15)  # fmt: skip
        label_ends(axes, labels + draw_floors(axes, floors or {}))
        axes.set_xlabel(x_label, parse_math=False)
        axes.set_ylabel(y_label, parse_math=False)
        _legend(axes, summary["seeds"])
    return figure


def _legend(axes: Any, seeds: pd.Series, **place: Any) -> None:
    if seeds.max() < 2:
        return
    count = f"{seeds.max()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    handles = [Line2D([], [], color=INK, lw=3), Patch(color=INK, alpha=0.2, linewidth=0)]
    frame = {"frameon": True, "framealpha": 0.9, "edgecolor": "none", "fontsize": 14}
    axes.legend(handles, [f"mean of {count} seeds", INTERVAL], **({"loc": "best"} | frame | place))


def plot_arm_intervals(
    table: pd.DataFrame, y: str, *, title: str, label: str, floors: Mapping[str, float] | None = None
) -> Figure:
    """One row an arm, the first on top: every seed as a pale dot, the mean and its 95% interval, and the mean as text.

    `table` is tidy: columns arm, seed, y. `label` explains y with its unit; `floors` become labelled vertical lines.
    Raises ValueError for missing columns, no rows, and too many arms.
    """
    summary = summarise_arms(table, y)
    look = arm_look(list(summary["arm"]))
    with use_style():
        figure, axes = new_figure(title)
        for row, (_, own) in enumerate(summary.iterrows()):
            colour, marker = look[own["arm"]]["color"], look[own["arm"]]["marker"]
            seeds = table.loc[table["arm"] == own["arm"], y].dropna()
            axes.plot(seeds, [row] * len(seeds), "o", color=colour, alpha=0.3, markersize=10, markeredgewidth=0)
            if own["seeds"] > 1:
                axes.plot([own["low"], own["high"]], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
            axes.plot(own["mean"], row, marker, color=colour, markersize=13)
            axes.annotate(f"{own['mean']:.4g}", (own["mean"], row), xytext=(0, 13), textcoords="offset points",
                          ha="center", color=INK, fontsize=16, fontweight="bold")  # fmt: skip
        for text, place in (floors or {}).items():
            axes.axvline(place, color=QUIET, linewidth=1.5, linestyle=(0, (4, 3)))
            axes.annotate(text, (place, 0.01), xycoords=("data", "axes fraction"), xytext=(6, 0),
                          textcoords="offset points", va="bottom", color=INK, fontsize=15)  # fmt: skip
        axes.set_yticks(range(len(summary)), [str(name) for name in summary["arm"]], parse_math=False)
        axes.set_ylim(len(summary) - 0.5, -0.7)
        axes.margins(x=0.08)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        bars = "dots are seeds, bars the 95% interval of their mean" if summary["seeds"].max() > 1 else "one seed"
        axes.set_xlabel(f"{label}\n{bars}", parse_math=False)
    return figure
