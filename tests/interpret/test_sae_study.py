"""A study measures each row once: trained, kept and redrawn by what determines it."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from picollm_core.config import DataConfig, LSTMConfig, TransformerConfig
from picollm_core.interpret import sae_study, sae_training
from picollm_core.interpret.baselines import neuron_basis
from picollm_core.interpret.hooks import activations
from picollm_core.interpret.sae_metrics import measure_dictionary
from picollm_core.interpret.sae_study import (
    AUTOENCODERS_DIR,
    MIN_STORIES,
    BasisRecipe,
    Reading,
    Recipe,
    autoencoder,
    basis,
    concept_rows,
    describe,
    dictionary_of,
    quality_rows,
)
from picollm_core.interpret.subjects import Subject, untrained
from picollm_core.lab import Lab
from picollm_core.profiles import PROFILES
from picollm_core.runs import RUNS_DIR
from tests.saved_models import lost, save_subject

SITE, LEVEL = "blocks.0", 4
RECIPE = Recipe(SITE, level=LEVEL, expansion=2, n_tokens=3_000)
NEURONS, PCA = (BasisRecipe(SITE, kind, k=LEVEL) for kind in ("neurons", "pca"))
READING, MORE = Reading(5, 48), Reading(24, 48)  # MORE: enough for concepts


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(sae_study, "BASIS_TOKENS", 2_000)
    monkeypatch.setattr(sae_training, "BUFFER", 2)


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab(PROFILES["quick"])


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Subject:
    config = TransformerConfig(vocab_size=4096, n_embd=16, n_layer=1, n_head=2, position="rope")
    return save_subject(tmp_path_factory.mktemp("models") / "transformer", config)


def test_a_row_is_measured_once_and_redrawn_without_weights_or_training(lab, subject):
    arms = [(subject, RECIPE), (subject, NEURONS)]
    first = quality_rows(lab, arms, READING)
    shutil.rmtree(AUTOENCODERS_DIR)
    again = quality_rows(lab, [(lost(subject), recipe) for _, recipe in arms], READING)
    pd.testing.assert_frame_equal(again, first)
    assert not AUTOENCODERS_DIR.exists()
    assert lab.redrawn == 2


def test_rows_say_what_they_are_of_and_hold_the_figures_of_that_dictionary(lab, subject):
    table = quality_rows(lab, [(subject, RECIPE), (subject, PCA)], READING)
    assert list(table["subject"]) == ["transformer", "transformer"]
    assert list(table["site"]) == [SITE, SITE]
    assert table[["kind", "level", "seed"]].to_numpy().tolist() == [["topk", 4.0, 0], ["pca", 4.0, 0]]
    assert list(table["dict_size"]) == [32, 16]
    for (_, row), recipe in zip(table.iterrows(), (RECIPE, PCA), strict=True):
        model, tokenizer, dictionary, seconds = dictionary_of(subject, recipe)
        data = subject.stories(tokenizer, READING.stories, READING.length)
        found = measure_dictionary(model, dictionary, data.idx, data.mask).to_dict()
        assert row[list(found)].to_dict() == pytest.approx(found)
        assert row["seconds"] == seconds
    assert 0 < table["fvu"].min() < table["fvu"].max() < 2


def test_a_basis_takes_no_training_and_an_autoencoder_the_seconds_of_its_clock(lab, subject, monkeypatch):
    clock = iter((10.0, 12.54))
    monkeypatch.setattr(sae_study, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    table = quality_rows(lab, [(subject, RECIPE), (subject, NEURONS), (subject, PCA)], READING).set_index("kind")
    assert table.loc["topk", "seconds"] == 2.5
    assert table.loc[["neurons", "pca"], "seconds"].tolist() == [0.0, 0.0]
    assert len(list(AUTOENCODERS_DIR.iterdir())) == 1


def test_the_autoencoder_on_disk_is_used_again_for_another_measurement(lab, subject, monkeypatch):
    quality_rows(lab, [(subject, RECIPE)], READING)
    (folder,) = AUTOENCODERS_DIR.iterdir()
    before = autoencoder(subject, RECIPE)[2].W_enc.clone()

    def train(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr(sae_study, "train_sae", train)
    concept_rows(lab, [(subject, RECIPE)], MORE)
    assert list(AUTOENCODERS_DIR.iterdir()) == [folder]
    assert torch.equal(autoencoder(subject, RECIPE)[2].W_enc, before)
    with pytest.raises(AssertionError, match="trained"):
        autoencoder(subject, RECIPE.replace(seed=1))


def test_an_autoencoder_that_was_not_finished_is_trained_again(lab, subject, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sae_study.SparseAutoencoder, "save_pretrained", stop)
        with pytest.raises(KeyboardInterrupt):
            autoencoder(subject, RECIPE)
    assert autoencoder(subject, RECIPE)[2].site == SITE


def test_another_reading_is_measured_anew_with_the_same_autoencoder(lab, subject):
    first = quality_rows(lab, [(subject, RECIPE)], READING)
    shorter = quality_rows(lab, [(subject, RECIPE)], Reading(5, 24))
    fewer = quality_rows(lab, [(subject, RECIPE)], Reading(2, 24))
    assert lab.redrawn == 0
    assert first["tokens"][0] > shorter["tokens"][0] > fewer["tokens"][0] > 0
    assert first["seconds"][0] == shorter["seconds"][0] == fewer["seconds"][0]
    assert len(list(AUTOENCODERS_DIR.iterdir())) == 1


def test_another_text_may_be_read_than_the_one_the_subject_knows(lab, subject):
    Path("text.txt").write_text("\n".join(f"Cat {n} was sad, so it sat on mat {n}." for n in range(200)))
    text = DataConfig(corpus=("text.txt",), splits=(50, 50, 0))
    table = quality_rows(lab, [(subject, NEURONS)], READING.replace(text=text))
    model, tokenizer, neurons, _ = dictionary_of(subject, NEURONS)
    data = dataclasses.replace(subject, data=text).stories(tokenizer, READING.stories, READING.length)
    found = measure_dictionary(model, neurons, data.idx, data.mask)
    assert table["nll_spliced"][0] == pytest.approx(found.nll_spliced)
    assert found.tokens == table["tokens"][0] < quality_rows(lab, [(subject, NEURONS)], READING)["tokens"][0]


def test_every_setting_of_a_recipe_and_the_subject_names_another_autoencoder(lab, subject):
    recipes = [RECIPE, *(RECIPE.replace(**change) for change in ({"seed": 1}, {"level": 2}, {"n_tokens": 2_048}))]
    for each, recipe in [*((subject, recipe) for recipe in recipes), (untrained(subject), RECIPE)]:
        autoencoder(each, recipe)
    assert len(list(AUTOENCODERS_DIR.iterdir())) == 5


def test_an_untrained_control_is_measured_beside_the_model_it_is_for(lab, subject):
    table = quality_rows(lab, [(subject, RECIPE), (untrained(subject), RECIPE)], READING)
    assert list(table["subject"]) == ["transformer", "transformer, untrained"]
    assert table["nll"][0] != table["nll"][1]
    assert table["fvu"][0] != table["fvu"][1]


def test_what_passes_at_a_state_of_an_lstm_is_replaced_too(lab):
    lstm = save_subject(Path("lstm"), LSTMConfig(vocab_size=4096, n_embd=16))
    arms = [(lstm, BasisRecipe("rnn.h.0", "pca", k=k)) for k in (1, 16)]
    table = quality_rows(lab, arms, READING)
    assert (table["nll_zero"] != table["nll"]).all()
    assert (table["nll_mean"] != table["nll"]).all()
    assert table["nll_spliced"][0] != table["nll"][0]
    assert table["nll_spliced"][1] == pytest.approx(table["nll"][1], abs=1e-4)  # all components: nothing is lost
    assert table["recovered_mean"].map(math.isfinite).all()


def test_concepts_that_few_stories_have_are_left_out(lab, subject):
    table = concept_rows(lab, [(subject, RECIPE), (subject, NEURONS)], MORE)
    _, tokenizer = subject.load()
    data = subject.stories(tokenizer, MORE.stories, MORE.length)
    stories = dict(zip(data.names, data.labels.any(1).sum(0).tolist(), strict=True))
    for _, own in table.groupby("kind"):
        assert set(own["concept"]) == {name for name, count in stories.items() if count >= MIN_STORIES}
    assert 0 < table["concept"].nunique() < len(stories)
    assert table["f1"].between(0, 1).all()
    assert table.groupby("kind")["feature"].max().le(pd.Series({"topk": 31, "neurons": 15})).all()


def test_only_a_basis_may_tell_a_concept_by_being_low(lab, subject):
    table = concept_rows(lab, [(subject, RECIPE), (subject, PCA)], MORE).set_index("kind")
    assert set(table.loc["topk", "sign"]) == {1}
    assert -1 in set(table.loc["pca", "sign"])


def test_concept_rows_are_redrawn_as_they_were_and_say_what_they_are_of(lab, subject):
    first = concept_rows(lab, [(subject, RECIPE)], MORE)
    again = concept_rows(lab, [(lost(subject), RECIPE)], MORE)
    pd.testing.assert_frame_equal(again, first)
    assert first[["subject", "site", "kind", "level", "seed"]].drop_duplicates().to_numpy().tolist() == [
        ["transformer", SITE, "topk", 4.0, 0]
    ]
    for path in (RUNS_DIR / "results" / "measurements").iterdir():
        json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN is no JSON
        assert path.stat().st_size < 100_000


def test_a_basis_is_made_from_training_text_and_keeps_k_coordinates(lab, subject):
    model, tokenizer = subject.load()
    whole = basis(subject, BasisRecipe(SITE, "neurons", k=16), model, tokenizer)
    idx = subject.windows(model, tokenizer, 0).next_batch()[0]
    x = activations(model, idx, [SITE])[SITE].flatten(0, 1)
    torch.testing.assert_close(whole(x), x, atol=1e-4, rtol=0)
    assert torch.equal(whole.directions, neuron_basis(whole.mean, 16).directions)
    torch.testing.assert_close(whole.mean, x.mean(0), atol=0.3 * x.std().item(), rtol=0)
    few = basis(subject, PCA, model, tokenizer)
    assert ((few.encode(x) != 0).sum(-1) == LEVEL).all()
    assert few.dict_size == 16
    fixed = basis(subject, PCA.replace(fixed=True), model, tokenizer)
    assert fixed.dict_size == LEVEL
    assert torch.equal(fixed.directions, few.directions[:LEVEL])


@pytest.mark.parametrize(
    ("kind", "level", "settings"),
    [
        ("topk", 16, {"k": 16}),
        ("batchtopk", 16.0, {"k": 16, "momentum": 0.95}),
        ("relu", 0.01, {"l1": 0.01}),
        ("jumprelu", 16, {"target": 16.0, "weight": 1.0, "bandwidth": 0.3}),
    ],
)
def test_a_level_means_what_its_kind_takes(kind, level, settings):
    recipe = Recipe(SITE, kind, level)
    assert recipe.activation().settings() == {"kind": kind, **settings}
    assert describe(recipe) == {"kind": kind, "level": float(level), "seed": 0}


def test_recipes_that_say_the_same_are_the_same_and_wrong_ones_are_refused():
    assert Recipe(SITE, level=16).fingerprint() == Recipe(SITE, level=16.0).fingerprint()
    assert describe(BasisRecipe(SITE, "pca", 8)) == {"kind": "pca", "level": 8.0, "seed": 0}
    with pytest.raises(ValueError, match="kind 'gated' is unknown; choose of topk, batchtopk, relu, jumprelu"):
        Recipe(SITE, kind="gated")
    with pytest.raises(ValueError, match="level is 'many'"):
        Recipe(SITE, level="many")
    with pytest.raises(ValueError, match="basis is 'fourier'; choose one of 'neurons', 'pca'"):
        BasisRecipe(SITE, "fourier")
    with pytest.raises(ValueError, match="stories"):
        Reading(stories=2.5)


def test_a_site_that_the_model_has_not_is_refused_before_anything_is_kept(lab, subject):
    with pytest.raises(ValueError, match=r"has no site 'blocks\.7'"):
        quality_rows(lab, [(subject, RECIPE.replace(site="blocks.7"))], READING)
    assert not AUTOENCODERS_DIR.exists()
