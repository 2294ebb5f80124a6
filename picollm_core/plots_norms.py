"""Figures about norms: gradients in panels on logarithmic axes, and maps of what trains at which learning rate.

Like those of `plots`: numbers in, a matplotlib Figure out; the caller writes the title.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from picollm_core.config import require
from picollm_core.figure_style import INK, QUIET, TEXT_POINTS, new_figure, use_style
from picollm_core.plots import require_columns
from picollm_core.plots_arms import INTERVAL, arm_look, summarise_arms
from picollm_core.plots_grid import DARKEST, LIGHTEST

MAX_PANELS = 3
DIVERGED = "#F2B48C"
_SMALL_POINTS = 15


def _panels(title: str, names: Sequence[str]) -> tuple[Figure, Sequence[Axes]]:
    """A figure with one panel a name, side by side on a common vertical axis. ValueError for more than three."""
    require(len(names) <= MAX_PANELS, f"{len(names)} panels; a slide shows at most {MAX_PANELS} side by side")
    figure, first = new_figure(title)
    first.remove()
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        axes.set_title(name, fontsize=TEXT_POINTS + 2, loc="left", parse_math=False)
        axes.tick_params(labelsize=TEXT_POINTS, color=QUIET, labelcolor=INK)
    return figure, panels


def _plain(value: float, _: int) -> str:
    return f"{value:g}"


def plot_gradient_panels(
    table: pd.DataFrame, x: str, y: str, *, title: str, x_label: str, y_label: str, slope: float | None = None
) -> Figure:
    """Mean of `y` against `x` with its 95% interval over seeds, one panel a setting, one line an arm, y logarithmic.

    `table` is tidy: columns panel, arm, seed, x, y. With `slope` the x axis is logarithmic too, and a thin dashed line
    of that exponent starts at the first arm's first point. The vertical axis is common to all panels, and the legend
    stands below them. Raises ValueError for missing columns, no rows, values that are not above 0, more than three
    panels, and too many arms.
    """
    require_columns(table, ["panel", "arm", "seed", x, y])
    least = table[[x, y]].to_numpy(dtype=float).min()
    require(least > 0, f"the least value is {least:g}; a logarithmic axis takes values above 0")
    look = arm_look(list(dict.fromkeys(table["arm"])))
    with use_style():
        figure, panels = _panels(title, list(dict.fromkeys(table["panel"])))
        seeds = 1
        for axes, (_, part) in zip(panels, table.groupby("panel", sort=False), strict=True):
            summary = summarise_arms(part, y, x)
            seeds = max(seeds, int(summary["seeds"].max()))
            for arm, own in summary.groupby("arm", sort=False):
                own, style = own.sort_values(x), look[str(arm)]
                marker = {} if len(own) > 20 else {"marker": style["marker"], "markersize": 9}
                axes.plot(own[x], own["mean"], color=style["color"], linestyle=style["linestyle"], **marker)
                axes.fill_between(own[x], own["low"], own["high"], color=style["color"], alpha=0.2, linewidth=0)
            axes.set_yscale("log")
            axes.set_xlabel(x_label, parse_math=False)
            if slope is None:
                axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            else:
                _draw_slope(axes, summary, x, slope)
        panels[0].set_ylabel(y_label, parse_math=False)
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=12))
        panels[0].yaxis.set_major_formatter(FuncFormatter(_plain))
        panels[0].yaxis.set_minor_formatter(NullFormatter())
        _legend_below(figure, look, seeds, slope)
    return figure


def _draw_slope(axes: Axes, summary: pd.DataFrame, x: str, slope: float) -> None:
    places = sorted(summary[x].unique())
    start = summary[(summary["arm"] == summary["arm"].iloc[0]) & (summary[x] == places[0])]["mean"].iloc[0]
    line = [start * (place / places[0]) ** slope for place in places]
    axes.plot(places, line, color=INK, linewidth=1.5, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(places)
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))


def _legend_below(figure: Figure, look: Mapping[str, Mapping[str, Any]], seeds: int, slope: float | None) -> None:
    handles: list[Any] = [Line2D([], [], lw=3, markersize=9, label=name, **style) for name, style in look.items()]
    if slope is not None:
        handles.append(Line2D([], [], color=INK, lw=1.5, ls=(0, (4, 3)), label=f"slope {slope:g}"))
    if seeds > 1:
        handles.append(Patch(color=QUIET, alpha=0.3, linewidth=0, label=f"{INTERVAL} ({seeds})"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=_SMALL_POINTS,
                  columnspacing=1.4, handlelength=1.8, frameon=False)  # fmt: skip


def plot_rate_maps(
    table: pd.DataFrame, *, title: str, floor: float, value_label: str, row_label: str, column_label: str
) -> Figure:
    """Heat maps side by side, one a setting: the final loss in every cell of learning rate (row) and warm-up (column).

    `table` has columns panel, row, column, value, outcome, one row a cell, rows and columns in the order in which they
    first occur. A cell of outcome "diverged" says so on orange; the others hold their value, darker the further it lies
    below `floor` (which `value_label` explains), pale at or above it; the least of every panel is outlined. Raises
    ValueError for missing columns, no rows, a cell named twice, more than three panels, and a value that is not finite
    where the outcome is not "diverged".
    """
    require_columns(table, ["panel", "row", "column", "value", "outcome"])
    twice = table[table.duplicated(["panel", "row", "column"])]
    require(twice.empty, f"{len(twice)} cells occur twice, such as {twice.iloc[0].to_dict() if len(twice) else ''}")
    trained = table[table["outcome"] != "diverged"]
    bad = trained[~trained["value"].astype(float).map(math.isfinite)]
    require(bad.empty, f"{len(bad)} cells have no finite value and are not called diverged")
    deepest = max(floor - trained["value"].min(), 0.0) if len(trained) else 0.0
    shade = LinearSegmentedColormap.from_list("rates", [LIGHTEST, DARKEST])
    rows, columns = list(dict.fromkeys(table["row"])), list(dict.fromkeys(table["column"]))
    with use_style():
        figure, panels = _panels(title, list(dict.fromkeys(table["panel"])))
        for axes, (_, part) in zip(panels, table.groupby("panel", sort=False), strict=True):
            best = part.loc[part["outcome"] != "diverged", "value"].min()
            for _, cell in part.iterrows():
                x, y, failed = columns.index(cell["column"]), rows.index(cell["row"]), cell["outcome"] == "diverged"
                depth = 0.0 if failed or deepest == 0 else max(floor - cell["value"], 0.0) / deepest
                colour = DIVERGED if failed else shade(depth)
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=3))
                if cell["value"] == best and not failed:
                    axes.add_patch(Rectangle((x - 0.46, y - 0.45), 0.92, 0.9, fill=False, edgecolor=INK, linewidth=3))
                text = "diverged" if failed else f"{cell['value']:.2f}"
                size = _SMALL_POINTS if failed else TEXT_POINTS + 2
                axes.text(
                    x, y, text, ha="center", va="center", fontsize=size, fontweight="normal" if failed else "bold"
                )
            axes.set_xlim(-0.5, len(columns) - 0.5)
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_xticks(range(len(columns)), [f"{name}" for name in columns])
            axes.set_yticks(range(len(rows)), [f"{name}" for name in rows])
            axes.tick_params(length=0)
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
            axes.set_xlabel(column_label, parse_math=False)
        panels[0].set_ylabel(row_label, parse_math=False)
        figure.supxlabel(f"{value_label}; darker: further below {floor:.2f}, which word frequencies alone reach; "
                         "outlined: the lowest", fontsize=_SMALL_POINTS, parse_math=False)  # fmt: skip
    return figure
