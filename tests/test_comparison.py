"""Tables over arms and seeds, from real runs of tiny models and from values that can be checked by hand."""

import math

import numpy as np
import pytest

from picollm_core.comparison import contrast_table, seed_history, seed_table
from picollm_core.runs import Run
from picollm_core.train import train


@pytest.fixture(scope="module")
def arms(tmp_path_factory) -> dict[str, list[Run]]:
    """Two arms of two seeds, four updates each."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {"corpus": "storyworld", "n_stories": 100, "splits": (80, 20, 0), "block_size": 16, "batch_size": 2}
    return {
        name: [
            train(preset, runs_dir=folder, seed=seed, max_steps=4, eval_every=2, eval_stories=2, n_embd=8, **settings)
            for seed in (3, 7)
        ]
        for name, preset in (("small words", "lstm-pico"), ("MLP", "kgram-pico"))
    }


def test_history_has_the_measured_points_of_every_seed_of_every_arm(arms):
    table = seed_history(arms)
    assert list(table.columns) == ["step", "tokens", "val_loss", "run", "family", "seed"]
    assert table["val_loss"].notna().all()
    for name, runs in arms.items():
        for run in runs:
            own = table[(table["run"] == name) & (table["seed"] == run.config.train.seed)]
            assert own["val_loss"].tolist() == run.history["val_loss"].dropna().tolist()
            assert set(own["family"]) == {run.family}
    assert "bits_per_byte" in seed_history(arms, "bits_per_byte")


def test_table_has_means_and_ranges_over_seeds_and_the_interval_of_the_first(arms):
    table = seed_table(arms)
    assert list(table.index) == list(arms)
    for name, runs in arms.items():
        row, bits = table.loc[name], [run.summary["bits_per_byte"] for run in runs]
        assert row["seeds"] == 2
        assert row["parameters"] == runs[0].summary["parameters"]
        assert row["bits_per_byte"] == pytest.approx(np.mean(bits))
        assert (row["lowest"], row["highest"], row["first"]) == (min(bits), max(bits), bits[0])
        assert [row["low"], row["high"]] == runs[0].summary["bits_per_byte_interval"]
        assert row["perplexity"] == pytest.approx(np.mean([run.summary["perplexity"] for run in runs]))


def test_table_takes_pairs_as_names_of_arms(arms):
    table = seed_table({("LSTM", "pico"): arms["small words"], ("k-gram", "pico"): arms["MLP"]})
    assert table.loc[("k-gram", "pico"), "family"] == "kgram"


def test_arm_without_runs_or_with_a_seed_twice_is_refused(arms):
    for build in (seed_history, seed_table):
        with pytest.raises(ValueError, match="arm 'empty' has no run"):
            build({"empty": []})
    with pytest.raises(ValueError, match=r"arm 'twice' has seeds \[3, 3\]"):
        seed_history({"twice": [arms["MLP"][0]] * 2})


def test_contrasts_are_all_pairs_first_minus_second_and_corrected_together():
    values = {"a": [1.0, 2.0, 3.0], "b": [0.5, 1.0, 1.5], "c": [1.0, 2.1, 2.9]}
    table = contrast_table({"tokens": values, "seconds": {"a": values["a"], "b": values["b"]}})
    assert table[["comparison", "first", "second"]].to_numpy().tolist() == [
        ["tokens", "a", "b"],
        ["tokens", "a", "c"],
        ["tokens", "b", "c"],
        ["seconds", "a", "b"],
    ]
    assert table["difference"].tolist() == pytest.approx([1.0, 0.0, -1.0, 1.0])
    assert (table["low"] < table["difference"]).all()
    assert (table["high"] > table["difference"]).all()
    smallest = table["p"].idxmin()
    assert table["p_holm"][smallest] == pytest.approx(4 * table["p"][smallest])


def test_single_seed_has_differences_and_nothing_else():
    (row,) = contrast_table({"tokens": {"a": [1.0], "b": [3.0]}}).to_dict("records")
    assert row["difference"] == -2.0
    assert all(math.isnan(row[name]) for name in ("low", "high", "p", "p_holm"))


def test_arms_of_different_length_are_refused():
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        contrast_table({"tokens": {"a": [1.0, 2.0], "b": [3.0]}})
