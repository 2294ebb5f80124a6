"""Figures of scaling laws: loss with fitted curves, what the fit misses, where compute is best spent, families."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from picollm_core.config import require
from picollm_core.figure_style import (
    FAMILY_LABELS,
    INK,
    QUIET,
    EndLabel,
    family_colour,
    label_ends,
    new_figure,
    use_style,
)
from picollm_core.plots import draw_floors, require_columns
from picollm_core.plots_arms import mean_interval
from picollm_core.scaling import FLOPS, ScalingFit, optimal_sizes

MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
HELD_OUT = "#D55E00"
Prediction = Mapping[str, float]
"""measured, predicted, low and high, as `scaling.forecast` gives them."""


def size_colours(values: Sequence[float]) -> dict[float, str]:
    """A colour for each of some ascending sizes, from light to dark."""
    scale = matplotlib.colormaps["viridis_r"]
    return {
        value: to_hex(scale(0.2 + 0.8 * place))
        for value, place in zip(values, np.linspace(0, 1, len(values)), strict=True)
    }


def short_number(value: float) -> str:
    """155808 as 156k, 1638400 as 1.6M."""
    unit, size = next(((u, s) for u, s in (("M", 1e6), ("k", 1e3)) if value >= 0.9995 * s), ("", 1.0))
    scaled = value / size
    return f"{scaled:.1f}{unit}" if unit == "M" and scaled < 10 else f"{scaled:.0f}{unit}"


def _short_tick(value: float, _: int) -> str:
    return short_number(value)


def _plain(value: float, _: int) -> str:
    return f"{value:g}"


def _loss_axis(axes: Axes, low: float, high: float) -> None:
    """Loss on a logarithmic axis with a plain number every tenth of a nat, or less often on a longer axis."""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    step = next((s for s in (0.1, 0.2, 0.5) if high - low < 7 * s), 1.0)
    axes.yaxis.set_major_locator(FixedLocator(list(np.arange(np.ceil(low / step) * step, high, step))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _count_axis(axis: Any, places: Sequence[float] | None = None) -> None:
    axis.set_major_locator(FixedLocator(sorted(places)) if places is not None else LogLocator(subs=(1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(_short_tick))
    axis.set_minor_formatter(NullFormatter())


def plot_law(
    table: pd.DataFrame,
    fit: ScalingFit,
    x: str,
    by: str,
    *,
    title: str,
    x_label: str,
    by_unit: str,
    held_out: pd.Series,
    prediction: Prediction,
    floors: Mapping[str, float] | None = None,
) -> Figure:
    """Held-out loss against `x`, a colour for each value of `by`: dots are runs, lines the fit, both axes logarithmic.

    `table` has a row a run with nll and the fit's variables; `held_out` marks the rows that the fit has not seen, drawn
    as stars with the 95% interval of `prediction` beside them. A line is dashed beyond the runs it was fitted to.
    `floors` (nats per token) become labelled dashed lines. Raises ValueError for missing columns and no rows.
    """
    require_columns(table, [x, by, "nll"])
    known = table[~held_out]
    colours = size_colours(sorted(table[by].unique()))
    with use_style():
        figure, axes = new_figure(title)
        axes.set_xscale("log")
        labels = []
        for value, colour in colours.items():
            own, out = known[known[by] == value], table[held_out & (table[by] == value)]
            seen = np.geomspace(own[x].min(), own[x].max(), 60)
            far = np.geomspace(own[x].max(), table.loc[table[by] == value, x].max(), 30)
            for grid, style in ((seen, "-"), (far, (0, (2, 1.5)))):
                axes.plot(grid, fit.curve(pd.DataFrame({x: grid, by: value})), color=colour, linestyle=style)
            axes.plot(own[x], own["nll"], "o", color=colour, markersize=9, markeredgecolor="white", markeredgewidth=1)
            axes.plot(out[x], out["nll"], "*", color=HELD_OUT, markersize=22, markeredgecolor="white", zorder=5)
            end = float(fit.curve(pd.DataFrame({x: far[-1:], by: value}))[0])
            labels.append(EndLabel(f"{short_number(value)} {by_unit}", far[-1], end, colour))
        place = float(table.loc[held_out, x].iloc[0])
        axes.vlines(place, prediction["low"], prediction["high"], color=HELD_OUT, linewidth=4, alpha=0.5)
        values = [table["nll"].min(), table["nll"].max(), *(floors or {}).values()]
        _loss_axis(axes, 0.96 * min(values), 1.03 * max(values))
        _count_axis(axes.xaxis, table[x].unique())
        label_ends(axes, labels + draw_floors(axes, floors or {}))
        _law_legend(axes)
        axes.set_xlabel(x_label, parse_math=False)
        axes.set_ylabel("loss on held-out stories (nats per token)")
    return figure


def _law_legend(axes: Axes) -> None:
    handles = [
        Line2D([], [], color=INK, marker="o", linestyle="none", markersize=9),
        Line2D([], [], color=INK),
        Line2D([], [], color=HELD_OUT, marker="*", linestyle="none", markersize=18),
        Line2D([], [], color=HELD_OUT, linewidth=4, alpha=0.5),
    ]
    words = ["run", "fit", "run held out of the fit", "95% interval of its prediction"]
    axes.legend(handles, words, loc="best", frameon=True, framealpha=0.9, edgecolor="none", fontsize=14)


def plot_misses(
    table: pd.DataFrame, fit: ScalingFit, *, title: str, held_out: pd.Series, prediction: Prediction, noise: float
) -> Figure:
    """What the fit misses in every run, measured minus fitted loss in per cent of the fitted, against the fitted loss.

    Colours are sizes (parameters) and marks budgets (tokens). The grey band is one standard deviation of seeds,
    `noise`, of log loss; the run held out is a star with the interval of its prediction about 0. Raises ValueError for
    missing columns, no rows and more than 8 budgets.
    """
    require_columns(table, ["parameters", "tokens", "nll"])
    budgets = sorted(table["tokens"].unique())
    require(len(budgets) <= len(MARKS), f"{len(budgets)} budgets, but there are {len(MARKS)} marks; choose rows")
    colours = size_colours(sorted(table["parameters"].unique()))
    fitted = pd.Series(fit.curve(table), index=table.index)
    percent = 100 * (table["nll"] / fitted - 1)
    with use_style():
        figure, axes = new_figure(title)
        if noise > 0:
            axes.axhspan(-100 * noise, 100 * noise, color="#DDDDDD", zorder=0)
        axes.axhline(0, color=QUIET, linewidth=1.5)
        for place in table.index[~held_out]:
            row = table.loc[place]
            mark = MARKS[budgets.index(row["tokens"])]
            axes.plot(fitted[place], percent[place], mark, color=colours[row["parameters"]], markersize=12,
                      markeredgecolor="white")  # fmt: skip
        out = table.index[held_out][0]
        low, high = (100 * (prediction[end] / prediction["predicted"] - 1) for end in ("low", "high"))
        axes.vlines(fitted[out], low, high, color=HELD_OUT, linewidth=4, alpha=0.5)
        axes.plot(fitted[out], percent[out], "*", color=HELD_OUT, markersize=22, markeredgecolor="white")
        handles = [Line2D([], [], color=c, lw=6) for c in colours.values()]
        words = [f"{short_number(size)} parameters" for size in colours]
        handles += [
            Line2D([], [], color=INK, marker=mark, linestyle="none", markersize=11)
            for mark, _ in zip(MARKS, budgets, strict=False)
        ]
        words += [f"{short_number(budget)} tokens" for budget in budgets]
        handles.append(Line2D([], [], color=HELD_OUT, marker="*", linestyle="none", markersize=18))
        words.append("held out, with interval")
        if noise > 0:
            handles.append(Line2D([], [], color="#DDDDDD", lw=10))
            words.append("one SD of seeds")
        figure.legend(handles, words, loc="outside right upper", fontsize=14)
        axes.set_xlabel("fitted loss (nats per token)")
        axes.set_ylabel("measured minus fitted (% of fitted)")
        axes.invert_xaxis()
    return figure


def plot_frontier(
    table: pd.DataFrame, fit: ScalingFit, *, title: str, losses: Sequence[float], parameters: str = "parameters"
) -> Figure:
    """Lines of equal fitted loss over parameters and tokens, and the sizes at which each costs least, for C = 6 N D.

    `losses` (nats per token) name the lines; dots are the runs of `table`. The dashed line through the optimal sizes
    holds as far as the fit does. Raises ValueError for missing columns, no rows, and no losses.
    """
    require_columns(table, [parameters, "tokens"])
    require(len(losses) > 0, "there are 0 losses; name at least one line of equal loss")
    size, text = table[parameters].to_numpy(dtype=float), table["tokens"].to_numpy(dtype=float)
    across, up = (np.geomspace(values.min() / 1.6, values.max() * 1.6, 120) for values in (size, text))
    grid = pd.DataFrame({parameters: np.tile(across, 120), "tokens": np.repeat(up, 120)})
    with use_style():
        figure, axes = new_figure(title)
        axes.set_xscale("log")
        axes.set_yscale("log")
        levels = sorted(losses)
        colours = list(size_colours(levels).values())[::-1]
        lines = axes.contour(across, up, fit.curve(grid).reshape(120, 120), levels=levels, colors=colours, linewidths=3)
        for name in axes.clabel(lines, fmt=lambda level: f"{level:g} nats", fontsize=15):
            name.set_path_effects([withStroke(linewidth=5, foreground="white")])
        best = optimal_sizes(
            fit, np.geomspace(FLOPS * across[0] * up[0] / 1e2, FLOPS * across[-1] * up[-1] * 1e2, 300), parameters
        )
        inside = best[best[parameters].between(across[0], across[-1]) & best["tokens"].between(up[0], up[-1])]
        axes.plot(
            inside[parameters],
            inside["tokens"],
            color=HELD_OUT,
            linestyle=(0, (5, 2)),
            label="least compute for its loss, by the fit",
        )
        axes.plot(size, text, "o", color=INK, markersize=10, label="run")
        axes.set_xlim(across[0], across[-1])
        axes.set_ylim(up[0], up[-1])
        _count_axis(axes.xaxis, sorted(set(size)))
        _count_axis(axes.yaxis, sorted(set(text)))
        axes.set_xlabel("parameters")
        axes.set_ylabel("tokens trained on")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def plot_families(
    table: pd.DataFrame, *, title: str, floors: Mapping[str, float] | None = None, seeds_word: str = "seeds"
) -> Figure:
    """Held-out loss of each family against tokens, on logarithmic axes: means over seeds with Student's 95% intervals.

    `table` has a row a run: family, tokens, seed, nll. A point of one seed has no bar. `floors` (nats per token) become
    labelled dashed lines. Raises ValueError for missing columns, no rows and an unknown family.
    """
    require_columns(table, ["family", "tokens", "seed", "nll"])
    with use_style():
        figure, axes = new_figure(title)
        axes.set_xscale("log")
        labels, most = [], int(table.groupby(["family", "tokens"])["seed"].nunique().max())
        for family, own in table.groupby("family", sort=False):
            colour = family_colour(str(family))
            places = sorted(own["tokens"].unique())
            found = np.array([mean_interval(own.loc[own["tokens"] == place, "nll"].tolist()) for place in places])
            axes.plot(places, found[:, 0], color=colour, marker="o", markersize=10)
            axes.vlines(places, found[:, 1], found[:, 2], color=colour, linewidth=6, alpha=0.4)
            labels.append(EndLabel(FAMILY_LABELS[str(family)], places[-1], found[-1, 0], colour))
        values = [table["nll"].min(), table["nll"].max(), *(floors or {}).values()]
        _loss_axis(axes, 0.97 * min(values), 1.02 * max(values))
        _count_axis(axes.xaxis, table["tokens"].unique())
        label_ends(axes, labels + draw_floors(axes, floors or {}))
        bars = f"; bars: 95% interval of the mean over {most} {seeds_word}" if most > 1 else ""
        axes.set_xlabel(f"tokens trained on{bars}", parse_math=False)
        axes.set_ylabel("loss on held-out stories (nats per token)")
    return figure
