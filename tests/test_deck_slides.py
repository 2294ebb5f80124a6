"""Parts of a slide: text is measured before it is set, words that belong together stay together, bytes are stable."""

import zipfile

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

pytest.importorskip("pptx", reason='the deck needs python-pptx: pip install "picollm[slides]"')

from io import BytesIO

from pptx import Presentation
from pptx.enum.shapes import MSO_SHAPE

from picollm_core.deck_slides import (
    TITLE_BOX,
    add_shape,
    add_slide,
    add_text,
    balanced_width,
    fitting_size,
    line_count,
    new_presentation,
    presentation_bytes,
    shortened,
    small_picture,
    text_width,
    unbroken,
)
from picollm_core.figure_style import FAMILY_COLOURS

SENTENCE = "The quick brown fox jumps over the lazy dog and then sleeps until the evening comes"


def test_width_grows_with_size_and_weight_and_about_fits_arial():
    assert text_width("word", 40) == pytest.approx(2 * text_width("word", 20), rel=0.05)
    assert text_width("word", 20, bold=True) > text_width("word", 20)
    # Arial's own widths of the letters of "Transformer" add up to 5.445 em; at 72 points an em is an inch.
    assert 5.445 <= text_width("Transformer", 72) < 6.3


def test_lines_are_counted_as_wrapped_words_and_paragraphs():
    assert line_count("one two three", 20, 100) == 1
    assert line_count("one\ntwo\nthree", 20, 100) == 3
    assert line_count("one two three", 20, text_width("three", 20) + 0.01) == 3


def test_the_largest_size_that_fits_is_taken_and_none_when_none_does():
    box = (0, 0, 6.0, 1.0)
    points = fitting_size(SENTENCE, box, (60, 40, 24, 20, 16))
    assert points in (24, 20, 16)
    assert line_count(SENTENCE, points, 6.0) * points * 1.2 / 72 <= 1.0
    assert fitting_size(SENTENCE, box, (60, 40)) is None
    assert fitting_size("Unbreakable" * 9, box, (40,)) is None


def test_a_balanced_title_has_no_lonely_last_word_and_no_more_lines():
    words = "Twelve words that only just go over the end of one line, sadly"
    width = text_width(words, 28, True) - 0.05
    assert line_count(words, 28, width, True) == 2
    narrow = balanced_width(words, 28, width, True)
    assert line_count(words, 28, narrow, True) == 2
    assert narrow < 0.65 * width
    assert balanced_width("One line", 28, 5.0) == 5.0


def test_text_is_shortened_at_a_word_and_says_so():
    box = (0, 0, 3.0, 1.0)
    cut = shortened(SENTENCE, box, 20)
    assert cut.endswith(" …")
    assert SENTENCE.startswith(cut.removesuffix(" …"))
    assert fitting_size(cut, box, (20,)) == 20
    assert shortened("Short", box, 20) == "Short"
    with pytest.raises(ValueError, match="not even the first word"):
        shortened(SENTENCE, (0, 0, 0.1, 1.0), 20)


def test_names_with_hyphens_do_not_break():
    assert unbroken("a k-gram at top-p 0.9") == "a k\u2011gram at top\u2011p\xa00.9"
    assert unbroken("a well-known top-p sampler") == "a well-known top\u2011p sampler"
    assert line_count("k-gram k-gram", 20, text_width("k-gram", 20) + 0.01) == 2


def test_a_slide_has_title_number_and_notes_and_refuses_to_go_without():
    deck = new_presentation()
    add_slide(deck, "First", "Notes of the first")
    slide = add_slide(deck, "Second", "From notebook 05", source="notebook 05")
    assert slide.shapes.title.text_frame.text == "Second"
    assert slide.notes_slide.notes_text_frame.text == "From notebook 05"
    assert 'type="slidenum"' in presentation_xml(deck, 2)
    with pytest.raises(ValueError, match="has no notes"):
        add_slide(deck, "Third", "  ")
    with pytest.raises(ValueError, match="shorten it"):
        add_slide(deck, "Too long " * 40, "notes")
    with pytest.raises(ValueError, match="does not fit"):
        add_slide(deck, " ", "notes")


def presentation_xml(deck, number: int) -> str:
    with zipfile.ZipFile(BytesIO(presentation_bytes(deck))) as archive:
        return archive.read(f"ppt/slides/slide{number}.xml").decode()


def test_the_largest_title_that_is_accepted_stays_inside_its_box():
    deck, words = new_presentation(), "several words more"
    accepted = ""
    for count in range(1, 30):
        try:
            slide = add_slide(deck, " ".join([words] * count), "notes")
        except ValueError:
            break
        accepted = slide.shapes.title
    points = accepted.text_frame.paragraphs[0].runs[0].font.size.pt
    lines = line_count(accepted.text_frame.text, points, accepted.width / 914_400, True)
    assert lines * points * 1.2 / 72 <= TITLE_BOX[3]


def test_a_prompt_is_grey_and_its_continuation_is_not():
    slide = add_slide(new_presentation(), "t", "n")
    runs = add_text(slide, "Once upon a time", (1, 1, 5, 1), 20, given="Once upon").text_frame.paragraphs[0].runs
    assert [run.text for run in runs] == ["Once upon", " a time"]
    assert runs[0].font.color.rgb != runs[1].font.color.rgb
    runs = add_text(slide, "Other", (1, 1, 5, 1), 20, given="Once upon").text_frame.paragraphs[0].runs
    assert [run.text for run in runs] == ["Other"]


def test_shapes_are_flat_and_the_layouts_are_as_wide_as_the_slides():
    deck = new_presentation()
    shape = add_shape(add_slide(deck, "t", "n"), MSO_SHAPE.OVAL, (1, 1, 1, 1), "#0072B2")
    assert "p:style" not in {child.tag for child in shape._element}
    assert not any(child.tag.endswith("}style") for child in shape._element)
    title = deck.slide_layouts.get_by_name("Title Only").placeholders[0]
    assert title.left + title.width > 0.9 * deck.slide_width


def test_bytes_depend_on_the_content_alone():
    def one(title: str) -> bytes:
        deck = new_presentation()
        add_slide(deck, title, "notes")
        return presentation_bytes(deck)

    assert one("a") == one("a")
    assert one("a") != one("b")
    with zipfile.ZipFile(BytesIO(one("a"))) as archive:
        assert {part.date_time for part in archive.infolist()} == {(2024, 1, 1, 0, 0, 0)}
    assert len(Presentation(BytesIO(one("a"))).slides) == 1


def test_a_figure_takes_a_third_of_its_bytes_and_looks_the_same(tmp_path):
    figure = Figure(figsize=(8, 4.5), dpi=100)
    left, right = figure.subplots(1, 2)
    left.imshow(np.linspace(0, 1, 400).reshape(20, 20), cmap="Blues")
    for k, colour in enumerate(FAMILY_COLOURS.values()):
        right.plot(np.arange(9), np.arange(9) * k, color=colour, linewidth=3, label=f"family {k}")
    right.legend()
    path = tmp_path / "figure.png"
    figure.savefig(path)
    small = small_picture(path)
    assert len(small.getvalue()) < path.stat().st_size / 2
    before, after = (np.asarray(Image.open(each).convert("RGB")).astype(int) for each in (path, small))
    assert before.shape == after.shape
    assert np.abs(before - after).max() <= 8
    assert small_picture(path).getvalue() == small.getvalue()
