"""Verdicts follow from what is measured: each names its runs, and turns when the measurement does."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from picollm_core import defect_claims, defect_evidence
from picollm_core.config import DataConfig
from picollm_core.defect_claims import (
    JUDGES,
    cache_difference,
    claims_defects,
    judge_cache,
    judge_inputs,
    judge_page,
    judge_rows,
    judge_start,
)
from picollm_core.lab import Lab
from picollm_core.models import build_model
from picollm_core.profiles import PROFILES
from tests.conftest import TINY, VOCAB
from tests.saved_models import save_families

CLAIMED = {
    "loss-perplexity-accuracy-agree",
    "kv-cache-transformer-better",
    "no-row-sampling-loses-nothing",
    "gptoss-starts-lower",
    "embedding-mlp-best-tradeoff",
    "linear-attention-worse",
    "gating-closes-the-gap",
    "positions-not-needed",
    "one-step-model-shows-top-p",
}


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(f"the {n} cats sat on mat {n % 7} and slept" for n in range(500)))
    data = DataConfig(corpus=("text.txt",), splits=(60, 40, 0))
    short = {"block_size": 16, "batch_size": 4, "max_steps": 3, "eval_every": 3, "eval_stories": 3, "final_stories": 5}
    for module in ("defect_runs", "defect_evidence", "verdict_arms"):
        monkeypatch.setattr(f"picollm_core.{module}.settings", lambda _: dict(short))
    monkeypatch.setattr(defect_evidence, "SHIPPED_DIR", save_families(tmp_path, n_embd=8, block_size=32))
    monkeypatch.setattr(defect_claims, "GPT2_VOCABULARY", 512)
    return Lab(dataclasses.replace(PROFILES["quick"], data=data))


def test_every_claim_gets_one_verdict_and_one_seed_decides_no_contrast(lab):
    verdicts = claims_defects(lab)
    assert {each.id for each in verdicts} == CLAIMED
    assert len(verdicts) == len(JUDGES) == len(CLAIMED)
    decided = {each.id for each in verdicts if each.verdict != "open"}
    assert decided == {"loss-perplexity-accuracy-agree", "kv-cache-transformer-better"}  # exact, and over passages
    assert all(each.cause for each in verdicts)


def test_the_page_fails_because_its_numbers_contradict_each_other(lab, monkeypatch):
    found = judge_page(lab)
    assert found.verdict == "fails"
    assert "41 of 56" in found.cause
    assert "5.29" in found.cause
    monkeypatch.setattr(defect_claims, "PAGE", defect_claims.PAGE | {"perplexity": 5.2857})
    assert judge_page(lab).verdict == "open"


@pytest.mark.parametrize("name", ["transformer", "transformer-rope-gqa", "lstm"])
def test_the_cache_changes_no_loss(name):
    torch.manual_seed(0)
    model = build_model(TINY[name]).double().eval()
    rows = torch.randint(VOCAB, (3, 9))
    assert cache_difference(model, rows) == pytest.approx([0.0] * 3, abs=1e-9)


def test_the_cache_verdict_is_traced_to_its_measurement(lab):
    found = judge_cache(lab)
    assert found.verdict == "fails"
    (name,) = found.runs
    assert name.startswith("measurements/loss-from-the-cache")
    assert abs(found.effect) < 1e-4


def test_a_difference_through_the_cache_would_not_pass_as_none(lab, monkeypatch):
    monkeypatch.setattr(defect_claims, "cache_difference", lambda *_: [-0.5, -0.4, -0.6, -0.5, -0.45])
    assert judge_cache(lab).verdict == "depends"


def test_drawing_rows_leaves_out_a_share_of_1_over_e_and_its_cost_is_told(lab):
    assert judge_rows(lab).verdict == "open"  # one seed
    found = judge_rows(Lab(dataclasses.replace(lab.profile, name="standard", seeds=(0, 1))))
    assert found.verdict == "holds"
    assert found.effect == pytest.approx(0.368, abs=0.01)
    assert "36.8%" in found.cause
    assert "after one epoch" in found.cause


def test_presets_that_start_right_start_alike(lab):
    found = judge_start(lab)
    assert found.verdict == "open"  # one seed
    assert abs(found.effect) < 0.05
    assert all(name.startswith("measurements/preset-start") for name in found.runs)


def test_inputs_of_one_seed_stay_open_but_name_their_runs(lab):
    found = judge_inputs(lab)
    assert found.verdict == "open"
    assert any(name.startswith("measurements/k-gram-input-speed") for name in found.runs)
    assert sum("/" not in name for name in found.runs) == 2  # runs by their fingerprints


@pytest.mark.parametrize(
    ("loss", "seconds", "word"), [(0.5, 0.5, "holds"), (1.5, 1.5, "fails"), (0.5, 1.5, "fails"), (1.0, 0.5, "open")]
)
def test_the_embedding_is_best_only_if_its_loss_and_its_speed_are(lab, monkeypatch, loss, seconds, word):
    noise = np.array([0.0, 0.01, -0.01, 0.02, -0.02])
    losses = {"embedding": loss + noise[::-1], "one-hot": 1 + noise, "convolution": 1 + 2 * noise}
    times = {name: value.mean() + np.abs(noise) for name, value in losses.items()} | {"embedding": seconds - noise / 9}

    class Runs:
        def losses(self) -> dict[str, list[float]]:
            return {name: value.tolist() for name, value in losses.items()}

    monkeypatch.setattr(defect_claims, "trained_inputs", lambda _: Runs())
    monkeypatch.setattr(defect_claims, "input_speed", lambda _: pd.DataFrame(times))
    found = judge_inputs(lab)
    assert found.verdict == word
    assert "log time less one-hot" in found.cause
