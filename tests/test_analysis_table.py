"""The run table from real runs of tiny models, and which of them may be compared."""

import dataclasses
import json
import math

import pandas as pd
import pytest

from picollm_core.analysis_table import comparison_table, require_comparable
from picollm_core.runs import Run
from picollm_core.train import train

SETTINGS = {
    "n_stories": 100,
    "splits": (60, 40, 0),
    "block_size": 16,
    "batch_size": 2,
    "n_embd": 8,
    "sample_tokens": 60,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Run]:
    """One run a family, six updates each."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        train(
            f"{name}-pico", runs_dir=folder, corpus="storyworld", max_steps=6, eval_every=3, eval_stories=2, **SETTINGS
        )
        for name in ("kgram", "lstm", "transformer")
    ]


@pytest.fixture(scope="module")
def other_text(tmp_path_factory) -> Run:
    """The same on another corpus."""
    folder = tmp_path_factory.mktemp("other")
    settings = SETTINGS | {"n_stories": 120}
    return train("lstm-pico", runs_dir=folder, corpus="storyworld", max_steps=2, eval_stories=2, **settings)


def changed(run: Run, **summary) -> Run:
    """The run with other figures in its summary, under another fingerprint."""
    context = run.context | {"fingerprint": "f" * 16}
    return dataclasses.replace(run, summary=run.summary | summary, context=context)


def test_a_row_a_run_says_what_it_was_and_what_it_reached(runs):
    table = comparison_table(runs)
    assert len(table) == 3
    assert table["family"].tolist() == ["kgram", "lstm", "transformer"]
    for run, (_, row) in zip(runs, table.iterrows(), strict=True):
        assert row["fingerprint"] == run.fingerprint
        for name in ("nll", "perplexity", "bits_per_byte", "accuracy", "parameters", "tokens_seen", "train_seconds",
                     "tokens_per_second", "peak_memory_mb", "train_loss", "device", "precision"):  # fmt: skip
            assert row[name] == run.summary[name], name
        assert row["gap"] == pytest.approx(run.summary["nll"] - run.summary["train_loss"])
        assert row["grad_norm_mean"] == pytest.approx(run.history["grad_norm"].mean())
        assert row["grad_norm_last"] == run.history["grad_norm"].iloc[-1]
        assert row["epochs_seen"] == run.history["epoch"].iloc[-1]
        assert (row["learning_rate"], row["batch_size"], row["block_size"]) == (run.config.train.learning_rate, 2, 16)
        assert row["corpus_hashes"] == run.context["corpus_hashes"][0]


def test_settings_that_a_family_lacks_are_missing_not_zero(runs):
    table = comparison_table(runs).set_index("family")
    assert table.loc["kgram", "k"] == runs[0].config.model.k
    assert table.loc[["lstm", "transformer"], "k"].isna().all()
    assert math.isnan(table.loc["lstm", "n_head"])
    assert pd.isna(table.loc["lstm", "activation"])


def test_shapes_name_a_model_within_its_family(runs):
    assert comparison_table(runs)["shape"].tolist() == ["8 x 1, K 3", "8 x 1", "8 x 1, 1 head"]


def test_every_row_has_more_than_22_fields_that_hold_something(runs):
    assert (comparison_table(runs).notna().sum(axis=1) >= 22).all()


def test_records_give_the_table_that_the_runs_give(runs):
    again = [Run.from_record(json.loads(json.dumps(run.to_record()))) for run in runs]
    first, second = comparison_table(runs), comparison_table(again)
    pd.testing.assert_frame_equal(first, second, check_dtype=False, rtol=1e-5)


def test_repetition_counts_words_of_equal_many_and_is_missing_in_short_samples(runs):
    words = [f"w{i}" for i in range(40)]
    looping = " ".join(["the cat sat"] * 20)
    texts = {"fresh": " ".join(words), "loop": looping, "short": "the cat sat the cat sat"}
    found = {
        name: comparison_table([dataclasses.replace(runs[0], samples={"greedy": text, "top-p 1.0": text})]).iloc[0]
        for name, text in texts.items()
    }
    assert found["fresh"]["greedy_repetition"] == 0
    assert found["loop"]["greedy_repetition"] == pytest.approx(1 - 3 / 28)  # three 3-grams among 28
    assert math.isnan(found["short"]["greedy_repetition"])
    assert found["loop"]["sampled_repetition"] == found["loop"]["greedy_repetition"]


def test_no_runs_and_a_run_twice_are_refused(runs):
    with pytest.raises(ValueError, match="there are 0 runs to compare"):
        comparison_table([])
    with pytest.raises(ValueError, match=f"run {runs[0].fingerprint} is given more than once"):
        comparison_table([runs[0], runs[0]])


def test_runs_of_one_study_are_comparable_as_runs_and_as_a_table(runs):
    require_comparable(runs)
    require_comparable(comparison_table(runs))
    assert comparison_table(runs)["results_version"].tolist() == ["1", "1", "1"]


def test_other_texts_are_refused_with_both_names_unless_the_text_is_what_varies(runs, other_text):
    hashes = [run.context["corpus_hashes"][0] for run in (runs[0], other_text)]
    with pytest.raises(ValueError, match=f"corpus_hashes is {hashes[0]} .* and {hashes[1]} .*one corpus"):
        require_comparable([runs[0], other_text])
    same_evaluation = changed(other_text, **{name: runs[0].summary[name] for name in ("n_stories", "n_bytes")})
    with pytest.raises(ValueError, match="results_version"):  # its fingerprint is not that of its configuration
        require_comparable([runs[0], same_evaluation], texts_vary=True)
    with pytest.raises(ValueError, match="n_stories is"):
        require_comparable([runs[0], other_text], texts_vary=True)


def test_other_tokenizers_are_compared_by_bits_per_byte_alone(runs):
    table = comparison_table(runs)
    table.loc[1, "tokenizer"] = "gpt2"
    with pytest.raises(ValueError, match=r"by nll: tokenizer is stories-4k \(run .*gpt2 \(run .*compare bits_per_byte"):
        require_comparable(table)
    require_comparable(table, "bits_per_byte")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [("n_stories", 7, "n_stories is .* and 7 .*set one final_stories"), ("n_bytes", 7, "different held-out texts"),
     ("results_version", "not 1", "results_version is 1 .* and not 1 .*refresh=True")],
)  # fmt: skip
def test_another_evaluation_is_refused(runs, column, value, message):
    table = comparison_table(runs)
    table.loc[2, column] = value
    for compared in ("nll", "bits_per_byte"):
        with pytest.raises(ValueError, match=message):
            require_comparable(table, compared)


def test_a_run_whose_fingerprint_this_version_would_not_give_is_of_another_version(runs):
    assert comparison_table([changed(runs[0])])["results_version"].tolist() == ["not 1"]


def test_a_missing_column_is_named_with_what_there_is(runs):
    with pytest.raises(ValueError, match="no column n_bytes; it has fingerprint, family"):
        require_comparable(comparison_table(runs).drop(columns="n_bytes"))
    with pytest.raises(ValueError, match="no column loss"):
        require_comparable(runs, "loss")
