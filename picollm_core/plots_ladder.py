"""The ladder of quality per second as one figure."""

import pandas as pd
from matplotlib.figure import Figure

from picollm_core.config import require
from picollm_core.figure_style import INK, QUIET, new_figure, use_style
from picollm_core.plots import require_columns

WORSE, BETTER, UNSURE = "#D55E00", "#0072B2", "#8A8A8A"
MOST_ROWS, SIZE = 20, 14
SURE = 0.05
COLUMNS = ["rung", "milliseconds", "updates", "bits_per_byte", "cost", "low", "high", "p_holm", "seeds"]


def _colour(cost: float, p_holm: float) -> str:
    """Of a cost that is surely not 0, or of one that may be either."""
    return UNSURE if not p_holm < SURE else WORSE if cost > 0 else BETTER


def plot_ladder(table: pd.DataFrame, *, title: str) -> Figure:
    """A row a rung of a `ladder_table`: what it costs in bits per byte at equal time, and how long its updates take.

    Orange is surely worse than the recipe, blue surely better, grey undecided (`p_holm` below 0.05 or not, so that a
    false colour anywhere is rare); with one seed all are grey. The lines are each rung's own 95% interval. A cost
    beyond four times the third largest is cut at an arrow, its number beside it. Raises ValueError for missing columns,
    and for fewer than 2 or more than 20 rows.
    """
    require_columns(table, COLUMNS)
    require(2 <= len(table) <= MOST_ROWS, f"{len(table)} rungs; between 2 and {MOST_ROWS} can be drawn")
    recipe, rungs = table.iloc[0], table.iloc[1:]
    ordered = rungs["cost"].abs().sort_values(ascending=False)
    reach = min(1.05 * rungs[["cost", "high"]].max().max(), 4 * float(ordered.iloc[min(2, len(ordered) - 1)]))
    left = min(0.0, 1.1 * rungs[["cost", "low"]].min().min(), -0.03 * reach)
    with use_style():
        figure, axes = new_figure(title)
        for row, (_, own) in enumerate(rungs.iterrows()):
            colour, end = _colour(own["cost"], own["p_holm"]), min(own["cost"], reach)
            axes.barh(row, end, height=0.62, color=colour, alpha=0.85)
            if own["low"] < own["high"]:
                whisker = [max(own["low"], left), min(own["high"], reach)]
                axes.plot(whisker, [row, row], color=INK, linewidth=2, solid_capstyle="butt")
            if own["cost"] > reach:
                axes.annotate(
                    "", (reach, row), xytext=(0.94 * reach, row), arrowprops={"arrowstyle": "->", "color": INK}
                )
            figures = f"{own['cost']:+.3f}   {own['milliseconds']:,.0f} ms x {own['updates']:,}"
            axes.annotate(figures, (1.0, row), xycoords=("axes fraction", "data"), xytext=(8, 0), annotation_clip=False,
                          textcoords="offset points", va="center", fontsize=SIZE, color=INK)  # fmt: skip
        axes.annotate("cost   time x updates", (1.0, 1.0), xycoords="axes fraction", xytext=(8, 4),
                      textcoords="offset points", fontsize=SIZE, color=QUIET, annotation_clip=False)  # fmt: skip
        axes.axvline(0, color=INK, linewidth=1.5)
        axes.set_yticks(range(len(rungs)), rungs["rung"], fontsize=SIZE, parse_math=False)
        axes.set_ylim(len(rungs) - 0.4, -0.6)
        axes.set_xlim(left, reach)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        seeds = f"{recipe['seeds']} paired seeds" if recipe["seeds"] > 1 else "one seed, no intervals"
        lines = f"lines: 95% intervals, {seeds}; colour: p < {SURE} after Holm" if recipe["seeds"] > 1 else seeds
        axes.set_xlabel(
            f"bits per byte above the recipe's {recipe['bits_per_byte']:.3f} after the same time of training\n"
            f"({recipe['milliseconds']:,.0f} ms x {recipe['updates']:,} updates; {lines})",
            fontsize=SIZE,
            parse_math=False,
        )
    return figure
