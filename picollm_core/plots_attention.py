"""Figures about attention: where heads look, what a prediction depends on, what one more token costs.

Like those of `plots`: numbers in, a matplotlib Figure out; the caller writes the title.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from picollm_core.figure_style import (
    QUIET,
    TEXT_POINTS,
    EndLabel,
    family_colour,
    label_ends,
    new_figure,
    use_style,
)
from picollm_core.plots import require_columns, visible_token

MAX_TOKENS = 20  # on an axis of the large map, at the size of all letters
MAX_SIDE = 12  # layers, and heads in a layer, that the small maps can show
WEIGHTS = LinearSegmentedColormap.from_list("weights", ["#FFFFFF", family_colour("transformer"), "#06243D"])
OUT_OF_SIGHT = "#ECECEC"  # later tokens: not a small weight, but none by construction


def _as_patterns(patterns: object, n_tokens: int) -> np.ndarray:
    values = np.asarray(patterns, dtype=float)
    if values.ndim != 4 or values.shape[2:] != (n_tokens, n_tokens):
        raise ValueError(f"patterns of shape {values.shape} do not go with {n_tokens} tokens; give (L, H, T, T)")
    if values.min() < 0 or np.abs(values.sum(-1) - 1).max() > 0.02:  # room for values that were rounded
        raise ValueError(f"not attention weights: smallest {values.min():.3g}, row sums {values.sum(-1).max():.4g}")
    if n_tokens > MAX_TOKENS or max(values.shape[:2]) > MAX_SIDE:
        raise ValueError(
            f"{values.shape[0]} layers of {values.shape[1]} heads on {n_tokens} tokens; a slide shows at most "
            f"{MAX_SIDE} each way, and {MAX_TOKENS} tokens"
        )
    return values


def _draw_map(axes: Axes, weights: np.ndarray) -> None:
    """One head: a row a query, a column a token looked at, later tokens grey."""
    later = np.triu(np.ones_like(weights, dtype=bool), 1)
    axes.set_facecolor(OUT_OF_SIGHT)
    axes.imshow(np.ma.masked_where(later, weights), cmap=WEIGHTS, vmin=0, vmax=1, aspect="auto")
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)


def plot_attention_heads(
    patterns: object, tokens: Sequence[str], *, title: str, focus: tuple[int, int] = (1, 1), note: str = ""
) -> Figure:
    """All heads of a model on one text as small maps, and one of them large, with the tokens on its axes.

    `patterns` (L, H, T, T) are attention weights, [layer, head, t, s] that of t on s, for the T `tokens`; `focus` is
    the layer and the head, counted from 1, of the large map, below which `note` is written.
    Raises ValueError when the shapes differ, rows do not sum to 1, focus is no head, or there is too much for a slide.
    """
    values = _as_patterns(patterns, len(tokens))
    n_layer, n_head = values.shape[:2]
    layer, head = focus
    if not (1 <= layer <= n_layer and 1 <= head <= n_head):
        raise ValueError(f"focus is layer {layer}, head {head}; there are {n_layer} layers of {n_head} heads")
    with use_style():
        figure, axes = new_figure(title)
        axes.remove()
        figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.12))  # the gaps of small maps add up
        grid = figure.add_gridspec(1, 2, width_ratios=(1.25, 1))
        left, right = (figure.add_subfigure(grid[side]) for side in (0, 1))
        large = left.add_subplot()
        _draw_map(large, values[layer - 1, head - 1])
        places = np.arange(len(tokens))
        large.set_xticks(places, [visible_token(token) for token in tokens], rotation=90, parse_math=False)
        large.set_yticks(places, [visible_token(token) for token in tokens], parse_math=False)
        large.tick_params(length=0, labelsize=TEXT_POINTS - 2)
        large.set_ylabel("token that looks")
        large.set_xlabel("token looked at" + (f"\n{note}" if note else ""), parse_math=False)
        large.set_title(f"layer {layer}, head {head}", loc="left", fontsize=TEXT_POINTS, fontweight="bold")
        small = right.subplots(n_layer, n_head, squeeze=False)
        for (row, column), cell in np.ndenumerate(small):
            _draw_map(cell, values[row, column])
            cell.set_xticks([])
            cell.set_yticks([])
            if (row + 1, column + 1) == focus:
                cell.spines[:].set(color=family_colour("kgram"), linewidth=4)
            if row == 0:
                name = f"head {column + 1}" if n_head <= 5 or column == 0 else f"{column + 1}"
                cell.set_title(name if n_head <= 8 else f"{column + 1}", fontsize=TEXT_POINTS)
            if column == 0:
                cell.set_ylabel(f"layer {row + 1}" if n_layer <= 5 else f"L{row + 1}", fontsize=TEXT_POINTS)
        scale = right.colorbar(small[0, 0].images[0], ax=small, location="bottom", shrink=0.8, aspect=30)
        scale.set_label("attention weight (grey: later, never seen)")
    return figure


def plot_input_gradients(gradients: object, *, title: str, row: int = 0) -> Figure:
    """What the predictions of one row of a batch depend on: a map for each row of the batch, side by side.

    `gradients` (T, B, T) are those of `interpret.gradients.input_gradients` for `row`; the scale is logarithmic and
    exact zeros are grey. Raises ValueError for another shape, a row that is not there, or nothing above zero.
    """
    values = np.asarray(gradients, dtype=float)
    if values.ndim != 3 or values.shape[0] != values.shape[2] or not 0 <= row < values.shape[1]:
        raise ValueError(f"gradients of shape {values.shape} with row {row}; give (T, B, T) and a row of B")
    if not (values > 0).any():
        raise ValueError("every gradient is zero; nothing that was read reaches any prediction")
    with use_style():
        figure, first = new_figure(title)
        first.remove()
        panels = figure.subplots(1, values.shape[1], sharey=True, squeeze=False)[0]
        above = values[values > 0]
        norm = LogNorm(above.min() / 2, above.max())  # the smallest is not white, which would look like zero
        for place, axes in enumerate(panels):
            axes.set_facecolor(OUT_OF_SIGHT)
            masked = np.ma.masked_equal(values[:, place], 0)
            image = axes.imshow(masked, cmap=WEIGHTS, norm=norm, aspect="equal")
            axes.grid(visible=False)
            axes.set_xlabel("position of the token read")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
            name = "its own story" if place == row else "another story of the batch"
            zeros = int((values[:, place] == 0).sum())
            axes.set_title(f"{name}\n{zeros} of {values[:, place].size} exactly 0", fontsize=TEXT_POINTS, loc="left")
        panels[0].set_ylabel("position of the prediction")
        scale = figure.colorbar(image, ax=panels, shrink=0.8, aspect=25, format=FuncFormatter(lambda v, _: f"{v:g}"))
        scale.ax.yaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=8))
        scale.ax.minorticks_off()
        scale.set_label("length of the gradient (grey: exactly 0)")
    return figure


def plot_decoding_times(table: pd.DataFrame, *, title: str) -> Figure:
    """Time of one more token against the length of the text, one line a way of computing it, with quartiles as a band.

    `table` is that of `decoding_speed.decoding_times`: columns length (tokens), way, and milliseconds, low, high.
    Raises ValueError for missing columns, and for more than two ways.
    """
    require_columns(table, ["length", "way", "milliseconds", "low", "high"])
    colours = (family_colour("transformer"), QUIET)
    if table["way"].nunique() > len(colours):
        raise ValueError(f"{table['way'].nunique()} ways of decoding; the figure compares at most {len(colours)}")
    with use_style():
        figure, axes = new_figure(title)
        labels = []
        for colour, (way, rows) in zip(colours, table.groupby("way", sort=False), strict=False):
            rows = rows.sort_values("length")
            axes.fill_between(rows["length"], rows["low"], rows["high"], color=colour, alpha=0.25, linewidth=0)
            axes.plot(rows["length"], rows["milliseconds"], color=colour, marker="o", markersize=8)
            labels.append(EndLabel(str(way), rows["length"].iloc[-1], rows["milliseconds"].iloc[-1], colour))
        axes.set_xlim(0, table["length"].max() * 1.02)
        axes.set_ylim(0, table["high"].max() * 1.05)
        label_ends(axes, labels)
        axes.set_xlabel("length of the text so far (tokens)")
        axes.set_ylabel("time for one more token (ms); band: quartiles")
    return figure
