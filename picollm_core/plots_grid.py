"""A grid of values, such as perplexity by window length and input layer: a heat map with the numbers in its cells."""

import math
import textwrap
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from picollm_core.figure_style import INK, new_figure, use_style
from picollm_core.plots import require_columns

LIGHTEST, DARKEST = "#F4F8FC", "#8FBFE0"
"""One hue, ordered by lightness alone, from nearly white to a blue that dark letters stand on with 8:1."""
MAX_SIDE = 8
VALUE_POINTS, INTERVAL_POINTS = 22, 16


def _require_cells(table: pd.DataFrame, row: str, column: str, names: list[str]) -> None:
    """ValueError unless every cell occurs once, there is room for all of them, and their numbers are finite."""
    twice = table[table.duplicated([row, column])]
    if not twice.empty:
        first = twice.iloc[0]
        raise ValueError(f"{row} {first[row]} and {column} {first[column]} occur twice; average them first")
    sides = table[row].nunique(), table[column].nunique()
    if max(sides) > MAX_SIDE:
        raise ValueError(f"a grid of {sides[0]} x {sides[1]} cells; a slide shows at most {MAX_SIDE} a side legibly")
    numbers = table[names].to_numpy(dtype=float)
    if not np.isfinite(numbers).all():
        bad = table[~np.isfinite(numbers).all(axis=1)].iloc[0]
        raise ValueError(f"{row} {bad[row]}, {column} {bad[column]} has a value that is not finite; leave it out")


def plot_grid(
    table: pd.DataFrame,
    row: str,
    column: str,
    value: str,
    *,
    title: str,
    value_label: str,
    row_label: str = "",
    column_label: str = "",
    interval: str | None = None,
    interval_means: str = "",
    value_format: str = ".2f",
    best: Literal["low", "high"] | None = "low",
) -> Figure:
    """A heat map with the numbers in its cells; rows and columns in the order in which the table first names them.

    `table` has one row a cell: the columns `row` and `column` name its place, `value` holds its number, which
    `value_label` explains with its unit. `interval` names a column of half-widths, written below the number as +- where
    one is known (not NaN); `interval_means` says what they are, for example "95% interval over 5 seeds". The `best`
    cell (lowest or highest as written; all of them at a tie) is outlined. Places that the table leaves out stay grey.
    Raises ValueError for missing columns, an empty table, a cell named twice, more than 8 rows or columns, values that
    are not finite, negative half-widths, half-widths without a meaning, and an unknown `best`.
    """
    if best not in ("low", "high", None):
        raise ValueError(f"best is {best!r}; choose low, high or None")
    if interval and not interval_means:
        raise ValueError("+- needs interval_means, such as '95% interval over 5 seeds': say what it is")
    names = [value, *([interval] if interval else [])]
    require_columns(table, [row, column, *names])
    _require_cells(table, row, column, [value])
    if interval and (table[interval] < 0).any():
        raise ValueError(f"the smallest {interval} is {table[interval].min():g}; a half-width is at least 0")
    rows, columns = list(dict.fromkeys(table[row])), list(dict.fromkeys(table[column]))
    low, high = table[value].min(), table[value].max()
    winner = f"{low if best == 'low' else high:{value_format}}"
    shade = LinearSegmentedColormap.from_list("grid", [LIGHTEST, DARKEST])
    with use_style():
        figure, axes = new_figure(title)
        for y in range(len(rows)):
            for x in range(len(columns)):
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="#F0F0F0", edgecolor="white", linewidth=3))
        for _, cell in table.iterrows():
            text = f"{cell[value]:{value_format}}"
            x, y = columns.index(cell[column]), rows.index(cell[row])
            depth = (cell[value] - low) / (high - low) if high > low else 0.0
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=shade(depth), edgecolor="white", linewidth=3))
            if best and text == winner:  # inset, so that a neighbour drawn later does not cover half of the line
                axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=3))
            shift = 0.13 if interval else 0.0
            axes.text(x, y - shift, text, ha="center", va="center", fontsize=VALUE_POINTS, fontweight="bold")
            if interval and math.isfinite(cell[interval]):
                width = f"±{cell[interval]:{value_format}}"
                axes.text(x, y + 0.2, width, ha="center", va="center", fontsize=INTERVAL_POINTS, color=INK)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [textwrap.fill(str(name), 16) for name in columns], parse_math=False)
        axes.set_yticks(range(len(rows)), [textwrap.fill(str(name), 20) for name in rows], parse_math=False)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_ylabel(row_label or row, parse_math=False)
        notes = [f"{value_label}, darker is higher"]
        notes += [f"± {interval_means}"] if interval else []
        notes += [f"outlined: the {'lowest' if best == 'low' else 'highest'}"] if best else []
        axes.set_xlabel(f"{column_label or column}\n" + "; ".join(notes), parse_math=False)
    return figure
