"""The feature browser's widget, headless: values are set, buttons clicked, the HTML is read."""

import html
import shutil

import pytest
import torch

from picollm_core import generate
from picollm_core.interpret.feature_browser import IN_FALLBACK, LISTED, WRITTEN_TOKENS, feature_browser
from picollm_core.interpret.feature_controls import SORTED_BY
from picollm_core.interpret.feature_shelf import SAMPLING
from picollm_core.interpret.sae import SparseAutoencoder
from picollm_core.interpret.sparsity import TopK
from picollm_core.interpret.steering import steered_text
from picollm_core.loading import load_model
from picollm_core.notebook_cleaning import WIDGET_VIEW
from picollm_core.storyworld import generate_stories
from tests.saved_models import DECIDED, save_families

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"
PROMPT = "Once upon a time"
FEATURES, DEAD = 40, 39


def autoencoder(site="blocks.0", width=16):
    made = SparseAutoencoder(width, FEATURES, TopK(4), site, torch.Generator().manual_seed(1))
    made.b_enc.data[DEAD] = -1e6
    return made


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    folder = save_families(tmp_path_factory.mktemp("models"), n_embd=16, block_size=128, scale=DECIDED)
    autoencoder().save_pretrained(folder / "transformer" / "autoencoders" / "tiny")
    return folder


@pytest.fixture(scope="module")
def stories():
    return list(generate_stories(16))


@pytest.fixture
def view(shipped, stories, tmp_path):
    return feature_browser("transformer", stories, shipped=shipped, runs_dir=tmp_path)


def shown(view):
    return view.evidence.value.partition("<h4>")[2].partition("</h4>")[0]


def listed(view):
    return [feature for _, feature in view.features.options]


def choose(view, words):
    view.dictionary.value = next(choice for label, choice in view.dictionary.options if words in label)


def test_it_opens_with_the_autoencoder_on_disk_its_best_feature_and_a_text(view):
    assert view.dictionary.value.label == "tiny: 40 features of residual stream after layer 1"
    assert "40 features listed, on 16 stories" in view.status.value
    assert shown(view).startswith(f"Feature {listed(view)[0]} of 40")
    assert view.features.value == view.number.value == listed(view)[0]
    assert "pico-peak" in view.evidence.value
    assert "Nearest concept" in view.evidence.value
    model, tokenizer = load_model(view.model.value.path)
    plain = generate(model, tokenizer, PROMPT, sampling=SAMPLING, max_new_tokens=WRITTEN_TOKENS)
    assert view.texts == (plain, plain)


def test_left_out_everything_on_disk_is_offered_and_the_transformer_open(shipped, stories, tmp_path):
    view = feature_browser(texts=stories, shipped=shipped, runs_dir=tmp_path)
    assert [model.path.name for _, model in view.model.options] == ["kgram", "lstm", "transformer"]
    assert view.model.value.path.name == "transformer"


@pytest.mark.parametrize("metric", SORTED_BY)
def test_the_list_follows_every_metric(view, metric):
    view.sort.value = metric
    assert listed(view) == view._index.ranked(metric)
    assert view.features.value == listed(view)[0]
    assert shown(view).startswith(f"Feature {listed(view)[0]} of")


def test_search_keeps_features_by_concept_or_token_and_says_when_none_is_left(view):
    facts = view._index.facts(listed(view)[0])
    for words in (facts["concept"], facts["tokens"].split()[0].upper()):
        view.search.value = words
        assert 0 < len(listed(view)) <= FEATURES
        assert all(words.lower() in label.lower() for label, _ in view.features.options)
    view.search.value = "xylophone"
    assert listed(view) == []
    assert "No feature of this dictionary has &#x27;xylophone&#x27;" in view.status.value
    view.search.value = ""
    assert len(listed(view)) == FEATURES


def test_next_and_previous_go_round_the_list(view):
    order = listed(view)
    view.next.click()
    assert view.features.value == view.number.value == order[1]
    view.previous.click()
    view.previous.click()
    assert view.number.value == order[-1]
    view.next.click()
    assert shown(view).startswith(f"Feature {order[0]} of")


def test_a_feature_can_be_chosen_in_the_list_and_by_number(view):
    view.features.value = listed(view)[7]
    assert shown(view).startswith(f"Feature {listed(view)[7]} of")
    view.number.value = listed(view)[3]
    assert view.features.value == listed(view)[3]


@pytest.mark.parametrize("number", [-1, FEATURES, 10**6])
def test_a_number_out_of_range_is_answered_with_the_range_and_the_next_one_clears_it(view, number):
    before = shown(view)
    view.number.value = number
    assert f"feature is {number}; this dictionary at &#x27;blocks.0&#x27; has features 0 to 39" in view.status.value
    assert shown(view) == before
    view.number.value = 5
    assert "pico-wrong" not in view.status.value
    assert shown(view).startswith("Feature 5 of 40")


def test_the_slider_writes_the_steered_text_beside_the_plain_one(view, shipped):
    view.sort.value = "max"
    view.amount.value = 2.0
    feature, (plain, steered) = view.number.value, view.texts
    model, tokenizer = load_model(shipped / "transformer")
    size = 2 * view._index.facts(feature)["max"]
    settings = {"sampling": SAMPLING, "length": WRITTEN_TOKENS, "seed": 0}
    assert steered == steered_text(model, tokenizer, autoencoder(), feature, size, PROMPT, **settings)
    assert plain == generate(model, tokenizer, PROMPT, sampling=SAMPLING, max_new_tokens=WRITTEN_TOKENS)
    assert plain != steered
    assert "Steered: +2 x its maximum" in view.changed.value
    assert "<mark>" in view.changed.value
    assert "<mark>" not in view.plain.value
    view.amount.value = -2.0
    assert view.texts[1] not in (plain, steered)
    view.amount.value = 0.0
    assert view.texts == (plain, plain)
    view.amount.value = 2.0
    assert view.texts == (plain, steered), "nothing stays in the model"


def test_ablating_and_steering_exclude_each_other(view):
    view.amount.value = 1.0
    view.ablate.value = True
    assert view.amount.value == 0
    assert "Ablated" in view.changed.value
    view.amount.value = 1.0
    assert not view.ablate.value
    assert "Steered" in view.changed.value


def test_a_feature_that_never_fires_changes_nothing_and_says_so(view):
    view.number.value = DEAD
    assert "It fires at no token" in view.evidence.value
    view.ablate.value = True
    assert view.texts[0] == view.texts[1]
    assert "The same text" in view.status.value
    view.amount.value = 2.0
    assert view.texts[0] == view.texts[1]
    assert "never fires" in view.status.value


def test_another_feature_and_another_seed_start_afresh(view):
    view.amount.value = 2.0
    plain = view.texts[0]
    view.next.click()
    assert view.amount.value == 0
    assert view.texts == (plain, plain)
    view.seed.value = 5
    assert view.texts[0] != plain


def test_an_empty_prompt_is_explained_and_a_new_one_goes_on(view):
    view.prompt.value = ""
    assert "the prompt is empty" in view.status.value
    assert view.texts == ("", "")
    view.prompt.value = "The cat"
    assert view.texts[0].startswith("The cat")
    assert "pico-wrong" not in view.status.value


def test_a_model_without_autoencoder_offers_neurons_and_says_how_to_train_one(view, shipped, tmp_path):
    lone = feature_browser("lstm", list(generate_stories(12)), shipped=shipped, runs_dir=tmp_path)
    assert lone.dictionary.value.label == "neurons: what the head reads"
    assert "train_sae" in lone.status.value
    assert "pico-peak" in lone.evidence.value
    lone.amount.value = 3.0
    assert lone.texts[0] != lone.texts[1]


@pytest.mark.parametrize("family", ["kgram", "lstm", "transformer"])
def test_the_neurons_of_every_main_site_can_be_browsed(shipped, stories, tmp_path, family):
    view = feature_browser(family, stories[:8], shipped=shipped, runs_dir=tmp_path)
    for label, choice in view.dictionary.options:
        view.dictionary.value = choice
        assert "pico-wrong" not in view.status.value, label
        assert html.escape(label) in shown(view)


@pytest.mark.parametrize(
    ("site", "width", "words"),
    [("blocks.0", 24, "it was made for another model"), ("rnn.h.0", 16, "has no site"), (None, 0, "cannot be loaded")],
)
def test_an_autoencoder_that_does_not_fit_is_explained_and_the_others_go_on(
    shipped, stories, tmp_path, site, width, words
):
    shutil.copytree(shipped / "transformer", tmp_path / "mixed")
    folder = tmp_path / "mixed" / "autoencoders" / "zz-wrong"
    autoencoder(site or "blocks.0", width or 16).save_pretrained(folder)
    if site is None:
        (folder / "model.safetensors").write_bytes(b"cut off")
    view = feature_browser(tmp_path / "mixed", stories, runs_dir=tmp_path)
    choose(view, "zz-wrong")
    assert words in view.status.value
    assert view.evidence.value == view.plain.value == ""
    assert listed(view) == []
    view.next.click()
    view.number.value = 3
    assert "no dictionary is open" in view.status.value
    choose(view, "tiny")
    assert shown(view).startswith("Feature")


def test_a_configuration_that_cannot_be_read_is_listed_as_such(shipped, stories, tmp_path):
    shutil.copytree(shipped / "transformer", tmp_path / "torn")
    (tmp_path / "torn" / "autoencoders" / "tiny" / "config.json").write_text("{")
    view = feature_browser(tmp_path / "torn", stories, runs_dir=tmp_path)
    assert view.dictionary.options[0][0] == "tiny: unreadable"
    assert "pico-wrong" in view.status.value
    choose(view, "what the head reads")
    assert shown(view).startswith("Feature")


def test_without_a_model_on_disk_it_says_what_to_do(tmp_path):
    view = feature_browser(shipped=tmp_path, runs_dir=tmp_path)
    assert "picollm train" in view.status.value
    view.next.click()
    view.amount.value = 1.0
    view.sort.value = "max"
    assert "picollm train" in view.status.value
    assert "picollm train" in view._repr_mimebundle_()["text/html"]


def test_no_texts_are_explained_and_one_story_is_enough(shipped, tmp_path):
    view = feature_browser("kgram", [], shipped=shipped, runs_dir=tmp_path)
    assert "there are 0 stories" in view.status.value
    view = feature_browser("kgram", ["Only one story."], shipped=shipped, runs_dir=tmp_path)
    assert shown(view).startswith("Feature")
    assert "No concept" in view.evidence.value


def test_a_model_that_is_not_there_is_refused_at_the_call(shipped):
    with pytest.raises(ValueError, match="no model is called 'gru'"):
        feature_browser("gru", shipped=shipped)


def test_markup_in_prompt_texts_and_search_is_text_everywhere(shipped, tmp_path):
    texts = [f"{story} {HOSTILE}" for story in generate_stories(6)] + [HOSTILE] * 2
    view = feature_browser("transformer", texts, prompt=HOSTILE, shipped=shipped, runs_dir=tmp_path)
    view.amount.value = 1.0
    pages = [view.evidence.value, view.plain.value, view.changed.value, view._repr_mimebundle_()["text/html"]]
    view.search.value = HOSTILE
    assert not any("<script" in source or "<img" in source for source in [*pages, view.status.value])
    assert html.escape(HOSTILE) in view.plain.value


def test_an_unforeseen_failure_in_a_callback_is_read_in_the_status_line(view, monkeypatch):
    monkeypatch.setattr(view._shelf, "steered_text", lambda *given: 1 / 0)
    view.amount.value = 1.0
    assert "ZeroDivisionError" in view.status.value


def test_a_page_without_widgets_gets_the_evidence_and_a_list(view):
    bundle = view._repr_mimebundle_()
    assert bundle[WIDGET_VIEW]["model_id"] == view.model_id
    assert view.evidence.value in bundle["text/html"]
    assert bundle["text/html"].count("<tr><td>") >= IN_FALLBACK
    assert bundle["text/plain"].count("feature ") == IN_FALLBACK
    assert len(bundle["text/html"]) < 100_000


def test_each_index_is_made_once(view, monkeypatch):
    first = view._index
    choose(view, "what the head reads")
    choose(view, "tiny")
    assert view._index is first
    assert len(view.features.options) <= LISTED
