"""The tornado figure of a hyperparameter study: what each single change does to the loss, all families together."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from picollm_core.config import require
from picollm_core.figure_style import FAMILY_LABELS, INK, QUIET, family_colour, new_figure, use_style
from picollm_core.plots import require_columns

MARKS = {"kgram": "o", "lstm": "s", "transformer": "^"}
MOST_ROWS = 26
LOSS = "loss less that of the base (nats per token); left is better"
_POINTS, _NUMBER_POINTS, _FAMILY_STEP = 14, 54, 0.26


def _edge(values: pd.Series, shown: float) -> float:
    """Half the width of the view: room for that share of the effects, the rest is written at the edge."""
    sizes = values.abs().sort_values()
    return float(1.15 * sizes.quantile(shown, interpolation="lower"))


def plot_tornado(table: pd.DataFrame, *, title: str, label: str = LOSS, shown: float = 0.85) -> Figure:
    """One row a change, one mark a family: effect and 95% interval, the largest effects on top.

    `table` is an effect table: columns family, change, effect, low, high (NaN for one seed: no bar). `label` says what
    the effect is, with its unit, and which side is better. The axis has room for the share `shown` of the effects; a
    larger one stands as a number at the edge. Raises ValueError for missing columns, no rows, more than 26 different
    changes, and a change that a family has twice.
    """
    require_columns(table, ["family", "change", "effect", "low", "high"])
    order = table.groupby("change", sort=False)["effect"].apply(lambda e: e.abs().max()).sort_values(ascending=False)
    require(len(order) <= MOST_ROWS, f"{len(order)} changes; a slide shows at most {MOST_ROWS} legibly, so draw fewer")
    twice = table[table.duplicated(["family", "change"])]
    require(twice.empty, f"{list(twice['change'])} occur twice in a family; give one row each")
    edge = _edge(table["effect"], shown)
    families = [family for family in FAMILY_LABELS if (table["family"] == family).any()]
    with use_style():
        figure, axes = new_figure(title)
        for place, change in enumerate(order.index):
            if place % 2:
                axes.axhspan(place - 0.5, place + 0.5, color="#F4F4F4", linewidth=0)
            own = table[table["change"] == change]
            for row in own[own["effect"].abs() <= edge].itertuples():
                y = place + _FAMILY_STEP * (families.index(str(row.family)) - (len(families) - 1) / 2)
                _mark(axes, row, y, edge)
            for side in (-1, 1):
                _write_beyond(axes, own[side * own["effect"] > edge], place, side * edge)
        axes.axvline(0, color=INK, linewidth=1.5)
        axes.set_xlim(-1.12 * edge, 1.12 * edge)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_yticks(range(len(order)), list(order.index), parse_math=False)
        axes.tick_params(axis="y", labelsize=_POINTS, length=0)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        bars = "bars: 95% interval over paired seeds" if table["low"].notna().any() else "one seed, no intervals"
        axes.set_xlabel(f"{label}\n{bars}", parse_math=False)
        handles = [
            Line2D(
                [], [], color=family_colour(family), marker=MARKS[family], markersize=10, label=FAMILY_LABELS[family]
            )
            for family in families
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _write_beyond(axes: Axes, rows: pd.DataFrame, place: int, edge: float) -> None:
    """The effects of one change that lie beyond the view, beside each other at its edge, with an arrow out of it."""
    side = 1 if edge > 0 else -1
    for rank, row in enumerate(rows.itertuples()):
        axes.annotate(
            f"{row.effect:+.2f}", (1.08 * edge, place), xytext=(-side * _NUMBER_POINTS * rank, 0),
            textcoords="offset points", ha="right" if side > 0 else "left", va="center",
            color=family_colour(str(row.family)), fontsize=_POINTS, fontweight="bold",
        )  # fmt: skip
    if len(rows):
        axes.plot(1.1 * edge, place, ">" if side > 0 else "<", color=QUIET, markersize=8, clip_on=False)


def _mark(axes: Axes, row: object, y: float, edge: float) -> None:
    """A family's effect on a row, with its interval where there is one."""
    family, effect, low, high = (getattr(row, name) for name in ("family", "effect", "low", "high"))
    colour = family_colour(family)
    if low <= high:
        ends = np.clip([low, high], -1.12 * edge, 1.12 * edge)
        axes.plot(ends, [y, y], color=colour, linewidth=2.5, solid_capstyle="butt")
    axes.plot(effect, y, MARKS[family], color=colour, markersize=7.5)
