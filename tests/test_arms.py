"""Arms: learning rates chosen by what they give, seeds paired, divergence counted and not fatal."""

import dataclasses
import math

import pandas as pd
import pytest

from picollm_core.arms import TUNING_SEED, at_the_edge, best_rates, early_losses, train_arms, tune_arms, values
from picollm_core.config import DataConfig, KGramConfig, LSTMConfig, TrainConfig
from picollm_core.lab import Lab
from picollm_core.profiles import PROFILES

ARMS = {"narrow": LSTMConfig(n_embd=8), "wide": LSTMConfig(n_embd=12)}


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(f"the {n} cats sat on mat {n}" for n in range(400)))
    train = TrainConfig(max_steps=6, eval_every=3, eval_stories=4)
    return Lab(
        dataclasses.replace(PROFILES["quick"], data=DataConfig(corpus=("text.txt",)), train=train, block_size=16)
    )


def test_every_arm_is_tried_at_every_rate_with_a_seed_of_its_own(lab):
    losses = tune_arms(lab, ARMS, (1e-5, 0.03), steps=8)
    assert losses.index.tolist() == ["narrow", "wide"]
    assert losses.columns.tolist() == [1e-5, 0.03]
    assert (losses[0.03] < losses[1e-5]).all()
    again = lab.train(ARMS["wide"], learning_rate=0.03, max_steps=8, seed=TUNING_SEED)
    assert losses.loc["wide", 0.03] == again.summary["nll"]
    assert lab.redrawn == 1
    assert best_rates(losses) == {"narrow": 0.03, "wide": 0.03}
    assert at_the_edge(losses) == ["narrow", "wide"]


def test_arms_train_at_their_own_rates_with_the_same_seeds(lab):
    runs = train_arms(lab, ARMS, {"narrow": 0.01, "wide": 0.02}, (0, 1))
    assert [run.config.train.learning_rate for run in runs["wide"]] == [0.02, 0.02]
    table = values(runs)
    assert table.index.tolist() == [0, 1]
    assert table.columns.tolist() == ["narrow", "wide"]
    assert table.loc[1, "wide"] == runs["wide"][1].summary["bits_per_byte"]
    assert table["narrow"].nunique() == 2


@pytest.mark.parametrize(
    ("other", "column", "reason"),
    [
        ({"corpus": ("other.txt",)}, "bits_per_byte", "corpus hashes"),
        ({"tokenizer": "gpt2"}, "nll", "tokenizer stories-4k and gpt2"),
        ({"final_stories": 1}, "bits_per_byte", "held-out bytes"),
    ],
)
def test_arms_on_different_texts_are_refused_with_both_values(lab, tmp_path, other, column, reason):
    (tmp_path / "other.txt").write_text("\n".join(f"a {n} dog lay on mats {n}" for n in range(400)))
    arms = {"one": [lab.train(KGramConfig(n_embd=8))], "two": [lab.train(KGramConfig(n_embd=8), **other)]}
    with pytest.raises(ValueError, match=f"'one' and 'two' cannot be compared: {reason}"):
        values(arms, column)


def test_bits_per_byte_compare_across_tokenizers(lab):
    arms = {name: [lab.train(KGramConfig(n_embd=8), tokenizer=name)] for name in ("stories-4k", "gpt2")}
    assert values(arms).columns.tolist() == ["stories-4k", "gpt2"]


def test_a_run_that_diverges_counts_as_infinite_and_does_not_stop_the_others(lab):
    arms = {"k-gram": KGramConfig(n_embd=8)}
    losses = tune_arms(lab, arms, (0.01, 1e38), steps=4, optimizer="sgd", grad_clip=math.inf, precision="float32")
    assert math.isfinite(losses.loc["k-gram", 0.01])
    assert losses.loc["k-gram", 1e38] == math.inf
    assert best_rates(losses) == {"k-gram": 0.01}


def test_a_rate_in_the_middle_is_not_at_the_edge():
    losses = pd.DataFrame({0.1: [2.0, 1.0], 0.2: [1.0, 2.0], 0.3: [3.0, 3.0]}, index=["inner", "outer"])
    assert at_the_edge(losses) == ["outer"]
    assert at_the_edge(losses[[0.1]]) == []


def test_an_arm_that_never_trained_is_named():
    with pytest.raises(ValueError, match="no learning rate trained b; add smaller ones"):
        best_rates(pd.DataFrame({0.1: [2.0, math.inf]}, index=["a", "b"]))


@pytest.mark.parametrize(("arms", "rates"), [({}, (0.1,)), (ARMS, ())])
def test_without_arms_or_rates_there_is_nothing_to_tune(arms, rates):
    with pytest.raises(ValueError, match=f"{len(arms)} arms and {len(rates)} rates"):
        tune_arms(None, arms, rates, steps=1)


def test_early_losses_are_the_mean_over_the_first_places_of_every_run(lab):
    runs = train_arms(lab, ARMS, {"narrow": 0.01, "wide": 0.02}, (0, 1))
    table = early_losses(runs, 3)
    expected = sum(runs["wide"][1].summary["per_position"][:3]) / 3
    assert table.loc[1, "wide"] == pytest.approx(expected)
    longest = len(runs["wide"][0].summary["per_position"])
    with pytest.raises(ValueError, match=f"places is {longest + 1}, but the longest held-out story has {longest}"):
        early_losses(runs, longest + 1)
