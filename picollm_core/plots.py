"""Figures from tables: every plot takes numbers and returns a matplotlib Figure; it never trains, shows or saves.

The caller writes the title, which says the finding. Colours, sizes and saving are those of `figure_style`.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, FuncFormatter

from picollm_core.figure_style import (
    FAMILY_LABELS,
    INK,
    LINE_STYLES,
    MAX_ROWS,
    PALE,
    QUIET,
    TEXT_POINTS,
    EndLabel,
    family_colour,
    label_ends,
    new_figure,
    save_figure,
    thin_out,
    use_style,
)

__all__ = ["plot_bars", "plot_distribution", "plot_loss_curves", "plot_per_position", "save_figure", "use_style"]

X_LABELS = {"tokens": "training tokens", "step": "optimiser steps", "seconds": "training time (s)"}


def require_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise ValueError unless `table` has all `columns` and at least one row."""
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(f"the table has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise ValueError(f"the table is empty; a figure needs at least one row of {', '.join(columns)}")


def draw_floors(axes: Axes, floors: Mapping[str, float]) -> list[EndLabel]:
    """A dashed line across the axes at each value of `floors`, and the labels that name them."""
    edge = axes.get_xlim()[1]
    for value in floors.values():
        axes.axhline(value, color=QUIET, linestyle=(0, (5, 4)), linewidth=1.8, zorder=1.5)
    return [EndLabel(name, edge, value, QUIET) for name, value in floors.items()]


def plot_loss_curves(
    history: pd.DataFrame,
    *,
    title: str,
    floors: Mapping[str, float] | None = None,
    x: Literal["tokens", "step", "seconds"] = "tokens",
    y_max: float | None = None,
) -> Figure:
    """Loss against tokens, steps or seconds: thick lines are validation, thin ones the training batches.

    `history` has a row for each logged step: run, family, the column `x`, and loss or val_loss or both, in nats per
    token (missing values where one was not measured). `floors` (nats per token) become labelled dashed lines. The view
    leaves out the first tenth of each run, whose fall from ln V would flatten the rest; `y_max` overrides that.
    Raises ValueError for missing columns, an empty table, an unknown family or x.
    """
    if x not in X_LABELS:
        raise ValueError(f"x is {x!r}; choose one of {', '.join(X_LABELS)}")
    require_columns(history, ["run", "family", x])
    measured = [name for name in ("val_loss", "loss") if name in history.columns and history[name].notna().any()]
    if not measured:
        raise ValueError("the table has neither loss nor val_loss values; log at least one of them")
    with use_style():
        figure, axes = new_figure(title)
        labels: list[EndLabel] = []
        families: list[str] = []
        visible = list((floors or {}).values())
        for run, rows in history.groupby("run", sort=False):
            family = rows["family"].iloc[0]
            colour, style = family_colour(family), LINE_STYLES[families.count(family) % len(LINE_STYLES)]
            own = [name for name in measured if rows[name].notna().any()]
            for rank, name in enumerate(own):
                line = rows[[x, name]].dropna()
                late = line[line[x] >= 0.1 * line[x].max()][name]
                visible += [late.min(), late.max() if rank == 0 else late.min()]
                look = {"linestyle": style} if rank == 0 else {"linewidth": 1.2, "alpha": 0.4, "zorder": 1.8}
                axes.plot(line[x], line[name], color=colour, **look)
                if rank == 0:
                    labels.append(EndLabel(str(run), line[x].iloc[-1], line[name].iloc[-1], colour))
                    families.append(family)
        axes.set_xlim(0, history[x].max())
        low, high = min(visible), max(visible)
        margin = 0.06 * (high - low or 1.0)
        axes.set_ylim(low - margin, y_max if y_max is not None else high + margin)
        label_ends(axes, thin_out(labels, families) + draw_floors(axes, floors or {}))
        axes.set_xlabel(X_LABELS[x])
        axes.set_ylabel("loss (nats per token)")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if len(measured) == 2:
            proxies = [Line2D([], [], color=INK, lw=3), Line2D([], [], color=INK, lw=1.2, alpha=0.5)]
            axes.legend(
                proxies,
                ["held-out text", "training batch"],
                loc="upper right",
                frameon=True,
                framealpha=0.9,
                edgecolor="none",
            )
        elif measured == ["loss"]:
            axes.set_ylabel("loss of the training batch (nats per token)")
    return figure


def plot_per_position(
    losses: Mapping[str, Sequence[float]], *, title: str, families: Mapping[str, str] | None = None
) -> Figure:
    """Loss by position in the story, one line a name; `losses[name][t]` is in nats per token at position t + 1.

    Not-a-number marks positions that were never scored. A name's family comes from `families`, or else is the part of
    the name before its first hyphen. Raises ValueError when there is nothing to draw or a family is unknown.
    """
    if not losses:
        raise ValueError("losses is empty; give at least one name with its losses by position")
    known = dict(families or {})
    with use_style():
        figure, axes = new_figure(title)
        labels: list[EndLabel] = []
        seen: list[str] = []
        for name, values in losses.items():
            line = np.asarray(values, dtype=float)
            scored = np.flatnonzero(np.isfinite(line))
            if not len(scored):
                raise ValueError(f"{name!r} has no finite loss in {len(line)} positions; evaluate at least one story")
            family = known.get(name, name.partition("-")[0])
            colour, style = family_colour(family), LINE_STYLES[seen.count(family) % len(LINE_STYLES)]
            axes.plot(np.arange(1, len(line) + 1), line, color=colour, linestyle=style)
            labels.append(EndLabel(name, scored[-1] + 1, line[scored[-1]], colour))
            seen.append(family)
        axes.set_xlim(1, max(len(values) for values in losses.values()))
        label_ends(axes, thin_out(labels, seen))
        axes.set_xlabel("position in the story (tokens)")
        axes.set_ylabel("loss (nats per token)")
    return figure


def plot_bars(
    table: pd.DataFrame,
    x: str,
    y: str,
    *,
    unit: str,
    title: str,
    interval: tuple[str, str] | None = None,
    interval_means: str = "",
    family: str | None = None,
    value_format: str = ".2f",
) -> Figure:
    """Horizontal bars, the first row on top: column `x` holds the values in `unit`, column `y` the names.

    `interval` names the columns of the lower and upper ends of the whiskers (same unit) and `interval_means` says what
    they are, for example "95% bootstrap over stories". `family` names the column that sets the colours.
    Raises ValueError for missing columns, values that are not finite, or whiskers without a meaning.
    """
    require_columns(table, [x, y, *(interval or ()), *([family] if family else [])])
    if len(table) > MAX_ROWS:
        raise ValueError(f"{len(table)} bars, but a slide shows at most {MAX_ROWS} legibly; choose rows or draw twice")
    if interval and not interval_means:
        raise ValueError("whiskers need interval_means, such as '95% bootstrap over stories': say what they are")
    values = table[x].to_numpy(dtype=float)
    ends = np.stack([table[name].to_numpy(dtype=float) for name in interval or (x, x)])
    if not np.isfinite(np.stack([values, *ends])).all():
        bad = table.loc[~np.isfinite(np.stack([values, *ends])).all(axis=0), y].tolist()
        raise ValueError(f"rows without a finite value: {', '.join(map(str, bad))}; drop them before drawing")
    families = table[family].tolist() if family else []
    with use_style():
        figure, axes = new_figure(title)
        rows = np.arange(len(table))
        axes.barh(rows, values, height=0.68, color=[family_colour(f) for f in families] or QUIET)
        if interval:
            halo = [withStroke(linewidth=6, foreground="white")]
            axes.hlines(rows, *ends, color=INK, linewidth=2.5, path_effects=halo)
            axes.plot(ends, np.stack([rows, rows]), "|", color=INK, ms=14, mew=2.5, path_effects=halo)
            axes.hlines(rows, *ends, color=INK, linewidth=2.5)
        for row, value, low, high in zip(rows, values, *ends, strict=True):
            # The number stands beyond the whisker, on the far side of zero.
            edge, side = (min(low, value), -1) if value < 0 else (max(high, value), 1)
            axes.annotate(
                f"{value:{value_format}}",
                xy=(edge, row),
                xytext=(8 * side, 0),
                textcoords="offset points",
                va="center_baseline",
                ha="right" if side < 0 else "left",
                fontweight="bold",
            )
        left, right = min(0.0, values.min(), ends.min()), max(0.0, values.max(), ends.max())
        longest = max(len(f"{value:{value_format}}") for value in values)
        room = max(0.12, 0.03 * longest) * (right - left or 1.0)
        axes.set_xlim(left - room * (left < 0), right + room)
        axes.set_yticks(rows, [textwrap.fill(str(name), 28) for name in table[y]], parse_math=False)
        axes.set_ylim(len(table) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)
        axes.axvline(0, color=QUIET, linewidth=1)
        axes.set_xlabel(f"{x} ({unit})" + (f"; whiskers: {interval_means}" if interval else ""), parse_math=False)
        kinds = list(dict.fromkeys(families))
        if len(kinds) > 1:
            patches = [Patch(color=family_colour(kind), label=FAMILY_LABELS[kind]) for kind in kinds]
            figure.legend(handles=patches, loc="outside lower center", ncols=len(kinds))
    return figure


def visible_token(token: str) -> str:
    """A token as a reader can see it: spaces as open boxes, line ends and other control characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in token.replace(" ", "␣")) or "(empty)"


def plot_distribution(
    probabilities: Sequence[float] | np.ndarray,
    tokens: Sequence[str],
    *,
    title: str,
    cut: int | None = None,
    family: str | None = None,
    top: int = 16,
) -> Figure:
    """The most probable next tokens as bars; `cut` is the size of the nucleus, whose border is drawn and named.

    `probabilities` (N,) and the N `tokens` belong together, in any order; they may be the head of the vocabulary, since
    whatever is missing from 1 is told as the rest. The `top` most probable are drawn.
    Raises ValueError when the lengths differ, a value is no probability, or cut < 1.
    """
    values = np.asarray(probabilities, dtype=float)
    if values.ndim != 1 or len(values) != len(tokens) or not len(values):
        raise ValueError(f"probabilities of shape {values.shape} do not go with {len(tokens)} tokens; give one each")
    if not np.isfinite(values).all() or values.min() < 0 or values.sum() > 1.001:
        raise ValueError(
            f"not probabilities: smallest {values.min():.3g}, sum {values.sum():.4g}; apply a softmax first"
        )
    if not 1 <= top <= MAX_ROWS:
        raise ValueError(f"top is {top}; a slide shows 1 to {MAX_ROWS} tokens legibly")
    if cut is not None and cut < 1:
        raise ValueError(f"cut is {cut}; a nucleus holds at least 1 token")
    ranked = np.argsort(-values, kind="stable")
    order = ranked[:top]
    shown, rows = values[order], np.arange(len(order))
    kept = rows < (cut if cut is not None else len(rows))
    colour = family_colour(family) if family else QUIET
    with use_style():
        figure, axes = new_figure(title)
        axes.barh(rows, shown, height=0.72, color=[colour if inside else PALE for inside in kept])
        for row, value in zip(rows, shown, strict=True):
            axes.annotate(
                f"{value:.1%}",
                xy=(value, row),
                xytext=(8, 0),
                textcoords="offset points",
                va="center_baseline",
                fontsize=TEXT_POINTS - 2,
            )
        notes = [f"tokens not drawn: {max(0.0, 1.0 - shown.sum()):.1%}"]
        if cut is not None and cut <= len(values):
            nucleus = f"nucleus: {cut:,} token{'s' * (cut > 1)}, {values[ranked[:cut]].sum():.1%} of the mass"
            if cut < len(rows):
                axes.axhline(cut - 0.5, color=INK, linestyle=(0, (5, 3)), linewidth=1.8)
            if cut < len(rows) and shown[cut] < 0.4 * shown[0]:
                across = axes.get_yaxis_transform()  # x as a share of the width, y in rows
                axes.text(0.99, cut - 0.3, nucleus, ha="right", va="top", transform=across)
            else:  # the bars leave no room beside the border
                notes.insert(0, nucleus)
        axes.set_yticks(rows, [visible_token(tokens[i]) for i in order], parse_math=False)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, shown.max() * 1.12 or 1.0)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
        axes.set_xlabel("probability of the next token (␣ is a space)\n" + "; ".join(notes))
    return figure
