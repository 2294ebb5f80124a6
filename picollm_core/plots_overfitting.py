"""Figures about overfitting: losses in panels, effects on the gap beside those on the loss, exposure of canaries.

Like those of `plots`: numbers in, a matplotlib Figure out; the caller writes the title. Bands and bars are Student's
95% intervals over seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from picollm_core.config import require
from picollm_core.figure_style import FAMILY_LABELS, INK, QUIET, TEXT_POINTS, family_colour, new_figure, use_style
from picollm_core.plots import require_columns
from picollm_core.plots_arms import arm_look, summarise_arms

MAX_PANELS, MAX_EFFECTS = 3, 16
PEOPLE = "people"
"""An arm of this name is drawn in black: text by people, the line to compare with."""
_SMALL_POINTS = 15


def _panels(title: str, names: Sequence[str], share_y: bool) -> tuple[Figure, Sequence[Axes]]:
    require(len(names) <= MAX_PANELS, f"{len(names)} panels; a slide shows at most {MAX_PANELS} side by side")
    figure, first = new_figure(title)
    first.remove()
    panels = figure.subplots(1, len(names), sharey=share_y, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        label = FAMILY_LABELS.get(name, name)
        axes.set_title(label, fontsize=TEXT_POINTS + 2, loc="left", parse_math=False)
        axes.tick_params(labelsize=TEXT_POINTS, color=QUIET, labelcolor=INK)
    return figure, panels


def _plain(value: float, _: int) -> str:
    return f"{value:,g}"


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    others = [name for name in names if name != PEOPLE]
    black = {PEOPLE: {"color": "#000000", "linestyle": (0, (1.5, 1.5)), "marker": "P"}} if PEOPLE in names else {}
    return arm_look(others) | black


def plot_line_panels(
    table: pd.DataFrame,
    x: str,
    y: str,
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool | Sequence[str] = False,
    share_y: bool = True,
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Mean of `y` against `x` in a band of its 95% interval over seeds, one panel a name, one line an arm.

    `table` is tidy: columns panel, arm, seed, x, y; a panel named as a family is headed by its full name. The arm
    "people" is black. With `log_x` the places on x are the ticks; `log_y` may name the panels that it is for, which
    then need axes of their own (share_y=False). `marks` become labelled vertical lines. The legend
    stands below. Raises ValueError for missing columns, no rows, more than three panels, too many arms, and values
    that are not above 0 on a logarithmic axis.
    """
    require_columns(table, ["panel", "arm", "seed", x, y])
    panels_log_y = set(table["panel"]) if log_y is True else set(log_y or ())
    for name, part in ((x, table if log_x else table[:0]), (y, table[table["panel"].isin(panels_log_y)])):
        require(not (part[name] <= 0).any(), f"the least {name} is {part[name].min():g}; a logarithm needs more than 0")
    looks = _looks(list(dict.fromkeys(table["arm"])))
    with use_style():
        figure, panels = _panels(title, list(dict.fromkeys(table["panel"])), share_y)
        seeds = 1
        for axes, (panel, part) in zip(panels, table.groupby("panel", sort=False), strict=True):
            summary = summarise_arms(part, y, x)
            seeds = max(seeds, int(summary["seeds"].max()))
            for arm, own in summary.groupby("arm", sort=False):
                own, style = own.sort_values(x), dict(looks[str(arm)])
                if len(own) > 20:
                    style.pop("marker")
                axes.plot(own[x], own["mean"], markersize=8, **style)
                axes.fill_between(own[x], own["low"], own["high"], color=style["color"], alpha=0.2, linewidth=0)
            _scale(axes, sorted(summary[x].unique()), log_x, panel in panels_log_y)
            for text, place in (marks or {}).items():
                axes.axvline(place, color=QUIET, linewidth=1.5, linestyle=(0, (2, 2)))
                axes.annotate(text, (place, 0.55), xycoords=("data", "axes fraction"), xytext=(6, 0),
                              textcoords="offset points", va="center", color=INK, fontsize=_SMALL_POINTS)  # fmt: skip
            axes.set_xlabel(x_label, parse_math=False)
        panels[0].set_ylabel(y_label, parse_math=False)
        handles: list[Any] = [Line2D([], [], lw=3, markersize=8, label=name, **look) for name, look in looks.items()]
        _legend_below(figure, handles, seeds)
    return figure


def _scale(axes: Axes, places: Sequence[float], log_x: bool, log_y: bool) -> None:
    if log_x:
        axes.set_xscale("log", base=2)
        axes.set_xticks(places if len(places) <= 6 else places[:: -(-len(places) // 6)])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_minor_locator(NullLocator())


def _legend_below(figure: Figure, handles: list[Any], seeds: int) -> None:
    if seeds > 1:
        handles = [*handles, Patch(color=QUIET, alpha=0.3, linewidth=0, label=f"95% interval, {seeds} seeds")]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=_SMALL_POINTS,
                  columnspacing=1.4, handlelength=1.8, frameon=False)  # fmt: skip


def plot_effects(table: pd.DataFrame, measures: Mapping[str, str], *, title: str, label: str) -> Figure:
    """Effects of changes side by side: one row a family and change, one panel a measure, bars are 95% intervals.

    `table` has columns family, change, measure, effect, low, high (as `overfit_study.effect_table`); `measures` names
    the panels: measure -> heading. Filled marks have an interval on one side of 0; without an interval (one seed) all
    are hollow. `label` says the unit. Raises ValueError for missing columns, no rows, a measure that is not in the
    table, more than three measures and more than 16 rows.
    """
    require_columns(table, ["family", "change", "measure", "effect", "low", "high"])
    missing = [measure for measure in measures if measure not in set(table["measure"])]
    require(not missing, f"the table has no measure {', '.join(missing)}")
    rows = list(dict.fromkeys(zip(table["family"], table["change"], strict=True)))
    require(len(rows) <= MAX_EFFECTS, f"{len(rows)} effects; a slide shows at most {MAX_EFFECTS} rows")
    with use_style():
        figure, panels = _panels(title, list(measures.values()), share_y=True)
        for axes, measure in zip(panels, measures, strict=True):
            own = table[table["measure"] == measure].set_index(["family", "change"])
            for place, row in enumerate(rows):
                found, colour = own.loc[row], family_colour(row[0])
                sure = found["low"] > 0 or found["high"] < 0  # NaN is neither
                axes.plot(
                    [found["low"], found["high"]], [place, place], color=colour, linewidth=3, solid_capstyle="butt"
                )
                axes.plot(found["effect"], place, "o", markersize=10, markeredgewidth=2.5, color=colour,
                          markerfacecolor=colour if sure else "white")  # fmt: skip
            axes.axvline(0, color=INK, linewidth=1.5)
            axes.grid(visible=True, axis="x")
            axes.grid(visible=False, axis="y")
            axes.set_xlabel(label, parse_math=False)
            axes.margins(x=0.08)
        panels[0].set_yticks(range(len(rows)), [change for _, change in rows], parse_math=False)
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        families = list(dict.fromkeys(family for family, _ in rows))
        handles: list[Any] = [
            Line2D([], [], lw=3, marker="o", color=family_colour(name), label=FAMILY_LABELS[name]) for name in families
        ]
        handles.append(Line2D([], [], lw=0, marker="o", markersize=10, markeredgewidth=2.5, color=QUIET,
                              markerfacecolor="white", label="interval holds 0, or one seed"))  # fmt: skip
        _legend_below(figure, handles, 1)
    return figure


def plot_exposure(table: pd.DataFrame, *, bits: float, chance: float, title: str, control: str | None = None) -> Figure:
    """Exposure in bits of canaries against how often they stand in the training text, one line a family.

    `table` has columns arm, seed, times, exposure (as `canary_study.exposure_table`). Two lines are drawn: `chance`,
    what a secret gets of which nothing is known, and `bits`, the most there can be. The arm called `control` is black:
    models that saw no canary. Raises ValueError for missing columns and no rows.
    """
    require_columns(table, ["arm", "seed", "times", "exposure"])
    times = sorted(table["times"].unique())
    own = table.assign(place=table["times"].map({value: place for place, value in enumerate(times)}))
    summary = summarise_arms(own, "exposure", "place")
    with use_style():
        figure, axes = new_figure(title)
        handles: list[Any] = []
        names = list(dict.fromkeys(summary["arm"]))
        for rank, arm in enumerate(names):
            part = summary[summary["arm"] == arm].sort_values("place")
            colour = "#000000" if arm == control else family_colour(arm)
            line = (0, (2, 1.5)) if arm == control else "-"
            places = part["place"] + 0.06 * (rank - (len(names) - 1) / 2)  # side by side: bars must not hide each other
            axes.plot(places, part["mean"], marker="o", markersize=10, color=colour, linestyle=line)
            axes.vlines(places, part["low"], part["high"], color=colour, linewidth=3)
            handles.append(Line2D([], [], lw=3, marker="o", color=colour, ls=line, label=FAMILY_LABELS.get(arm, arm)))
        for text, height, x, below in (
            (f"chance: {chance:.2f}", chance, 0.87, True),
            (f"the most there can be: {bits:.4g}", bits, 1.0, False),
        ):
            axes.axhline(height, color=QUIET, linewidth=1.5, linestyle=(0, (4, 3)))
            axes.annotate(text, (x, height), xycoords=("axes fraction", "data"), xytext=(0, -12 if below else 5),
                          ha="right", va="top" if below else "bottom", textcoords="offset points", color=INK,
                          fontsize=_SMALL_POINTS)  # fmt: skip
        axes.set_xticks(range(len(times)), ["kept back" if value == 0 else f"{value:g}" for value in times])
        axes.set_xlim(-0.3, len(times) - 0.7)
        axes.set_xlabel("copies of the canary in the training text")
        axes.set_ylabel("exposure in bits, mean of the canaries")
        _legend_below(figure, handles, int(summary["seeds"].max()))
    return figure
