"""Figures about features: where the strongest of them fire, word by word, and how often all of them do.

Like those of `plots`: numbers in, a matplotlib Figure out; the caller writes the title.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from picollm_core.config import require
from picollm_core.figure_style import INK, QUIET, TEXT_POINTS, new_figure, text_page, use_style
from picollm_core.interpret.feature_evidence import Context
from picollm_core.interpret.feature_html import activation_colour
from picollm_core.plots import visible_token
from picollm_core.plots_arms import COLOURS
from picollm_core.story_layout import MONO_WIDTH, SIZES

MAX_CONTEXTS, MAX_ARMS, MAX_LABEL, MAX_NAME = 10, 4, 80, 34
BINS_A_DECADE = 4
SMALL_POINTS = 14
LETTERS = tuple(size for size in SIZES if size <= 20)  # larger ones would leave too little of the text around a peak
MONO = "DejaVu Sans Mono"  # story_layout knows how wide its letters are
AFTER = 0.3
"""Share of a line that what follows the peak may take, while there is more before it."""
CUT = "…"

Row = tuple[str, Context] | tuple[str, Sequence[str], Sequence[float], int]


class _Excerpt(NamedTuple):
    """What is written in one line: tokens, the activation of each, and which of them the peak is."""

    pieces: list[str]
    activations: list[float]
    peak: int


def _shown(piece: str) -> str:
    """A token as it stands in a line of text."""
    return visible_token(piece.replace("\n", "↵")).replace("␣", " ")


def _unpacked(row: Row) -> tuple[str, list[str], list[float], int, bool, bool]:
    """Label, pieces, activations, peak, and whether the story goes on to the left and to the right of them."""
    if len(row) == 2:
        label, context = row
        goes_on = not context.begins, not context.ends
        return label, list(context.pieces), list(context.activations), context.peak, *goes_on
    label, pieces, activations, peak = row
    return label, list(pieces), [float(value) for value in activations], int(peak), False, False


def excerpt(row: Row, width: int) -> tuple[str, _Excerpt]:
    """The label of a row, and of its tokens those around the peak that fit in `width` characters.

    Marks of omission stand where tokens are left out, or the story goes on. ValueError when a peak is no token, or
    pieces and activations differ in number.
    """
    label, pieces, activations, peak, before, after = _unpacked(row)
    require(
        len(pieces) == len(activations),
        f"{label!r} has {len(pieces)} pieces and {len(activations)} activations; give one for each",
    )
    require(0 <= peak < len(pieces), f"the peak of {label!r} is {peak}, but it has {len(pieces)} pieces")
    words = [_shown(piece) for piece in pieces]
    room = width - 2 * len(CUT) - 1
    words[peak] = words[peak] if len(words[peak]) <= room else words[peak][: room - 1] + CUT
    start, stop, used = peak, peak + 1, len(words[peak])

    def grow(limit: float, left: bool) -> None:
        nonlocal start, stop, used
        while (start > 0 if left else stop < len(words)) and used + len(words[start - 1 if left else stop]) <= limit:
            used += len(words[start - 1 if left else stop])
            start, stop = start - left, stop + (not left)

    grow(used + AFTER * room, left=False)
    grow(room, left=True)
    grow(room, left=False)
    while start < peak and not words[start].strip():
        start += 1
    words[start] = words[start].lstrip(" ") or words[start]
    marks_before, marks_after = [CUT + " "] * (start > 0 or before), [CUT] * (stop < len(words) or after)
    shown = [*marks_before, *words[start:stop], *marks_after]
    values = [*[0.0] * len(marks_before), *activations[start:stop], *[0.0] * len(marks_after)]
    return label, _Excerpt(shown, values, peak - start + len(marks_before))


def _draw_excerpt(axes: Axes, own: _Excerpt, top: float, height: float, points: float) -> None:
    """One line of tokens in boxes, shaded by activation over the highest of the line; the peak framed."""
    scale = max(map(abs, own.activations)) or 1.0
    left, middle = 0, top + height / 2
    for i, (text, value) in enumerate(zip(own.pieces, own.activations, strict=True)):
        box = ((left, top), len(text), height)
        if value:
            axes.add_patch(Rectangle(*box, facecolor=activation_colour(value / scale), edgecolor="white", linewidth=1))
        if i == own.peak:
            axes.add_patch(Rectangle(*box, fill=False, edgecolor=INK, linewidth=2.5, zorder=3))
        word = axes.text(left, middle, text, va="center", color=INK, fontsize=points, family=MONO, parse_math=False)
        word.set_fontweight("bold" if i == own.peak else "normal")
        left += len(text)


def plot_feature_contexts(rows: Iterable[Row], *, title: str) -> Figure:
    """Up to 10 features, each with its name and one line of text in which tokens are shaded by its activation.

    A row is (label, Context), or (label, pieces, activations, peak) with the text and the activation of each token,
    `peak` being the token that the line is shown for, which is framed. Darkest is the highest of a row; blue is below
    0. A line is cut around its peak, letters are as large as the number of rows allows. Raises ValueError for no or
    more than 10 rows, a label that is too long, and pieces that do not go with activations.
    """
    rows = list(rows)
    require(1 <= len(rows) <= MAX_CONTEXTS, f"{len(rows)} features; a slide shows 1 to {MAX_CONTEXTS}")
    for label, *_ in rows:
        require(len(label) <= MAX_LABEL, f"label {label!r} has {len(label)} characters; at most {MAX_LABEL} fit")
    with use_style():
        figure, axes, width, height = text_page(title, bottom=0.065, top=0.9)
        pitch = height / max(len(rows), 4)  # points from row to row; few rows would else be far apart
        points = next((size for size in LETTERS if 1.25 * (size + min(size, TEXT_POINTS)) + 9 <= pitch), LETTERS[-1])
        named = min(points, TEXT_POINTS)
        characters = int(width / (MONO_WIDTH * points))
        axes.set_xlim(0, width / (MONO_WIDTH * points))
        axes.set_ylim(height, 0)
        negative = False
        for i, row in enumerate(rows):
            label, own = excerpt(row, characters)
            negative = negative or min(own.activations) < 0
            if i:
                axes.axhline(i * pitch, color="#D8D8D8", linewidth=1)
            upper = i * pitch + (pitch - 1.25 * (named + points)) / 2
            axes.text(0, upper + 0.65 * named, label, va="center", fontsize=named, fontweight="bold",
                      color=COLOURS[0], parse_math=False)  # fmt: skip
            _draw_excerpt(axes, own, upper + 1.25 * named, 1.25 * points, points)
        below = "shade: activation, darkest where it is highest in its line; framed: the token that the line is for"
        below = below.replace("shade", "orange") + "; blue: below 0" if negative else below
        figure.text(0.02, 0.03, below, va="center", fontsize=SMALL_POINTS, color=QUIET)
    return figure


def _edges(densities: Sequence[np.ndarray]) -> np.ndarray:
    """Edges of bins that hold every density, BINS_A_DECADE of them for each power of ten."""
    firing = np.concatenate([values[values > 0] for values in densities])
    low = np.floor(np.log10(firing.min()) * BINS_A_DECADE) if len(firing) else -BINS_A_DECADE
    low = min(low, -1) - (low % BINS_A_DECADE == 0)  # no number in the corner of both axes
    return 10 ** (np.arange(low, 1) / BINS_A_DECADE)


def _as_percent(share: float, _: int = 0) -> str:
    return f"{100 * share:.10g}%"


def plot_firing(densities: Mapping[str, Sequence[float]], *, title: str) -> Figure:
    """How often the features of each arm fire: a histogram an arm, below each other on one logarithmic axis.

    `densities` has for every arm its features' shares of tokens where they fire (0 to 1), as in Quality.density. Those
    that never fire have no place on the axis, so their share is written, beside the median of the others, which a line
    marks. Raises ValueError for no or more than 4 arms, an arm without features, and a density outside 0 to 1.
    """
    require(1 <= len(densities) <= MAX_ARMS, f"{len(densities)} arms; a slide shows 1 to {MAX_ARMS}")
    arrays = {arm: np.asarray(values, dtype=float) for arm, values in densities.items()}
    for arm, values in arrays.items():
        require(len(arm) <= MAX_NAME, f"arm {arm!r} has {len(arm)} characters; at most {MAX_NAME} fit")
        require(values.ndim == 1 and len(values) > 0, f"{arm} has densities of shape {values.shape}; give (F,), F >= 1")
        inside = (values >= 0) & (values <= 1)
        require(bool(inside.all()), f"{arm} has a density of {values[~inside][:1]}; a share of tokens is 0 to 1")
    edges = _edges(list(arrays.values()))
    with use_style():
        figure, first = new_figure(title)
        first.remove()
        panels = figure.subplots(len(arrays), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (arm, values), colour in zip(panels, arrays.items(), COLOURS, strict=False):
            firing = values[values > 0]
            shares = np.histogram(np.clip(firing, None, edges[-1]), edges)[0] / len(values)
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.85)
            facts = f"{len(values):,} features, {100 * (1 - len(firing) / len(values)):.3g}% never fire"
            if len(firing):
                facts += f", median {_as_percent(float(f'{np.median(firing):.2g}'))}"
                axes.axvline(np.median(firing), color=INK, linewidth=2)
            axes.set_title(arm, loc="left", fontsize=TEXT_POINTS, color=colour, fontweight="bold", parse_math=False)
            axes.set_title(facts, loc="right", fontsize=SMALL_POINTS, color=INK)
            axes.yaxis.set_major_locator(MaxNLocator(2))
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.tick_params(labelsize=TEXT_POINTS, color=QUIET, labelcolor=INK)
        panels[-1].set_xscale("log")
        panels[-1].set_xlim(edges[0], 1)
        panels[-1].xaxis.set_major_formatter(FuncFormatter(_as_percent))
        panels[-1].set_xlabel("share of tokens where a feature fires (line: median of those that do)")
        figure.supylabel("share of features", fontsize=TEXT_POINTS, color=INK)
    return figure
