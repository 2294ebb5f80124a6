"""Figures about autoencoders as a whole: what they leave out at each sparsity, and whether they beat their controls.

Like those of `plots`: numbers in, a matplotlib Figure out; the caller writes the title.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from picollm_core.config import require
from picollm_core.figure_style import (
    FAMILY_COLOURS,
    FAMILY_LABELS,
    INK,
    MAX_ROWS,
    QUIET,
    TEXT_POINTS,
    EndLabel,
    label_ends,
    new_figure,
    use_style,
)
from picollm_core.plots import require_columns
from picollm_core.plots_arms import COLOURS, LINES, MARKS

KINDS = {"topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU", "relu": "ReLU with L1"}
BASES = {"neurons": "neurons", "pca": "principal components"}
METRICS = {
    "fvu": "variance not explained (FVU; lower is better)",
    "added": "loss added (nats a token; lower is better)",
    "recovered_mean": "loss recovered (0: site's mean, 1: as it is)",
    "recovered_zero": "loss recovered (0: zeros, 1: as it is)",
    "dead": "share of features that never fire",
}
SHARES = ("recovered_mean", "recovered_zero", "dead")
"""Metrics on a plain axis; those of others are powers of ten apart."""
UNTRAINED = ", untrained"
TICKS = (1.0, 2.0, 5.0)
_SMALL_POINTS = 14


def _plain(value: float, _: int = 0) -> str:
    return f"{value:g}"


def _kind_look(kind: str) -> dict[str, Any]:
    """Colour, line and mark of a kind, the same in every figure; bases are dashed and grey."""
    if kind in BASES:
        marker = "P" if kind == "neurons" else "X"
        line = (0, (5, 3)) if kind == "neurons" else (0, (1.5, 1.5))
        return {"color": QUIET, "linestyle": line, "marker": marker, "linewidth": 2.0}
    place = list(KINDS).index(kind)
    return {"color": COLOURS[place], "linestyle": LINES[place], "marker": MARKS[place], "linewidth": 3.0}


def _log_axis(axis: Any, values: pd.Series) -> None:
    """Plain numbers on a logarithmic axis: 1, 2 and 5 of each power of ten, or powers alone where those crowd."""
    span = np.log10(values.max() / values.min())
    axis.set_major_locator(LogLocator(10, subs=TICKS if span < 2.5 else (1.0,), numticks=12))
    _plain_numbers(axis)


def _plain_numbers(axis: Any) -> None:
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def _draw_kinds(axes: Axes, table: pd.DataFrame, metric: str) -> list[EndLabel]:
    """A line of means a kind against the mean L0, every seed as a pale mark, and the labels of the lines' ends."""
    labels = []
    for kind, own in table.groupby("kind", sort=False):
        look = _kind_look(str(kind))
        means = own.groupby("level")[["l0", metric]].mean().sort_values("l0")
        if (own.groupby("level").size() > 1).any():
            axes.plot(own["l0"], own[metric], look["marker"], color=look["color"], alpha=0.35, markersize=7,
                      markeredgewidth=0, zorder=2)  # fmt: skip
        axes.plot(means["l0"], means[metric], markersize=10, zorder=3 if kind in KINDS else 1.5, **look)
        name = (KINDS | BASES)[str(kind)]
        labels.append(EndLabel(name, means["l0"].iloc[-1], means[metric].iloc[-1], look["color"]))
    return labels


def _require_kinds(table: pd.DataFrame) -> None:
    others = sorted(set(table["kind"]) - {*KINDS, *BASES})
    require(not others, f"kind {', '.join(others)} is unknown; known are {', '.join([*KINDS, *BASES])}")


def plot_quality(table: pd.DataFrame, *, title: str, metrics: Sequence[str] = ("fvu", "added")) -> Figure:
    """One or two `metrics` of dictionaries against L0, the mean number of features active a token, a line a kind.

    `table` is that of sae_study.quality_rows for one subject: columns kind, level, seed, l0 and the metrics (of
    METRICS). Marks are means over seeds; where there are several, pale marks are the seeds. The kinds "neurons" and
    "pca" are drawn dashed and grey, for comparison; lines are named at the right. The axis of L0 is logarithmic, as is
    that of every metric but shares. Raises ValueError for missing columns, no rows, an unknown kind or metric,
    several subjects, and what a logarithmic axis cannot show.
    """
    names = list(metrics)
    require(1 <= len(names) <= 2, f"{len(names)} metrics; the figure shows 1 or 2 side by side")
    unknown = [name for name in names if name not in METRICS]
    require(not unknown, f"metric {', '.join(unknown)} is unknown; choose of {', '.join(METRICS)}")
    require_columns(table, ["kind", "level", "seed", "l0", *names])
    _require_kinds(table)
    if "subject" in table and table["subject"].nunique() > 1:
        raise ValueError(f"rows of {', '.join(dict.fromkeys(table['subject']))}; draw one subject at a time")
    for name in ["l0", *(name for name in names if name not in SHARES)]:
        least = table[name].min()
        require(least > 0, f"{name} is {least:g} in one row, which a logarithmic axis cannot show; leave it out")
    with use_style():
        figure, first = new_figure(title)
        first.remove()
        panels = figure.subplots(1, len(names), sharex=True, squeeze=False)[0]
        for axes, metric in zip(panels, names, strict=True):
            axes.set_xscale("log", base=2)
            if metric not in SHARES:
                axes.set_yscale("log")
            labels = _draw_kinds(axes, table, metric)
            _plain_numbers(axes.xaxis)
            if metric in SHARES:
                axes.margins(y=0.08)
            else:
                _log_axis(axes.yaxis, table[metric])
            axes.grid(visible=True, axis="x")
            axes.set_title(METRICS[metric], loc="left", fontsize=TEXT_POINTS if len(names) == 1 else _SMALL_POINTS,
                           pad=10)  # fmt: skip
            axes.tick_params(labelsize=TEXT_POINTS, color=QUIET, labelcolor=INK)
        label_ends(panels[-1], labels)
        seeds = int(table.groupby(["kind", "level"]).size().max())
        note = f"; pale marks: each of {seeds} seeds, others their mean" if seeds > 1 else ""
        figure.supxlabel(f"features active a token (L0){note}", fontsize=TEXT_POINTS, color=INK)
    return figure


def _family_of(subject: str) -> str:
    """The family whose name a subject's name starts with, or nothing."""
    for family, label in FAMILY_LABELS.items():
        if subject.lower().startswith((family, label.lower())):
            return family
    return "kgram" if subject.lower().startswith("k-gram") else ""


def _arm(subject: str, kind: str) -> str:
    name = BASES.get(kind, "autoencoder")
    return f"{name}, untrained model" if subject.endswith(UNTRAINED) else name


def _mark(arm: str) -> str:
    return {"autoencoder": "o", BASES["neurons"]: "s", BASES["pca"]: "^"}[arm.partition(",")[0]]


def _draw_arm(axes: Axes, row: float, values: Sequence[float], arm: str, colour: str, decimals: int) -> None:
    """One mark, or of several seeds a small mark each with a bar at their mean; hollow for an untrained model."""
    mean, several = float(np.mean(values)), len(values) > 1
    heights = np.linspace(-0.24, 0.24, len(values)) if several else [0.0]  # equal seeds would hide each other
    axes.plot(values, row + np.asarray(heights), _mark(arm), color=colour, markersize=8 if several else 13, zorder=3,
              markerfacecolor="white" if "," in arm else colour, markeredgewidth=2)  # fmt: skip
    if several:
        axes.plot([mean, mean], [row - 0.42, row + 0.42], color=INK, linewidth=2, solid_capstyle="butt", zorder=4)
    text = axes.annotate(f"{mean:.{decimals}f}".replace("-", "−"), (max(values), row), (14, 0), va="center",
                         textcoords="offset points", color=INK)  # fmt: skip
    text.set_fontweight("bold" if arm == "autoencoder" else "normal")


def _decimals(values: pd.Series) -> int:
    """Digits behind the point that give the largest value three significant ones."""
    largest = float(values.abs().max())
    return int(np.clip(2 - np.floor(np.log10(largest)), 0, 6)) if largest > 0 else 0


def _widen(axes: Axes, values: pd.Series) -> None:
    """A view that starts at 0, or below the least value, and leaves room for the numbers beside the marks."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    reach = (high - low) or 1.0
    axes.set_xlim(low - 0.03 * reach, high + 0.13 * reach)


def plot_controls(
    table: pd.DataFrame,
    *,
    title: str,
    metric: str = "fvu",
    label: str | None = None,
    families: Mapping[str, str] | None = None,
) -> Figure:
    """`metric` of the autoencoder and its controls, a group of rows a subject: neurons, components, untrained model.

    `table` is that of sae_study.quality_rows: columns subject, kind, seed and the metric; names of untrained subjects
    end in ", untrained", and stand, hollow, with the subject they are the control of. Several rows of an arm are its
    seeds, a mark each, with a bar at their mean, which is written. Kinds of autoencoder are not told apart, so draw one
    kind and level. A subject has the colour of the family that its name starts with, or that `families` gives it.
    `label` explains the metric. Raises ValueError for missing columns, no rows, an unknown kind, a seed that is there
    twice, and too many rows.
    """
    require_columns(table, ["subject", "kind", "seed", metric])
    _require_kinds(table)
    named = table.assign(
        arm=[_arm(subject, kind) for subject, kind in zip(table["subject"], table["kind"], strict=True)],
        subject=table["subject"].str.removesuffix(UNTRAINED),
    )
    twice = named[named.duplicated(["subject", "arm", "seed"])]
    if not twice.empty:
        subject, arm, seed = twice.iloc[0][["subject", "arm", "seed"]]
        raise ValueError(f"{subject}: {arm} is there twice with seed {seed}; choose one kind and one level")
    order = [name + end for end in ("", ", untrained model") for name in ("autoencoder", *BASES.values())]
    groups = dict(list(named.groupby("subject", sort=False)))
    count = len(named[["subject", "arm"]].drop_duplicates()) + len(groups)
    require(count <= MAX_ROWS, f"{count} rows, headings included; a slide shows {MAX_ROWS}, so draw fewer subjects")
    decimals = _decimals(named[metric])
    ticks, names, row = [], [], 0.0
    with use_style():
        figure, axes = new_figure(title)
        for subject, own in groups.items():
            family = (families or {}).get(subject, _family_of(subject))
            colour = FAMILY_COLOURS.get(family, INK)
            heading = FAMILY_LABELS.get(subject, subject)
            axes.annotate(heading, (0, row), (-8, 0), xycoords=axes.get_yaxis_transform(), ha="right", va="center",
                          textcoords="offset points", color=colour, fontweight="bold", parse_math=False)  # fmt: skip
            for arm in (arm for arm in order if arm in set(own["arm"])):
                row += 1
                ticks.append(row)
                names.append(arm)
                _draw_arm(axes, row, own.loc[own["arm"] == arm, metric].tolist(), arm, colour, decimals)
            row += 1.25
        axes.set_yticks(ticks, names)
        axes.set_ylim(row - 0.55, -0.6)
        _widen(axes, named[metric])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=True, axis="both")
        seeds = int(named.groupby(["subject", "arm"]).size().max())
        note = f"\nmarks: each of {seeds} seeds; bar and number: their mean" if seeds > 1 else ""
        axes.set_xlabel(f"{METRICS.get(metric, metric) if label is None else label}{note}", parse_math=False)
    return figure
