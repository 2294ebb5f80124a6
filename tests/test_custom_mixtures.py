"""Mixtures of stories and custom lines: shares, new words, and what tuning does to a trained model."""

from dataclasses import replace

import pytest
import torch

from picollm_core.config import LSTMConfig, TrainConfig
from picollm_core.corpora import load_corpus
from picollm_core.custom_mixtures import (
    commonest,
    echoes,
    measured_shares,
    mixed_trainer,
    mixture_models,
    mixture_table,
    new_words,
    run_to,
    smoke_table,
    word_reference,
    words_of,
)
from picollm_core.custom_study import PLANS, own_lines
from picollm_core.lab import Lab
from picollm_core.models import build_model
from picollm_core.profiles import get_profile
from picollm_core.results import ResultStore
from picollm_core.tokenizers import load_tokenizer
from picollm_core.trainer import seeded

TOKENIZER = load_tokenizer("stories-4k")
MODEL = LSTMConfig(n_embd=8, vocab_size=TOKENIZER.n_vocab, block_size=80)


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    """A lab of the quick profile that keeps its results apart, with hardly any training in its plan."""
    less = {"mixture_steps": 4, "tuning": 4, "stories": 4, "sampled": 100, "smoke_reads": (0, 1)}
    monkeypatch.setitem(PLANS, "quick", replace(PLANS["quick"], **less))
    lab = Lab(get_profile("quick"))
    lab.store = ResultStore(tmp_path / "results")
    return lab


def trainer_of(share: float):
    stories = load_corpus("storyworld", n_stories=200)
    train = TrainConfig(learning_rate=0.03, batch_size=8, max_steps=40)
    return mixed_trainer(MODEL, train, stories, own_lines(), share, TOKENIZER)


def test_words_are_lower_case_letters_with_an_inner_apostrophe():
    assert words_of("The keeper's DRONE, 'tis 3 o'clock.") == ["the", "keeper's", "drone", "tis", "o'clock"]


def test_new_words_are_those_that_no_other_text_has_and_short_ones_do_not_count():
    assert new_words(["A drone met an owl at the Lighthouse"], ["The owl met a tram"]) == {"drone", "lighthouse"}
    assert new_words(["owl"], []) == set()


def test_measured_shares_follow_the_asked_one_and_tokens_lag_behind_rows():
    with seeded(0):
        trainer = trainer_of(0.5)
        run_to(trainer, 40)
    found = measured_shares(trainer, 0.5)
    assert found["row_share"] == pytest.approx(0.5, abs=0.08)
    assert 0 < found["token_share"] < found["row_share"]  # a line is shorter than a window


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_shares_of_one_text_alone_are_exact(share):
    with seeded(0):
        trainer = trainer_of(share)
        run_to(trainer, 3)
    assert measured_shares(trainer, share) == {"row_share": share, "token_share": share}


def test_echoes_count_new_words_among_all_words():
    torch.manual_seed(0)
    model = build_model(MODEL).eval()
    everything = {word for token in range(TOKENIZER.n_vocab - 1) for word in words_of(TOKENIZER.decode([token]))}
    some = echoes(model, TOKENIZER, everything, budget=300, seed=0)
    assert 0 < some["echoed"] <= some["words"]
    assert some["per_1000"] == pytest.approx(1000 * some["echoed"] / some["words"])
    none = echoes(model, TOKENIZER, {"qqqq"}, budget=300, seed=0)
    assert (none["echoed"], none["per_1000"], none["found"]) == (0, 0.0, {})
    assert none["words"] == some["words"]


def test_the_commonest_words_are_counted_over_all_samples():
    assert commonest([{"tram": 2, "drone": 3}, {"tram": 4}, {}], 1) == "tram 6"
    assert commonest([{}]) == ""


def test_a_mixture_learns_the_custom_lines_and_tuning_starts_from_the_model_of_stories_alone(lab):
    table = mixture_table(lab)
    for arm in mixture_models(TOKENIZER.n_vocab):
        own = table[table["arm"] == arm]
        before = own[(own["kind"] == "mixed") & (own["share"] == 0)].iloc[0]
        starts = own[(own["kind"] != "mixed") & (own["step"] == 0)]
        assert set(starts["kind"]) == {"custom alone", "half and half", "stories alone"}
        assert set(starts["stories_loss"]) == {before["stories_loss"]}
        after = own[own["step"] == 4].set_index("kind")["custom_loss"]
        assert after["custom alone"] < after["stories alone"]
    assert table["record"].nunique() == 2


def test_the_smoke_test_has_a_control_on_stories_alone_that_starts_as_the_same_model(lab):
    table = smoke_table(lab)
    assert set(table["share"]) == {0.0, PLANS["quick"].smoke_share}
    starts = table[table["step"] == 0].groupby("arm")["per_1000"].nunique()
    assert (starts == 1).all()  # an untrained model has read nothing yet


def test_further_seeds_of_the_smoke_test_stop_after_three_updates(lab, monkeypatch):
    monkeypatch.setitem(PLANS, "quick", replace(PLANS["quick"], smoke_reads=(0, 1, 4), smoke_extra=1))
    table = smoke_table(lab)
    assert table.groupby("seed")["step"].max().to_dict() == {0: 4, 1: 1}


def test_the_reference_says_that_stories_never_have_a_new_word(lab):
    found = word_reference(lab)
    assert found["per_1000"]["stories"] == 0
    assert found["per_1000"]["custom"] > 10
    assert {"drone", "meteorite"} <= {word for word, _ in found["commonest"]}
    assert found["in_stories"]["drone"] == found["in_stories"]["meteorite"] == 0
