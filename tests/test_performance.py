"""The table of targets, and the plans and tables of what a profile measures."""

import json

import pandas as pd
import pytest

from picollm_core import performance
from picollm_core.lab import Lab
from picollm_core.performance import (
    attained,
    counted,
    decoding_table,
    group_of,
    growth,
    mixer_table,
    performance_plan,
    read_bench,
    sampler_table,
    span,
    target_bound,
    targets_table,
    tokeniser_table,
    training_table,
)
from picollm_core.profiles import get_profile
from picollm_core.results import ResultStore

ROW = {
    "name": "step-lstm-pico-float32",
    "peer": 1.4,
    "ours": 0.5,
    "unit": "s per step",
    "ratio": 2.8,
    "spread": [2.0, 3.0],
    "target": ">= 2",
    "reached": True,
    "repetitions": 5,
    "peer_is": "plain PyTorch",
    "ours_is": "Trainer.advance",
    "notes": "",
}
SLOW = ROW | {"name": "loader", "ratio": 0.04, "spread": [0.03, 0.05], "target": "<= 0.02", "reached": False}


def quick_lab(folder, profile="quick") -> Lab:
    lab = Lab(get_profile(profile))
    lab.committed = lab.store = ResultStore(folder)
    return lab


@pytest.fixture
def small_plan(monkeypatch):
    """The quick plan with fewer repetitions still."""
    plan = performance_plan(Lab(get_profile("quick")))
    return plan.__class__(
        training={"names": ["kgram-pico"], "updates": 1, "vocab_size": 97, "block_size": 16},
        decoding={"lengths": [5, 9], "repetitions": 2},
        window=32,
        vocab_size=61,
        sampler={"sizes": [1, 50], "vocab_size": 300, "repetitions": 2},
        mixers={"kinds": ["softmax", "linear", "gla", "delta"], "lengths": [8, 16], "repetitions": 2},
        tokenizer="stories-4k",
        tokeniser={"threads": [1, 2], "n_stories": 100, "repetitions": 1},
        live=plan.live,
    )


def test_what_was_attained_counts_from_the_targets_own_side():
    assert attained(4.0, ">= 2") == 2.0
    assert attained(0.01, "<= 0.02") == 2.0
    assert attained(0.04, "<= 0.02") == 0.5
    assert target_bound("<= 0.25") == ("<=", 0.25)


@pytest.mark.parametrize("target", ["", "2", "> 2", ">= fast", "<= 0", "<= -1"])
def test_a_target_that_bounds_nothing_is_refused(target):
    with pytest.raises(ValueError, match="it must be such as"):
        target_bound(target)


def test_a_ratio_that_is_no_ratio_is_refused():
    with pytest.raises(ValueError, match=r"ratio is 0\.0"):
        attained(0.0, ">= 2")


def test_the_table_says_verdict_reason_and_distance():
    table = targets_table([ROW, SLOW | {"reason": "the disk"}]).set_index("row")
    assert table.loc["step-lstm-pico-float32", ["group", "verdict", "reason"]].tolist() == ["training", "reached", ""]
    assert table.loc["loader", ["group", "verdict", "reason"]].tolist() == ["resources", "missed", "the disk"]
    assert table.loc["loader", "attained"] == pytest.approx(0.5)
    assert table.loc["loader", "attained_low"] < 0.5 < table.loc["loader", "attained_high"]
    assert counted(table) == "1 of 2 reached"


def test_a_missed_row_without_a_reason_says_so():
    assert targets_table([SLOW]).reason.tolist() == ["no reason recorded"]


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="there are no rows; run `picollm bench`"):
        targets_table([])


def test_every_benchmark_has_one_page():
    from benchmarks.targets import TARGETS
    from picollm_core.plots_performance import MOST_TARGETS

    pages = pd.Series([group_of(name) for name in TARGETS]).value_counts()
    assert set(pages.index) == set(performance.GROUPS)
    assert pages.max() <= MOST_TARGETS
    with pytest.raises(ValueError, match="row 'coffee' belongs to 0 of the pages"):
        group_of("coffee")


def test_the_bench_is_read_from_the_committed_results_and_named_as_used(tmp_path):
    lab = quick_lab(tmp_path)
    with pytest.raises(ValueError, match="run `picollm bench`"):
        read_bench(lab)
    (tmp_path / "bench.json").write_text(json.dumps({"rows": [ROW]}))
    with pytest.raises(ValueError, match="has no date, machine"):
        read_bench(lab)
    (tmp_path / "bench.json").write_text("[]")
    with pytest.raises(ValueError, match="has no date, machine, rows"):
        read_bench(lab)
    (tmp_path / "bench.json").write_text(json.dumps({"rows": [ROW], "machine": {}, "date": "2026-11-21"}))
    assert read_bench(lab)["rows"] == [ROW]
    assert read_bench(lab)["machine_peaks"] == {}
    assert "bench.json" in lab.used


def test_quick_measures_a_part_of_what_standard_does(tmp_path):
    quick, standard = (performance_plan(quick_lab(tmp_path, name)) for name in ("quick", "standard"))
    assert quick.live
    assert not standard.live
    assert len(quick.training["names"]) < len(standard.training["names"])
    assert max(quick.decoding["lengths"]) < max(standard.decoding["lengths"]) == 1_000
    for plan in (quick, standard):
        assert max(plan.decoding["lengths"]) + plan.decoding["repetitions"] <= plan.window


def test_training_is_measured_once_and_then_read_from_its_record(tmp_path, small_plan, monkeypatch):
    lab = quick_lab(tmp_path)
    table = training_table(lab, small_plan)
    assert table.precision.tolist() == ["float32", "bfloat16"]
    assert (table[["tokens_per_second", "memory_mb", "share", "loader"]] > 0).all(axis=None)
    step = 16 * 16 / table.tokens_per_second  # seconds of a step of 16 windows of 16 tokens
    assert table.loader_share.tolist() == pytest.approx((1e-3 * table.loader / step).tolist())
    monkeypatch.setattr(performance, "training_curve", lambda **_: pytest.fail("measured again"))
    pd.testing.assert_frame_equal(training_table(quick_lab(tmp_path), small_plan), table)


def test_decoding_has_a_line_a_model_and_one_without_the_cache(tmp_path, small_plan):
    table = decoding_table(quick_lab(tmp_path), small_plan)
    arms = ["k-gram", "LSTM", "Transformer", "Transformer, no cache", "GLA"]
    assert sorted(set(table.arm)) == sorted(arms)
    assert table.groupby("arm").length.apply(sorted).tolist() == [[5, 9]] * len(arms)
    assert set(growth(table).index) == set(arms)


def test_a_range_is_told_once_where_both_ends_read_alike():
    assert span(pd.Series([1.44, 6.26, 2.0])) == "1.4 to 6.3"
    assert span(pd.Series([1.44, 1.41])) == "1.4"


def test_growth_is_the_last_over_the_first():
    table = pd.DataFrame({"arm": "a", "length": [100, 10, 30], "milliseconds": [6.0, 2.0, 50.0]})
    assert growth(table)["a"] == 3.0


def test_sampler_mixers_and_tokeniser_are_ready_to_be_drawn(tmp_path, small_plan):
    lab = quick_lab(tmp_path)
    assert {"arm", "seed", "nucleus", "milliseconds"} <= set(sampler_table(lab, small_plan).columns)
    mixers, crossings = mixer_table(lab, small_plan)
    assert set(mixers.arm) == {"softmax", "linear", "GLA", "DeltaNet"}
    assert set(crossings) == {"linear", "GLA", "DeltaNet"}
    bars = tokeniser_table(lab, small_plan).bar.tolist()
    assert bars == ["tiktoken, story by story, 1 thread", "picollm, 1 thread", "picollm, 2 threads"]
    assert len(list((tmp_path / "measurements").glob("*.json"))) == 3
