"""The three families as a diagram of native shapes: what each sees of the text so far, and how it gets to a guess."""

from typing import Any

from pptx.enum.dml import MSO_LINE_DASH_STYLE
from pptx.enum.shapes import MSO_CONNECTOR, MSO_SHAPE
from pptx.enum.text import PP_ALIGN
from pptx.oxml.ns import qn
from pptx.util import Inches, Pt

from picollm_core.deck_slides import MARGIN, WIDTH, add_shape, add_text, colour, flatten, write_label
from picollm_core.figure_style import FAMILY_COLOURS, FAMILY_LABELS, INK, PALE, QUIET

WORDS = ("the", "cat", "sat", "on", "a")
GAP, CELL, BETWEEN = 0.5, 0.62, 0.11
COLUMN = (WIDTH - 2 * MARGIN - 2 * GAP) / 3
TOKENS_TOP, MIDDLE_TOP, GUESS_TOP = 4.95, 3.6, 2.25
SAYINGS = {
    "kgram": "sees the last k tokens\nand nothing before them",
    "lstm": "carries one state\nfrom token to token",
    "transformer": "looks back at every token\nand weighs each one",
}


def _arrow(slide: Any, start: tuple[float, float], end: tuple[float, float], ink: str, points: float = 2.5) -> None:
    line = slide.shapes.add_connector(MSO_CONNECTOR.STRAIGHT, *map(Inches, (*start, *end)))
    flatten(line)
    line.line.color.rgb, line.line.width = colour(ink), Pt(points)
    head = line.line._get_or_add_ln().makeelement(qn("a:tailEnd"), {"type": "triangle"})
    line.line._get_or_add_ln().append(head)


def _tokens(slide: Any, left: float, ink: str, seen: int) -> list[float]:
    """The row of tokens, the last `seen` in colour; gives the middle of each."""
    middles = []
    for rank, word in enumerate(WORDS):
        x = left + rank * (CELL + BETWEEN)
        visible = rank >= len(WORDS) - seen
        kind = MSO_SHAPE.ROUNDED_RECTANGLE
        box = add_shape(
            slide, kind, (x, TOKENS_TOP, CELL, 0.55), ink if visible else "#FFFFFF", ink if visible else PALE
        )
        write_label(box, word, 18, "#FFFFFF" if visible else QUIET)
        if not visible:
            box.line.dash_style = MSO_LINE_DASH_STYLE.DASH
        middles.append(x + CELL / 2)
    return middles


def _guess(slide: Any, middle: float, ink: str) -> None:
    """The next token, not yet known, above `middle`."""
    box = add_shape(slide, MSO_SHAPE.ROUNDED_RECTANGLE, (middle - 0.45, GUESS_TOP, 0.9, 0.6), "#FFFFFF", ink)
    write_label(box, "mat?", 18, ink)


def _kgram(slide: Any, left: float, ink: str) -> None:
    seen = _tokens(slide, left, ink, 3)[-3:]
    box = add_shape(slide, MSO_SHAPE.ROUNDED_RECTANGLE, (seen[0] - 0.3, MIDDLE_TOP, seen[2] - seen[0] + 0.6, 0.6), ink)
    write_label(box, "MLP", 20, "#FFFFFF")
    for middle in seen:
        _arrow(slide, (middle, TOKENS_TOP), (middle, MIDDLE_TOP + 0.62), ink)
    _arrow(slide, (seen[1], MIDDLE_TOP), (seen[1], GUESS_TOP + 0.62), ink)
    _guess(slide, seen[1], ink)


def _lstm(slide: Any, left: float, ink: str) -> None:
    middles = _tokens(slide, left, ink, len(WORDS))
    for rank, middle in enumerate(middles):
        state = add_shape(slide, MSO_SHAPE.OVAL, (middle - 0.25, MIDDLE_TOP + 0.05, 0.5, 0.5), ink)
        write_label(state, "h", 18, "#FFFFFF")
        _arrow(slide, (middle, TOKENS_TOP), (middle, MIDDLE_TOP + 0.57), ink)
        if rank:
            _arrow(slide, (middles[rank - 1] + 0.25, MIDDLE_TOP + 0.3), (middle - 0.25, MIDDLE_TOP + 0.3), ink)
    _arrow(slide, (middles[-1], MIDDLE_TOP + 0.05), (middles[-1], GUESS_TOP + 0.62), ink)
    _guess(slide, middles[-1], ink)


def _transformer(slide: Any, left: float, ink: str) -> None:
    middles = _tokens(slide, left, ink, len(WORDS))
    wide = middles[-1] - middles[0] + CELL
    box = add_shape(slide, MSO_SHAPE.ROUNDED_RECTANGLE, (left, MIDDLE_TOP, wide, 0.6), ink)
    write_label(box, "attention, MLP", 20, "#FFFFFF")
    # Lines of different weight: how much each token counts is decided anew for every guess.
    for middle, weight in zip(middles, (1.5, 5.0, 3.0, 2.0, 3.5), strict=True):
        _arrow(slide, (middle, TOKENS_TOP), (middle, MIDDLE_TOP + 0.62), ink, weight)
    _arrow(slide, (middles[-1], MIDDLE_TOP), (middles[-1], GUESS_TOP + 0.62), ink)
    _guess(slide, middles[-1], ink)


def add_families(slide: Any) -> None:
    """Draw the k-gram, the LSTM and the Transformer side by side on an empty slide with a title."""
    row = len(WORDS) * CELL + (len(WORDS) - 1) * BETWEEN
    for rank, (family, draw) in enumerate((("kgram", _kgram), ("lstm", _lstm), ("transformer", _transformer))):
        left, ink = MARGIN + rank * (COLUMN + GAP), FAMILY_COLOURS[family]
        add_text(slide, FAMILY_LABELS[family], (left, 1.5, COLUMN, 0.5), 26, bold=True, ink=ink, align=PP_ALIGN.CENTER)
        draw(slide, left + (COLUMN - row) / 2, ink)
        add_text(slide, SAYINGS[family], (left, 5.85, COLUMN, 0.9), 22, ink=INK, align=PP_ALIGN.CENTER)
