"""Figures about custom text: panels side by side, one colour an arm, one line style a kind of text.

Like those of `plots`: numbers in, a matplotlib Figure out; the caller writes the title.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from picollm_core.config import require
from picollm_core.figure_style import FAMILY_COLOURS, INK, LINE_STYLES, QUIET, TEXT_POINTS, new_figure, use_style
from picollm_core.plots import require_columns
from picollm_core.plots_arms import INTERVAL, mean_interval

MARKERS = ("o", "s", "^", "D")
LOOK = {
    "LSTM": FAMILY_COLOURS["lstm"],
    "Transformer": FAMILY_COLOURS["transformer"],
    "gpt-oss": FAMILY_COLOURS["transformer"],
    "training lines": "#B07A00",
    "held-out lines": "#8E5A99",
    "custom lines": "#8E5A99",
    "custom mixed in": "#8E5A99",
    "stories": "#3C3C3C",
    "stories alone": "#3C3C3C",
    "custom alone": "#D55E00",
    "half and half": "#0072B2",
}
"""The colour of every arm of this study; one text has one colour in all of its figures."""
_LEGEND_POINTS = 15
MAX_PANELS = 3
LEAST_ROOM = 0.07  # of the axis between two numbers


def _plain(value: float, _: int = 0) -> str:
    return f"{value:g}"


def _draw_part(axes: Axes, part: pd.DataFrame, x: str, y: str, look: Mapping[str, Any]) -> None:
    """The mean of one arm and kind with its interval over seeds."""
    rows = [(place, *mean_interval(own[y].tolist())) for place, own in part.groupby(x, sort=True)]
    places, means, lows, highs = zip(*rows, strict=True)
    axes.plot(places, means, markersize=8, **look)
    axes.fill_between(places, lows, highs, color=look["color"], alpha=0.2, linewidth=0)


def _ticks(axes: Axes, places: list[float], scale: str) -> None:
    """Numbers at the places that were measured, the last one first, as far as they have room beside each other."""
    if scale == "log":
        axes.set_xscale("symlog" if places[0] <= 0 else "log", **({"linthresh": 1} if places[0] <= 0 else {}))
    at = axes.transScale.transform([(place, 1.0) for place in places])[:, 0]
    room, shown = LEAST_ROOM * (at[-1] - at[0]), [places[-1]]
    for place, where in zip(places[-2::-1], at[-2::-1], strict=True):
        if at[places.index(shown[-1])] - where >= room:
            shown.append(place)
    axes.set_xticks(shown[::-1])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))


def plot_panels(
    table: pd.DataFrame,
    x: str,
    y: str,
    *,
    title: str,
    x_label: str,
    y_label: str,
    colours: Mapping[str, str] = LOOK,
    x_scale: str = "linear",
    log_y: bool = False,
    floors: Mapping[str, float] | None = None,
) -> Figure:
    """Mean of `y` against `x` with its 95% interval over seeds: a panel a setting, a colour an arm, a style a kind.

    `table` is tidy: columns panel, arm, kind, seed, x, y; missing values of y are left out. `colours` names a colour
    for every arm, and may name others. `x_scale` "log" is linear below 1, so that 0 updates have a place. `floors`
    become labelled horizontal lines. The vertical axis is common to the panels and the legend stands below them.
    Raises ValueError for missing columns, no rows, an arm without colour, another scale, more kinds than line styles
    and more than three panels.
    """
    require_columns(table, ["panel", "arm", "kind", "seed", x, y])
    table = table.dropna(subset=[y])
    names, arms, kinds = (list(dict.fromkeys(table[column])) for column in ("panel", "arm", "kind"))
    require(0 < len(names) <= MAX_PANELS, f"{len(names)} panels; a slide shows 1 to {MAX_PANELS} side by side")
    missing = [arm for arm in arms if arm not in colours]
    require(not missing, f"no colour for {', '.join(map(str, missing))}; name one in colours")
    require(len(kinds) <= len(LINE_STYLES), f"{len(kinds)} kinds; at most {len(LINE_STYLES)} line styles are apart")
    require(x_scale in ("linear", "log"), f"x_scale is {x_scale!r}; choose 'linear' or 'log'")
    look = {
        (arm, kind): {"color": colours[arm], "linestyle": LINE_STYLES[k], "marker": MARKERS[k]}
        for arm in arms
        for k, kind in enumerate(kinds)
    }
    with use_style():
        figure, first = new_figure(title)
        first.remove()
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            own = table[table["panel"] == name]
            axes.set_title(name, fontsize=TEXT_POINTS + 2, loc="left", parse_math=False)
            axes.tick_params(labelsize=TEXT_POINTS, color=QUIET, labelcolor=INK)
            for key, part in own.groupby(["arm", "kind"], sort=False):
                _draw_part(axes, part, x, y, look[key])  # type: ignore[index]
            _ticks(axes, sorted(own[x].unique()), x_scale)
            axes.set_xlabel(x_label, parse_math=False)
            for text, place in (floors or {}).items():
                axes.axhline(place, color=QUIET, linewidth=1.5, linestyle=(0, (4, 3)))
                axes.annotate(text, (0.02, place), xycoords=("axes fraction", "data"), xytext=(0, -5),
                              textcoords="offset points", va="top", color=INK, fontsize=14)  # fmt: skip
        if log_y:
            panels[0].set_yscale("log")
            panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panels[0].yaxis.set_major_formatter(FuncFormatter(_plain))
            panels[0].yaxis.set_minor_locator(NullLocator())
        elif table[y].min() >= 0 > panels[0].get_ylim()[0]:  # an interval may reach below 0 where no value can
            panels[0].set_ylim(bottom=-0.02 * panels[0].get_ylim()[1])
        panels[0].set_ylabel(y_label, parse_math=False)
        _legend_below(figure, table, x, {arm: colours[arm] for arm in arms}, kinds)
    return figure


def _legend_below(figure: Figure, table: pd.DataFrame, x: str, colours: Mapping[str, str], kinds: list[str]) -> None:
    """Arms by colour, kinds by line style where there are several, and what a band means."""
    handles: list[Any] = [Line2D([], [], color=colour, lw=5, label=arm) for arm, colour in colours.items()]
    if len(kinds) > 1:
        handles += [
            Line2D([], [], color=INK, lw=2.5, ls=LINE_STYLES[k], marker=MARKERS[k], markersize=7, label=kind)
            for k, kind in enumerate(kinds)
        ]
    seeds = table.groupby(["panel", "arm", "kind", x])["seed"].nunique()
    if seeds.max() > 1:
        count = f"{seeds.max()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
        handles.append(Patch(color=QUIET, alpha=0.3, linewidth=0, label=f"{INTERVAL} ({count})"))
    columns = len(handles) if len(handles) <= 4 else 3
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=_LEGEND_POINTS,
                  columnspacing=1.6, handlelength=2.6, frameon=False)  # fmt: skip
