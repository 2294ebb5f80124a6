"""Stories of the shipped grammar: determinism, labels, probabilities, entropy."""

import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm_core.storyworld import (
    Story,
    content_hash,
    generate_stories,
    labelled_stories,
    labelled_story,
    load_grammar,
    log_probability,
    parse_story,
    true_entropy,
)
from picollm_core.storyworld.ambiguity import StoryGraph

PRONOUNS = {"female": {"she", "her", "herself"}, "male": {"he", "him", "his", "himself"}, "neuter": {"it", "its"}}


@pytest.fixture(scope="module")
def stories() -> list[Story]:
    return list(labelled_stories(300, seed=5))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), start=st.integers(0, 10**12), cut=st.integers(0, 70))
def test_a_story_depends_on_its_number_and_seed_only(seed: int, start: int, cut: int) -> None:
    whole = list(generate_stories(70, seed, start))
    assert whole == [*generate_stories(cut, seed, start), *generate_stories(70 - cut, seed, start + cut)]
    assert labelled_story(start + cut % 70, seed).text == whole[cut % 70]


def test_another_process_generates_the_same_stories() -> None:
    code = "from picollm_core.storyworld import *; print(content_hash(), list(generate_stories(3, seed=9, start=62)))"
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == f"{content_hash()} {list(generate_stories(3, seed=9, start=62))}"


def test_other_seeds_and_numbers_give_other_stories() -> None:
    drawn = {text for seed in (0, 1, 2**64 - 1) for text in generate_stories(50, seed)}
    assert len(drawn) == 150


def test_no_story_comes_twice_among_twenty_thousand() -> None:
    assert len(set(generate_stories(20_000, seed=1))) == 20_000


def test_no_text_of_the_shipped_grammar_has_two_derivations_and_none_begins_another() -> None:
    assert list(StoryGraph(load_grammar()).conflicts()) == []


def test_parsing_a_generated_story_returns_its_labels_and_log_probability(stories: list[Story]) -> None:
    for story in stories[:150]:
        assert parse_story(story.text) == story
    for story in stories[150:180]:
        assert log_probability(story.text) == story.log_prob < -30


def test_labelled_and_plain_texts_are_the_same(stories: list[Story]) -> None:
    assert [story.text for story in stories] == list(generate_stories(300, seed=5))


def test_every_span_holds_what_its_label_says(stories: list[Story]) -> None:
    for story in stories:
        labels = story.labels
        for start, end, label in labels.spans:
            text = story.text[start:end]
            if label == "quote":
                assert story.text[start - 1] == story.text[end] == '"'
                assert '"' not in text
            elif label.startswith("pronoun:"):
                assert text.lower() in PRONOUNS[label.removeprefix("pronoun:")]
            else:
                assert text.lower() == getattr(labels, label).lower() != ""
            outside = story.text[start - 1] + story.text[end]
            assert not any(c.isalnum() for c in outside)


def test_spans_miss_no_mention_of_the_hero_and_no_gendered_pronoun(stories: list[Story]) -> None:
    for story in stories:
        marked = {(start, end) for start, end, _ in story.labels.spans}
        words = [(m.start(), m.end(), m.group()) for m in re.finditer(r"[A-Za-z]+", story.text)]
        hero = [(start, end) for start, end, word in words if word == story.labels.hero]
        gendered = PRONOUNS["female"] | PRONOUNS["male"]
        pronouns = [(start, end) for start, end, word in words if word.lower() in gendered]
        assert hero
        assert set(hero) <= marked
        assert set(pronouns) <= marked


def test_the_object_is_introduced_before_the_resolution_and_recalled_in_it_or_later(stories: list[Story]) -> None:
    for story in stories:
        resolution = next(phase.start for phase in story.labels.phases if phase.name == "resolution")
        at = [start for start, _, label in story.labels.spans if label == "object"]
        assert at[0] < resolution <= at[-1], story


def test_phases_cover_the_story_in_order(stories: list[Story]) -> None:
    for story in stories:
        phases = story.labels.phases
        assert [phase.name for phase in phases] == ["opening", "problem", "attempt", "resolution", "ending"]
        assert phases[0].start == 0
        assert phases[-1].end == len(story.text)
        pieces = [story.text[phase.start : phase.end] for phase in phases]
        assert all(piece == piece.strip() != "" for piece in pieces)
        assert "\n\n".join(pieces) == story.text


def test_every_plot_and_both_genders_occur(stories: list[Story]) -> None:
    assert {story.labels.plot for story in stories} == set(load_grammar().plots)
    assert {story.labels.hero_gender for story in stories} == {"female", "male"}


def test_a_changed_story_has_no_probability_and_the_error_says_where(stories: list[Story]) -> None:
    text = stories[0].text
    at = text.index("\n\n") + 2
    with pytest.raises(ValueError, match=f"leaves the story grammar at character {at} of"):
        log_probability(text[:at] + "#" + text[at + 1 :])
    for broken in (text[:-1], text + " ", text + "\n\n" + stories[1].text, ""):
        with pytest.raises(ValueError, match="leaves the story grammar at character"):
            log_probability(broken)


def test_entropy_is_the_mean_of_the_log_probabilities_with_its_error() -> None:
    entropy = true_entropy(300, seed=2)
    sample = list(labelled_stories(300, seed=2))
    nats = np.array([-story.log_prob for story in sample])
    size = sum(len(story.text.encode()) for story in sample)
    assert entropy.nats_per_story == pytest.approx(nats.mean())
    assert entropy.nats_per_story_error == pytest.approx(nats.std(ddof=1) / math.sqrt(300))
    assert entropy.bits_per_byte == pytest.approx(nats.sum() / math.log(2) / size)


def test_entropy_errors_predict_the_spread_over_seeds() -> None:
    estimates = [true_entropy(100, seed) for seed in range(30)]
    for name in ("nats_per_story", "bits_per_byte"):
        spread = np.std([getattr(e, name) for e in estimates], ddof=1)
        claimed = np.mean([getattr(e, f"{name}_error") for e in estimates])
        assert 0.6 < spread / claimed < 1.6


@pytest.mark.parametrize("arguments", [(-1, 0, 0), (1, 0, -1), (1, -1, 0), (1, 2**64, 0)])
def test_numbers_out_of_range_are_refused_at_once(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"stories are counted from 0|seed is"):
        generate_stories(*arguments)


def test_entropy_of_one_story_is_refused() -> None:
    with pytest.raises(ValueError, match="n is 1"):
        true_entropy(1)


def test_no_stories_are_no_stories() -> None:
    assert list(generate_stories(0)) == []
