"""Pieces of a feature's evidence, by hand."""

import dataclasses
import json

import pytest
import torch

from picollm_core.interpret.feature_evidence import (
    AFTER,
    BEFORE,
    Context,
    Evidence,
    context_around,
    extreme_tokens,
    histogram,
)
from picollm_core.tokenizers import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("stories-4k")


def test_a_context_is_cut_around_its_peak_and_knows_where_the_story_begins_and_ends(tokenizer):
    ids = tokenizer.encode_ordinary("Once upon a time there was a cat. " * 10)
    values = torch.arange(len(ids), dtype=torch.float)
    middle = context_around(4, ids, values, 40, tokenizer)
    assert len(middle.pieces) == BEFORE + 1 + AFTER
    assert (middle.story, middle.activations[middle.peak], middle.begins, middle.ends) == (4, 40.0, False, False)
    first = context_around(4, ids, values, 2, tokenizer)
    assert (first.peak, first.begins, first.ends) == (2, True, False)
    assert "".join(first.pieces).startswith("Once upon a time")
    last = context_around(4, ids, values, len(ids) - 1, tokenizer)
    assert (last.begins, last.ends, last.peak) == (False, True, len(last.pieces) - 1)


def test_a_histogram_counts_sizes_in_steps_of_the_root_of_two():
    assert histogram(torch.tensor([1.0, 1.2, -1.3, 2.1, 4.0])) == ((1.0, 3), (1.414, 0), (2.0, 1), (2.828, 0), (4.0, 1))
    assert histogram(torch.tensor([1e-5])) == ((pytest.approx(7.63e-6, rel=0.01), 1),)
    assert histogram(torch.empty(0)) == ()


def test_extreme_tokens_are_the_largest_and_smallest_first(tokenizer):
    effect = torch.zeros(4096)
    cat, dog = tokenizer.encode_ordinary(" cat")[0], tokenizer.encode_ordinary(" dog")[0]
    effect[cat], effect[dog] = 2.00004, -3.0
    promoted, suppressed = extreme_tokens(effect, tokenizer, 3)
    assert promoted[0] == (" cat", 2.0)
    assert suppressed[0] == (" dog", -3.0)
    assert len(promoted) == len(suppressed) == 3


def test_evidence_survives_json():
    context = Context(1, ("a", "b"), (0.0, 2.0), 1, True, False)
    before = Evidence(7, {"max": 2.0}, (context,), (), (context,), ((1.0, 3),), (("a", 1.0),), (("b", -1.0),))
    assert Evidence.from_dict(json.loads(json.dumps(dataclasses.asdict(before)))) == before


def test_peak_tokens_are_those_that_the_stories_are_shown_for():
    stories = [Context(k, ("a", word), (0.1, 1.0), 1, True, False) for k, word in enumerate(("x", "y", "x", "z"))]
    empty: dict = {"negative": (), "histogram": (), "promoted": (), "suppressed": ()}
    evidence = Evidence(0, {}, tuple(stories[:3]), tuple(stories[3:]), **empty)
    assert evidence.peak_tokens() == {"x", "y"}
    assert evidence.peak_tokens(weaker=True) == {"x", "y", "z"}
