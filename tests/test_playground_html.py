"""The playground's HTML says what it should, and lets nothing in that a model or a user wrote as markup."""

from html.parser import HTMLParser

import pytest

from picollm_core import playground_html as page
from picollm_core.next_token import Candidate, NextToken

HOSTILE = "</textarea></span><script>alert(1)</script><img src=x onerror=alert(1)> \" ' & <style>*{}"
VIEW = NextToken(
    (Candidate(7, " cat", 0.5, 0.6, 0.75), Candidate(8, "\n", 0.2, 0.2, 0.25), Candidate(9, HOSTILE, 0.1, 0.1, 0.0)),
    2, 0.8, 4096,
)  # fmt: skip


def shown(text=" cat", probability=0.5, ends=False):
    return page.ShownToken(text, 7, probability, 1, VIEW, ends)


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text that a reader would see."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text += data


EVERYTHING = {
    "story": lambda text: page.story_html(text, [shown(text), shown(ends=True)], note=text),
    "light story": lambda text: page.story_html(text, [shown(text)], details=False),
    "next token": lambda text: page.next_token_html(text, VIEW),
    "sentence": lambda text: page.sentence_html(text, text),
    "status": page.status_html,
    "copy": page.copy_html,
    "samples": lambda text: page.samples_html([text], [(text, [text])]),
}


@pytest.mark.parametrize("make", EVERYTHING.values(), ids=EVERYTHING)
def test_markup_in_a_text_is_shown_and_not_obeyed(make):
    hostile, harmless = Reader(make(HOSTILE)), Reader(make("x"))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    assert [set(attributes) for _, attributes in hostile.tags] == [set(attributes) for _, attributes in harmless.tags]
    assert "<script>alert(1)</script>" in hostile.text
    assert hostile.open == []


def test_a_token_tells_its_probability_rank_and_nucleus():
    story = Reader(page.story_html("Once", [shown()]))
    assert "␣cat: probability 50%, rank 1, drawn from 2 of 4,096 tokens" in story.text
    kept = [attributes for tag, attributes in story.tags if tag == "i"]
    cut = [attributes for tag, attributes in story.tags if tag == "s"]
    assert [attributes["style"] for attributes in kept] == ["--w:100", "--w:33"]
    assert kept[0]["class"] == "pico-it"
    assert len(cut) == 1


def test_every_token_can_be_reached_by_keyboard():
    tokens = [tag for tag in Reader(page.story_html("Once", [shown(), shown(ends=True)])).tags if "tabindex" in tag[1]]
    assert len(tokens) == 2
    assert all(attributes["aria-label"] for _, attributes in tokens)


def test_while_tokens_arrive_a_light_story_tells_the_odds_alone():
    light, full = (page.story_html("Once", [shown()] * 50, details=details) for details in (False, True))
    assert 'title="␣cat: probability 50%' in light
    assert "pico-tip" not in light
    assert len(light) < len(full) / 2


def test_a_token_inside_a_character_adds_nothing_visible():
    assert page.story_html("Once", [shown(text="")]) == page.story_html("Once", [])


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_shades_darken_step_by_step_and_carry_dark_ink():
    lights = [luminance(colour) for _, colour, _ in page.SHADES]
    assert lights == sorted(lights, reverse=True)
    assert all((light + 0.05) / (luminance("#222222") + 0.05) > 6 for light in lights)
    assert [page.shade(p) for p in (1, 0.5, 0.3, 0.1, 0.02, 0.001, 0)] == [
        page.SHADES[i][1] for i in (0, 0, 1, 2, 3, 4, 4)
    ]
    assert all(name in page.colour_key() and colour in page.colour_key() for _, colour, name in page.SHADES)


def test_the_cut_is_drawn_after_the_last_kept_token_and_said_in_words():
    source = page.next_token_html("a model", VIEW)
    assert "2 of 4,096 tokens stay, holding 80%" in source
    rows = [attributes.get("class") for tag, attributes in Reader(source).tags if tag == "tr"]
    assert rows == [None, None, None, "pico-edge", "pico-cut"]


def test_a_nucleus_beyond_the_bars_is_counted():
    view = NextToken(VIEW.candidates, 40, 0.9, 4096)
    assert "40 of 4,096 tokens stay (37 of them not shown)" in page.next_token_html("a model", view)
    assert "pico-edge" not in page.next_token_html("a model", view)


@pytest.mark.parametrize(("largest", "scale"), [(0.004, 0.1), (0.1, 0.1), (0.3, 0.5), (0.51, 1.0), (1.0, 1.0)])
def test_bars_share_a_round_scale(largest, scale):
    assert page.bar_scale([NextToken((Candidate(0, "a", largest, largest, 1),), 1, 1, 9)]) == scale


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0, "0%"), (1e-9, "<0.01%"), (0.0005, "0.05%"), (0.042, "4.2%"), (0.0996, "10%"), (0.873, "87%"), (1, "100%")],
)
def test_percentages_keep_two_digits(probability, text):
    assert page.percent(probability) == text


def test_without_a_text_there_is_nothing_to_copy():
    assert "disabled" in dict(Reader(page.copy_html("")).tags)["button"]
    assert "disabled" not in dict(Reader(page.copy_html("a story")).tags)["button"]
