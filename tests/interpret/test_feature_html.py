"""A feature's pictures say what they should, and let nothing in that a model or a user wrote as markup."""

import dataclasses

import pytest

from picollm_core.interpret import feature_html as page
from picollm_core.interpret.feature_evidence import Context, Evidence
from tests.test_playground_html import HOSTILE, Reader, luminance

FACTS = {
    "feature": 7, "density": 0.012, "mean": 1.5, "max": 4.0, "min": 0.0, "stories": 30, "tokens": "␣it", "sign": 1,
    "concept": "pronoun:neuter", "threshold": 1.2, "precision": 0.96, "recall": 0.5, "f1": 0.66, "floor": 0.03,
    "gain": 0.63,
}  # fmt: skip


def context(text=" it", begins=False, ends=True):
    return Context(3, ("He", text, "\n", " fell"), (0.0, 4.0, 1.0, 0.0), 1, begins, ends)


def evidence(text=" it", **changes):
    facts = FACTS | changes.pop("facts", {})
    pairs = ((text, 2.0), (" he", 1.0))
    values = {"histogram": ((1.0, 40), (1.41, 0), (2.0, 9)), "promoted": pairs, "suppressed": ((text, -1.5),)}
    return Evidence(7, facts, (context(text),), (context(text),), (), **values | changes)


EVERYTHING = {
    "context": lambda text: page.context_html(context(text), 4.0),
    "evidence": lambda text: page.evidence_html(evidence(text, facts={"concept": text}), text, 100),
    "no effect": lambda text: page.evidence_html(evidence(no_effect=text), "a title", 100),
    "list": lambda text: page.feature_list_html([FACTS | {"concept": text, "tokens": text}]),
    "text": lambda text: page.written_html(text, text, text + text, text),
}


@pytest.mark.parametrize("make", EVERYTHING.values(), ids=EVERYTHING)
def test_markup_in_a_text_is_shown_and_not_obeyed(make):
    hostile, harmless = Reader(make(HOSTILE)), Reader(make("x"))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    assert [set(attributes) for _, attributes in hostile.tags] == [set(attributes) for _, attributes in harmless.tags]
    assert "script>alert(1)" in hostile.text
    assert hostile.open == []


def test_a_context_shades_by_activation_frames_the_peak_and_tells_the_number():
    read = Reader(page.context_html(context(), 4.0))
    assert read.text == "…\u00a0He it↵ fell"
    (_, peak), (_, other) = read.tags
    assert "pico-peak" in peak["class"]
    assert "pico-peak" not in other["class"]
    assert peak["title"] == "␣it: 4"
    assert other["title"] == "↵: 1"
    assert page.activation_colour(1.0) in peak["style"]
    assert page.activation_colour(0.25) in other["style"]


def test_shades_go_from_white_to_two_colours_that_carry_dark_ink():
    shares = [0, 0.25, 0.5, 0.75, 1]
    for sign in (1, -1):
        lights = [luminance(page.activation_colour(sign * share)) for share in shares]
        assert lights == sorted(lights, reverse=True)
        assert all((light + 0.05) / (luminance("#222222") + 0.05) > 6 for light in lights)
    assert page.activation_colour(0) == "#FFFFFF"
    assert page.activation_colour(2.0) == page.activation_colour(1.0)
    assert page.activation_colour(-1.0) != page.activation_colour(1.0)


def test_the_histogram_draws_and_names_every_bin_that_holds_a_token():
    read = Reader(page.histogram_html(evidence().histogram))
    heights = [float(attributes["height"]) for tag, attributes in read.tags if tag == "rect"]
    assert heights[0] == max(heights)
    assert heights[1] == 0
    assert heights[2] / heights[0] == pytest.approx(9 / 40, rel=0.01)
    assert "from 2: 9 tokens" in read.text
    assert "40 tokens in the fullest bar" in read.text
    (svg,) = [attributes for tag, attributes in read.tags if tag == "svg"]
    assert svg["role"] == "img"
    assert svg["aria-label"] == "49 tokens with an activation from 1 to 2.83"


def test_promoted_and_suppressed_tokens_share_a_scale():
    read = Reader(page.evidence_html(evidence(), "a title", 100))
    widths = [attributes["style"] for _, attributes in read.tags if attributes.get("class") == "pico-bar"]
    assert widths == ["width:100.0%", "width:50.0%", "width:75.0%"]
    assert "+2.00" in read.text
    assert "-1.50" in read.text


def test_the_sentences_say_how_often_and_what_for():
    text = Reader(page.evidence_html(evidence(), "a title", 100)).text
    assert "It fires at 1.2% of the tokens, in 30 of 100 stories; where it does its size is 1.5 on average" in text
    assert "Nearest concept: pronoun:neuter. Where it is at least 1.2: precision 96%, recall 50%, F1 0.66" in text


def test_a_dead_feature_is_called_so():
    dead = {"density": 0.0, "max": 0.0, "mean": None, "stories": 0, "concept": "", "f1": None}
    nothing = dict.fromkeys(("strongest", "weaker", "histogram", "promoted", "suppressed"), ())
    empty = dataclasses.replace(evidence(facts=dead), no_effect="It never fires", **nothing)
    text = Reader(page.evidence_html(empty, "a title", 100)).text
    assert "It fires at no token of these texts" in text
    assert "No concept" in text
    assert "None" not in text
    assert "–" in page.feature_list_html([FACTS | dead])


def test_a_concept_told_by_low_codes_is_described_by_them_and_they_come_first():
    low = dataclasses.replace(evidence(facts={"sign": -1, "min": -3.0}), negative=(context(),))
    text = Reader(page.evidence_html(low, "a title", 100)).text
    assert "Where it is at most -1.2" in text
    assert text.index("Most negative") < text.index("Strongest")
    assert "lowest -3" in text


def test_a_precision_that_nobody_knows_is_not_invented():
    text = page.concept_sentence(FACTS | {"precision": None, "f1": None})
    assert "precision not known" in text
    assert "F1 0.00" in text


def test_the_text_is_marked_from_where_it_differs():
    source = page.written_html("Steered", "Once", "Once upon a dog", "Once upon a cat")
    assert "<mark>dog</mark>" in source
    assert '<span class="pico-prompt">Once</span> upon a ' in source
    assert "<mark>" not in page.written_html("As it is", "Once", "Once upon a cat")
    assert "<mark>" not in page.written_html("Same", "Once", "Once upon", "Once upon")
    assert "<mark> a</mark>" in page.written_html("Longer", "Once", "Once upon a", "Once upon")
