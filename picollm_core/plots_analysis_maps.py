"""Maps of correlations and of settings, and the residuals of a regression; see plots_analysis."""

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from picollm_core.analysis import Regression, residual_bias
from picollm_core.config import require
from picollm_core.figure_style import (
    FAMILY_LABELS,
    INK,
    QUIET,
    SIZE_INCHES,
    TEXT_POINTS,
    family_colour,
    new_figure,
    use_style,
)
from picollm_core.plots_comparison import MARKERS
from picollm_core.plots_grid import DARKEST, LIGHTEST

SPOKEN = {
    "n_embd": "width",
    "n_layer": "layers",
    "n_head": "heads",
    "k": "K",
    "block_size": "block size",
    "batch_size": "batch size",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "max_steps": "updates",
    "parameters": "parameters",
    "tokens_seen": "training tokens",
    "epochs_seen": "epochs",
    "train_seconds": "training time (s)",
    "tokens_per_second": "tokens a second in training",
    "peak_memory_mb": "peak memory (MB)",
    "train_loss": "training loss (nats per token)",
    "nll": "loss on held-out stories (nats per token)",
    "bits_per_byte": "loss on held-out stories (bits per byte)",
    "perplexity": "perplexity on held-out stories",
    "accuracy": "held-out tokens predicted right",
    "gap": "held-out loss - training loss (nats per token)",
    "grad_norm_mean": "mean gradient norm",
    "grad_norm_last": "last gradient norm",
    "greedy_repetition": "3-grams repeated, greedy",
    "sampled_repetition": "3-grams repeated, sampled",
}
"""Columns of comparison_table as an axis names them."""
_SHORT = {
    "nll": "held-out loss",
    "bits_per_byte": "bits per byte",
    "train_loss": "training loss",
    "train_seconds": "training time",
    "tokens_per_second": "tokens a second",
    "peak_memory_mb": "peak memory",
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "gap": "gap",
}
MOST_COLUMNS, MAX_SIDE, MOST_ACROSS = 18, 8, 15
NEGATIVE, POSITIVE, NO_VALUE = "#D55E00", "#0072B2", "#EDEDED"
SMALL_POINTS = 14


def spoken(column: str) -> str:
    """A column's name with its unit, as an axis or a heading says it."""
    return SPOKEN.get(column, column.replace("_", " "))


def _short(column: str) -> str:
    """A column's name without its unit, for crowded places."""
    return _SHORT.get(column, spoken(column))


def plot_correlations(matrix: pd.DataFrame, *, title: str, method: str = "Spearman's rank correlation") -> Figure:
    """The lower half of a correlation matrix: each variable's name at the corner of its row and its column.

    `matrix` (C, C) is that of analysis.correlation_matrix, for at most 18 columns. From a name, its correlations with
    those above stand to the left, and with those below underneath; grey cells have none (a constant, or too few common
    runs). Raises ValueError for a matrix that is not square and symmetric, values outside [-1, 1], too many columns.
    """
    names = [str(name) for name in matrix.columns]
    count, values = len(names), matrix.to_numpy(dtype=float)
    require(
        values.shape == (count, count) and [str(name) for name in matrix.index] == names,
        f"the matrix is {values.shape[0]} x {values.shape[1]}; rows and columns must be the same variables",
    )
    require(2 <= count <= MOST_COLUMNS, f"{count} variables; a slide shows 2 to {MOST_COLUMNS} legibly")
    known = values[np.isfinite(values)]
    require(
        bool((np.abs(known) <= 1 + 1e-9).all()) and np.allclose(values, values.T, equal_nan=True),
        "the matrix is no correlation matrix: it must be symmetric, with values in [-1, 1]",
    )
    shade = LinearSegmentedColormap.from_list("sign", [NEGATIVE, "#FFFFFF", POSITIVE])
    with use_style():
        figure, axes = new_figure(title)
        for y in range(count):
            for x in range(y):
                value = values[y, x]
                finite = math.isfinite(value)
                # Strong colours keep to what dark letters stand on: the scale ends at 0.62 of either hue.
                face = shade(0.5 + 0.31 * value) if finite else NO_VALUE
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=face, edgecolor="white", linewidth=1.5))
                if finite:
                    strong = "bold" if abs(value) >= 0.5 else "normal"
                    axes.text(x, y, _two_digits(value), ha="center", va="center", fontsize=SMALL_POINTS, weight=strong)
            axes.text(
                y - 0.42,
                y,
                _short(names[y]),
                ha="left",
                va="center",
                fontsize=TEXT_POINTS if count <= 15 else SMALL_POINTS,
                fontweight="bold",
                parse_math=False,
            )
        axes.set_xlim(-0.5, _width_of(names) - 0.5)
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        for side in axes.spines.values():
            side.set_visible(False)
        notes = ["bold: 0.5 or more in size"]
        if not np.isfinite(values[np.tril_indices(count, -1)]).all():
            notes.append("grey: none (a constant, or too few common runs)")
        below = f"{method}; blue: they grow together, orange: one falls as the other grows\n{'; '.join(notes)}"
        axes.set_xlabel(below, loc="left", parse_math=False)
    return figure


def _width_of(names: list[str]) -> float:
    """How many cells wide the page must be for every name to end on it: name i starts in cell i, letters are fixed."""
    letter = 0.72 * TEXT_POINTS / (0.96 * 72 * SIZE_INCHES[0])  # of bold type, as a share of the page
    return max((place + 0.3) / (1 - letter * len(_short(name))) for place, name in enumerate(names))


def _two_digits(value: float) -> str:
    """-.83 for -0.83: the leading zero of every correlation takes room and says nothing."""
    text = f"{value:.2f}".replace("-0.00", "0.00")
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.0f}"


def plot_residuals(
    regression: Regression, families: pd.Series, *, title: str, held_out: bool = True, unit: str = "nats per token"
) -> Figure:
    """What a regression leaves over: each run's residual against its prediction, and every family's mean of them.

    `families` names the family of every fitted run. Residuals are leave-one-out, or with `held_out=False` those of the
    fit itself. At the right stands each family's bias with its 95% interval over runs (none for a single run); above 0
    the runs are worse than predicted, where y is a loss. Raises ValueError for families that do not go with the runs
    and for an unknown family.
    """
    biases = residual_bias(regression, families, held_out)
    residuals = (regression.loo_residuals if held_out else regression.residuals).to_numpy()
    predicted = (regression.loo_fitted if held_out else regression.fitted).to_numpy()
    with use_style():
        figure, first = new_figure(title)
        first.remove()
        cloud, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.1, 1))
        for axes in (cloud, right):
            axes.axhline(0, color=INK, linewidth=1.5, zorder=1.5)
            axes.tick_params(labelsize=TEXT_POINTS, color=QUIET, labelcolor=INK)
        pale = 0.75 if len(residuals) <= 60 else 0.4
        for family in dict.fromkeys(families):
            own, colour = (families == family).to_numpy(), family_colour(family)
            look = {"color": colour, "marker": MARKERS[family], "markersize": 10, "markeredgewidth": 0, "alpha": pale}
            cloud.plot(predicted[own], residuals[own], linestyle="None", **look)
        _draw_biases(right, biases)
        by = "by the fit without this run" if held_out else "by the fit to all runs"
        cloud.set_xlabel(f"predicted {by} ({unit})", parse_math=False)
        cloud.set_ylabel(f"measured - predicted\n({unit})", parse_math=False)
        cloud.margins(0.06)
        cloud.grid(visible=True, axis="x")
    return figure


def _draw_biases(axes: Axes, biases: pd.DataFrame) -> None:
    """A family's mean residual, its interval, and both as a number beside it."""
    for place, row in enumerate(biases.itertuples()):
        colour = family_colour(str(row.group))
        if math.isfinite(row.low):
            axes.plot([place, place], [row.low, row.high], color=colour, linewidth=4, solid_capstyle="butt")
        axes.plot(place, row.bias, MARKERS[str(row.group)], color=colour, markersize=13)
        axes.annotate(
            f"{row.bias:+.2f}",
            (place, row.bias),
            xytext=(12, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold",
        )
    labels = [f"{FAMILY_LABELS[str(row.group)].replace(' ', chr(10))}\n({row.n})" for row in biases.itertuples()]
    axes.set_xticks(range(len(biases)), labels, parse_math=False)
    axes.set_xlim(-0.5, len(biases) - 0.1)
    bars = "95% intervals over runs" if (biases["n"] > 1).all() else "95% intervals where there are several runs"
    axes.set_title(f"mean of a family\n{bars}", fontsize=TEXT_POINTS, loc="left", pad=8)


def plot_heat_maps(
    maps: Mapping[str, pd.DataFrame],
    *,
    title: str,
    value_label: str = SPOKEN["nll"],
    row_label: str = "",
    column_label: str = "",
    value_format: str = ".2f",
    best: Literal["low", "high"] | None = "low",
) -> Figure:
    """One map a family side by side, on one scale of shades, with the numbers in the cells.

    `maps` is that of analysis.heat_map_table: family -> table, missing values where nothing ran (grey). The `best` cell
    of each family is outlined. Labels default to the names of the tables' rows and columns. Raises ValueError without
    maps, for an unknown family or `best`, more than 8 rows or 15 columns in all, and when nothing is finite.
    """
    require(len(maps) > 0, "there are 0 maps; give at least one family's")
    require(best in ("low", "high", None), f"best is {best!r}; choose low, high or None")
    across, down = sum(table.shape[1] for table in maps.values()), max(table.shape[0] for table in maps.values())
    require(
        across <= MOST_ACROSS and down <= MAX_SIDE,
        f"{down} rows and {across} columns in all; a slide shows at most {MAX_SIDE} and {MOST_ACROSS} legibly",
    )
    numbers = np.concatenate([table.to_numpy(dtype=float).ravel() for table in maps.values()])
    numbers = numbers[np.isfinite(numbers)]
    require(len(numbers) > 0, "no map has a finite value; there is nothing to draw")
    scale = Normalize(numbers.min(), numbers.max() if numbers.max() > numbers.min() else numbers.min() + 1)
    shared = len({tuple(table.index) for table in maps.values()}) == 1
    with use_style():
        figure, first = new_figure(title)
        first.remove()
        widths = [max(table.shape[1], 2) for table in maps.values()]
        panels = figure.subplots(1, len(maps), squeeze=False, width_ratios=widths)[0]
        for place, (axes, (family, table)) in enumerate(zip(panels, maps.items(), strict=True)):
            points = 20 if across <= 9 else 16 if across <= 12 else SMALL_POINTS
            _draw_map(axes, table, scale, value_format, best, points)
            axes.set_title(
                FAMILY_LABELS.get(family, family),
                loc="left",
                fontsize=TEXT_POINTS + 2,
                fontweight="bold",
                color=family_colour(family),
                pad=10,
            )
            axes.set_xlabel(column_label or spoken(str(table.columns.name)), parse_math=False)
            if place == 0:
                axes.set_ylabel(row_label or spoken(str(table.index.name)), parse_math=False)
            elif shared:
                axes.tick_params(labelleft=False)
        notes = [f"{value_label}, darker is higher"]
        notes += [f"outlined: the family's {'lowest' if best == 'low' else 'highest'}"] if best else []
        notes += ["grey: not run"] if any(table.isna().any(axis=None) for table in maps.values()) else []
        figure.supxlabel("; ".join(notes), fontsize=TEXT_POINTS, color=INK, parse_math=False)
    return figure


def _draw_map(axes: Axes, table: pd.DataFrame, scale: Normalize, form: str, best: str | None, points: int) -> None:
    """The cells of one family."""
    shade = LinearSegmentedColormap.from_list("map", [LIGHTEST, DARKEST])
    values = table.to_numpy(dtype=float)
    known = values[np.isfinite(values)]
    winner = f"{(known.min() if best == 'low' else known.max()):{form}}" if best and len(known) else None
    for (y, x), value in np.ndenumerate(values):
        finite = math.isfinite(value)
        face = shade(scale(value)) if finite else NO_VALUE
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=face, edgecolor="white", linewidth=2))
        if finite:
            text = f"{value:{form}}"
            axes.text(x, y, text, ha="center", va="center", fontsize=points, fontweight="bold")
            if text == winner:
                axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=2.5))
    axes.set_xlim(-0.5, values.shape[1] - 0.5)
    axes.set_ylim(values.shape[0] - 0.5, -0.5)
    axes.set_xticks(range(values.shape[1]), [_level(name) for name in table.columns], parse_math=False)
    axes.set_yticks(range(values.shape[0]), [_level(name) for name in table.index], parse_math=False)
    axes.tick_params(length=0, labelsize=TEXT_POINTS, labelcolor=INK)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)


def _level(name: object) -> str:
    """A setting as text: 3 for the 3.0 that a column with missing values holds."""
    return f"{name:g}" if isinstance(name, float) else str(name)
