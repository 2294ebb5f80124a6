"""Figures that compare models: loss curves with a band over seeds, and points on a plane with names and whiskers."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from picollm_core.figure_style import (
    FAMILY_LABELS,
    INK,
    LINE_STYLES,
    MAX_ROWS,
    EndLabel,
    family_colour,
    label_ends,
    new_figure,
    thin_out,
    use_style,
)
from picollm_core.plots import X_LABELS, draw_floors, require_columns

RANGE, INTERVAL = "range over seeds", "95% interval of the mean over seeds"
MARKERS = {"kgram": "o", "lstm": "s", "transformer": "^", "linear": "D", "counts": "v", "human": "*"}
# Where a name may stand, the best place first: offset in points, horizontal and vertical alignment.
PLACES = (
    ((12, 0), "left", "center"),
    ((0, 13), "center", "bottom"),
    ((0, -13), "center", "top"),
    ((-12, 0), "right", "center"),
    ((10, 11), "left", "bottom"),
    ((10, -11), "left", "top"),
    ((-10, 11), "right", "bottom"),
    ((-10, -11), "right", "top"),
    ((0, 32), "center", "bottom"),
    ((0, -32), "center", "top"),
)


def _band(values: np.ndarray, band_means: str) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends (N,) of the band over the S rows of values (S, N)."""
    if band_means == RANGE:
        return values.min(axis=0), values.max(axis=0)
    from scipy import stats  # slow to import and needed nowhere else

    half = stats.t.ppf(0.975, len(values) - 1) * values.std(axis=0, ddof=1) / len(values) ** 0.5
    return values.mean(axis=0) - half, values.mean(axis=0) + half


def _by_seed(rows: pd.DataFrame, run: str, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """The measured points of one run: x and y (S, N), a row a seed, the n-th points of all seeds in one column."""
    lines = [own[[x, y]].dropna().sort_values(x) for _, own in rows.groupby("seed", sort=True)]
    counts = {len(line) for line in lines}
    if counts != {max(counts)} or counts == {0}:
        raise ValueError(
            f"run {run!r} has {', '.join(str(len(line)) for line in lines)} values of {y} in its {len(lines)} seeds; "
            "a band needs as many in each, and at least one"
        )
    return np.stack([line[x] for line in lines]).astype(float), np.stack([line[y] for line in lines]).astype(float)


def plot_bands(
    history: pd.DataFrame,
    *,
    title: str,
    x: Literal["tokens", "step", "seconds"] = "tokens",
    floors: Mapping[str, float] | None = None,
    y: str = "val_loss",
    y_label: str = "loss (nats per token)",
    band_means: str = RANGE,
    y_max: float | None = None,
) -> Figure:
    """One line a run, the mean over its seeds, in a band that says how far the seeds are apart.

    `history` has a row for each logged step: run, family, seed, the columns `x` and `y` (missing values where y was not
    measured); the n-th measured points of a run's seeds belong together. `band_means` is "range over seeds" or
    "95% interval of the mean over seeds" (Student's), and is written into the legend; a run of one seed has no band.
    `floors`, in y's unit, become labelled dashed lines. The view leaves out the first tenth of each run, whose fall
    would flatten the rest; `y_max` overrides that. Raises ValueError for missing columns, an empty table, an unknown
    family, x or band_means, and seeds of a run with different numbers of points.
    """
    if x not in X_LABELS:
        raise ValueError(f"x is {x!r}; choose one of {', '.join(X_LABELS)}")
    if band_means not in (RANGE, INTERVAL):
        raise ValueError(f"band_means is {band_means!r}; choose {RANGE!r} or {INTERVAL!r}")
    require_columns(history, ["run", "family", "seed", x, y])
    with use_style():
        figure, axes = new_figure(title)
        labels: list[EndLabel] = []
        families: list[str] = []
        seeds: list[int] = []
        visible = list((floors or {}).values())
        for run, rows in history.groupby("run", sort=False):
            family = rows["family"].iloc[0]
            colour, style = family_colour(family), LINE_STYLES[families.count(family) % len(LINE_STYLES)]
            places, values = _by_seed(rows, str(run), x, y)  # (S, N) each
            place, mean = places.mean(axis=0), values.mean(axis=0)  # (N,)
            low, high = _band(values, band_means) if len(values) > 1 else (mean, mean)
            axes.plot(place, mean, color=colour, linestyle=style)
            if len(values) > 1:
                axes.fill_between(place, low, high, color=colour, alpha=0.25, linewidth=0)
            late = place >= 0.1 * place.max()
            visible += [low[late].min(), high[late].max()]
            labels.append(EndLabel(str(run), place[-1], mean[-1], colour))
            families.append(family)
            seeds.append(len(values))
        axes.set_xlim(0, max(label.x for label in labels))
        margin = 0.06 * (max(visible) - min(visible) or 1.0)
        axes.set_ylim(min(visible) - margin, y_max if y_max is not None else max(visible) + margin)
        label_ends(axes, thin_out(labels, families) + draw_floors(axes, floors or {}))
        axes.set_xlabel(X_LABELS[x])
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if max(seeds) > 1:
            count = f"{max(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
            handles = [Line2D([], [], color=INK, lw=3), Patch(color=INK, alpha=0.25, linewidth=0)]
            look = {"frameon": True, "framealpha": 0.9, "edgecolor": "none"}
            axes.legend(handles, [f"mean of {count} seeds", band_means], loc="best", **look)
    return figure


def _overlap(box: Bbox, others: np.ndarray) -> float:
    """The area in square pixels that `box` shares with `others`, (N, 4) rows of left, bottom, right, top."""
    wide = np.minimum(box.x1, others[:, 2]) - np.maximum(box.x0, others[:, 0])
    high = np.minimum(box.y1, others[:, 3]) - np.maximum(box.y0, others[:, 1])
    return float(np.nansum(np.clip(wide, 0, None) * np.clip(high, 0, None)))  # a point that is not drawn is nowhere


def _drawn_boxes(axes: Axes) -> np.ndarray:
    """Boxes in pixels, (N, 4), over what the axes show: 18 px about each marker, 4 px along lines and whiskers."""
    half_sides: dict[float, list[np.ndarray]] = {2.0: [], 9.0: []}
    bars = [(axes.transData, path.vertices) for c in axes.collections for path in c.get_paths()]
    strokes = [(line.get_transform(), line.get_xydata()) for line in axes.lines if line.get_linestyle() != "None"]
    steps = np.linspace(0, 1, 60)[:, None]
    for transform, vertices in strokes + bars:
        pixels = transform.transform(vertices)  # (N, 2)
        along = [start + steps * (end - start) for start, end in pairwise(pixels)]
        half_sides[2.0].append(np.concatenate([*along, pixels[:1]]))
    for line in axes.lines:
        if line.get_marker() != "None":
            half_sides[9.0].append(line.get_transform().transform(line.get_xydata()))
    rows = [np.hstack([places - half, places + half]) for half, found in half_sides.items() for places in found]
    return np.concatenate(rows) if rows else np.empty((0, 4))


def label_points(axes: Axes, points: list[tuple[float, float, str, str]]) -> None:
    """Write a name beside each (x, y, name, colour), at the place where it covers least of what is there already."""
    figure = axes.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]  # the layout must stand before boxes mean anything
    page, taken = np.array([axes.get_window_extent().extents]), _drawn_boxes(axes)
    for x, y, name, colour in points:
        best = None
        for offset, horizontal, vertical in PLACES:
            text = axes.annotate(
                name,
                (x, y),
                xytext=offset,
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                color=colour,
                fontweight="bold",
                parse_math=False,
                path_effects=[withStroke(linewidth=4, foreground="white")],
            )
            text.set_in_layout(False)  # a name beside a point moves no axes
            box = text.get_window_extent()
            outside = box.width * box.height - _overlap(box, page)
            cost = _overlap(box.padded(3), taken) + 4 * outside
            if best is None or cost < best[0] - 1:
                if best is not None:
                    best[1].remove()
                best = (cost, text, box)
            else:
                text.remove()
            if cost == 0:
                break
        if best is not None:
            taken = np.vstack([taken, best[2].extents])


def plot_scatter(
    table: pd.DataFrame,
    x: str,
    y: str,
    *,
    title: str,
    x_label: str,
    y_label: str,
    family: str = "family",
    label: str = "model",
    log_x: bool = True,
    interval: tuple[str, str] | None = None,
    interval_means: str = "",
    floors: Mapping[str, float] | None = None,
    connect: bool = True,
) -> Figure:
    """Points of column `y` over column `x`, each with the name in column `label` and its family's colour and marker.

    `connect` joins a family's points in the order of x by a thin line. `interval` names the columns of the whiskers'
    lower and upper ends and `interval_means` says what they are; a row without finite ends has no whisker. `floors`, in
    y's unit, become labelled dashed lines. Labels should state units. Raises ValueError for missing columns, more than
    20 rows, values that are not finite, x that is not positive on a logarithmic axis, and whiskers without a meaning.
    """
    require_columns(table, [x, y, family, label, *(interval or ())])
    if len(table) > MAX_ROWS:
        raise ValueError(f"{len(table)} points, but a slide names at most {MAX_ROWS} legibly; choose rows")
    if interval and not interval_means:
        raise ValueError("whiskers need interval_means, such as '95% bootstrap over stories': say what they are")
    xs, ys = table[x].to_numpy(dtype=float), table[y].to_numpy(dtype=float)
    bad = ~np.isfinite(xs) | ~np.isfinite(ys) | (log_x & (xs <= 0))
    if bad.any():
        where = "finite (and positive x)" if log_x else "finite"
        raise ValueError(f"rows without {where} values: {', '.join(map(str, table.loc[bad, label]))}; drop them")
    ends = np.stack([table[name].to_numpy(dtype=float) for name in interval or (y, y)])  # (2, N)
    ends = np.where(np.isfinite(ends), ends, ys)
    with use_style():
        figure, axes = new_figure(title)
        kinds = list(dict.fromkeys(table[family]))
        for kind in kinds:
            own, colour = (table[family] == kind).to_numpy(), family_colour(kind)
            order = np.argsort(xs[own], kind="stable")
            axes.vlines(xs[own], *ends[:, own], color=colour, linewidth=2)
            if connect:
                axes.plot(xs[own][order], ys[own][order], color=colour, linewidth=1.2, alpha=0.6)
            axes.plot(xs[own], ys[own], MARKERS[kind], color=colour, markersize=12, label=FAMILY_LABELS[kind])
        shown = np.concatenate([ends.ravel(), np.array(list((floors or {}).values()), dtype=float)])
        margin = 0.08 * (shown.max() - shown.min() or abs(shown.max()) or 1.0)
        axes.set_ylim(shown.min() - margin, shown.max() + margin)
        if log_x:
            axes.set_xscale("log")
            factor = max((xs.max() / xs.min()) ** 0.12, 1.15)
            axes.set_xlim(xs.min() / factor, xs.max() * factor)
            wide = xs.max() / xs.min() > 100
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            room = 0.12 * (xs.max() - xs.min() or abs(xs.max()) or 1.0)
            axes.set_xlim(xs.min() - room, xs.max() + room)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel(x_label + (f"; whiskers: {interval_means}" if interval else ""), parse_math=False)
        axes.set_ylabel(y_label, parse_math=False)
        axes.grid(axis="x", color="#E3E3E3")
        label_ends(axes, draw_floors(axes, floors or {}))
        if len(kinds) > 1:
            figure.legend(loc="outside lower center", ncols=len(kinds))
        points = list(zip(xs, ys, table[label].astype(str), map(family_colour, table[family]), strict=True))
        label_points(axes, points)
    return figure
