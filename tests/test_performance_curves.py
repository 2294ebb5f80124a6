"""The measurements behind the figures of speed: what is counted and compared, never how fast it is."""

import pytest
import torch

from picollm_core import performance_curves
from picollm_core.config import KGramConfig, LSTMConfig
from picollm_core.cost import training_flops
from picollm_core.nucleus import top_p_filter
from picollm_core.performance_curves import (
    NUCLEUS,
    bandwidths,
    best_seconds,
    decoding_curve,
    loader_milliseconds,
    logits_with_nucleus,
    machine_peaks,
    sampler_curve,
    tokeniser_curve,
    training_curve,
)
from picollm_core.tokenizers import load_tokenizer

TINY = {"vocab_size": 97, "block_size": 16, "n_embd": 8}


def test_the_best_of_several_calls_counts_and_the_first_does_not(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0])
    monkeypatch.setattr(performance_curves.time, "perf_counter", lambda: next(clock))
    calls = []
    assert best_seconds(lambda: calls.append(1), attempts=2) == 2.0
    assert len(calls) == 3


def test_bytes_count_what_is_read_and_what_is_written(monkeypatch):
    monkeypatch.setattr(performance_curves, "best_seconds", lambda call, attempts: call() is None or 2.0)
    assert bandwidths(1_000) == {"copy": 8_000 / 2.0, "triad": 12_000 / 2.0}


def test_the_machine_has_peaks_of_both_kinds():
    peaks = machine_peaks(attempts=1, size=64, numbers=1_000)
    assert len(peaks) == 4
    assert all(value > 0 for value in peaks.values())
    assert any("bfloat16" in name for name in peaks)


def test_a_training_row_multiplies_its_own_numbers():
    (row,) = training_curve(["lstm-pico"], ("float32",), updates=1, batch_size=2, vocab_size=97, block_size=8)
    assert (row["family"], row["size"], row["precision"]) == ("lstm", "pico", "float32")
    operations = training_flops(LSTMConfig(vocab_size=97, block_size=8, n_embd=32))
    assert row["gflops"] == pytest.approx(operations * row["tokens_per_second"] / 1e9)
    assert row["share"] > 0


def test_unknown_models_and_precisions_are_refused():
    with pytest.raises(ValueError, match="unknown preset 'lstm-huge'"):
        training_curve(["lstm-huge"])
    with pytest.raises(ValueError, match="precision is 'float16'; choose from float32, bfloat16"):
        training_curve(["lstm-pico"], ("float16",))


def test_decoding_rows_name_their_model():
    rows = decoding_curve({"k-gram": KGramConfig(**TINY), "LSTM": LSTMConfig(**TINY)}, (5, 9), repetitions=2)
    assert [row["model"] for row in rows] == ["k-gram"] * 4 + ["LSTM"] * 4
    assert {row["length"] for row in rows} == {5, 9}


@pytest.mark.parametrize("inside", [1, 7, 150])
def test_made_up_logits_have_about_the_nucleus_that_is_asked_for(inside):
    logits = logits_with_nucleus(inside, 300, torch.Generator().manual_seed(0))
    kept = int(top_p_filter(logits, NUCLEUS).isfinite().sum())
    assert 0.97 * inside <= kept <= 1.03 * inside
    assert logits.shape == (1, 300)


def test_an_impossible_nucleus_is_refused():
    with pytest.raises(ValueError, match=r"inside is 300; of 300 tokens it must lie in 1\.\.285"):
        logits_with_nucleus(300, 300, torch.Generator())


def test_both_samplers_are_timed_on_the_same_nuclei():
    rows = sampler_curve((1, 50), 300, repetitions=3)
    assert [row["way"] for row in rows] == ["no full sort", "full sort"] * 2
    assert rows[0]["nucleus"] == rows[1]["nucleus"] == 1
    assert all(row["low"] <= row["milliseconds"] <= row["high"] for row in rows)
    with pytest.raises(ValueError, match="repetitions is 1"):
        sampler_curve((1,), 300, repetitions=1)


def test_a_sampler_that_differs_from_the_truth_is_not_timed(monkeypatch):
    monkeypatch.setattr(performance_curves, "top_p_filter", lambda logits, p: logits)
    with pytest.raises(RuntimeError, match="the two samplers differ"):
        sampler_curve((5,), 300)


def test_tokenising_starts_from_tiktokens_own_speed():
    rows = tokeniser_curve(load_tokenizer("stories-4k"), (2,), n_stories=100, repetitions=1)
    assert [row["threads"] for row in rows] == [1, 2]
    assert rows[0]["speedup"] == 1.0
    with pytest.raises(ValueError, match=r"threads are \(0,\)"):
        tokeniser_curve(load_tokenizer("stories-4k"), (0,))


def test_a_tokeniser_that_gives_other_tokens_is_not_timed(monkeypatch):
    import numpy as np

    monkeypatch.setattr(performance_curves, "encode_stories", lambda *_, **__: [(np.zeros(3, np.uint32), None)])
    with pytest.raises(RuntimeError, match="gives other tokens"):
        tokeniser_curve(load_tokenizer("stories-4k"), (1,), n_stories=100)


def test_the_loader_is_timed_per_batch():
    assert loader_milliseconds(97, 16, batch_size=2, calls=2) > 0
