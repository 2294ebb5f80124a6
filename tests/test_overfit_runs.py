"""Runs of the study of overfitting: what they watch, on which texts, and what they refuse."""

import numpy as np
import pytest

from picollm_core.config import KGramConfig, RunConfig
from picollm_core.corpora import load_corpus
from picollm_core.evaluate import evaluate
from picollm_core.lab import Lab
from picollm_core.overfit_runs import (
    Setting,
    best_rate,
    make_trainer,
    memory_store,
    overfit_arm,
    overfit_run,
    read_texts,
)
from picollm_core.presets import run_config
from picollm_core.profiles import get_profile
from picollm_core.results import ResultStore
from picollm_core.tokenizers import load_tokenizer
from picollm_core.trainer import seeded

LINES = {"corpus": "custom", "splits": (60, 20, 20), "limit": 20, "schedule": "constant", "batch_size": 4}
SHORT = {"max_steps": 12, "eval_every": 5, "block_size": 48, "learning_rate": 0.02, **LINES}


def config(**changes) -> RunConfig:
    return run_config(KGramConfig(n_embd=16, k=3), **(SHORT | changes))


@pytest.fixture
def lab(tmp_path) -> Lab:
    lab = Lab(get_profile("quick"))
    lab.store = ResultStore(tmp_path)
    return lab


def test_losses_are_those_of_the_evaluator_on_both_sides_of_the_split():
    own, setting = config(), Setting(held_out=100)
    found = overfit_run(own, setting)
    assert [row["step"] for row in found["rows"]] == [5, 10, 12]
    corpus, tokenizer = load_corpus("custom", splits=(60, 20, 20), limit=20), load_tokenizer("stories-4k")
    texts = {split: list(corpus.texts(split)) for split in ("train", "validation", "test")}
    with seeded(0):
        trainer = make_trainer(own, tokenizer.encode_ordinary_batch(texts["train"]), tokenizer.eot_token, corpus.style)
        for _ in range(12):
            trainer.advance()
    last = found["rows"][-1]
    for split, own_texts in texts.items():
        assert last[split] == pytest.approx(evaluate(trainer.model, tokenizer, own_texts).nll, abs=1e-4)
    both = evaluate(trainer.model, tokenizer, texts["validation"] + texts["test"])
    assert last["held_out"] == pytest.approx(both.nll, abs=1e-4)
    assert found["counts"]["train"] == len(texts["train"])
    assert found["counts"]["held_out"] == both.n_stories


def test_a_long_run_on_few_lines_overfits_and_repeats_them():
    long = {"max_steps": 120, "eval_every": 10, "learning_rate": 0.01, "block_size": 64}
    found = overfit_run(run_config("transformer-pico", **(SHORT | long)), Setting(held_out=100, prefix=6, length=10))
    first, last = found["rows"][0], found["rows"][-1]
    assert last["train"] < 1
    assert last["held_out"] - last["train"] > first["held_out"] - first["train"] + 2
    assert found["repeated"]["train"]["exact"] > 0.5
    assert found["repeated"]["held_out"]["exact"] == 0


def test_the_same_seed_gives_the_same_losses_and_another_does_not():
    runs = [overfit_run(run, Setting())["rows"] for run in (config(), config(), config(seed=1))]
    assert runs[0] == runs[1] != runs[2]


def test_training_stories_are_the_first_of_the_split_and_held_out_ones_stay_the_same():
    corpus = load_corpus("storyworld", n_stories=300, splits=(80, 10, 10))
    few, more = (read_texts(corpus, Setting(stories=n, held_out=5)) for n in (4, 40))
    assert few.train == more.train[:4]
    assert (len(few.train), len(more.train), few.n_validation) == (4, 40, 5)
    assert few.held_out == more.held_out
    assert not set(more.train) & set(more.held_out)


def test_samples_are_measured_at_the_budget_beside_those_of_people():
    data = {"corpus": "storyworld", "n_stories": 300, "splits": (80, 10, 10), "limit": None}
    found = overfit_run(config(max_steps=30, **data), Setting(stories=20, held_out=4, budget=120, sample_length=40))
    for who in ("model", "people"):
        own = found["samples"][who]
        assert own["tokens"] == 120
        assert list(own["novel"]) == [str(n) for n in range(1, 11)]
        assert sorted(own["novel"].values()) == list(own["novel"].values())  # what is new at n is new at n + 1
        assert 0 < own["distinct"]["1"] < own["distinct"]["2"] <= 1


def test_an_arm_is_recorded_and_names_its_measurement(lab):
    first = overfit_arm(lab, config(), Setting(), (0, 1))
    again = overfit_arm(lab, config(), Setting(), (0, 1))
    assert [result["seed"] for result in first.results] == [0, 1]
    assert again == first
    assert lab.redrawn == 1
    assert (lab.store.folder / first.source).is_file()
    assert first.seconds > 0


def test_the_best_rate_is_lowest_on_validation_at_any_time_not_at_the_end(lab):
    rate, lowest = best_rate(lab, config(max_steps=40), Setting(held_out=100), (1e-4, 0.02))
    assert rate == 0.02
    assert lowest[0.02] < lowest[1e-4]
    assert best_rate(lab, config(), Setting(), (0.5,)) == (0.5, {})


def test_memory_store_closes_every_story():
    store = memory_store([[1, 2], [3]], 9)
    assert store.tokens.tolist() == [1, 2, 9, 3, 9]
    assert [store.story(i).tolist() for i in range(2)] == [[1, 2, 9], [3, 9]]


def test_impossible_settings_are_refused(lab):
    with pytest.raises(ValueError, match="0 training stories"):
        memory_store([], 9)
    with pytest.raises(ValueError, match="0 rates"):
        best_rate(lab, config(), Setting(), ())
    with pytest.raises(ValueError, match="stories is 0"):
        Setting(stories=0)
    with pytest.raises(ValueError, match="prefix is 0"):
        Setting(prefix=0)
    with pytest.raises(ValueError, match="budget is -1"):
        Setting(budget=-1)
    with pytest.raises(ValueError, match="500 training stories were asked for"):
        read_texts(load_corpus("custom", splits=(60, 20, 20)), Setting(stories=500))
    with pytest.raises(ValueError, match="0 test texts"):
        read_texts(load_corpus("custom", splits=(60, 40, 0)), Setting())


def test_lines_too_short_to_compare_are_left_out(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("\n".join(f"line {word}" for word in "abcdefghijklmnopqrstuvwxyz"))
    found = overfit_run(config(corpus=str(path), limit=None), Setting(stories=5))
    assert found["repeated"]["train"] == {"exact": None, "tokens": None, "texts": 0}
    assert np.isfinite([row["held_out"] for row in found["rows"]]).all()
