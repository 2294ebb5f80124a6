"""Figures about speed: targets with what was attained, and quantities by size, family and number format."""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from picollm_core.config import require
from picollm_core.figure_style import FAMILY_LABELS, INK, QUIET, TEXT_POINTS, family_colour, new_figure, use_style
from picollm_core.plots import require_columns

MOST_TARGETS = 18
REACHED, MISSED = "#009E73", "#D55E00"
PRECISION_LOOK = {
    "float32": {"linestyle": "-", "markerfacecolor": "white"},
    "bfloat16": {"linestyle": (0, (5, 2))},
}
"""How a number format looks beside the family's colour: open marks, or full ones on a dashed line."""


def _times(value: float, _: int = 0) -> str:
    return f"{value:g}"


def number(value: float) -> str:
    """Three digits, without an exponent where that is short: 1,490, 2.76, 0.000063."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1e-4 else f"{value:.6f}".rstrip("0")


def plot_targets(table: pd.DataFrame, *, title: str) -> Figure:
    """One row a target: how many times better than its bound, with the range of the repetitions, and the ratio itself.

    `table` is that of performance.targets_table, at most MOST_TARGETS rows; the axis is logarithmic and the line at 1
    is the target. Raises ValueError for missing columns, no rows, and too many.
    """
    require_columns(table, ["row", "ratio", "target", "verdict", "attained", "attained_low", "attained_high"])
    require(len(table) <= MOST_TARGETS, f"{len(table)} targets; a slide shows at most {MOST_TARGETS} legibly")
    values = table[["attained", "attained_low", "attained_high"]].to_numpy(dtype=float)
    with use_style():
        figure, axes = new_figure(title)
        low, high = min(values.min(), 1.0), max(values.max(), 1.0)
        for place, row in enumerate(table.itertuples()):
            reached = row.verdict == "reached"
            colour, mark = (REACHED, "o") if reached else (MISSED, "X")
            axes.plot([row.attained_low, row.attained_high], [place, place], color=colour, linewidth=4, alpha=0.4)
            axes.plot(row.attained, place, mark, color=colour, markersize=10)
            words = f"{number(row.ratio)}  (target {row.target})"
            axes.annotate(words, (1.02, place), xycoords=("axes fraction", "data"), va="center_baseline",
                          fontsize=14, color=INK if reached else MISSED,
                          fontweight="normal" if reached else "bold", annotation_clip=False)  # fmt: skip
        axes.axvline(1.0, color=INK, linewidth=2)
        axes.set_xscale("log")
        axes.set_xlim(low / 1.5, high * 1.5)
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if high > 30 * low else (1, 2, 5), numticks=20))
        axes.xaxis.set_major_formatter(FuncFormatter(_times))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(table)), [str(name).replace("-", " ") for name in table["row"]], parse_math=False)
        axes.tick_params(axis="y", length=0, labelsize=14)
        axes.set_ylim(len(table) - 0.4, -0.6)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("times better than the target (1: just reached; pale: range of the repetitions)")
    return figure


def plot_sizes(
    table: pd.DataFrame, columns: Mapping[str, str], *, title: str, logarithmic: Collection[str] = ()
) -> Figure:
    """One panel a column: its value by size, a line a family and number format.

    `table` has the columns family, size, precision and those of `columns`, whose values label the axes; sizes keep
    their order. The axes of the columns in `logarithmic` are logarithmic, the others begin at 0. Raises ValueError for
    missing columns, no rows, an unknown family or number format, no columns or more than two.
    """
    require_columns(table, ["family", "size", "precision", *columns])
    require(1 <= len(columns) <= 2, f"{len(columns)} columns; a slide shows 1 or 2 legibly")
    unknown = sorted(set(table["precision"]) - PRECISION_LOOK.keys())
    require(not unknown, f"precision is {', '.join(unknown)}; it must be one of {', '.join(PRECISION_LOOK)}")
    sizes = list(dict.fromkeys(table["size"]))
    with use_style():
        figure, first = new_figure(title)
        first.remove()
        panels = figure.subplots(1, len(columns), squeeze=False)[0]
        for axes, (column, label) in zip(panels, columns.items(), strict=True):
            for (family, precision), own in table.groupby(["family", "precision"], sort=False):
                places = [sizes.index(size) for size in own["size"]]
                look = PRECISION_LOOK[str(precision)]
                axes.plot(places, own[column], color=family_colour(str(family)), marker="o", markersize=11,
                          markeredgewidth=2.5, **look)  # type: ignore[arg-type]  # fmt: skip
            axes.set_xticks(range(len(sizes)), sizes)
            axes.set_xlim(-0.4, len(sizes) - 0.6)
            if column in logarithmic:
                axes.set_yscale("log")
                narrow = table[column].max() < 10 * table[column].min()
                axes.yaxis.set_minor_formatter(FuncFormatter(lambda v, _: f"{v:,.6g}") if narrow else NullFormatter())
            else:
                axes.set_ylim(0, 1.08 * float(np.nanmax(table[column].to_numpy(dtype=float))))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.6g}"))
            axes.tick_params(labelsize=TEXT_POINTS - 1)
            axes.set_ylabel(label, parse_math=False)
            axes.set_xlabel("size of the model")
        families, used = list(dict.fromkeys(table["family"])), list(dict.fromkeys(table["precision"]))
        handles = [Line2D([], [], color=family_colour(f), linewidth=5, label=FAMILY_LABELS[f]) for f in families]
        handles += [
            Line2D([], [], color=QUIET, marker="o", markersize=10, label=name, **PRECISION_LOOK[name])  # type: ignore[arg-type]
            for name in used
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=TEXT_POINTS - 1)
    return figure
