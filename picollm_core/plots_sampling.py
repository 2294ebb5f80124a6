"""Figures about sampling: nucleus sizes along a story, surprise against p, variety against surprise.

As in `plots`, tables and numbers come in and a Figure goes out; the caller's title says the finding.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, PercentFormatter

from picollm_core.figure_style import (
    FAMILY_LABELS,
    INK,
    LINE_STYLES,
    QUIET,
    TEXT_POINTS,
    EndLabel,
    family_colour,
    label_ends,
    new_figure,
    use_style,
)
from picollm_core.plots import require_columns, visible_token

SAMPLER_LOOKS = {
    "top-p": ("#0072B2", "o", LINE_STYLES[0]),
    "top-k": ("#B2182B", "s", LINE_STYLES[1]),
    "min-p": ("#117733", "^", LINE_STYLES[2]),
    "temperature": ("#7A5C00", "D", LINE_STYLES[3]),
}
"""Colour, marker and line of each sampler: told apart by two of the three, and at least 3:1 against white."""

SETTING_MARKERS = ("s", "^", "D", "o", "v", "P")
MAX_WORDS = 48


def plot_nucleus_strip(
    sizes: Mapping[str, Sequence[int]], tokens: Sequence[str], *, title: str, p: float, vocab_size: int | None = None
) -> Figure:
    """How many tokens the nucleus at `p` held for each token of a text, one line a family, the tokens underneath.

    `sizes` maps families to as many sizes as there are `tokens`; the axis is logarithmic, and reaches to `vocab_size`
    where that is given. Raises ValueError when the lengths differ, a size is below 1, a family is unknown, or there are
    more tokens than a slide can show.
    """
    if not 1 <= len(tokens) <= MAX_WORDS:
        raise ValueError(f"{len(tokens)} tokens; a slide shows 1 to {MAX_WORDS} legibly")
    if not sizes:
        raise ValueError("sizes is empty; give at least one family with a size for each token")
    for family, values in sizes.items():
        if len(values) != len(tokens) or min(values) < 1:
            raise ValueError(f"{family} has {len(values)} sizes, the smallest {min(values)}, for {len(tokens)} tokens; "
                             "give one for each, at least 1")  # fmt: skip
    with use_style():
        figure, axes = new_figure(title)
        places = np.arange(len(tokens))
        labels = []
        for family, values in sizes.items():
            colour = family_colour(family)
            heights = np.log10(values)  # on a linear axis, where names can be put at the lines' ends
            axes.plot(places, heights, color=colour, marker="o", markersize=6, linewidth=1.6)
            labels.append(EndLabel(FAMILY_LABELS[family], places[-1], heights[-1], colour))
        top = np.log10(vocab_size or max(map(max, sizes.values())))
        axes.set_ylim(-0.08, max(top, 0.5) + 0.08)
        axes.yaxis.set_major_locator(FixedLocator([float(exponent) for exponent in range(math.ceil(top) + 1)]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda exponent, _: f"{10**exponent:,.0f}"))
        axes.set_xticks(places, [visible_token(token) for token in tokens], rotation=90, parse_math=False)
        axes.tick_params(axis="x", labelsize=TEXT_POINTS - 2, length=0)
        axes.set_xlim(-0.6, len(tokens) - 0.4)
        axes.set_ylabel(f"tokens in the nucleus (p = {p:g})")
        axes.set_xlabel("token that came next (␣ is a space)")
        label_ends(axes, labels)
    return figure


def plot_surprise(
    table: pd.DataFrame,
    *,
    title: str,
    human: tuple[float, float, float],
    crossings: Mapping[str, float],
    interval_means: str = "95% bootstrap over stories",
) -> Figure:
    """Nats a token under the judge against top-p, one line a family, with the human text as a level to compare with.

    `table` has the columns family, p (0 is greedy), nll, nll_low and nll_high; `human` is (nll, low, high); `crossings`
    gives each family's p of equal surprise, not finite where there is none. Bands are `interval_means`.
    Raises ValueError for missing columns, an empty table or an unknown family.
    """
    require_columns(table, ["family", "p", "nll", "nll_low", "nll_high"])
    with use_style():
        figure, axes = new_figure(title)
        labels = []
        level, low, high = human
        axes.axhspan(low, high, color=QUIET, alpha=0.2, linewidth=0)
        axes.axhline(level, color=family_colour("human"), linestyle=(0, (5, 4)), linewidth=2)
        for family, rows in table.sort_values("p").groupby("family", sort=False):
            colour = family_colour(str(family))
            axes.fill_between(rows["p"], rows["nll_low"], rows["nll_high"], color=colour, alpha=0.18, linewidth=0)
            axes.plot(rows["p"], rows["nll"], color=colour, marker="o", markersize=7)
            labels.append(EndLabel(FAMILY_LABELS[str(family)], rows["p"].iloc[-1], rows["nll"].iloc[-1], colour))
            equal = crossings.get(str(family), math.nan)
            if math.isfinite(equal):
                axes.plot([equal], [level], marker="o", markersize=14, color="white", mec=colour, mew=3, zorder=4)
        axes.set_xlim(-0.02, 1.0)
        ticks = sorted({0.0, 0.2, 0.4, 0.6, 0.8, 1.0})
        axes.set_xticks(ticks, ["greedy", *(f"{tick:g}" for tick in ticks[1:])])
        label_ends(axes, [*labels, EndLabel(FAMILY_LABELS["human"], 1.0, level, family_colour("human"))])
        axes.set_xlabel(f"top-p (ring: as surprising as human text); bands: {interval_means}")
        axes.set_ylabel("surprise to the judge (nats per token)")
    return figure


def plot_plane(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    line: str,
    title: str,
    x_label: str,
    y_label: str,
    human: tuple[float, float],
    marked: Sequence[str] = (),
    interval: tuple[str, str] | None = None,
    interval_means: str = "",
    percent: bool = False,
) -> Figure:
    """Two scores of sampled texts against each other: one line a family or a sampler, human text as a star.

    `line` names the column of the lines, whose values are families or keys of SAMPLER_LOOKS; points are joined in the
    order of the rows. Rows whose column `setting` is one of `marked` get that setting's marker in the legend, the rest
    small dots. For samplers the legend names their settings in the same order. `interval` names the columns of the ends
    of horizontal whiskers, said to be `interval_means`. Dashed lines mark the human text's two scores. `percent` shows
    y as a percentage. Rows without a finite x and y are left out. Raises ValueError for missing columns, a table
    without a finite row, too many marked settings, whiskers without a meaning, unknown families or samplers.
    """
    require_columns(table, [line, "setting", x, y, *(interval or ())])
    if interval and not interval_means:
        raise ValueError("whiskers need interval_means, such as '95% bootstrap over stories': say what they are")
    if len(marked) > len(SETTING_MARKERS):
        raise ValueError(f"{len(marked)} marked settings, but there are {len(SETTING_MARKERS)} markers; mark fewer")
    finite = table[np.isfinite(table[[x, y]].to_numpy(dtype=float)).all(axis=1)]
    if finite.empty:
        raise ValueError(f"no row has a finite {x} and {y}; there is nothing to draw")
    with use_style():
        figure, axes = new_figure(title)
        handles: list[Line2D] = []
        for name, rows in finite.groupby(line, sort=False):
            colour, marker, style, label = _look(str(name), rows["setting"])
            axes.plot(rows[x], rows[y], color=colour, linestyle=style, marker=marker, markersize=7, zorder=2)
            handles.append(Line2D([], [], color=colour, linestyle=style, marker=marker, markersize=7, label=label))
            if interval:
                axes.hlines(rows[y], rows[interval[0]], rows[interval[1]], color=colour, linewidth=1.6, alpha=0.6)
            for setting, mark in zip(marked, SETTING_MARKERS, strict=False):
                own = rows[rows["setting"] == setting]
                axes.plot(own[x], own[y], mark, color=colour, markersize=14, mec="white", mew=1.5, zorder=3)
        for setting, mark in zip(marked, SETTING_MARKERS, strict=False):
            handles.append(Line2D([], [], color=QUIET, linestyle="", marker=mark, markersize=13, label=setting))
        axes.axvline(human[0], color=QUIET, linestyle=(0, (5, 4)), linewidth=1.4, zorder=1)
        axes.axhline(human[1], color=QUIET, linestyle=(0, (5, 4)), linewidth=1.4, zorder=1)
        star: dict[str, Any] = {"marker": "*", "color": family_colour("human"), "linestyle": "", "markersize": 24}
        axes.plot(*human, **star, mec="white", mew=1.5, zorder=5)
        handles.append(Line2D([], [], **(star | {"markersize": 18}), label=FAMILY_LABELS["human"]))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes.margins(0.06)
        axes.set_xlabel(x_label + (f"\nwhiskers: {interval_means}" if interval else ""))
        axes.set_ylabel(y_label)
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.02), borderaxespad=0, labelcolor=INK)
    return figure


def _look(name: str, settings: pd.Series) -> tuple[str, str, Any, str]:
    """Colour, marker, line style and legend text of a line."""
    if name in SAMPLER_LOOKS:
        values = [str(setting).removeprefix(name).strip() for setting in settings]
        return *SAMPLER_LOOKS[name], f"{name}:\n{', '.join(values)}"
    if name not in FAMILY_LABELS:
        raise ValueError(f"{name!r} is neither a family ({', '.join(FAMILY_LABELS)}) nor a sampler "
                         f"({', '.join(SAMPLER_LOOKS)})")  # fmt: skip
    return family_colour(name), ".", "-", FAMILY_LABELS[name]
