"""The one figure style: colours of the families, sizes for a slide, labels at line ends, saving with stable bytes.

Sizes are for 16:9 seen from the back of a room. Figures are built without pyplot, so none stays open behind the
reader's back.
"""

import math
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

FAMILY_COLOURS = {
    "kgram": "#D55E00",
    "lstm": "#009E73",
    "transformer": "#0072B2",
    "linear": "#CC79A7",
    "counts": "#595959",
    "human": "#000000",
}
"""Okabe and Ito's palette: told apart with every common colour blindness, at least 3:1 against white."""

FAMILY_LABELS = {
    "kgram": "k-gram MLP",
    "lstm": "LSTM",
    "transformer": "Transformer",
    "linear": "linear attention",
    "counts": "count model",
    "human": "human text",
}
INK, QUIET, PALE = "#222222", "#595959", "#C9C9C9"
SIZE_INCHES = (12.8, 7.2)
TEXT_POINTS, TITLE_POINTS = 16, 22
LINE_STYLES = ("-", (0, (6, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
MAX_END_LABELS, MAX_ROWS = 12, 20
STYLE: dict[Any, Any] = {
    "figure.figsize": SIZE_INCHES,
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.bbox": "standard",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same letters on every machine
    "font.size": TEXT_POINTS,
    "axes.titlesize": TITLE_POINTS,
    "axes.labelsize": TEXT_POINTS,
    "xtick.labelsize": TEXT_POINTS,
    "ytick.labelsize": TEXT_POINTS,
    "legend.fontsize": TEXT_POINTS,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "lines.linewidth": 3.0,
    "axes.prop_cycle": cycler(color=list(FAMILY_COLOURS.values())),
    "svg.hashsalt": "picollm",
    "pdf.fonttype": 42,
}


@contextmanager
def use_style() -> Iterator[None]:
    """The project's figure style inside a `with` block; what was set before comes back afterwards."""
    with matplotlib.rc_context(STYLE):
        yield


def family_colour(family: str) -> str:
    """Hex colour of a model family, the same in every figure. Raises ValueError for an unknown family."""
    if family not in FAMILY_COLOURS:
        raise ValueError(f"no colour for family {family!r}; known families: {', '.join(FAMILY_COLOURS)}")
    return FAMILY_COLOURS[family]


@dataclass(frozen=True)
class EndLabel:
    """Text that names a line, and the point (data coordinates) where that line ends."""

    text: str
    x: float
    y: float
    colour: str


def _balanced(title: str, width: int = 68) -> str:
    """Break `title` into as few lines as `width` characters allow, of about equal length: no lonely last word."""
    count = len(textwrap.wrap(title, width))
    while width > 1 and len(textwrap.wrap(title, width - 1)) == count:
        width -= 1
    return textwrap.fill(title, width)


def new_figure(title: str) -> tuple[Figure, Axes]:
    """An empty 16:9 figure with its title above one axes; call it inside use_style(). ValueError for a blank title."""
    if not title.strip():
        raise ValueError("the title is empty; it should say what the figure shows, in one sentence")
    figure = Figure(
        figsize=SIZE_INCHES, dpi=STYLE["figure.dpi"], layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
    )
    figure.suptitle(_balanced(title), x=0.012, ha="left", fontsize=TITLE_POINTS, fontweight="bold", parse_math=False)
    axes = figure.add_subplot()
    # Later ticks are made when the figure is drawn, outside the style: their look is fixed on the axis itself.
    axes.tick_params(labelsize=TEXT_POINTS, color=QUIET, labelcolor=INK)
    return figure, axes


def settle_layout(figure: Figure) -> None:
    """Fix the places of a figure's axes, rounded: with many of them the last bits that the solver of a layout finds
    depend on where objects lie in memory, and with them the bytes of the file."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(share, 6) for share in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))


def text_page(title: str, bottom: float, top: float) -> tuple[Figure, Axes, float, float]:
    """A figure for lines of text: its axes, without a frame, from `bottom` to `top` (shares of the figure's height, the
    latter for a title of one line), and their width and height in points. Call it inside use_style()."""
    figure, axes = new_figure(title)
    figure.set_layout_engine("none")  # letters and boxes share one grid, so the axes' size must be known
    top -= 0.055 * figure.get_suptitle().count("\n")
    axes.set_position((0.02, bottom, 0.96, top - bottom))
    axes.set_axis_off()
    return figure, axes, 0.96 * 72 * SIZE_INCHES[0], (top - bottom) * 72 * SIZE_INCHES[1]


def spread(targets: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Positions closest to ascending `targets` (least squares) that stay `gap` apart and inside [low, high].

    The gap shrinks when they cannot all fit. Pool-adjacent-violators on the targets less their share of the gaps.
    """
    count = len(targets)
    gap = min(gap, (high - low) / max(count - 1, 1))
    pools: list[list[float]] = []
    for rank, target in enumerate(targets):
        pools.append([target - rank * gap, 1])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            mean, size = pools.pop()
            pools[-1] = [(pools[-1][0] * pools[-1][1] + mean * size) / (pools[-1][1] + size), pools[-1][1] + size]
    flat = [mean for mean, size in pools for _ in range(int(size))]
    return [min(max(base, low), high - (count - 1) * gap) + rank * gap for rank, base in enumerate(flat)]


def label_ends(axes: Axes, labels: Sequence[EndLabel], share: float = 0.72) -> None:
    """Write each line's name to the right of the axes at the height of its end, moved apart where they collide.

    `share` is that of the figure's height which the axes keep: 0.72 of one panel below a title of two lines.
    """
    scale = np.log if axes.get_yscale() == "log" else np.asarray
    bottom, top = scale(axes.get_ylim())
    ordered = sorted(labels, key=lambda label: label.y)
    heights = [float((scale(label.y) - bottom) / (top - bottom)) for label in ordered]
    gap = 1.35 * TEXT_POINTS / 72 / (share * SIZE_INCHES[1])
    for label, height in zip(ordered, spread(heights, gap, 0.02, 0.98), strict=True):
        axes.annotate(
            label.text,
            xy=(label.x, label.y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            color=label.colour,
            fontweight="bold",
            parse_math=False,
            annotation_clip=False,
            # The connector starts at the middle of the text's left side.
            arrowprops={
                "arrowstyle": "-",
                "color": label.colour,
                "linewidth": 1,
                "alpha": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 2,
                "shrinkB": 0,
            },
        )


def thin_out(labels: list[EndLabel], families: list[str]) -> list[EndLabel]:
    """`labels` as they are, or one a family at its median end when there are more lines than a margin can name."""
    if len(labels) <= MAX_END_LABELS:
        return labels
    merged = []
    for family in dict.fromkeys(families):
        own = sorted(
            (label for label, f in zip(labels, families, strict=True) if f == family), key=lambda label: label.y
        )
        middle = own[len(own) // 2]
        merged.append(EndLabel(f"{FAMILY_LABELS[family]} ({len(own)} runs)", middle.x, middle.y, middle.colour))
    return merged


def save_figure(fig: Figure, name: str, folder: str | Path = "artefacts/figures") -> list[Path]:
    """Write `name`.png (1920 x 1080), .svg and .pdf into `folder`; the same figure always gives the same bytes.

    Raises ValueError for a name that some file system would refuse or change, and for a figure that is not 16:9.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,79}", name) or re.fullmatch(r"con|prn|aux|nul|com\d|lpt\d", name):
        raise ValueError(
            f"figure name {name!r}: use up to 80 lower-case letters, digits, - and _, a letter or digit first"
        )
    width, height = fig.get_size_inches()
    if not math.isclose(width * 9, height * 16, rel_tol=1e-6):
        raise ValueError(f"the figure is {width:g} x {height:g} inches; make it 16:9, for example 12.8 x 7.2")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    # No date and no version of the writer: a figure drawn again is no change for git.
    metadata = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    paths = []
    for kind, without in metadata.items():
        path = target / f"{name}.{kind}"
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with use_style():
                fig.savefig(partial, format=kind, dpi=1920 / width, metadata=without)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        paths.append(path)
    return paths
