"""Figures of token vectors: a map of words by their principal components, and how close linked words lie."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Affine2D

from picollm_core.config import require
from picollm_core.figure_style import INK, PALE, QUIET, TEXT_POINTS, new_figure, use_style
from picollm_core.plots import require_columns
from picollm_core.plots_arms import arm_look

MAX_WORDS, MAX_MODELS, MAX_KINDS = 60, 6, 8
_DOT = 9  # points across a word's mark
# Where a word may stand: its near side at ever larger distances in points from the mark, to the right first.
_DISTANCES = (9, 18, 28, 40, 54, 70, 90, 115, 140, 170)
_ANGLES = (0, 180, 90, 270, 45, 315, 135, 225, 20, 340, 160, 200, 67, 293, 113, 247)
_LED = 14  # points between a word and its mark from which a line leads there


def _shared(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Areas (N,) that boxes (N, 4) have in common with others (M, 4), all as left, bottom, right, top."""
    sides = np.minimum(boxes[:, None, 2:], others[:, 2:]) - np.maximum(boxes[:, None, :2], others[:, :2])
    return sides.clip(min=0).prod(-1).sum(-1)


def _places(mark: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) of a text of `size` (width, height) about its mark, the best place first; all in points."""
    angles = np.deg2rad(_ANGLES)
    away = np.stack([np.cos(angles), np.sin(angles)], axis=-1)  # (A, 2)
    middles = mark + away * (np.array(_DISTANCES)[:, None, None] + size / 2)  # (D, A, 2)
    return np.concatenate([middles - size / 2, middles + size / 2], axis=-1).reshape(-1, 4)


def _best_place(mark: np.ndarray, size: np.ndarray, page: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The first box (4,) where a text covers nothing and stays on the page, else the least bad one; in points."""
    places = _places(mark, size)
    covered = _shared(places + np.array([-1.5, -1.5, 1.5, 1.5]), taken)
    outside = size.prod() - _shared(places, page[None])
    return places[np.argmin((covered + 4 * outside).round(6))]


def _draw_words(axes: Axes, points: pd.DataFrame, colours: Sequence[str]) -> None:
    """Each word near its mark, where it covers nothing that stands already; a line leads to words farther off."""
    figure = axes.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]  # the layout must stand before boxes mean anything
    in_points = Affine2D().scale(72 / figure.dpi)  # type: ignore[union-attr]
    page = np.array(axes.get_window_extent().transformed(in_points).extents)
    marks = in_points.transform(axes.transData.transform(points[["x", "y"]].to_numpy(dtype=float)))  # (N, 2)
    taken = [np.concatenate([mark - 0.6 * _DOT, mark + 0.6 * _DOT]) for mark in marks]
    crowd = [sum(math.dist(own, other) < 60 for other in marks) for own in marks]
    for row in sorted(range(len(points)), key=lambda row: crowd[row]):
        mark, colour = marks[row], colours[row]
        text = axes.annotate(
            str(points["label"].iloc[row]),
            tuple(points[["x", "y"]].iloc[row]),
            xytext=(0, 0),
            textcoords="offset points",
            ha="left",
            va="bottom",
            color=colour,
            fontweight="bold",
            parse_math=False,
            path_effects=[withStroke(linewidth=3, foreground="white")],
            zorder=4,
        )
        text.set_in_layout(False)  # a name beside a point moves no axes
        drawn = text.get_window_extent().transformed(in_points)
        box = _best_place(mark, np.array(drawn.size), page, np.array(taken))
        text.set_position(tuple(box[:2] - drawn.min))
        taken.append(box)
        near = np.clip(mark, box[:2], box[2:])
        if math.dist(near, mark) > _LED:
            ends = axes.transData.inverted().transform(in_points.inverted().transform([mark, near]))
            axes.plot(*ends.T, color=colour, linewidth=1.2, alpha=0.7, zorder=1.5, scalex=False, scaley=False)


def plot_token_map(points: pd.DataFrame, shares: tuple[float, float], *, title: str) -> Figure:
    """Words on the plane of their first two principal components, coloured and marked by group.

    `points` and `shares` are those of `neighbours.pca_view`: columns label, group, x, y, one row a word; and the share
    of the variance along x and y, which the axes name. Each axis fills its side of the page, so the scales differ.
    Raises ValueError for missing columns, no rows, over 60 words or 8 groups, and values that are not finite.
    """
    require_columns(points, ["label", "group", "x", "y"])
    require(len(points) <= MAX_WORDS, f"{len(points)} words; at most {MAX_WORDS} can be read on one slide")
    require(bool(np.isfinite(points[["x", "y"]].to_numpy(float)).all()), "a word's x or y is not finite; leave it out")
    look = arm_look(list(dict.fromkeys(points["group"])))
    with use_style():
        figure, axes = new_figure(title)
        for group, own in points.groupby("group", sort=False):
            style = look[str(group)]
            axes.plot(own["x"], own["y"], style["marker"], color=style["color"], markersize=_DOT, label=str(group))
        axes.margins(0.08)
        axes.grid(visible=True, axis="both")
        axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
        axes.set_ylabel(f"second principal component ({shares[1]:.0%})")
        if len(look) > 1:
            figure.legend(loc="outside lower center", ncols=len(look), columnspacing=1.2, handletextpad=0.1)
        _draw_words(axes, points, [look[group]["color"] for group in points["group"]])
    return figure


def _draw_model(axes: Axes, own: pd.DataFrame, controls: Sequence[str]) -> None:
    """One model's panel: a row a kind with the pairs' mean and interval in front of its controls' ranges."""
    for row, (_, kind) in enumerate(own.iterrows()):
        for place, name in enumerate(controls):
            height = row + 0.26 * (place + 1)
            axes.plot([kind[f"{name}_low"], kind[f"{name}_high"]], [height] * 2, color=_CONTROL_COLOURS[name],
                      linewidth=9, solid_capstyle="butt")  # fmt: skip
            axes.plot(kind[name], height, "|", color=INK, markersize=10, markeredgewidth=2)
        axes.plot([kind["low"], kind["high"]], [row, row], color=_PAIRS_COLOUR, linewidth=3, solid_capstyle="butt")
        axes.plot(kind["cosine"], row, "o", color=_PAIRS_COLOUR, markersize=11)


_PAIRS_COLOUR = "#0072B2"
_CONTROL_COLOURS = {"shuffled": "#E69F00", "matched": PALE}
_CONTROL_WORDS = {"shuffled": "shuffled pairs, middle 95%", "matched": "equally frequent words, middle 95%"}


def plot_similarity(table: pd.DataFrame, *, title: str) -> Figure:
    """Mean cosine of linked words for every kind of pairs, with its controls: a panel a model, a row a kind.

    `table` holds the rows of `neighbours.similarity_statistics` of several models one below the other, with a column
    `model`; the controls "matched" are drawn where they were measured. Dots are means over the pairs of a kind with
    their 95% interval, bars the middle 95% of a control's means, with a tick at its mean. The kinds stand in the order
    of the first model. Raises ValueError for missing columns, no rows, more than 6 models or 8 kinds, a model without
    one of the kinds, and values that are not finite.
    """
    parts = [f"{name}{end}" for name in ("shuffled", "matched") for end in ("", "_low", "_high")]
    require_columns(table, ["model", "kind", "pairs", "cosine", "low", "high", *parts])
    models, kinds = list(dict.fromkeys(table["model"])), list(dict.fromkeys(table["kind"]))
    require(len(models) <= MAX_MODELS, f"{len(models)} models; a slide shows at most {MAX_MODELS} side by side")
    require(len(kinds) <= MAX_KINDS, f"{len(kinds)} kinds of pairs; a slide shows at most {MAX_KINDS}")
    controls = ["shuffled", "matched"] if bool(table["matched"].notna().all()) else ["shuffled"]
    needed = ["cosine", *(part for part in parts if part.split("_")[0] in controls)]
    require(bool(np.isfinite(table[needed].to_numpy(float)).all()), "a mean or a control is not finite; leave it out")
    for model in models:
        own = list(table.loc[table["model"] == model, "kind"])
        require(sorted(own) == sorted(kinds), f"{model} has kinds {own}; every model needs each of {kinds} once")
    with use_style():
        figure, first = new_figure(title)
        first.remove()
        panels = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
        for axes, model in zip(panels, models, strict=True):
            own = table[table["model"] == model].set_index("kind").loc[kinds]
            _draw_model(axes, own, controls)
            axes.set_title(str(model), fontsize=TEXT_POINTS + 2, parse_math=False)
            axes.tick_params(labelsize=TEXT_POINTS, color=QUIET, labelcolor=INK)
            axes.grid(visible=True, axis="x")
            axes.grid(visible=False, axis="y")
            axes.axvline(0, color=QUIET, linewidth=1)
            axes.set_xlabel("mean cosine", fontsize=TEXT_POINTS)
        counts = table[table["model"] == models[0]].set_index("kind").loc[kinds, "pairs"]
        names = [f"{kind} ({count})" for kind, count in counts.items()]
        panels[0].set_yticks(np.arange(len(kinds)) + 0.13 * len(controls), names, parse_math=False)
        panels[0].set_ylim(len(kinds) - 0.2, -0.4)
        panels[0].set_ylabel("kind of pairs (how many)", fontsize=TEXT_POINTS)
        handles = [Line2D([], [], color=_PAIRS_COLOUR, marker="o", markersize=11, linewidth=3)]
        handles += [Line2D([], [], color=_CONTROL_COLOURS[name], linewidth=9) for name in controls]
        words = ["linked words, 95% interval", *(_CONTROL_WORDS[name] for name in controls)]
        figure.legend(handles, words, loc="outside lower center", ncols=len(handles), columnspacing=1.2, fontsize=15)
    return figure
