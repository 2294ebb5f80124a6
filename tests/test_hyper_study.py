"""The study's runs: paired seeds, equal tokens, rates that are chosen, and runs shared between its parts."""

import dataclasses
import math

import pytest

from picollm_core.arms import TUNING_SEED
from picollm_core.config import DataConfig, TrainConfig
from picollm_core.hyper_design import BASE, FAMILIES, Change
from picollm_core.hyper_study import (
    EVALUATION,
    Arm,
    Plan,
    activation_arms,
    base_arm,
    confounded_arms,
    design_runs,
    one_at_a_time,
    train_arm,
    tune_rate,
)
from picollm_core.lab import Lab
from picollm_core.profiles import PROFILES

PLAN = Plan(
    tokens=2_048,
    tuning_tokens=1_024,
    seeds=(0, 1),
    few=1,
    knobs=("learning rate", "tying"),
    grids={"kgram": (0.1,), "lstm": (1e-5, 0.1), "transformer": (0.01,)},
    widths=(8,),
    per_family=4,
)


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    train = TrainConfig(max_steps=6, eval_every=3, eval_stories=4)
    return Lab(
        dataclasses.replace(PROFILES["quick"], data=DataConfig(corpus=("storyworld",), n_stories=200), train=train)
    )


def test_changes_share_seeds_with_the_base_and_those_that_are_dear_have_fewer(lab):
    base, *others = one_at_a_time(lab, "lstm", PLAN)
    assert base.change is None
    assert base.rate == 0.1
    assert set(base.tried) == {1e-5, 0.1}
    assert base.tried[0.1] < base.tried[1e-5]
    assert list(base.values()) == [0, 1]
    by_label = {arm.label: arm for arm in others}
    assert {arm.change.knob for arm in others} == set(PLAN.knobs)
    half, twice = by_label["half the rate"], by_label["twice the rate"]
    assert (half.rate, twice.rate) == (0.05, 0.2)
    assert list(half.values()) == [0, 1]
    tied = by_label["head tied to embedding"]
    assert list(tied.values()) == [0]
    assert set(tied.tried) == {1e-5, 0.1}
    assert tied.rate in tied.tried
    for arm in (base, *others):
        assert {run.summary["tokens_seen"] for run in arm.runs} == {PLAN.tokens}
        assert {run.config.train.learning_rate for run in arm.runs} == {arm.rate}


def test_a_smaller_batch_makes_more_updates_of_the_same_tokens(lab):
    small = train_arm(lab, "lstm", Change("batch size", "batch 8", {"batch_size": 8}), 0.1, PLAN)
    assert small.runs[0].summary["steps"] == 4
    assert small.runs[0].summary["tokens_seen"] == PLAN.tokens
    assert small.rate == 0.1


def test_the_quick_family_has_all_seeds_everywhere():
    assert PLAN.seeds_of("kgram", Change("batch size", "batch 8")) == (0, 1)
    assert PLAN.seeds_of("transformer", Change("batch size", "batch 8")) == (0,)
    assert PLAN.seeds_of("transformer", Change("width", "width 8")) == (0, 1)


def test_one_rate_is_taken_without_a_try_and_none_is_refused(lab):
    assert tune_rate(lab, BASE["kgram"], {}, (0.1,), PLAN) == (0.1, {})
    assert lab.used == []
    with pytest.raises(ValueError, match="0 learning rates"):
        tune_rate(lab, BASE["kgram"], {}, (), PLAN)


def test_rates_are_tried_with_a_seed_of_their_own_and_divergence_is_not_fatal(lab):
    settings = {"optimizer": "sgd", "grad_clip": math.inf, "precision": "float32", "weight_decay": 0.0}
    plan = dataclasses.replace(PLAN, tuning_tokens=4_096)
    best, tried = tune_rate(lab, BASE["kgram"], settings, (0.1, 1e38), plan)
    assert best == 0.1
    assert tried[1e38] == math.inf
    shape = {"block_size": 64, "batch_size": 16, "max_steps": 4} | EVALUATION | settings
    assert tried[0.1] == lab.train(BASE["kgram"], learning_rate=0.1, seed=TUNING_SEED, **shape).summary["nll"]
    with pytest.raises(ValueError, match="none of the learning rates"):
        tune_rate(lab, BASE["kgram"], settings, (1e38, 2e38), plan)


def test_close_calls_are_settled_with_all_the_tokens(lab):
    rates, shape = (0.02, 0.021), {"block_size": 64, "batch_size": 16, "max_steps": 2} | EVALUATION
    best, tried = tune_rate(lab, BASE["kgram"], {}, rates, PLAN)
    assert abs(tried[0.02] - tried[0.021]) < PLAN.close
    assert len(lab.used) == 4
    full = {r: lab.train(BASE["kgram"], learning_rate=r, seed=TUNING_SEED, **shape).summary["nll"] for r in rates}
    assert best == min(full, key=full.get)
    tune_rate(lab, BASE["kgram"], {}, rates, dataclasses.replace(PLAN, close=0.0))
    assert len(lab.used) == 4 + 2 + 2  # the two looked up here, and the first tries alone


def test_a_rate_at_an_end_of_its_grid_is_told():
    tried = {0.01: 4.0, 0.1: 3.0, 1.0: 5.0}
    assert [Arm("lstm", None, rate, tried, ()).at_the_edge for rate in tried] == [True, False, True]
    assert not Arm("lstm", None, 0.1, {}, ()).at_the_edge  # none was tried


def test_sgd_chooses_from_its_own_grid(lab):
    plan = dataclasses.replace(PLAN, sgd_grid=(0.7,), seeds=(0,))
    change = Change("optimizer", "SGD", {"optimizer": "sgd", "weight_decay": 0.0}, retuned=True)
    assert train_arm(lab, "kgram", change, 0.1, plan).rate == 0.7


def test_activations_are_compared_in_families_that_have_one(lab):
    grid = activation_arms(lab, "kgram", 0.1, dataclasses.replace(PLAN, seeds=(0,)))
    assert set(grid) == {(8, "gelu"), (8, "relu"), (8, "silu")}
    assert {arm.runs[0].config.model.activation for arm in grid.values()} == {"gelu", "relu", "silu"}
    shared = train_arm(lab, "kgram", Change("width", "width 8", {"n_embd": 8}, retuned=True), 0.1, PLAN)
    assert grid[8, "silu"].runs[0].fingerprint == shared.runs[0].fingerprint  # the base's activation: the same run
    with pytest.raises(ValueError, match="a lstm has no activation"):
        activation_arms(lab, "lstm", 0.1, PLAN)


def test_the_confounded_configurations_change_all_three_and_the_others_one_each(lab):
    arms = confounded_arms(lab, "kgram", 0.1, dataclasses.replace(PLAN, seeds=(0,)))
    found = {
        name: (run.config.model.n_embd, run.config.model.block_size, run.config.train.learning_rate)
        for name, (run,) in ((name, arm.runs) for name, arm in arms.items())
    }
    middle = found["middle"]
    assert found["small"] == (16, 32, 0.05)
    assert found["large"] == (64, 128, 0.2)
    for name in set(found) - {"small", "middle", "large"}:
        assert sum(a != b for a, b in zip(found[name], middle, strict=True)) == 1
    assert {arm.runs[0].config.train.batch_size for arm in arms.values()} == {16}
    assert {arm.runs[0].summary["tokens_seen"] for arm in arms.values()} == {PLAN.tokens}


def test_the_design_runs_every_row_with_its_own_seed_and_rate(lab):
    runs = design_runs(lab, dict.fromkeys(FAMILIES, 0.01), dataclasses.replace(PLAN, tokens=4_096))
    assert [run.family for run in runs] == [family for family in FAMILIES for _ in range(4)]
    assert len({run.config.train.seed for run in runs}) == 12
    assert {run.summary["tokens_seen"] for run in runs} == {4_096}
    assert len({run.config.model.n_embd for run in runs}) == 4
    assert all(0.0025 <= run.config.train.learning_rate <= 0.04 for run in runs)


def test_a_family_that_does_not_exist_is_named(lab):
    with pytest.raises(ValueError, match="unknown family 'gru'"):
        base_arm(lab, "gru", PLAN)
