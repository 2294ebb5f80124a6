"""The families at GPT-2's vocabulary: the same arms, contrasts in bits per byte, and causes that name them."""

import dataclasses

import pytest

from picollm_core.config import DataConfig, KGramConfig
from picollm_core.lab import Lab
from picollm_core.profiles import PROFILES
from picollm_core.runs import Run
from picollm_core.verdict_families import LEARNED, ROPE
from picollm_core.verdict_vocabulary import LARGE, large_vocabulary_runs, vocabulary_table, with_vocabulary
from picollm_core.verdicts import Verdict
from tests.verdict_values import made_run, near


def runs_of(means: dict[str, float], prefix: str = "") -> dict[str, list[Run]]:
    """Runs of made-up bits per byte near the means, one a seed."""
    return {
        name: [
            dataclasses.replace(made_run([3.0], seed, f"{prefix}{name}"), summary={"nll": 3.0, "bits_per_byte": bits})
            for seed, bits in enumerate(values)
        ]
        for name, values in near(means).items()
    }


SMALL = {"LSTM": 1.3, "k-gram, learned": 1.35, LEARNED: 1.4, ROPE: 1.2}
BOTH = {"stories-4k": runs_of(SMALL), LARGE: runs_of(SMALL | {"LSTM": 1.25}, "large ")}


def judged(claim: str, word: str = "depends") -> Verdict:
    return Verdict(claim, "a - b", 0.1, None, "nats", ("r",), word, "" if word == "holds" else "on the rival")


def test_contrasts_are_paired_within_a_vocabulary_and_corrected_over_all():
    table = vocabulary_table(BOTH)
    assert len(table) == 8
    found = table.set_index(["contrast", "vocabulary"])
    assert found.loc[("LSTM less k-gram, learned", "stories-4k"), "difference"] == pytest.approx(-0.05, abs=0.01)
    assert found.loc[("LSTM less k-gram, learned", LARGE), "difference"] == pytest.approx(-0.10, abs=0.01)
    assert (table["pairs"] == 5).all()
    assert (table["p_holm"] < 0.05).all()
    assert not table["contrast"].str.contains("one-hot").any()  # no such arm here


def test_one_seed_has_no_interval():
    one = {words: {name: runs[:1] for name, runs in arms.items()} for words, arms in BOTH.items()}
    table = vocabulary_table(one)
    assert table[["low", "high", "p_holm"]].isna().all().all()


def test_arms_that_form_no_pair_are_refused():
    with pytest.raises(ValueError, match="can be formed of the arms"):
        vocabulary_table({LARGE: runs_of({"LSTM": 1.0})})


def test_a_cause_gains_what_the_large_vocabulary_says_and_its_runs():
    table = vocabulary_table(BOTH)
    asked = [judged("lstm-best-at-pico"), judged("kgram-highest-perplexity", "holds"), judged("onehot-lower")]
    first, second, third = with_vocabulary(asked, table, BOTH[LARGE])
    assert "50,257 tokens, a ninth of a pass, rates carried over: LSTM less" in first.cause
    assert first.cause.count("bits a byte") == 3
    assert second.cause == ""
    assert "large LSTM0" in second.runs
    assert third == asked[2]


def test_the_same_arms_are_trained_with_the_large_vocabulary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = DataConfig(corpus=("storyworld",), n_stories=200)
    lab = Lab(dataclasses.replace(PROFILES["quick"], data=data))
    given = {"block_size": 64, "batch_size": 2, "max_steps": 2, "eval_stories": 2, "final_stories": 2}
    small = lab.train(KGramConfig(n_embd=8, k=2), learning_rate=0.02, seed=3, **given)
    monkeypatch.setattr("picollm_core.verdict_vocabulary.settings", lambda lab: given)
    (large,) = large_vocabulary_runs(lab, {"k-gram, learned": [small]})["k-gram, learned"]
    assert large.config.data.tokenizer == LARGE
    assert large.config.model == small.config.model.replace(vocab_size=50_257)
    assert large.config.train == small.config.train
