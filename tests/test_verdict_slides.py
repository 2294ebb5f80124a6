"""All verdicts together: each claim once, the missing ones named, defects shown beside the claims they made."""

import dataclasses

import pandas as pd
import pytest

from picollm_core.claims import CLAIMS
from picollm_core.config import DataConfig
from picollm_core.lab import Lab
from picollm_core.profiles import PROFILES
from picollm_core.verdict_slides import (
    BATCH,
    MADE_BY,
    collect,
    compute_spent,
    not_judged,
    tally,
    with_defects,
)
from picollm_core.verdicts import Verdict, verdict_table


def verdict(claim_id: str, word="fails") -> Verdict:
    return Verdict(claim_id, "c", 0.1, (0.0, 0.2), "nats", ("r",), word, "because")


def test_studies_are_collected_and_no_claim_is_judged_twice():
    one, two = (lambda _: [verdict("lstm-larger-lower")]), (lambda _: [verdict("k-lowers-loss")])
    found = collect(None, [one, two])
    assert [each.id for each in found] == ["lstm-larger-lower", "k-lowers-loss"]
    with pytest.raises(ValueError, match="two studies: lstm-larger-lower"):
        collect(None, [one, two, one])


def test_what_is_not_judged_is_named_in_the_order_of_the_claims():
    assert not_judged([]) == list(CLAIMS)
    assert "k-lowers-loss" not in not_judged([verdict("k-lowers-loss")])


def test_claims_behind_which_a_defect_stands_get_its_measured_effects():
    assert set(MADE_BY) <= set(CLAIMS)
    row = {"defect": BATCH, "fakes": "x", "measured": "LSTM less Transformer, defect", "effect": -0.4, "low": -0.5,
           "high": -0.3, "unit": "nats", "seeds": 5, "who": "y"}  # fmt: skip
    table = pd.DataFrame([row, row | {"measured": "something else"}])
    behind, other, holds = with_defects(
        [verdict("lstm-best-at-pico"), verdict("k5-onehot-best"), verdict("lstm-best-at-pico", "holds")], table
    )
    assert behind.cause.endswith("LSTM less Transformer, defect: -0.400 (-0.500 to -0.300) nats")
    assert "something else" not in behind.cause
    assert other.cause == holds.cause == "because"


def test_the_tally_counts_by_source_and_in_all():
    table = verdict_table([verdict("lstm-larger-lower"), verdict("k-lowers-loss", "holds"), verdict("gelu-beats-relu")])
    counts = tally(table)
    assert counts.loc["slides", ["holds", "fails", "all"]].tolist() == [1, 1, 2]
    assert counts.loc["all", "all"] == 3
    with pytest.raises(ValueError, match="empty"):
        tally(table.iloc[:0])


def test_compute_spent_counts_each_run_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(f"the {n} cats sat on mat {n}" for n in range(200)))
    lab = Lab(dataclasses.replace(PROFILES["quick"], data=DataConfig(corpus=("text.txt",), splits=(60, 40, 0))))
    settings = {"block_size": 16, "batch_size": 4, "max_steps": 2, "eval_stories": 3, "final_stories": 3}
    run = lab.train("lstm-pico", **settings)
    lab.train("lstm-pico", **settings)
    lab.measure("nothing", lambda: 1)
    assert compute_spent(lab) == (1, run.summary["train_seconds"])
