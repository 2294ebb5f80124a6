"""What a figure must be for the back row of a room, and the texts that a reader of it sees."""

import itertools

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from picollm_core.figure_style import SIZE_INCHES


def visible(figure: Figure) -> list[Text]:
    """The texts a reader sees; ticks outside an axis's view exist for matplotlib but are not drawn."""
    figure.draw_without_rendering()
    hidden = set()
    for axis in (axis for axes in figure.findobj(Axes) for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low <= tick.get_loc() <= high:
                hidden |= {tick.label1, tick.label2}
    found = (text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip())
    return [text for text in found if text not in hidden]


def assert_legible(figure: Figure) -> None:
    """A slide's size, and texts that are large, stay on the page and do not overlap."""
    assert tuple(figure.get_size_inches()) == SIZE_INCHES
    boxes = {text: Text.get_window_extent(text) for text in visible(figure)}
    for text, box in boxes.items():
        assert text.get_fontsize() >= 14, text
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text
    for (a, box_a), (b, box_b) in itertools.combinations(boxes.items(), 2):
        assert not box_a.padded(-2).overlaps(box_b), (a, b)
