"""The table of the defects: every row says what is compared, with an interval where there are pairs of seeds."""

import dataclasses
import math

import pytest

from picollm_core import defect_evidence, defect_study
from picollm_core.config import DataConfig
from picollm_core.defect_study import COLUMNS, DEFECT_NAMES, QUICK, defect_table
from picollm_core.lab import Lab
from picollm_core.profiles import PROFILES
from tests.saved_models import save_families


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(f"the {n} cats sat on mat {n % 7} and slept" for n in range(500)))
    data = DataConfig(corpus=("text.txt",), splits=(60, 40, 0))
    short = {"block_size": 16, "batch_size": 4, "max_steps": 3, "eval_every": 3, "eval_stories": 3, "final_stories": 5}
    for module in ("defect_runs", "defect_evidence"):
        monkeypatch.setattr(f"picollm_core.{module}.settings", lambda _: dict(short))
    monkeypatch.setattr(defect_evidence, "SHIPPED_DIR", save_families(tmp_path, n_embd=8, block_size=32, scale=20.0))
    monkeypatch.setattr(defect_evidence, "SAMPLE_LENGTHS", (2, 4, 8))
    monkeypatch.setattr(defect_evidence, "SAMPLES", 2)
    return Lab(dataclasses.replace(PROFILES["quick"], data=data))


def test_the_quick_profile_measures_its_own_choice_and_one_seed_has_no_interval(lab):
    table = defect_table(lab)
    assert tuple(table.columns) == COLUMNS
    assert table["defect"].nunique() == len(QUICK)
    pairs = table[table["seeds"] == 1]
    assert len(pairs) > 3
    assert pairs["low"].isna().all()
    assert table["effect"].notna().all()
    assert set(table["unit"]) <= {"nats", "share", "times"}


def test_every_defect_can_be_measured_and_told_apart(lab, monkeypatch):
    few = {"widths": [16, 384], "vocab_size": 64, "seeds": [0]}
    monkeypatch.setattr(defect_study, "_START", few)
    names = [name for name in DEFECT_NAMES if name not in QUICK]
    table = defect_table(lab, names)
    assert table["defect"].nunique() == len(names)
    assert table["who"].str.len().min() > 0
    start = table[table["unit"] == "nats"].set_index("defect")["effect"]["a head tied to N(0, 1) embeddings"]
    assert start > 50


def test_exact_rows_are_the_numbers_of_the_page_and_of_the_slides(lab):
    page = defect_table(lab, ["one batch"]).set_index("measured")
    row = page.loc["accuracy of 41 of 56 tokens, with its binomial interval"]
    assert round(row["effect"], 4) == 0.7321
    assert row["low"] < row["effect"] < row["high"]
    gap = page.loc["perplexity given, less exp(loss given)", "effect"]
    assert gap == pytest.approx(6.389 - math.exp(1.665))
    counts = defect_table(lab, ["counts"])
    assert "9.65M over 1.91M" in counts["measured"].iloc[-1]
    assert (counts["seeds"] == 0).all()


def test_an_unknown_defect_is_refused_with_the_known_ones(lab):
    with pytest.raises(ValueError, match=r"no defect is called nothing; choose among batch axis, .*unseen"):
        defect_table(lab, ["nothing"])
