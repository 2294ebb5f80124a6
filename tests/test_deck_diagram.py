"""The diagram of the families is drawn with native shapes, in the families' colours, inside the slide."""

from itertools import pairwise

import pytest

pytest.importorskip("pptx", reason='the deck needs python-pptx: pip install "picollm[slides]"')

from picollm_core.deck_diagram import WORDS, add_families
from picollm_core.deck_slides import add_slide, new_presentation
from picollm_core.figure_style import FAMILY_COLOURS, FAMILY_LABELS


@pytest.fixture
def slide():
    slide = add_slide(new_presentation(), "t", "n")
    add_families(slide)
    return slide


def texts(slide) -> list[str]:
    return [shape.text_frame.text.replace("\u2011", "-") for shape in slide.shapes if shape.has_text_frame]


def test_every_family_has_its_name_its_tokens_and_a_guess(slide):
    found = texts(slide)
    assert all(FAMILY_LABELS[family] in found for family in ("kgram", "lstm", "transformer"))
    assert all(found.count(word) == 3 for word in WORDS)
    assert found.count("mat?") == 3


def test_the_k_gram_is_blind_to_early_tokens_and_the_others_are_not(slide):
    def filled(word: str) -> list[str]:
        shapes = [s for s in slide.shapes if s.has_text_frame and s.text_frame.text == word]
        return [f"#{s.fill.fore_color.rgb}" for s in sorted(shapes, key=lambda s: s.left)]

    colours = [FAMILY_COLOURS[family] for family in ("kgram", "lstm", "transformer")]
    assert filled(WORDS[0]) == ["#FFFFFF", *colours[1:]]
    assert filled(WORDS[-1]) == colours


def test_shapes_stay_on_the_slide_and_columns_apart(slide):
    width = slide.part.package.presentation_part.presentation.slide_width
    assert all(shape.left >= 0 and shape.left + shape.width <= width + 10_000 for shape in slide.shapes)
    boxes = [(s.left, s.left + s.width) for s in slide.shapes if s.has_text_frame and s.text_frame.text in WORDS]
    boxes.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(boxes))
