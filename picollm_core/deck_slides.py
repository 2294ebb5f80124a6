"""The parts of a slide: title, text that is measured to fit, figures without their own title, notes, stable bytes.

A slide is 13.333 x 7.5 inches; all lengths are inches, type sizes points.
"""

import datetime
import io
import re
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lxml import etree
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image
from pptx import Presentation
from pptx.dml.color import RGBColor
from pptx.enum.shapes import MSO_SHAPE
from pptx.enum.text import MSO_ANCHOR, PP_ALIGN
from pptx.oxml.ns import qn
from pptx.util import Inches, Pt

from picollm_core.figure_style import FAMILY_COLOURS, INK, QUIET

WIDTH, HEIGHT, MARGIN = 13.333, 7.5, 0.6
FONT = "Arial"  # on every machine, under this name or a stand-in of the same widths
TITLE_SIZES, TITLE_BOX = (32, 30, 28, 26, 24, 22), (MARGIN, 0.42, WIDTH - 2 * MARGIN, 1.0)
FIGURE_BOX = (MARGIN - 0.2, 1.5, WIDTH - 2 * MARGIN + 0.4, 5.4)
LINE_SPACING = 1.2
ARIAL_SHARE = {False: 0.94, True: 0.88}
TITLE_GAP = 0.012  # share of a figure's height that descenders may reach below its title
FIXED_DATE = datetime.datetime(2024, 1, 1)
Box = tuple[float, float, float, float]
"""left, top, width, height"""


@lru_cache(maxsize=4096)
def text_width(text: str, points: float, bold: bool = False) -> float:
    """Inches that a line takes in Arial or a stand-in of its widths, at most.

    Measured in DejaVu Sans, which ships with matplotlib; running text in Arial has 0.82 (bold) to 0.9 of its width.
    """
    font = get_font(findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")))
    font.set_size(points, 72)
    font.set_text(text, 0.0)
    return ARIAL_SHARE[bold] * font.get_width_height()[0] / 64 / 72


def unbroken(text: str) -> str:
    """`text` in which no line ends inside k-gram, top-p, top-k and min-p, or before the number that follows these."""
    return re.sub(
        r"\b(?:k-gram|(?:top-[pk]|min-p)(?: (?=\d))?)", lambda m: m[0].translate({45: 0x2011, 32: 0xA0}), text
    )


def line_count(text: str, points: float, width: float, bold: bool = False) -> int:
    """Number of lines that a text takes when its words are wrapped at `width` inches."""
    count = 0
    for paragraph in unbroken(text).split("\n"):
        line = ""
        count += 1
        for word in paragraph.split(" "):
            longer = f"{line} {word}".strip()
            if line and text_width(longer, points, bold) > width:
                count, line = count + 1, word
            else:
                line = longer
    return count


def balanced_width(text: str, points: float, width: float, bold: bool = False) -> float:
    """The narrowest width, in steps of 0.1 inches, that takes no more lines than `width`: no lonely last word."""
    count = line_count(text, points, width, bold)
    while count > 1 and width > 1 and line_count(text, points, width - 0.1, bold) == count:
        width -= 0.1
    return width


def fitting_size(text: str, box: Box, sizes: Sequence[float], bold: bool = False) -> float | None:
    """The largest of `sizes` (points, largest first) at which `text` stays inside `box`; None when none does."""
    _, _, width, height = box
    for points in sizes:
        widest = max(
            (text_width(word, points, bold) for word in unbroken(text).replace("\n", " ").split(" ")), default=0.0
        )
        if widest <= width and line_count(text, points, width, bold) * points / 72 * LINE_SPACING <= height:
            return points
    return None


def shortened(text: str, box: Box, points: float) -> str:
    """As many whole words of `text` as fit into `box`, with an ellipsis where some are left out."""
    words = text.split(" ")
    for count in range(len(words), 0, -1):
        cut = text if count == len(words) else " ".join(words[:count]).rstrip(" ,;:") + " …"
        if fitting_size(cut, box, (points,)) is not None:
            return cut
    raise ValueError(f"not even the first word of {text[:40]!r} fits into {box[2]:.1f} x {box[3]:.1f} inches")


def new_presentation() -> Any:
    """An empty 16:9 presentation whose master and layouts have that width too."""
    presentation = Presentation()
    scale = Inches(WIDTH) / presentation.slide_width
    presentation.slide_width, presentation.slide_height = Inches(WIDTH), Inches(HEIGHT)
    for part in (presentation.slide_master, *presentation.slide_layouts):
        for shape in part.placeholders:
            shape.left, shape.top = round(shape.left * scale), shape.top
            shape.width, shape.height = round(shape.width * scale), shape.height
    core = presentation.core_properties
    core.title, core.author, core.last_modified_by, core.revision = "picollm", "picollm", "picollm", 1
    core.created = core.modified = FIXED_DATE
    return presentation


def colour(hexadecimal: str) -> RGBColor:
    """A colour such as "#0072B2" for a shape."""
    return RGBColor.from_string(hexadecimal.removeprefix("#"))


def write_text(
    frame: Any,
    text: str,
    points: float,
    *,
    bold: bool = False,
    italic: bool = False,
    ink: str = INK,
    align: Any = PP_ALIGN.LEFT,
    anchor: Any = MSO_ANCHOR.TOP,
    given: str = "",
) -> None:
    """Fill a text frame; each line of `text` becomes a paragraph. No inner margins, wrapped at the frame's width.

    Where the text begins with `given`, such as a prompt, that part is grey.
    """
    frame.word_wrap, frame.vertical_anchor = True, anchor
    frame.margin_left = frame.margin_right = frame.margin_top = frame.margin_bottom = 0
    for number, line in enumerate(unbroken(text).split("\n")):
        paragraph = frame.paragraphs[0] if number == 0 else frame.add_paragraph()
        paragraph.alignment = align
        start = unbroken(given) if number == 0 and given and line.startswith(unbroken(given)) else ""
        for piece, tone in ((start, QUIET), (line[len(start) :], ink)):
            if piece or not (start or line):
                run = paragraph.add_run()
                run.text = piece
                run.font.name, run.font.size, run.font.bold, run.font.italic = FONT, Pt(points), bold, italic
                run.font.color.rgb = colour(tone)


def write_label(shape: Any, text: str, points: float, ink: str) -> None:
    """One bold line in the middle of a shape, which it may overhang."""
    write_text(shape.text_frame, text, points, bold=True, ink=ink, align=PP_ALIGN.CENTER, anchor=MSO_ANCHOR.MIDDLE)
    shape.text_frame.word_wrap = False


def add_text(slide: Any, text: str, box: Box, points: float, **look: Any) -> Any:
    """A text box; see write_text for `look`."""
    shape = slide.shapes.add_textbox(*map(Inches, box))
    write_text(shape.text_frame, text, points, **look)
    return shape


def flatten(shape: Any) -> None:
    """Take the theme's shadow and outline from a shape or a line."""
    shape._element.remove(shape._element.find(qn("p:style")))


def add_shape(slide: Any, kind: Any, box: Box, fill: str | None, line: str | None = None) -> Any:
    """A native shape in one colour, with or without an outline."""
    shape = slide.shapes.add_shape(kind, *map(Inches, box))
    flatten(shape)
    if fill is None:
        shape.fill.background()
    else:
        shape.fill.solid()
        shape.fill.fore_color.rgb = colour(fill)
    if line is None:
        shape.line.fill.background()
    else:
        shape.line.color.rgb, shape.line.width = colour(line), Pt(2)
    return shape


def _add_page_number(slide: Any) -> None:
    box = (WIDTH - MARGIN - 1.0, HEIGHT - 0.48, 1.0, 0.3)
    shape = add_text(slide, "", box, 14, ink=QUIET, align=PP_ALIGN.RIGHT)
    paragraph = shape.text_frame.paragraphs[0]._p
    for run in paragraph.findall(qn("a:r")):
        paragraph.remove(run)
    # A field, so that the number stays right when slides are moved; python-pptx has no call for it.
    field = etree.SubElement(paragraph, qn("a:fld"), id="{B6F15528-21DE-4FAA-801E-634DDDAF4B2B}", type="slidenum")
    look = etree.SubElement(field, qn("a:rPr"), lang="en-US", sz="1400")
    fill = etree.SubElement(etree.SubElement(look, qn("a:solidFill")), qn("a:srgbClr"))
    fill.set("val", QUIET.removeprefix("#"))
    etree.SubElement(look, qn("a:latin"), typeface=FONT)
    number = slide.part.package.presentation_part.presentation.slides.index(slide) + 1
    etree.SubElement(field, qn("a:t")).text = str(number)


def _add_stripe(slide: Any) -> None:
    for rank, family in enumerate(("kgram", "lstm", "transformer")):
        add_shape(slide, MSO_SHAPE.RECTANGLE, (rank * WIDTH / 3, 0, WIDTH / 3, 0.12), FAMILY_COLOURS[family])


def add_slide(presentation: Any, title: str, notes: str, *, source: str = "", title_box: Box = TITLE_BOX) -> Any:
    """A slide with its title, the families' colours along the top, its source, its number and its notes.

    Raises ValueError for a title that does not fit into its box at the smallest size, or without a word to say.
    """
    if not notes.strip():
        raise ValueError(f"the slide {title!r} has no notes; say where its content comes from")
    sizes = TITLE_SIZES if title_box == TITLE_BOX else (54, 48, 44, 40, 36)
    one_line = (*title_box[:3], sizes[0] / 72 * LINE_SPACING)  # a little smaller is better than a lonely last word
    points = fitting_size(title, one_line, sizes[:3], bold=True) or fitting_size(title, title_box, sizes, bold=True)
    if points is None or not title.strip():
        raise ValueError(f"the title {title!r} ({len(title)} characters) does not fit on a slide; shorten it")
    slide = presentation.slides.add_slide(presentation.slide_layouts.get_by_name("Title Only"))
    _add_stripe(slide)
    shape = slide.shapes.title
    left, top, width, height = title_box
    width = balanced_width(title, points, width, bold=True) + (
        0.15 if line_count(title, points, width, True) > 1 else 0
    )
    shape.left, shape.top, shape.width, shape.height = map(Inches, (left, top, width, height))
    write_text(shape.text_frame, title, points, bold=True, anchor=MSO_ANCHOR.MIDDLE)
    if source:
        add_text(slide, source, (MARGIN, HEIGHT - 0.48, WIDTH - 2 * MARGIN - 1.2, 0.3), 14, ink=QUIET)
    _add_page_number(slide)
    slide.notes_slide.notes_text_frame.text = notes
    return slide


def small_picture(path: Path) -> io.BytesIO:
    """A figure as PNG with the 256 colours that cover it best: to the eye the same, and about a third of the bytes."""
    picture = io.BytesIO()
    with Image.open(path) as image:
        few = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(picture, "PNG", optimize=True)
    picture.seek(0)
    return picture


def add_figure(slide: Any, path: Path, title_height: float, description: str, box: Box = FIGURE_BOX) -> Any:
    """A 16:9 figure as large as `box` allows, its top share `title_height` cropped: the slide has that title already.

    The crop can be undone in the presentation; `description` is the picture's text for those who cannot see it.
    """
    left, top, width, height = box
    crop = min(max(title_height, 0.0), 0.5) + (TITLE_GAP if title_height > 0 else 0.0)
    shape_of = 16 / (9 * (1 - crop))
    across = min(width, height * shape_of)
    down = across / shape_of
    place = (left + (width - across) / 2, top + (height - down) / 2, across, down)
    picture = slide.shapes.add_picture(small_picture(path), *map(Inches, place))
    picture.crop_top = crop
    picture._element.nvPicPr.cNvPr.set("descr", description)
    return picture


def presentation_bytes(presentation: Any) -> bytes:
    """The file's bytes, the same for the same content: every part of the archive has one fixed date."""
    written, stable = io.BytesIO(), io.BytesIO()
    presentation.save(written)
    with zipfile.ZipFile(written) as old, zipfile.ZipFile(stable, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            part = zipfile.ZipInfo(name, FIXED_DATE.timetuple()[:6])
            part.compress_type, part.external_attr = zipfile.ZIP_DEFLATED, 0o600 << 16
            new.writestr(part, old.read(name))
    return stable.getvalue()
