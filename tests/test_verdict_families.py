"""Families at pico size: verdicts name the rival and the length of training on which they depend."""

import dataclasses

import pytest

from picollm_core.config import DataConfig
from picollm_core.lab import Lab
from picollm_core.profiles import PROFILES
from picollm_core.verdict_families import (
    LEARNED,
    ROPE,
    against,
    best_kgram,
    claims_families,
    judge_highest,
    judge_lstm,
    judge_richest,
)
from tests.verdict_values import near


def arms(kgram=4.0, lstm=4.0, learned=4.0, rope=4.0):
    return near({"k-gram, one-hot": kgram, "LSTM": lstm, LEARNED: learned, ROPE: rope})


def test_the_lstm_is_best_only_where_it_beats_all_at_both_lengths():
    assert judge_lstm(arms(lstm=3.5), arms(lstm=3.5), ("r",)).verdict == "holds"
    found = judge_lstm(arms(lstm=3.5), arms(lstm=3.5, rope=3.0), ("r",))
    assert found.verdict == "depends"
    assert found.effect == pytest.approx(0.5, abs=0.02)
    assert judge_lstm(arms(lstm=4.5), arms(lstm=4.5), ("r",)).verdict == "fails"


def test_the_k_gram_is_last_with_the_wrong_window_and_the_cause_says_so():
    wrong = near({"k-gram, one-hot, off by one": 5.0})
    right = arms(kgram=3.5)
    found = judge_highest(right, right, wrong, ("r",))
    assert found.verdict == "fails"
    assert "With the window off by one it holds" in found.cause
    assert judge_highest(arms(kgram=4.5), arms(kgram=4.5), {}, ("r",)).verdict == "holds"


def test_k_grams_are_not_held_against_each_other():
    values = arms() | near({"k-gram, learned": 3.0})
    assert set(against(values, "k-gram, one-hot").contrasts) == {
        f"k-gram, one-hot less {name}" for name in ("LSTM", LEARNED, ROPE)
    }
    assert len(against(values, "LSTM").contrasts) == 4
    assert best_kgram(values) == "k-gram, learned"


def test_the_richest_text_is_judged_at_every_nucleus():
    rich, poor = arms(kgram=0.8, lstm=0.6, learned=0.6, rope=0.6), arms(kgram=0.5, lstm=0.6, learned=0.6, rope=0.6)
    wrong = {0.95: near({"k-gram, one-hot, off by one": 0.9})}
    losses = arms()
    assert judge_richest({0.95: rich}, {0.95: rich, 1.0: rich}, {}, losses, 0.6, ("r",)).verdict == "holds"
    found = judge_richest({0.95: rich}, {0.95: rich, 1.0: poor}, wrong, losses, 0.6, ("r",))
    assert found.verdict == "depends"
    assert "the defect itself changes distinct-2 by +0.1" in found.cause
    assert judge_richest({0.95: poor}, {0.95: poor}, {}, losses, 0.6, ("r",)).verdict == "fails"


def test_the_quick_profile_trains_one_seed_and_leaves_all_open(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(f"once upon a time {n} cats sat on mat {n}" for n in range(300)))
    data = DataConfig(corpus=("text.txt",), splits=(60, 40, 0))
    short = {"block_size": 16, "batch_size": 4, "max_steps": 2, "eval_every": 2, "eval_stories": 3, "final_stories": 5}
    monkeypatch.setattr("picollm_core.verdict_arms.settings", lambda _: dict(short))
    drawn = {"prompt": "once", "budget": 40, "max_new_tokens": 20, "seed": 0}
    monkeypatch.setattr("picollm_core.verdict_families.QUICK_DRAWN", drawn)
    lab = Lab(dataclasses.replace(PROFILES["quick"], data=data))
    found = claims_families(lab)
    assert [each.id for each in found] == ["lstm-best-at-pico", "kgram-highest-perplexity", "kgram-richest-diversity"]
    assert {each.verdict for each in found} == {"open"}
    assert all("one seed" in each.cause and len(each.runs) == 3 for each in found)
