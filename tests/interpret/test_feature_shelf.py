"""Dictionaries on offer, texts and indices: the feature browser without its widget."""

import pytest
import torch

from picollm_core.corpora import load_corpus
from picollm_core.interpret import feature_shelf
from picollm_core.interpret.feature_shelf import DictionaryChoice, FeatureShelf, default_choice
from picollm_core.interpret.sae import SparseAutoencoder
from picollm_core.interpret.sparsity import TopK
from picollm_core.storyworld import generate_stories
from tests.saved_models import save_families


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = save_families(tmp_path_factory.mktemp("models"), n_embd=8, block_size=64)
    autoencoder = SparseAutoencoder(8, 24, TopK(2), "blocks.0", torch.Generator().manual_seed(0))
    autoencoder.save_pretrained(folder / "transformer" / "autoencoders" / "tiny")
    return folder


@pytest.fixture
def shelf():
    return FeatureShelf(list(generate_stories(8)))


def test_autoencoders_stand_before_the_neurons_of_every_main_site(shelf, models):
    choices = shelf.choices(models / "transformer")
    assert [choice.folder is not None for choice in choices] == [True] + [False] * (len(choices) - 1)
    assert choices[0].label == "tiny: 24 features of residual stream after layer 1"
    assert {"hidden", "embedding", "blocks.0.mlp.proj:in"} <= {choice.site for choice in choices}


@pytest.mark.parametrize(
    ("family", "label"),
    [
        ("kgram", "neurons: hidden layer"),
        ("lstm", "neurons: what the head reads"),
        ("transformer", "tiny: 24 features"),
    ],
)
def test_the_first_to_be_opened_is_an_autoencoder_else_neurons_behind_an_activation(shelf, models, family, label):
    assert default_choice(shelf.choices(models / family)).label.startswith(label)


def test_the_newest_indices_are_kept_and_no_more(shelf, models, monkeypatch):
    monkeypatch.setattr(feature_shelf, "INDICES_KEPT", 2)
    path = models / "lstm"
    first, second, third = shelf.choices(path)[:3]
    kept = shelf.opened(path, first)
    assert shelf.opened(path, first) is kept
    shelf.opened(path, second)
    shelf.opened(path, third)
    assert list(shelf.kept) == [(path, second), (path, third)]


def test_steering_leaves_the_model_as_it_was(shelf, models):
    path = models / "transformer"
    choice = shelf.choices(path)[0]
    arguments = ("Once upon a time", 12, 3)
    plain = shelf.plain_text(path, *arguments)
    assert shelf.steered_text(path, choice, 1, 0.0, *arguments) == plain
    assert shelf.steered_text(path, choice, 1, 1e6, *arguments) != plain
    shelf.ablated_text(path, choice, 1, *arguments)
    shelf.plain.clear()
    assert shelf.plain_text(path, *arguments) == plain


def test_stories_are_read_as_far_as_the_model_can(shelf, models):
    assert shelf.stories(models / "transformer").idx.size(1) == 64
    assert shelf.stories(models / "lstm").idx.size(1) == 128


def test_without_texts_storyworld_is_read_with_its_own_labels_but_its_plots(models, monkeypatch):
    monkeypatch.setattr(feature_shelf, "load_corpus", lambda name: load_corpus("storyworld", n_stories=50))
    monkeypatch.setattr(feature_shelf, "STORIES", 30)
    data = FeatureShelf().stories(models / "lstm")
    assert len(data) == 30
    assert "mention:hero" in data.names
    assert not any(name.startswith("plot:") for name in data.names)


def test_without_texts_the_validation_stories_of_another_corpus_are_read(models, monkeypatch, tmp_path):
    (tmp_path / "own.txt").write_text("\n".join(generate_stories(60)).replace("\n\n", " "))
    corpus = load_corpus(str(tmp_path / "own.txt"), splits=(50, 40, 10))
    monkeypatch.setattr(feature_shelf, "load_corpus", lambda name: corpus)
    data = FeatureShelf().stories(models / "lstm")
    assert len(data) == min(corpus.count("validation"), feature_shelf.STORIES)


def test_an_unreadable_autoencoder_is_offered_by_name_and_refused_with_the_reason(shelf, models, tmp_path):
    folder = tmp_path / "torn"
    folder.mkdir()
    (folder / "config.json").write_text("[]")
    choice = feature_shelf._autoencoder_choice(folder, {})
    assert choice == DictionaryChoice("torn: unreadable", "", folder)
    with pytest.raises(ValueError, match="torn"):
        shelf.dictionary(models / "lstm", choice)
