"""Figures of features against ground truth: scores by concept, probes by site, steering curves, ablation matrices.

Like those of `plots`: numbers in, a matplotlib Figure out; the caller writes the title.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from picollm_core.config import require
from picollm_core.figure_style import INK, MAX_ROWS, QUIET, TEXT_POINTS, EndLabel, label_ends, new_figure, use_style
from picollm_core.plots import require_columns
from picollm_core.plots_arms import arm_look

MAX_PANELS, MAX_SITES, MAX_CELLS = 6, 8, 10
GOOD_F1 = 0.9
TRAINED, UNTRAINED, CONTROL = "#0072B2", "#595959", "#D55E00"
DIVERGING = LinearSegmentedColormap.from_list("less_more", ["#7FB2D9", "#FFFFFF", "#F2A56B"])
"""Blue below zero, orange above, both pale enough for dark numbers."""
_SMALL_POINTS = 14


def _require_once(table: pd.DataFrame, keys: Sequence[str]) -> None:
    twice = table[table.duplicated(list(keys))]
    if not twice.empty:
        place = ", ".join(f"{key} {twice.iloc[0][key]}" for key in keys)
        raise ValueError(f"{place} occurs twice; average the seeds first, or leave some rows out")


def _legend_below(figure: Figure, handles: Sequence[Any]) -> None:
    figure.legend(handles=list(handles), loc="outside lower center", ncols=len(handles), fontsize=_SMALL_POINTS,
                  columnspacing=1.4, handlelength=1.8, frameon=False)  # fmt: skip


def _whiskers(own: pd.DataFrame) -> tuple[float, float, float]:
    """Mean and ends: of several rows the lowest and highest, of one its f1_low and f1_high where they are known."""
    values = own["f1"].astype(float)
    if len(own) > 1 or "f1_low" not in own:
        return values.mean(), values.min(), values.max()
    return values.iloc[0], own["f1_low"].iloc[0], own["f1_high"].iloc[0]


def plot_concept_scores(table: pd.DataFrame, *, title: str, label: str = "F1 of the best single feature") -> Figure:
    """The F1 of the best single feature for every concept (a row, the first arm's best on top), a mark an arm.

    `table` has the columns concept, arm, f1 and floor (the F1 of always saying yes, a grey tick), and may have f1_low
    and f1_high. Where a concept and arm have several rows (seeds), the mark is their mean and the line reaches from the
    lowest to the highest; with one row it is the 95% interval, where given. A line marks F1 0.9. Raises ValueError for
    missing columns, no rows, more than 20 concepts, too many arms, and values outside 0 to 1.
    """
    require_columns(table, ["concept", "arm", "f1", "floor"])
    f1 = table["f1"].astype(float)
    require(bool(f1.between(0, 1).all()), f"f1 goes from {f1.min():g} to {f1.max():g}; it must lie in 0 to 1")
    arms = list(dict.fromkeys(table["arm"]))
    look = arm_look(arms)
    leading = table[table["arm"] == arms[0]].groupby("concept")["f1"].mean()
    missing = [name for name in dict.fromkeys(table["concept"]) if name not in leading.index]
    concepts = [*leading.sort_values(ascending=False, kind="stable").index, *missing]
    require(len(concepts) <= MAX_ROWS, f"{len(concepts)} concepts; a slide shows at most {MAX_ROWS}, so choose some")
    seeds = int(table.groupby(["concept", "arm"]).size().max())
    size = 12 if len(concepts) <= 12 else 10
    with use_style():
        figure, axes = new_figure(title)
        axes.axvline(GOOD_F1, color=INK, linewidth=1.5, linestyle=(0, (4, 3)), zorder=1)
        for y, concept in enumerate(concepts):
            rows = table[table["concept"] == concept]
            axes.plot(rows["floor"].mean(), y, "|", color=QUIET, markersize=1.6 * size, markeredgewidth=3)
            for step, arm in enumerate(arms):
                own = rows[rows["arm"] == arm]
                if own.empty:
                    continue
                mean, low, high = _whiskers(own)
                place = y + 0.5 * (step - (len(arms) - 1) / 2) / len(arms)
                colour, marker = look[arm]["color"], look[arm]["marker"]
                axes.plot([low, high], [place, place], color=colour, linewidth=2.5, alpha=0.6, solid_capstyle="butt")
                axes.plot(mean, place, marker, color=colour, markersize=size)
        axes.set_yticks(range(len(concepts)), concepts, parse_math=False, fontsize=TEXT_POINTS - (len(concepts) > 14))
        axes.set_ylim(len(concepts) - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, GOOD_F1, 1], ["0", "0.2", "0.4", "0.6", "0.8", "0.9", "1"])
        axes.grid(visible=True, axis="x")
        axes.grid(visible=True, axis="y", linewidth=0.6)
        ends = f"lines: lowest to highest of {seeds} seeds" if seeds > 1 else "lines: 95% interval over stories"
        known = seeds > 1 or "f1_low" in table
        axes.set_xlabel(f"{label}, on stories that did not choose it" + (f"\n{ends}" if known else ""))
        handles = [
            Line2D([], [], linestyle="", marker=look[arm]["marker"], color=look[arm]["color"], markersize=11, label=arm)
            for arm in arms
        ]
        tick = Line2D([], [], linestyle="", marker="|", color=QUIET, markersize=16, markeredgewidth=3)
        tick.set_label("always yes")
        _legend_below(figure, [*handles, tick])
    return figure


def _probe_panel(axes: Axes, table: pd.DataFrame, sites: Sequence[str], metric: str) -> None:
    lines = (
        ("trained", metric, {"color": TRAINED, "linestyle": "-", "marker": "o"}),
        ("untrained", metric, {"color": UNTRAINED, "linestyle": (0, (5, 2)), "marker": "s"}),
        ("trained", f"control_{metric}", {"color": CONTROL, "linestyle": (0, (1.5, 1.5)), "marker": "^"}),
    )
    for weights, column, style in lines:
        own = table[table["weights"] == weights].set_index("site").reindex(sites)
        axes.plot(range(len(sites)), own[column].astype(float), markersize=8, linewidth=2.5, **style)
    axes.set_xticks(range(len(sites)), sites, rotation=25, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_xlim(-0.3, len(sites) - 0.7)
    axes.tick_params(labelsize=_SMALL_POINTS, color=QUIET, labelcolor=INK)


def plot_probes(
    table: pd.DataFrame,
    *,
    title: str,
    metric: str = "auroc",
    label: str = "AUROC on held-out stories",
    chance: float | None = 0.5,
    site_names: Mapping[str, str] | None = None,
) -> Figure:
    """One panel a concept: `metric` of probes at every site, in order, for the trained and the untrained model.

    `table` is that of probes.probe_study: columns site, weights, concept, the metric and control_ with its name, which
    is drawn for the trained model. `site_names` are shown in place of the sites, `chance` becomes a thin line. Raises
    ValueError for missing columns, no rows, a place named twice, more than 6 concepts or 8 sites.
    """
    require_columns(table, ["site", "weights", "concept", metric, f"control_{metric}"])
    _require_once(table, ["site", "weights", "concept"])
    table = table.assign(site=table["site"].map(lambda site: (site_names or {}).get(site, site)))
    sites, concepts = list(dict.fromkeys(table["site"])), list(dict.fromkeys(table["concept"]))
    require(len(concepts) <= MAX_PANELS, f"{len(concepts)} concepts; a slide shows at most {MAX_PANELS} panels")
    require(len(sites) <= MAX_SITES, f"{len(sites)} sites; a panel shows at most {MAX_SITES} legibly")
    rows = 1 if len(concepts) <= 3 else 2
    columns = -(-len(concepts) // rows)
    with use_style():
        figure, first = new_figure(title)
        first.remove()
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, concept in zip(grid.flat, concepts, strict=False):
            if chance is not None:
                axes.axhline(chance, color=QUIET, linewidth=1.2, linestyle=(0, (2, 2)))
            _probe_panel(axes, table[table["concept"] == concept], sites, metric)
            axes.set_title(concept, fontsize=TEXT_POINTS, loc="left", parse_math=False)
        for place in range(len(concepts), rows * columns):  # the panel above an empty place shows the sites instead
            grid.flat[place].set_visible(False)
            grid.flat[place - columns].tick_params(labelbottom=True)
        figure.supylabel(label, fontsize=TEXT_POINTS, color=INK, parse_math=False)
        handles = [
            Line2D([], [], lw=2.5, color=TRAINED, marker="o", label="trained model"),
            Line2D([], [], lw=2.5, color=UNTRAINED, marker="s", ls=(0, (5, 2)), label="untrained model"),
            Line2D([], [], lw=2.5, color=CONTROL, marker="^", ls=(0, (1.5, 1.5)), label="random label for each word"),
        ]
        if "untrained" not in set(table["weights"]):
            del handles[1]
        if chance is not None:
            handles.append(Line2D([], [], lw=1.2, color=QUIET, ls=(0, (2, 2)), label="chance"))
        _legend_below(figure, handles)
    return figure


def plot_steering(
    table: pd.DataFrame,
    *,
    title: str,
    x_label: str = "amount of the feature that is added at every token (units of its code)",
    y_label: str = "mean probability of the concept's tokens",
) -> Figure:
    """The mean probability of a concept's tokens against the amount added: a line with its interval for each arm.

    `table` is that of steering.steering_curve: columns amount, mass, low, high, and arm where there are several (named
    at the lines' ends). A thin line marks the model as it is, amount 0. Raises ValueError for missing columns, no rows,
    an amount named twice in an arm, and too many arms.
    """
    require_columns(table, ["amount", "mass", "low", "high"])
    table = table if "arm" in table else table.assign(arm="")
    _require_once(table, ["arm", "amount"])
    look, labels = arm_look(list(dict.fromkeys(table["arm"]))), []
    with use_style():
        figure, axes = new_figure(title)
        axes.axvline(0, color=QUIET, linewidth=1.5, linestyle=(0, (2, 2)), zorder=1)
        for arm, own in table.groupby("arm", sort=False):
            own, style = own.sort_values("amount"), look[str(arm)]
            axes.plot(own["amount"], own["mass"], markersize=9, **style)
            axes.fill_between(own["amount"], own["low"], own["high"], color=style["color"], alpha=0.2, linewidth=0)
            labels.append(EndLabel(str(arm), own["amount"].iloc[-1], own["mass"].iloc[-1], style["color"]))
        axes.set_ylim(bottom=0)
        if any(label.text for label in labels):
            label_ends(axes, labels)
        axes.annotate("model as it is", (0, 0.985), xycoords=("data", "axes fraction"), xytext=(6, 0),
                      textcoords="offset points", va="top", color=INK, fontsize=_SMALL_POINTS)  # fmt: skip
        axes.set_xlabel(x_label, parse_math=False)
        axes.set_ylabel(y_label, parse_math=False)
        handles = [
            Line2D([], [], color=INK, lw=3, label="mean over story tokens"),
            Patch(color=INK, alpha=0.2, linewidth=0, label="95% interval over stories"),
        ]
        _legend_below(figure, handles)
    return figure


def plot_ablation_matrix(
    table: pd.DataFrame,
    own: Mapping[Any, str],
    *,
    title: str,
    label: str = "rise of the loss on the concept's tokens above that on others (nats)",
    value: str = "difference",
    value_format: str = ".2f",
    row_label: str = "feature taken away",
) -> Figure:
    """What taking each feature (row) away does to each concept (column): numbers on blue (less) to orange (more).

    `table` is that of steering.ablation_effects: columns feature, concept, `value`, and `value`_low and _high where
    known; numbers whose interval holds no 0 are bold. `own` gives the concept each feature stands for, whose cell is
    outlined. Features and concepts keep the order of the table; cells without a number stay empty. Raises ValueError
    for missing columns, no rows, no number at all, a cell named twice, and more than 10 rows or columns.
    """
    require_columns(table, ["feature", "concept", value])
    _require_once(table, ["feature", "concept"])
    features, concepts = list(dict.fromkeys(table["feature"])), list(dict.fromkeys(table["concept"]))
    sides = len(features), len(concepts)
    require(max(sides) <= MAX_CELLS, f"a matrix of {sides[0]} x {sides[1]}; a slide shows at most {MAX_CELLS} a side")
    numbers = table[value].astype(float)
    require(bool(numbers.notna().any()), f"the table has no number in its column {value!r}")
    reach = float(numbers.abs().max()) or 1.0
    norm, tested = TwoSlopeNorm(0.0, -reach, reach), f"{value}_low" in table and f"{value}_high" in table
    with use_style():
        figure, axes = new_figure(title)
        for _, cell in table.iterrows():
            x, y, number = concepts.index(cell["concept"]), features.index(cell["feature"]), float(cell[value])
            if np.isnan(number):
                continue
            shade = DIVERGING(norm(number))
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=shade, edgecolor="white", linewidth=3))
            clear = tested and not cell[f"{value}_low"] <= 0 <= cell[f"{value}_high"]
            text = f"{number:{value_format}}"
            text = text.lstrip("-") if float(text) == 0 else text.replace("-", "−")
            axes.text(x, y, text, ha="center", va="center", fontsize=18, fontweight="bold" if clear else "normal")
            if own.get(cell["feature"]) == cell["concept"]:
                frame = Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=3, zorder=3)
                axes.add_patch(frame)
        axes.set_xlim(-0.5, len(concepts) - 0.5)
        axes.set_ylim(len(features) - 0.5, -0.5)
        names = [textwrap.fill(str(name).replace(":", ": ").replace("_", " "), 12) for name in concepts]
        axes.set_xticks(range(len(concepts)), names, fontsize=_SMALL_POINTS, parse_math=False)
        axes.set_yticks(range(len(features)), [str(name) for name in features], parse_math=False)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_ylabel(row_label, parse_math=False)
        notes = ["outlined: the concept that the feature stands for"]
        notes += ["bold: the 95% interval over stories holds no 0"] if tested else []
        axes.set_xlabel(f"{label}\n{'; '.join(notes)}", parse_math=False)
    return figure
