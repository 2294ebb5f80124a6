"""The study of custom lines: nested subsets, one held-out set, curves that can be read early, plans that cover."""

from dataclasses import replace

import pytest

from picollm_core.config import LSTMConfig, TrainConfig
from picollm_core.custom_study import (
    PLANS,
    Plan,
    learning_curve,
    line_batches,
    line_models,
    own_lines,
    passes,
    plan_of,
    size_table,
    subset,
    tuned_rates,
)
from picollm_core.lab import Lab
from picollm_core.profiles import get_profile
from picollm_core.results import ResultStore
from picollm_core.splits import story_key
from picollm_core.tokenizers import load_tokenizer

TOKENIZER = load_tokenizer("stories-4k")
MODEL = LSTMConfig(n_embd=8, vocab_size=TOKENIZER.n_vocab, block_size=80)
TRAIN = TrainConfig(learning_rate=0.03, batch_size=3)
TEXTS, HELD_OUT = list(own_lines().texts("train")), list(own_lines().texts("validation"))[:8]


def small_lab(tmp_path, monkeypatch) -> Lab:
    """A lab of the quick profile that keeps its results apart, with hardly any training in its plan."""
    tiny = Plan(**(vars(PLANS["quick"]) | {"sizes": (3, 9), "updates": 2, "longest": 4, "reads": (1, 2, 4)}))
    monkeypatch.setitem(PLANS, "quick", replace(tiny, rates=(0.003, 0.03), tuning_steps=2))
    lab = Lab(get_profile("quick"))
    lab.store = ResultStore(tmp_path / "results")
    return lab


def test_held_out_lines_are_disjoint_from_those_that_models_train_on():
    keys = [{story_key(text) for text in own_lines().texts(split)} for split in ("train", "validation")]
    assert not keys[0] & keys[1]
    assert len(keys[0]) + len(keys[1]) == 356


def test_smaller_subsets_lie_inside_larger_ones_and_differ_between_seeds():
    for seed in (0, 1):
        assert subset(TEXTS, 63, seed) == subset(TEXTS, 123, seed)[:63]
    assert set(subset(TEXTS, 63, 0)) != set(subset(TEXTS, 63, 1))
    assert sorted(subset(TEXTS, len(TEXTS), 3)) == sorted(TEXTS)


@pytest.mark.parametrize("count", [0, 5])
def test_a_subset_larger_than_the_corpus_or_empty_is_refused(count):
    with pytest.raises(ValueError, match=f"{count} lines asked for; the corpus has 4"):
        subset(TEXTS[:4], count, 0)


def test_an_epoch_of_line_batches_visits_every_line_once():
    batches = line_batches(TEXTS[:6], TOKENIZER, 3, seed=0)
    rows = [row for _ in range(batches.steps_per_epoch) for row in batches.next_batch()[1].tolist()]
    said = sorted(TOKENIZER.decode([t for t in row if t >= 0]).removesuffix("<|endoftext|>") for row in rows)
    assert said == sorted(TEXTS[:6])


def test_line_batches_refuse_no_line_and_fewer_than_a_batch():
    with pytest.raises(ValueError, match="0 lines"):
        line_batches([], TOKENIZER, 3, 0)
    with pytest.raises(ValueError, match="2 examples but a batch needs 3"):
        line_batches(TEXTS[:2], TOKENIZER, 3, 0)


def test_early_reads_of_a_long_run_are_those_of_a_short_run():
    short = learning_curve(MODEL, TRAIN, TEXTS[:6], HELD_OUT, TOKENIZER, [1, 4])
    long = learning_curve(MODEL, TRAIN, TEXTS[:6], HELD_OUT, TOKENIZER, [1, 4, 9])
    assert [row["step"] for row in long] == [1, 4, 9]
    assert long[:2] == short
    assert long[2]["epoch"] == pytest.approx(4.5)


def test_few_lines_are_learned_by_heart_and_held_out_lines_are_not():
    curve = learning_curve(MODEL, TRAIN, TEXTS[:3], HELD_OUT, TOKENIZER, [1, 60])
    assert curve[-1]["train_loss"] < 0.6 * curve[0]["train_loss"]
    assert curve[-1]["held_out_loss"] > curve[-1]["train_loss"] + 2


def test_a_curve_needs_reads_from_the_first_update_on():
    for reads in ([], [0, 3]):
        with pytest.raises(ValueError, match="at least one number of updates"):
            learning_curve(MODEL, TRAIN, TEXTS[:3], HELD_OUT, TOKENIZER, reads)


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_reads_what_its_comparisons_need(name):
    plan = PLANS[name]
    assert max(plan.sizes) <= len(TEXTS)
    assert all(size % plan.line_batch == 0 for size in plan.sizes)
    assert {1, 3, 6} <= set(plan.reads)
    assert max(passes(plan, max(plan.sizes)), plan.updates) <= plan.longest
    assert 0.0 in plan.shares
    assert {0, 1, 3} <= set(plan.smoke_reads)


def test_the_full_profile_takes_the_standard_plan():
    assert plan_of(Lab(get_profile("full"))) is PLANS["standard"]


def test_sizes_are_measured_once_and_read_after_equal_epochs_and_equal_updates(tmp_path, monkeypatch):
    lab = small_lab(tmp_path, monkeypatch)
    losses = tuned_rates(lab)
    assert losses.shape == (2, 2)
    assert list(losses.index) == list(line_models(TOKENIZER.n_vocab))
    table = size_table(lab, {"LSTM": 0.03, "gpt-oss": 0.03})
    plan = plan_of(lab)
    for lines, own in table[table["arm"] == "LSTM"].groupby("lines"):
        assert {plan.updates, passes(plan, lines)} <= set(own["step"])
        assert not own["step"].duplicated().any()
    assert table["record"].nunique() == 2  # one measurement a model and seed
    redrawn = lab.redrawn
    assert size_table(lab, {"LSTM": 0.03, "gpt-oss": 0.03}).equals(table)
    assert lab.redrawn == redrawn + 2
