"""Number formats compared: paired runs that differ in nothing else, and what counts as the same."""

import pytest

from picollm_core.lab import Lab
from picollm_core.precision_study import FORMATS, TRAINING, precision_curves, precision_runs, precision_table
from picollm_core.profiles import PROFILES

TINY = {"n_embd": 8, "block_size": 16, "batch_size": 2, "eval_every": 3, "eval_stories": 3, "final_stories": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("lab"))
        yield precision_runs(Lab(PROFILES["quick"]), steps=6, seeds=(0, 1), **TINY)


def test_every_family_is_trained_in_both_formats_and_pairs_differ_in_nothing_else(runs):
    assert set(runs) == {(family, precision) for family in TRAINING for precision in FORMATS}
    for family in TRAINING:
        for a, b in zip(runs[family, "float32"], runs[family, "bfloat16"], strict=True):
            assert a.config.replace(train=b.config.train) == b.config
            assert a.config.train.replace(precision="bfloat16") == b.config.train
            assert (a.summary["precision"], b.summary["precision"]) == FORMATS


def test_the_table_has_the_paired_difference_of_held_out_losses(runs):
    table = precision_table(runs, margin=1.0).set_index("family")
    for family, label in (("kgram", "k-gram MLP"), ("lstm", "LSTM"), ("transformer", "Transformer")):
        pairs = zip(runs[family, "bfloat16"], runs[family, "float32"], strict=True)
        differences = [low.summary["nll"] - full.summary["nll"] for low, full in pairs]
        assert table.loc[label, "difference"] == pytest.approx(sum(differences) / 2)
        assert table.loc[label, "low"] < table.loc[label, "difference"] < table.loc[label, "high"]
        assert table.loc[label, "seeds"] == 2


def test_the_same_means_an_interval_within_the_margin_and_one_seed_leaves_it_open(runs):
    assert set(precision_table(runs, margin=100.0)["same"]) == {"holds"}
    assert "holds" not in set(precision_table(runs, margin=1e-9)["same"])
    assert set(precision_table({key: own[:1] for key, own in runs.items()}, margin=100.0)["same"]) == {"open"}


def test_the_curves_have_every_evaluation_of_every_run(runs):
    curves = precision_curves(runs)
    assert set(curves["step"]) == {3, 6}
    assert len(curves) == 2 * 2 * 6
    assert curves["arm"].nunique() == 6


def test_no_seeds_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="seeds is empty"):
        precision_runs(Lab(PROFILES["quick"]), steps=1, seeds=())
