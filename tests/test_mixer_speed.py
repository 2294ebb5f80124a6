"""Costs of sequence mixers are measured on the work they name, and the crossover is where the curves cross."""

from typing import NamedTuple

import pytest
import torch

from picollm_core import mixer_speed
from picollm_core.config import TransformerConfig
from picollm_core.mixer_speed import crossover, state_megabytes, training_costs
from picollm_core.models import build_model

SMALL = TransformerConfig(vocab_size=11, block_size=64, n_embd=16, n_head=2, n_layer=1, position="rope", chunk_size=8)
KINDS = ("softmax", "window", "linear", "plain", "gla", "delta")


def test_each_length_and_mixer_has_one_row_with_quartiles():
    rows = training_costs(SMALL, KINDS, (8, 16), repetitions=3)
    assert [(row["length"], row["mixer"]) for row in rows] == [(n, kind) for n in (8, 16) for kind in KINDS]
    assert all(0 < row["low"] <= row["milliseconds"] <= row["high"] for row in rows)


def test_every_mixer_is_timed_forward_and_backward_in_turn(monkeypatch):
    done = []
    step = mixer_speed._step

    def watched(mixer, x, place):
        step(mixer, x, place)
        done.append((type(mixer).__name__, tuple(x.shape)))
        assert x.grad is None
        assert all(parameter.grad is None for parameter in mixer.parameters())

    backward = []
    monkeypatch.setattr(mixer_speed, "_step", watched)
    run_backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda y: backward.append(1) or run_backward(y))
    training_costs(SMALL, ("softmax", "gla"), (8,), repetitions=2, batch_size=3)
    assert done == [("CausalSelfAttention", (3, 8, 16)), ("GatedLinearAttention", (3, 8, 16))] * 3
    assert len(backward) == 6


def test_memory_for_the_backward_pass_grows_with_the_tokens_and_counts_shared_tensors_once():
    rows = {(row["mixer"], row["length"]): row["megabytes"] for row in training_costs(SMALL, KINDS, (64, 128), 2)}
    for kind in KINDS:
        assert rows[kind, 128] == pytest.approx(2 * rows[kind, 64], rel=0.35), kind
    # normalised linear attention: q, k, v and outputs are 4 of some tens of (T, 16) float32 arrays, not hundreds
    assert 4 * 64 * 16 * 4 / 1e6 < rows["linear", 64] < 60 * 64 * 16 * 4 / 1e6


def test_memory_is_exactly_what_a_known_layer_keeps():
    class Squares(torch.nn.Module):
        def empty_state(self, batch_size):
            return None

        def forward(self, x, state, place):
            kept = 2 * x  # keeps nothing
            return kept * kept + kept.exp(), state  # keeps 2 x (twice, one memory) and exp(2 x)

    x = torch.randn(1, 10, 4, requires_grad=True)
    assert mixer_speed._megabytes_kept(Squares(), x, None) == pytest.approx(2 * 40 * 4 / 1e6)


def rows_of(**costs) -> list[dict]:
    return [
        {"length": length, "mixer": mixer, "milliseconds": cost, "megabytes": 1.0}
        for mixer, by_length in costs.items()
        for length, cost in by_length.items()
    ]


def test_the_crossover_of_powers_of_the_length_is_exact():
    lengths = (64, 256, 1024, 4096)
    rows = rows_of(softmax={n: n**2 for n in lengths}, gla={n: 500 * n for n in lengths})
    assert crossover(rows, "gla") == pytest.approx(500)


def test_a_crossover_counts_only_when_it_lasts():
    rows = rows_of(softmax={1: 2.0, 2: 1.0, 4: 4.0, 8: 8.0}, gla={1: 1.0, 2: 2.0, 4: 2.0, 8: 2.0})
    assert crossover(rows, "gla") == pytest.approx(2 * 2**0.5)
    assert crossover(rows, "softmax", against="gla") is None


def test_a_mixer_that_is_cheaper_throughout_crosses_at_the_shortest_length():
    rows = rows_of(softmax={8: 2.0, 16: 3.0}, gla={16: 1.0, 8: 1.0})
    assert crossover(rows, "gla") == 8.0
    assert crossover(rows, "gla", column="megabytes") is None  # equal is not less


def test_costs_that_cannot_be_compared_are_refused():
    rows = rows_of(softmax={8: 2.0}, gla={8: 1.0, 16: 1.0})
    with pytest.raises(ValueError, match=r"'gla' was measured at \[8, 16\] and 'softmax' at \[8\]"):
        crossover(rows, "gla")
    with pytest.raises(ValueError, match=r"'delta' was measured at \[\]"):
        crossover(rows, "delta")


def test_a_state_is_as_large_as_its_tensors():
    class State(NamedTuple):
        length: int
        parts: tuple

    state = State(7, (torch.zeros(10, dtype=torch.float64), None, [torch.zeros(5, dtype=torch.bfloat16)]))
    assert state_megabytes(state) == pytest.approx(90 / 1e6)


def test_linear_states_stay_as_they_are_while_caches_grow():
    sizes = {}
    for kind in ("softmax", "gla", "delta"):
        model = build_model(SMALL.replace(mixers=(kind,)))
        for length in (8, 16, 32):
            with torch.no_grad():
                sizes[kind, length] = state_megabytes(model.hidden(torch.zeros(1, length, dtype=torch.long))[1])
    assert sizes["softmax", 32] == 2 * sizes["softmax", 16] == 4 * sizes["softmax", 8]
    for kind in ("gla", "delta"):
        assert sizes[kind, 8] == sizes[kind, 16] == sizes[kind, 32]


@pytest.mark.parametrize(
    ("kinds", "lengths", "repetitions", "message"),
    [
        ((), (8,), 3, "kinds is empty"),
        (("gla",), (), 3, r"lengths are \(\)"),
        (("gla",), (8, 0), 3, r"lengths are \(8, 0\)"),
        (("gla",), (8,), 1, "repetitions is 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(kinds, lengths, repetitions, message):
    with pytest.raises(ValueError, match=message):
        training_costs(SMALL, kinds, lengths, repetitions)
