"""Decoding is timed on the work it names, for every family."""

import pytest
import torch

from picollm_core.config import TransformerConfig
from picollm_core.decoding_speed import decoding_times
from picollm_core.models import build_model
from tests.conftest import BLOCK

WAYS = ("from the state", "whole text again")


def test_each_length_is_timed_both_ways_with_its_quartiles(tiny_model):
    rows = decoding_times(tiny_model, (6, BLOCK - 3), repetitions=4)
    assert [(row["length"], row["way"]) for row in rows] == [(n, way) for n in (6, BLOCK - 3) for way in WAYS]
    assert all(0 < row["low"] <= row["milliseconds"] <= row["high"] for row in rows)


def test_one_way_feeds_one_token_and_the_other_everything_so_far(monkeypatch):
    model = build_model(TransformerConfig(vocab_size=11, block_size=32, n_embd=8))
    fed = []
    hidden = model.hidden
    monkeypatch.setattr(
        model,
        "hidden",
        lambda idx, state=None: fed.append((idx.size(1), state.length if state else 0)) or hidden(idx, state),
    )
    decoding_times(model, (10,), repetitions=3)
    assert fed[0] == (7, 0)  # the text before, not timed
    assert fed[1:6] == [(1, n - 1) for n in range(8, 13)]  # in a row: two tokens of warm-up, then three that count
    assert fed[6:] == [(n, 0) for n in range(8, 13)]


def test_the_model_stays_in_its_mode_and_takes_no_gradient():
    model = build_model(TransformerConfig(vocab_size=11, block_size=32, n_embd=8)).train()
    decoding_times(model, (5,), repetitions=2)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("lengths", "repetitions", "message"),
    [
        ((30,), 4, "ends at token 33, but the window holds 32"),
        ((3,), 4, "shortest length is 3"),
        ((), 4, "lengths is empty"),
        ((8,), 1, "repetitions is 1"),
    ],
)
def test_what_cannot_be_timed_is_refused(lengths, repetitions, message):
    model = build_model(TransformerConfig(vocab_size=11, block_size=32, n_embd=8))
    with pytest.raises(ValueError, match=message):
        decoding_times(model, lengths, repetitions)
