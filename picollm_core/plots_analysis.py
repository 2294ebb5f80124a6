"""Figures over many runs: the front of cost and loss, perplexity against accuracy, loss against width by activation.

Tables in (those of `analysis`), a matplotlib Figure out; the caller writes the title, which says the finding. Maps and
residuals are drawn by plots_analysis_maps and can be had from here too.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    EngFormatter,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)

from picollm_core.analysis import correlation_matrix, pareto_front
from picollm_core.config import require
from picollm_core.figure_style import (
    FAMILY_LABELS,
    INK,
    MAX_END_LABELS,
    QUIET,
    TEXT_POINTS,
    family_colour,
    new_figure,
    use_style,
)
from picollm_core.plots import require_columns
from picollm_core.plots_analysis_maps import plot_correlations, plot_heat_maps, plot_residuals, spoken
from picollm_core.plots_arms import INTERVAL, arm_look, summarise_arms
from picollm_core.plots_comparison import MARKERS, label_points

__all__ = [
    "plot_by_activation",
    "plot_correlations",
    "plot_heat_maps",
    "plot_pareto",
    "plot_perplexity_accuracy",
    "plot_residuals",
]

MAX_PANELS = 3
FEW_RUNS = 20
"""Beaten points are drawn paler when there are more."""
ROOM = (150.0, 28.0)
"""Pixels between two points of the front, across or down, from which on both can be named."""
ACTIVATIONS = {"gelu": "GELU", "gelu_tanh": "GELU (tanh)", "relu": "ReLU", "silu": "SiLU", "relu2": "ReLU²",
               "swiglu": "SwiGLU", "swiglu_clamped": "clamped SwiGLU"}  # fmt: skip


def _plain(value: float, _: int) -> str:
    return f"{value:g}"


def _log_axis(axis: Axis, values: np.ndarray) -> None:
    """As many round numbers as there is room for: evenly spaced, some of each decade, or its powers alone."""
    span = float(np.log10(values.max() / values.min()))
    some = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if span < 1.2 else (1.0, 2.0, 5.0) if span < 2.5 else (1.0,)
    axis.set_major_locator(MaxNLocator(6) if span < 0.3 else LogLocator(10, subs=some, numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _finite(table: pd.DataFrame, x: str, y: str) -> tuple[pd.DataFrame, str]:
    """The rows with finite x and y, and a note that says how many were left out."""
    require_columns(table, ["family", x, y])
    known = np.isfinite(table[[x, y]].to_numpy(dtype=float)).all(axis=1)
    require(bool(known.any()), f"none of {len(table)} runs has a finite {x} and {y}; there is nothing to draw")
    least = table.loc[known, x].min()
    require(least > 0, f"the least {x} is {least:g}; a logarithmic axis takes values above 0")
    missing = int((~known).sum())
    note = f"{missing} run{'s' if missing > 1 else ''} without a finite value left out" if missing else ""
    return table[known], note


def _draw_families(axes: Axes, table: pd.DataFrame, x: str, y: str, bold: np.ndarray) -> list[Line2D]:
    """A mark a run in its family's colour and shape, those of `bold` (N,) full and rimmed; handles for a legend."""
    handles = []
    pale = 0.75 if len(table) <= FEW_RUNS else 0.6 if not bold.any() else 0.4
    for family in dict.fromkeys(table["family"]):
        own, colour, marker = (table["family"] == family).to_numpy(), family_colour(family), MARKERS[family]
        for chosen, look in (
            (own & ~bold, {"markersize": 9, "alpha": pale, "markeredgewidth": 0}),
            (own & bold, {"markersize": 13, "markeredgecolor": INK, "markeredgewidth": 1.5, "zorder": 3}),
        ):
            rows = table[chosen]
            axes.plot(rows[x], rows[y], linestyle="None", marker=marker, color=colour, **look)
        label = f"{FAMILY_LABELS[family]} ({own.sum()})"
        handles.append(Line2D([], [], linestyle="None", marker=marker, color=colour, markersize=11, label=label))
    return handles


def _to_name(axes: Axes, front: pd.DataFrame, cost: str, value: str) -> pd.DataFrame:
    """The rows of the front to write a name beside: both ends, then the others that have room, 12 at most."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # pixels mean nothing before the layout stands
    low, high = sorted(axes.get_ylim())
    seen = front[front[value].between(low, high)]
    pixels = axes.transData.transform(seen[[cost, value]].to_numpy(dtype=float))  # (N, 2)
    order = [len(seen) - 1, 0, *range(len(seen) - 2, 0, -1)] if len(seen) > 1 else list(range(len(seen)))
    chosen: list[int] = []
    for place in order:
        apart = np.abs(pixels[chosen] - pixels[place]) >= ROOM
        if apart.any(axis=1).all() and len(chosen) < MAX_END_LABELS:
            chosen.append(place)
    return seen.iloc[sorted(chosen)]


def plot_pareto(
    table: pd.DataFrame,
    cost: str,
    value: str,
    *,
    title: str,
    lower_is_better: bool = True,
    cost_label: str = "",
    value_label: str = "",
    label: str = "shape",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Every run as a mark of its family over its cost (logarithmic), and the front of those that no run beats.

    `table` has a row a run: family, `cost`, `value`, and the names of column `label`, which are written along the front
    where there is room (no names where the column is missing). The front is a staircase: what can be had for at most
    this cost. `limits` cuts the view of `value`. Rows without finite numbers are left out, which is noted. Raises
    ValueError for missing columns, an empty table, an unknown family, and costs that are not above 0.
    """
    known, note = _finite(table, cost, value)
    on_front = pareto_front(known, cost, value, lower_is_better).to_numpy()
    front = known[on_front].sort_values([cost, value])
    with use_style():
        figure, axes = new_figure(title)
        axes.set_xscale("log")
        handles = _draw_families(axes, known, cost, value, on_front)
        costs = known[cost].to_numpy(dtype=float)
        factor = max((costs.max() / costs.min()) ** 0.08, 1.1)
        axes.set_xlim(costs.min() / factor, costs.max() * factor)
        reach = np.append(front[cost].to_numpy(dtype=float), costs.max() * factor)
        steps = np.append(front[value].to_numpy(dtype=float), front[value].iloc[-1])
        axes.step(reach, steps, where="post", color=INK, linewidth=1.8, linestyle=(0, (5, 2)), zorder=2)
        axes.margins(y=0.1)
        if limits is not None:
            axes.set_ylim(*limits)
        _log_axis(axes.xaxis, costs)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if value == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        handles.append(Line2D([], [], color=INK, lw=1.8, linestyle=(0, (5, 2)), label="best for its cost"))
        axes.set_xlabel("; ".join(filter(None, [cost_label or spoken(cost), note])), parse_math=False)
        axes.set_ylabel(value_label or spoken(value), parse_math=False)
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        if label in known.columns:
            named = _to_name(axes, front, cost, value)
            colours = map(family_colour, named["family"])
            label_points(axes, list(zip(named[cost], named[value], named[label].astype(str), colours, strict=True)))
    return figure


def plot_perplexity_accuracy(table: pd.DataFrame, *, title: str) -> Figure:
    """Share of held-out tokens predicted right against perplexity, on a logarithmic axis, a mark a run by family.

    `table` has a row a run: family, perplexity, accuracy. Below the axis stands Spearman's correlation over the runs,
    where there are at least 4. Rows without finite numbers are left out, which is noted. Raises ValueError for missing
    columns, an empty table, an unknown family, and a perplexity that is not above 0.
    """
    known, note = _finite(table, "perplexity", "accuracy")
    notes = [note] if note else []
    if len(known) >= 4:
        rank = correlation_matrix(known, ["perplexity", "accuracy"]).iloc[0, 1]
        if np.isfinite(rank):
            notes.insert(0, f"rank correlation {rank:.2f} over {len(known)} runs")
    with use_style():
        figure, axes = new_figure(title)
        axes.set_xscale("log")
        handles = _draw_families(axes, known, "perplexity", "accuracy", np.zeros(len(known), dtype=bool))
        axes.margins(0.06)
        _log_axis(axes.xaxis, known["perplexity"].to_numpy(dtype=float))
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(visible=True, axis="x")
        axes.set_xlabel("\n".join([spoken("perplexity"), *(["; ".join(notes)] if notes else [])]), parse_math=False)
        axes.set_ylabel(spoken("accuracy"), parse_math=False)
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def plot_by_activation(
    table: pd.DataFrame, *, title: str, width: str = "n_embd", value: str = "nll", value_label: str = ""
) -> Figure:
    """Mean `value` against `width` with its 95% interval over seeds: a line an activation, a panel a family.

    `table` has a row a run: family, activation, seed, `width`, `value`; families without an activation (LSTM) are left
    out. Each panel has its own vertical axis, since activations differ by less than families do. One seed has no band.
    Raises ValueError for missing columns, no row with an activation, two runs of one seed at one place (choose the
    learning rate first), and more panels or activations than can be told apart.
    """
    require_columns(table, ["family", "activation", "seed", width, value])
    rows = table.dropna(subset=["activation", width, value]).rename(columns={"activation": "arm"})
    require(len(rows) > 0, "no run has an activation to draw by; an LSTM, for one, has none to choose")
    twice = rows[rows.duplicated(["family", "arm", width, "seed"])]
    if len(twice):
        first = twice.iloc[0]
        raise ValueError(
            f"{first['family']} with {first['arm']} at {width} {first[width]} has two runs of seed {first['seed']}; "
            "choose one, for example the best learning rate's"
        )
    families = list(dict.fromkeys(rows["family"]))
    require(len(families) <= MAX_PANELS, f"{len(families)} families; a slide shows at most {MAX_PANELS} side by side")
    look = arm_look(list(dict.fromkeys(rows["arm"])))
    seeds = 1
    with use_style():
        figure, first_axes = new_figure(title)
        first_axes.remove()
        panels = figure.subplots(1, len(families), squeeze=False)[0]
        for axes, family in zip(panels, families, strict=True):
            own = rows[rows["family"] == family]
            summary = summarise_arms(own, value, width)
            seeds = max(seeds, int(summary["seeds"].max()))
            for arm, line in summary.groupby("arm", sort=False):
                line = line.sort_values(width)
                # Moved aside by a little, so that the intervals of one width stand beside each other.
                place = line[width] * 2 ** (0.07 * (list(look).index(str(arm)) - (len(look) - 1) / 2))
                axes.plot(place, line["mean"], markersize=10, **look[str(arm)])
                axes.vlines(place, line["low"], line["high"], color=look[str(arm)]["color"], linewidth=3)
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted(own[width].unique()))
            axes.xaxis.set_major_formatter(FuncFormatter(_plain))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlim(own[width].min() / 1.3, own[width].max() * 1.3)
            axes.tick_params(labelsize=TEXT_POINTS, color=QUIET, labelcolor=INK)
            axes.set_title(FAMILY_LABELS.get(family, str(family)), fontsize=TEXT_POINTS + 2, loc="left",
                           fontweight="bold", pad=10)  # fmt: skip
            axes.set_xlabel(spoken(width), parse_math=False)
        panels[0].set_ylabel(value_label or spoken(value), parse_math=False)
        handles = [Line2D([], [], lw=3, markersize=10, label=ACTIVATIONS.get(name, name), **look[name])
                                          for name in look]  # fmt: skip
        if seeds > 1:
            handles.append(
                Line2D([], [], color=INK, lw=3, linestyle="None", marker="|", markersize=20, mew=3, label=INTERVAL)
            )
        else:
            handles.append(Line2D([], [], linestyle="None", label="one seed: no interval"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure
