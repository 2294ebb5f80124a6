"""The closing figures: every claim with its verdict on one page, and pages of rows that say how large the effect is.

A verdict is a colour, a shape and a word. C claims, one a row of a table as verdicts.verdict_table makes it.
"""

import math
import textwrap
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from picollm_core.config import require
from picollm_core.figure_style import INK, PALE, QUIET, text_page, use_style
from picollm_core.plots import require_columns

LOOK: dict[str, dict[str, Any]] = {
    "holds": {"color": "#009E73", "marker": "o", "markersize": 13},
    "fails": {"color": "#D55E00", "marker": "X", "markersize": 14},
    "depends": {"color": "#0072B2", "marker": "D", "markersize": 11},
    "open": {"color": QUIET, "marker": "o", "markersize": 12, "markerfacecolor": "white", "markeredgewidth": 2.5},
}
"""Verdict -> its mark; colours are told apart with every common colour blindness."""
POINTS, COLUMNS, MOST_LINES, MOST_ROWS = 14, 3, 18, 10
LETTER = 0.54  # mean width of a letter of English in this font, in multiples of its size
UNITS = {"nats per token": "nats", "share of 2-grams": "of 2-grams", "share of 4-grams": "of 4-grams"}
"""How a unit is written where there is little room."""


def verdict_counts(table: pd.DataFrame) -> dict[str, int]:
    """Verdict -> number of claims, in the order of LOOK, without those that do not occur."""
    found = table["verdict"].value_counts()
    return {word: int(found[word]) for word in LOOK if word in found}


def counted(counts: dict[str, int]) -> str:
    """Counts of verdicts as part of a sentence: "10 hold, 1 fails, 14 depend, 7 stay open"."""
    plural = {"holds": "hold", "fails": "fail", "depends": "depend", "open": "stay open"}
    single = {"open": "stays open"}
    return ", ".join(f"{n} {single.get(word, word) if n == 1 else plural[word]}" for word, n in counts.items())


def effect_words(effect: float | None, interval: Any, unit: str) -> str:
    """An effect as text: "-0.265 nats (-0.279 to -0.252)", or without interval, or "no single number" for none."""
    if effect is None or math.isnan(effect):
        return "no single number"
    short = UNITS.get(unit, unit)
    sign = "" if interval is None and unit in ("ratio", "models", "runs") else "+"
    number = f"{effect:{sign}.3g}".replace("-", "\N{MINUS SIGN}") + f" {short}"
    if not isinstance(interval, list | tuple):
        return number
    low, high = (f"{end:+.3g}".replace("-", "\N{MINUS SIGN}") for end in interval)
    return f"{number} ({low} to {high})"


def _wrapped(text: str, width: float) -> list[str]:
    """The text in lines of at most about `width` points, by the mean width of a letter."""
    return textwrap.wrap(text, int(width / (LETTER * POINTS)), break_long_words=False, break_on_hyphens=False)


def _page(title: str) -> tuple[Figure, Axes, float, float]:
    """A page whose axes count in points, from the top left."""
    figure, axes, width, height = text_page(title, bottom=0.09, top=0.91)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure, axes, width, height


def _mark(axes: Axes, x: float, y: float, word: str) -> None:
    axes.plot([x], [y], linestyle="none", clip_on=False, **LOOK[word])


def _legend(
    figure: Figure, counts: dict[str, int], loc: Literal["lower center", "lower left"] = "lower center"
) -> None:
    handles = [Line2D([], [], linestyle="none", **LOOK[word]) for word in counts]
    labels = [f"{word}: {count}" for word, count in counts.items()]
    figure.legend(handles, labels, loc=loc, ncols=len(counts), fontsize=16, columnspacing=3)


def _check(table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    require_columns(table, list(columns))
    strange = sorted(set(table["verdict"]) - set(LOOK))
    require(not strange, f"verdicts {', '.join(map(str, strange))} have no mark; known are {', '.join(LOOK)}")


def plot_verdict_map(table: pd.DataFrame, *, title: str) -> Figure:
    """All claims on one page, by source: the name of each (its id in words) beside the mark of its verdict.

    Columns: id, source, verdict. The legend gives the words and their counts. Raises ValueError for a missing column,
    an empty table, another verdict, and more claims than three columns hold.
    """
    _check(table, ("id", "source", "verdict"))
    with use_style():
        figure, axes, width, height = _page(title)
        column, indent = width / COLUMNS, 22.0
        lines: list[tuple[str, str]] = []
        for source, own in table.groupby("source", sort=False):
            lines.append(("source", str(source)))
            for _, row in own.iterrows():
                first, *rest = _wrapped(row["id"].replace("-", " "), column - indent - 6)
                lines += [(row["verdict"], first), *(("more", line) for line in rest)]
        rows = _in_columns(lines)
        require(
            rows <= MOST_LINES,
            f"{len(lines)} lines in {COLUMNS} columns are {rows} rows, more than {MOST_LINES}; draw fewer claims",
        )
        step = height / MOST_LINES
        for place, (kind, text) in enumerate(lines):
            x, y = (place // rows) * column, (place % rows + 0.5) * step
            if kind == "source":
                axes.text(x, y, f"said by: {text}", va="center", fontsize=POINTS, fontweight="bold", color=QUIET)
                continue
            if kind in LOOK:
                _mark(axes, x + 7, y, kind)
            axes.text(x + indent, y, text, va="center", fontsize=POINTS, color=INK, parse_math=False)
        _legend(figure, verdict_counts(table))
    return figure


def _in_columns(lines: list[tuple[str, str]]) -> int:
    """Rows a column must have; blanks are put where a heading would stand last in its column or a name be cut."""
    rows = math.ceil(len(lines) / COLUMNS)
    while True:
        trial = list(lines)
        for end in range(rows - 1, len(trial), rows):
            while end + 1 < len(trial) and (trial[end][0] == "source" or trial[end + 1][0] == "more"):
                trial.insert(end, ("blank", ""))
        if len(trial) <= COLUMNS * rows:
            lines[:] = trial
            return rows
        rows += 1


def plot_verdict_rows(table: pd.DataFrame, *, title: str) -> Figure:
    """One row a claim: its verdict as mark and word, the claim, and the effect with its 95% interval.

    Columns: claim, verdict, effect, interval (two numbers or None), unit. Raises ValueError for a missing column, an
    empty table, another verdict, and more than ten rows.
    """
    _check(table, ("claim", "verdict", "effect", "interval", "unit"))
    require(len(table) <= MOST_ROWS, f"{len(table)} claims; a page shows at most {MOST_ROWS}, so draw several")
    with use_style():
        figure, axes, width, height = _page(title)
        step, start, third = height / max(len(table), 6), 112.0, width - 330.0
        for place, (_, row) in enumerate(table.iterrows()):
            y = (place + 0.5) * step
            if place:
                axes.plot([0, width], [place * step] * 2, color=PALE, linewidth=1)
            _mark(axes, 8, y, row["verdict"])
            axes.text(22, y, row["verdict"], va="center", fontsize=16, fontweight="bold",
                      color=LOOK[row["verdict"]]["color"])  # fmt: skip
            claim = "\n".join(_wrapped(row["claim"], third - start - 14))
            axes.text(start, y, claim, va="center", fontsize=POINTS, color=INK, linespacing=1.15, parse_math=False)
            found = effect_words(row["effect"], row["interval"], row["unit"])
            shown = "\n".join(_wrapped(found, width - third))
            axes.text(third, y, shown, va="center", fontsize=POINTS, color=INK, linespacing=1.15, parse_math=False)
        _legend(figure, verdict_counts(table), "lower left")
        figure.text(0.985, 0.025, "in brackets: 95% interval", ha="right", va="bottom", fontsize=POINTS, color=QUIET)
    return figure


def pages(table: pd.DataFrame, most: int = MOST_ROWS) -> dict[str, pd.DataFrame]:
    """The rows by source, in as few pages of nearly equal length as hold them: "slides 1", "slides 2", "page".

    Raises ValueError for `most` below 1.
    """
    require(most >= 1, f"most is {most}; a page needs room for at least 1 row")
    found = {}
    for source, own in table.groupby("source", sort=False):
        count = math.ceil(len(own) / most)
        size = math.ceil(len(own) / count)
        for page in range(count):
            found[f"{source} {page + 1}" if count > 1 else str(source)] = own.iloc[page * size : (page + 1) * size]
    return found
