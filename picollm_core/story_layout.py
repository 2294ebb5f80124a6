"""Where each token of a story stands on a slide: lines broken at words, letters as large as the space allows."""

from collections.abc import Sequence
from typing import NamedTuple

from picollm_core.plots import visible_token

SIZES = (28, 24, 22, 20, 18, 16, 14)
"""Of letters, in points; what is smaller cannot be read from the back of a room."""
MONO_WIDTH = 0.602  # DejaVu Sans Mono: every character is this wide, in units of the size of its letters
GAP_POINTS = 18.0  # between two lines of boxes: room for arrows and numbers


class Spot(NamedTuple):
    """Where a token stands: `left` and `right` in characters, `top` and `bottom` of its box in lines."""

    text: str
    line: int
    left: int
    top: float
    bottom: float

    @property
    def right(self) -> int:
        return self.left + len(self.text)

    @property
    def middle(self) -> float:
        return (self.left + self.right) / 2


class Layout(NamedTuple):
    """The spots of all tokens; `points` is the size of the letters, `pitch` from line to line in points."""

    spots: list[Spot]
    points: float
    pitch: float


def _words(tokens: Sequence[str]) -> list[list[int]]:
    """Numbers of the tokens of each word: what stays together on a line. The first token, a start mark, is alone."""
    words: list[list[int]] = []
    for i, token in enumerate(tokens):
        if i <= 1 or token[:1].isspace() or tokens[i - 1].endswith("\n"):
            words.append([])
        words[-1].append(i)
    return words


def _shown(token: str, starts_line: bool) -> str:
    """A token as it stands in a text: line ends as a mark, no space at the start of a line."""
    text = visible_token(token.replace("\n", "↵")).replace("␣", " ")
    return text[1:] if starts_line and text.startswith(" ") and text.strip() else text


def set_in_lines(tokens: Sequence[str], width: int) -> list[tuple[int, int, str]]:
    """Line and column, from 0, and shown text of every token, on lines of at most `width` characters.

    A line ends before a word that does not fit, and after line ends in the text. A token that is longer than a line
    keeps its length.
    """
    places: list[tuple[int, int, str]] = []
    line, column = 0, 0
    for word in _words(tokens):
        length = sum(len(_shown(tokens[i], False)) for i in word)
        if column and column + length > width:
            line, column = line + 1, 0
        for i in word:
            text = _shown(tokens[i], column == 0)
            if column and column + len(text) > width:  # in a word that is longer than a line
                line, column = line + 1, 0
            places.append((line, column, text))
            column += len(text)
            if tokens[i].endswith("\n") and not "".join(tokens[i + 1 : i + 2]).startswith("\n"):
                line, column = line + 1, 0
    return places


def lay_out(tokens: Sequence[str], width: float, height: float) -> Layout:
    """All tokens within `width` x `height` points, in the largest letters of SIZES that fit.

    Below every line and above the first there is a gap of GAP_POINTS. Raises ValueError when the smallest do not fit.
    """
    for points in SIZES:
        places = set_in_lines(tokens, int(width / (MONO_WIDTH * points)))
        pitch = 1.3 * points + GAP_POINTS
        n_lines = max((line for line, _, _ in places), default=0) + 1
        if n_lines * pitch + GAP_POINTS <= height:
            gap = GAP_POINTS / pitch
            spots = [Spot(text, line, column, line + gap, line + 1) for line, column, text in places]
            return Layout(spots, points, pitch)
    most = int((height - GAP_POINTS) / pitch)
    raise ValueError(f"{len(tokens)} tokens take {n_lines} lines; a slide holds {most}, so show a part of the story")
