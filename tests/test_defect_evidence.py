"""What mistakes of measuring do to real models: shapes, and effects that must show on any text."""

import dataclasses
import math

import pytest

from picollm_core import defect_evidence
from picollm_core.config import DataConfig, LSTMConfig
from picollm_core.defect_evidence import (
    NUCLEI,
    drawn_rows_table,
    entropy_table,
    input_arms,
    input_speed,
    leak_table,
    nuclei_diversity,
    one_batch_table,
    pooled_table,
    unseen_table,
    wrong_nuclei,
)
from picollm_core.lab import Lab
from picollm_core.models import build_model
from picollm_core.profiles import PROFILES
from tests.saved_models import save_families

MODELS = ["k-gram", "LSTM", "Transformer"]


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    """The quick profile on a small text, with tiny models in place of those that ship."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(f"the {n} cats sat on mat {n % 7} and slept" for n in range(500)))
    data = DataConfig(corpus=("text.txt",), splits=(60, 40, 0))
    short = {
        "block_size": 16,
        "batch_size": 4,
        "max_steps": 40,
        "eval_every": 40,
        "eval_stories": 3,
        "final_stories": 5,
    }
    for module in ("defect_runs", "defect_evidence"):
        monkeypatch.setattr(f"picollm_core.{module}.settings", lambda _: dict(short))
    return Lab(dataclasses.replace(PROFILES["quick"], data=data))


@pytest.fixture
def shipped(lab, tmp_path, monkeypatch) -> Lab:
    monkeypatch.setattr(defect_evidence, "SHIPPED_DIR", save_families(tmp_path, n_embd=8, block_size=32, scale=20.0))
    return lab


def test_rows_drawn_from_the_training_rows_hide_the_gap_to_new_stories(lab, monkeypatch):
    monkeypatch.setattr(defect_evidence, "FEW_STORIES", 20)
    (row,) = leak_table(lab).to_dict("records")
    assert row["epochs"] > 3
    assert abs(row["drawn"] - row["train"]) < 0.2 * (row["held out"] - row["train"])


def test_unseen_rows_fall_by_1_over_e_an_epoch():
    table = unseen_table(Lab(PROFILES["quick"]), rows=20_000)
    assert table["expected"].tolist() == pytest.approx([math.exp(-n) for n in (1, 2, 3)], abs=1e-3)
    assert table["low"].tolist() == pytest.approx(table["expected"].tolist(), abs=0.01)


def test_drawn_rows_are_trained_for_as_many_updates_as_visited_ones(lab):
    table = drawn_rows_table(lab, stories=60)
    assert table["way"].tolist() == ["every row once", "drawn rows"]
    assert table["alone"].nunique() == 2


def test_wrong_nuclei_change_some_draws_of_every_shipped_model(shipped):
    table = wrong_nuclei(shipped, places=6)
    assert table["model"].unique().tolist() == MODELS
    assert set(table["mistake"]) == {"crossing token dropped", "one token too many"}
    assert ((table["affected"] > 0) & (table["affected"] < 1)).all()


def test_single_batches_scatter_about_the_mean(shipped):
    table = one_batch_table(shipped)
    assert table["model"].tolist() == MODELS
    assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()
    assert (table["loss_low"] < table["loss_high"]).all()


def test_pooled_distinct_falls_with_the_length_of_the_samples(shipped, monkeypatch):
    monkeypatch.setattr(defect_evidence, "SAMPLE_LENGTHS", (4, 16))
    monkeypatch.setattr(defect_evidence, "SAMPLES", 3)
    table = pooled_table(shipped)
    means = table.groupby("length")["distinct"].mean()
    assert means[16] <= means[4]
    assert set(table["model"]) == set(MODELS)


def test_the_three_inputs_have_equal_width_and_one_more_arm_has_equal_parameters():
    arms = {name: config.replace(vocab_size=4_096) for name, config in input_arms().items()}
    counts = {name: build_model(config).num_parameters() for name, config in arms.items()}
    assert {arms[name].n_embd for name in ("one-hot", "embedding", "convolution")} == {32}
    for name in ("convolution", "one-hot, equal parameters"):
        assert counts[name] == pytest.approx(counts["embedding"], rel=0.02)
    assert counts["one-hot"] > 1.9 * counts["embedding"]


def test_the_speed_of_inputs_has_a_row_a_round(lab):
    table = input_speed(lab, vocab_size=64)
    assert list(table) == list(input_arms())
    assert len(table) == 3
    assert (table > 0).all(axis=None)


def test_a_model_that_knows_nothing_has_the_highest_entropy_and_the_widest_nucleus(lab):
    given = {"block_size": 16, "max_steps": 1, "batch_size": 4, "eval_every": 1, "eval_stories": 2, "final_stories": 2}
    arms = {"one update": [lab.train(LSTMConfig(n_embd=8), learning_rate=1e-3, **given)]}
    (row,) = entropy_table(lab, arms, stories=5).to_dict("records")
    assert row["entropy"] == pytest.approx(math.log(4_096), abs=0.05)
    assert row["size at 0.8"] < row["size at 0.95"] < 4_096
    drawn = nuclei_diversity(lab, arms)
    assert drawn["p"].tolist() == list(NUCLEI)
    assert (drawn["value"] > 0.9).all()
