"""Trainings with defects: every arm is trained once a seed, and the arms differ in the defect alone."""

import dataclasses

import pandas as pd
import pytest

from picollm_core.config import DataConfig
from picollm_core.defect_runs import (
    DEFECT,
    ONE_TOKEN,
    RIGHT,
    axis_table,
    by_seed,
    kgram_runs,
    logits_table,
    muon_rates,
    padding_table,
    plan,
    spread,
)
from picollm_core.lab import Lab
from picollm_core.profiles import PROFILES


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    """The quick profile on a small text, with trainings of two updates."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(f"the {n} cats sat on mat {n}" for n in range(300)))
    data = DataConfig(corpus=("text.txt",), splits=(60, 40, 0))
    short = {"block_size": 16, "batch_size": 4, "max_steps": 2, "eval_every": 2, "eval_stories": 3, "final_stories": 5}
    monkeypatch.setattr("picollm_core.defect_runs.settings", lambda _: dict(short))
    return Lab(dataclasses.replace(PROFILES["quick"], data=data))


def test_the_standard_plan_has_five_seeds_and_more_arms_and_the_quick_one_is_small():
    standard, quick = (plan(Lab(PROFILES[name])) for name in ("standard", "quick"))
    assert len(standard.seeds) == 5
    assert set(standard.axis_seeds) < set(standard.seeds)
    assert len(standard.arms) == 4
    assert quick.seeds == quick.axis_seeds == (0,)
    assert set(quick.arms) < set(standard.arms)


def test_the_axis_table_has_both_axes_of_every_arm_and_the_model_cut_to_one_token(lab, monkeypatch):
    more = dataclasses.replace(plan(lab), arms=("pre, RoPE", "post, absolute"))
    monkeypatch.setattr("picollm_core.defect_runs.plan", lambda _: more)
    table = axis_table(lab)
    assert set(zip(table["arm"], table["axis"], strict=True)) == {
        ("pre, RoPE", RIGHT),
        ("pre, RoPE", DEFECT),
        ("pre, RoPE", ONE_TOKEN),
        ("post, absolute", RIGHT),
        ("post, absolute", DEFECT),
    }
    assert set(table["norm"]) == {"pre", "post"}
    assert set(table["position"]) == {"RoPE", "absolute"}
    assert table.groupby("position")["parameters"].nunique().tolist() == [1, 1]
    cut = table[table["axis"] == ONE_TOKEN].iloc[0]
    assert cut["alone"] == pytest.approx(cut["repaired"], abs=2e-4)
    again = axis_table(lab)
    pd.testing.assert_frame_equal(table, again)
    assert lab.redrawn == len(table)


def test_the_quick_profile_tries_no_rates(lab):
    assert len(set(muon_rates(lab).values())) == 1
    assert lab.used == []


def test_activations_change_what_an_lstm_learns_from_the_same_start(lab):
    table = logits_table(lab)
    assert table["arm"].tolist() == ["right", "ReLU"]
    assert table["alone"].nunique() == 2


def test_kgrams_differ_in_the_window_alone(lab):
    runs = kgram_runs(lab)
    assert set(runs) == {(3, 0), (3, 1)}
    (right,), (shifted,) = runs[3, 0], runs[3, 1]
    assert right.config.model.replace(offset=1) == shifted.config.model
    assert right.config.train == shifted.config.train


def test_scored_padding_is_reported_with_an_accuracy(lab):
    (row,) = padding_table(lab).to_dict("records")
    assert row["block"] == 128
    assert 0 <= row["reported_accuracy"] <= 1
    assert row["reported_text"] > row["reported"] * 1.001 or row["reported_text"] < row["reported"] * 0.999


def test_values_come_in_the_order_of_seeds_and_spread_takes_them_seed_by_seed():
    table = pd.DataFrame({"seed": [1, 0, 0], "arm": ["a", "a", "b"], "loss": [2.0, 1.0, 9.0]})
    assert by_seed(table, "loss", arm="a") == [1.0, 2.0]
    assert spread({"a": [1.0, 2.0], "b": [4.0, 2.5], "c": [2.0, 2.0]}) == [3.0, 0.5]
