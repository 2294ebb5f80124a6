"""Figures about the memories of sequence mixers: where they take from, how fast they forget."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from picollm_core.config import require
from picollm_core.figure_style import INK, TEXT_POINTS, family_colour, new_figure, settle_layout, use_style
from picollm_core.plots import require_columns, visible_token
from picollm_core.plots_attention import OUT_OF_SIGHT

NEGATIVE, POSITIVE = "#D55E00", "#0072B2"
SIGNED = LinearSegmentedColormap.from_list("signed", ["#6B2F00", NEGATIVE, "#FFFFFF", POSITIVE, "#06243D"])
"""Orange below zero, white at zero, blue above: told apart with every common colour blindness."""
MAX_TOKENS, MAX_MIXERS, MAX_HEADS = 16, 4, 6
MAX_ROWS = 20


def _draw_signed(axes: Axes, shares: np.ndarray, largest: float) -> Any:
    later = np.triu(np.ones_like(shares, dtype=bool), 1)
    axes.set_facecolor(OUT_OF_SIGHT)
    image = axes.imshow(np.ma.masked_where(later, shares), cmap=SIGNED, vmin=-largest, vmax=largest, aspect="equal")
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)
    return image


def plot_signed_maps(
    maps: Mapping[str, object], tokens: Sequence[str], *, title: str, focus: Mapping[str, int], largest: float = 0.5
) -> Figure:
    """One layer of several mixers on one text: every head as a small map, one of them large with the tokens beside it.

    `maps[mixer]` (H, T, T) holds signed shares, [head, t, s] that of token s in what t reads; `focus[mixer]` counts the
    large head from 1. Colours end at +-`largest`; stronger shares look like it. Raises ValueError for shapes that do
    not go with `tokens`, a focus that is no head, and too much for a slide.
    """
    values = {name: np.asarray(own, dtype=float) for name, own in maps.items()}
    require(0 < len(values) <= MAX_MIXERS, f"{len(values)} mixers; a slide shows 1 to {MAX_MIXERS}")
    require(len(tokens) <= MAX_TOKENS, f"{len(tokens)} tokens; a slide shows at most {MAX_TOKENS} legibly")
    for name, own in values.items():
        fits = own.ndim == 3 and own.shape[1:] == (len(tokens),) * 2 and len(own) <= MAX_HEADS
        require(
            fits, f"{name} has maps of shape {own.shape}; give (heads up to {MAX_HEADS}, T, T) with T={len(tokens)}"
        )
        chosen = focus.get(name, 0)
        require(1 <= chosen <= len(own), f"the large head of {name} is {chosen}; it has heads 1 to {len(own)}")
    with use_style():
        figure, axes = new_figure(title)
        axes.remove()
        figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08))
        words = [visible_token(token) for token in tokens]
        places = np.arange(len(tokens))
        grid = figure.add_gridspec(3, len(values), height_ratios=(3.4, 1, 0.14))
        for column, (name, own) in enumerate(values.items()):
            large = figure.add_subplot(grid[0, column])
            image = _draw_signed(large, own[focus[name] - 1], largest)
            large.set_title(f"{name}, head {focus[name]}", fontsize=TEXT_POINTS + 2, fontweight="bold")
            large.set_xticks(places, words, rotation=90, parse_math=False)
            large.set_yticks(places, words if column == 0 else [""] * len(words), parse_math=False)
            large.tick_params(length=0, labelsize=TEXT_POINTS - 3)
            small = grid[1, column].subgridspec(1, len(own)).subplots(squeeze=False)[0]
            for head, cell in enumerate(small):
                _draw_signed(cell, own[head], largest)
                cell.set(xticks=[], yticks=[])
                cell.set_xlabel(f"head {head + 1}" if head == 0 else f"{head + 1}", fontsize=TEXT_POINTS - 2)
                if head + 1 == focus[name]:
                    cell.spines[:].set(color=INK, linewidth=3)
        figure.axes[0].set_ylabel("token that reads")
        scale = figure.colorbar(image, cax=figure.add_subplot(grid[2, :]), orientation="horizontal", extend="both")
        scale.set_label("share of an earlier token (a column) in what is read (grey: later tokens)")
        settle_layout(figure)
    return figure


def plot_half_lives(table: pd.DataFrame, *, title: str) -> Figure:
    """One row a head: the median half-life of its memory, where 80% of its gates lie, and the median before training.

    `table` has the columns mixer, layer, head and, in tokens, low, median, high (10th, 50th, 90th percentile) and
    start; the axis is logarithmic. Raises ValueError for missing columns, no rows, too many, and lives that are not
    above 0.
    """
    require_columns(table, ["mixer", "layer", "head", "low", "median", "high", "start"])
    require(len(table) <= MAX_ROWS, f"{len(table)} heads; a slide shows at most {MAX_ROWS} legibly")
    numbers = table[["low", "median", "high", "start"]]
    require(bool((numbers > 0).all(axis=None)), f"the shortest half-life is {numbers.min().min():g}; it must be > 0")
    colours = dict(zip(dict.fromkeys(table["mixer"]), (family_colour("linear"), "#009E73", POSITIVE), strict=False))
    with use_style():
        figure, axes = new_figure(title)
        for row, own in enumerate(table.itertuples()):
            colour = colours.get(own.mixer, INK)
            axes.plot([own.low, own.high], [row, row], color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
            axes.plot(own.median, row, "o", color=colour, markersize=12)
            axes.plot(own.start, row, "|", color=INK, markersize=18, markeredgewidth=2.5)
        names = [f"{own.mixer}, layer {own.layer:.0f}, head {own.head:.0f}" for own in table.itertuples()]
        axes.set_yticks(range(len(table)), names, parse_math=False)
        axes.set_ylim(len(table) - 0.4, -0.6)
        axes.set_xscale("log")
        wide = numbers.max(axis=None) > 300 * numbers.min(axis=None)  # more numbers would run into each other
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=20))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.minorticks_off()
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("tokens after which half of the memory is left")
        handles = [
            Line2D([], [], color=INK, marker="o", linestyle="", markersize=12),
            Line2D([], [], color=INK, alpha=0.35, linewidth=5),
            Line2D([], [], color=INK, marker="|", linestyle="", markersize=18, markeredgewidth=2.5),
        ]
        figure.legend(handles, ["median after training", "80% of tokens and channels", "median before training"],
                      loc="outside lower center", ncols=3, fontsize=TEXT_POINTS - 1)  # fmt: skip
    return figure
