"""Figures about heads that learn to repeat: their score while training, and what the losses do at that moment.

Like those of `plots`: numbers in, a matplotlib Figure out; the caller writes the title.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from picollm_core.config import require
from picollm_core.figure_style import INK, QUIET, TEXT_POINTS, EndLabel, label_ends, new_figure, use_style
from picollm_core.plots import require_columns
from picollm_core.plots_arms import arm_look

MAX_ARMS = 4
SHADE = "#F3E3C3"
UPPER, LOWER = 0.26, 0.3
"""Shares of the figure's height that the two panels keep."""
LOSSES: dict[str, Any] = {"second": "-", "loss": (0, (4, 1.5))}
"""Columns of losses and the line that each is drawn with."""


def _draw_arms(axes: Axes, table: pd.DataFrame, column: str, look: Mapping[str, Mapping[str, Any]], line: Any) -> None:
    """Every seed of every arm as a thin line of a column against the update, and the mean over seeds as a thick one."""
    for arm, own in table.dropna(subset=[column]).groupby("arm", sort=False):
        colour = look[str(arm)]["color"]
        seeds = own.pivot(index="step", columns="seed", values=column)
        if seeds.shape[1] > 1:
            axes.plot(seeds.index, seeds, color=colour, linewidth=1.2, alpha=0.55, linestyle=line)
        axes.plot(seeds.index, seeds.mean(axis=1), color=colour, linewidth=3.2, linestyle=line)


def _ends(table: pd.DataFrame, column: str, look: Mapping[str, Mapping[str, Any]], name: str) -> list[EndLabel]:
    """What names the lines of one column: the arm, and below it what is drawn."""
    labels = []
    for arm, own in table.dropna(subset=[column]).groupby("arm", sort=False):
        last = own["step"].max()
        height = float(own.loc[own["step"] == last, column].mean())
        labels.append(EndLabel(f"{arm}{name}", float(last), height, look[str(arm)]["color"]))
    return labels


def plot_induction(table: pd.DataFrame, *, title: str, span: tuple[float, float] | None = None) -> Figure:
    """The highest induction score of any head while training, and below it the losses, on one axis of updates.

    `table` is that of `induction_study`: a row an arm, seed and step, with columns induction (0 to 1), second (nats a
    token on the second copy of random tokens) and loss (of the training batches, may be missing). Seeds are thin lines,
    their mean is thick. `span`, two steps, is shaded in both panels: where the losses fall fastest. Raises ValueError
    for missing columns, no rows, more than four arms, and a span that does not go forward.
    """
    require_columns(table, ["arm", "seed", "step", "induction", *LOSSES])
    arms = list(dict.fromkeys(table["arm"]))
    require(len(arms) <= MAX_ARMS, f"{len(arms)} arms; the figure shows at most {MAX_ARMS}, so leave some out")
    require(span is None or span[0] < span[1], f"the span goes from {span and span[0]} to {span and span[1]}")
    look = arm_look(arms)
    with use_style():
        figure, first = new_figure(title)
        first.remove()
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(UPPER, LOWER))
        if span is not None:
            for axes in (upper, lower):
                axes.axvspan(*span, color=SHADE, zorder=0, linewidth=0)
        _draw_arms(upper, table, "induction", look, "-")
        upper.set_ylim(0, max(0.5, 1.08 * table["induction"].max()))
        upper.set_ylabel("induction score")
        label_ends(upper, _ends(table, "induction", look, ""), share=UPPER)
        for column, line in LOSSES.items():
            _draw_arms(lower, table, column, look, line)
        # the first rows fall from the logarithm of the vocabulary and would flatten all that follows
        settled = table[table["step"] >= 0.1 * table["step"].max()]
        low, high = settled[list(LOSSES)].min().min(), settled[list(LOSSES)].max().max()
        lower.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        lower.set_ylabel("loss (nats a token)")
        lower.set_xlabel("updates")
        lower.set_xlim(0, table["step"].max())
        for axes in (upper, lower):
            axes.tick_params(labelsize=TEXT_POINTS, color=QUIET, labelcolor=INK)
        names = (": 2nd copy", ": training")
        ends = [_ends(table, column, look, name) for column, name in zip(LOSSES, names, strict=True)]
        label_ends(lower, [label for labels in ends for label in labels], share=LOWER)
        _legend(figure, int(table["seed"].nunique()), span is not None)
    return figure


def _legend(figure: Figure, seeds: int, shaded: bool) -> None:
    handles: list[Any] = [
        Line2D([], [], color=INK, lw=3, ls="-", label="second copy of random tokens"),
        Line2D([], [], color=INK, lw=3, ls=LOSSES["loss"], label="training batches"),
    ]
    if seeds > 1:
        handles.append(Line2D([], [], color=INK, lw=1.2, alpha=0.55, label=f"each of {seeds} seeds (thick: mean)"))
    if shaded:
        handles.append(Patch(color=SHADE, linewidth=0, label="losses fall fastest"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=TEXT_POINTS - 2,
                  columnspacing=1.4, handlelength=2.2)  # fmt: skip
