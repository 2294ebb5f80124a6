"""The index of a dictionary's features, on tiny models: every number against counting by hand."""

import json

import pytest
import torch

from picollm_core.interpret.baselines import neuron_basis
from picollm_core.interpret.concepts import ConceptData, rule_concepts
from picollm_core.interpret.dictionaries import evaluated
from picollm_core.interpret.feature_index import STRONGEST, FeatureIndex, feature_index
from picollm_core.interpret.hooks import activations
from picollm_core.interpret.sae import SparseAutoencoder
from picollm_core.interpret.sparsity import BatchTopK, TopK
from picollm_core.models import build_model
from picollm_core.storyworld import generate_stories
from picollm_core.tokenizers import load_tokenizer

LENGTH = 32


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("stories-4k")


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    names = ("transformer", "lstm", "kgram")
    return {name: build_model(f"{name}-pico", vocab_size=4096, n_embd=16, block_size=64).eval() for name in names}


@pytest.fixture(scope="module")
def stories(tokenizer):
    return rule_concepts(generate_stories(24), tokenizer, LENGTH).common(2)


def autoencoder(site="hidden", width=16, activation=None):
    return SparseAutoencoder(width, 40, activation or TopK(4), site, torch.Generator().manual_seed(1)).eval()


@pytest.fixture(scope="module")
def index(models, tokenizer, stories):
    return feature_index(models["transformer"], tokenizer, autoencoder("blocks.0"), stories)


@torch.no_grad()
def codes(model, dictionary, data):
    with evaluated(dictionary):
        z = dictionary.encode(activations(model, data.idx, [dictionary.site])[dictionary.site])
    return z * data.mask.unsqueeze(-1)  # (N, T, F)


def test_density_mean_and_maximum_are_those_of_the_codes_on_story_tokens(index, models, stories):
    z = codes(models["transformer"], autoencoder("blocks.0"), stories)
    fired, table = (z != 0).sum((0, 1)), index.table
    assert index.tokens == int(stories.mask.sum())
    assert table["density"].tolist() == pytest.approx((fired / index.tokens).tolist())
    assert table["max"].tolist() == pytest.approx(z.amax((0, 1)).tolist(), rel=1e-5)
    assert table["mean"].fillna(0).tolist() == pytest.approx((z.sum((0, 1)) / fired.clamp(min=1)).tolist(), rel=1e-5)
    assert table["stories"].tolist() == (z != 0).any(1).sum(0).tolist()
    assert table["mean"].isna().tolist() == (fired == 0).tolist()


def test_contexts_are_windows_of_their_stories_with_the_codes_of_their_tokens(index, models, stories, tokenizer):
    z = codes(models["transformer"], autoencoder("blocks.0"), stories)
    feature = index.ranked("stories")[0]
    evidence = index.evidence(feature)
    assert 1 < len(evidence.strongest) <= STRONGEST
    for context in (*evidence.strongest, *evidence.weaker):
        own = stories.mask[context.story]
        text = tokenizer.decode(stories.idx[context.story][own].tolist())
        assert "".join(context.pieces) in text
        values = z[context.story, own, feature]
        assert max(context.activations) == context.activations[context.peak]
        assert context.activations[context.peak] == pytest.approx(float(values.max()), rel=1e-3)
        assert context.begins == text.startswith("".join(context.pieces))


def test_strongest_contexts_come_from_different_stories_and_fall(index):
    evidence = index.evidence(index.ranked("density")[0])
    stories = [context.story for context in (*evidence.strongest, *evidence.weaker)]
    assert len(stories) == len(set(stories))
    peaks = [context.activations[context.peak] for context in evidence.strongest]
    assert peaks == sorted(peaks, reverse=True)
    assert all(context.activations[context.peak] <= peaks[-1] for context in evidence.weaker)
    assert peaks[0] == pytest.approx(evidence.facts["max"], rel=1e-3)


def test_stories_that_begin_alike_are_shown_once(models, tokenizer):
    texts = ["Once upon a time there was a cat."] * 6 + ["The sun was warm.", "A dog ran home."]
    found = feature_index(models["transformer"], tokenizer, autoencoder("blocks.0"), texts, LENGTH)
    for feature in found.ranked("stories"):
        shown = [context.story for context in found.evidence(feature).strongest]
        assert len([story for story in shown if story < 6]) <= 1


def test_the_histogram_counts_every_token_where_the_feature_fires(index):
    for feature in index.ranked("density")[:5]:
        evidence = index.evidence(feature)
        assert sum(count for _, count in evidence.histogram) == round(evidence.facts["density"] * index.tokens)
        assert evidence.histogram[-1][0] <= evidence.facts["max"] * 1.001
        assert evidence.facts["max"] < evidence.histogram[-1][0] * 2**0.5 * 1.001


def test_promoted_tokens_are_those_whose_logit_the_feature_raises(models, tokenizer, stories):
    model, dictionary = models["lstm"], autoencoder("hidden")
    found = feature_index(model, tokenizer, dictionary, stories)
    feature = found.ranked("max")[0]
    evidence = found.evidence(feature)
    effect = model.head.weight @ dictionary.directions[feature] * found.facts(feature)["max"]
    effect = (effect - effect.mean()).detach()
    assert evidence.promoted[0][1] == pytest.approx(float(effect.max()), rel=1e-2)
    assert evidence.suppressed[0][1] == pytest.approx(float(effect.min()), rel=1e-2)
    assert evidence.promoted[0][0] == tokenizer.decode([int(effect.argmax())], errors="replace")


def test_a_site_without_a_straight_path_says_why_it_promotes_no_tokens(models, tokenizer, stories):
    dictionary = autoencoder("rnn.c.0")
    found = feature_index(models["lstm"], tokenizer, dictionary, stories)
    evidence = found.evidence(found.ranked("max")[0])
    assert evidence.promoted == evidence.suppressed == ()
    assert "no direct effect" in evidence.no_effect


def test_a_basis_has_negative_contexts_and_its_tokens_follow_the_sign(models, tokenizer, stories):
    found = feature_index(models["kgram"], tokenizer, neuron_basis(torch.zeros(16), 8, "hidden"), stories)
    both = found.table[(found.table["min"] < 0) & (found.table["max"] > 0)]
    evidence = found.evidence(int(both["feature"].iloc[0]))
    lows = [context.activations[context.peak] for context in evidence.negative]
    assert lows == sorted(lows)
    assert lows[0] == pytest.approx(evidence.facts["min"], rel=1e-3)
    assert lows[-1] < 0
    for row in found.table[found.table["sign"] < 0].to_dict("records"):
        lowest = found.evidence(row["feature"]).negative[0]
        assert lowest.pieces[lowest.peak].strip() in row["tokens"]


def test_a_feature_that_tells_a_concept_apart_is_named_after_it(models, tokenizer, stories):
    class Oracle(torch.nn.Module):
        """Feature 3 fires at full stops and line ends alone: the model's embedding tells them."""

        site, activation_dim, dict_size = "embedding", 16, 8
        stop = models["transformer"].embedding.weight[tokenizer.encode_ordinary(".")[0]].detach()
        directions = torch.eye(8, 16)

        def encode(self, x):
            z = torch.zeros(*x.shape[:-1], 8)
            z[..., 3] = (x - self.stop).abs().sum(-1).lt(1e-6).float()
            return z

    found = feature_index(models["transformer"], tokenizer, Oracle(), stories)
    facts = found.facts(3)
    assert facts["concept"] == "sentence:end"
    assert facts["precision"] > 0.95
    assert found.ranked("f1")[0] == 3
    assert facts["gain"] == pytest.approx(facts["f1"] - facts["floor"], rel=1e-2)
    assert facts["tokens"] == "."
    assert found.ranked("feature", "SENTENCE") == [3]
    assert found.ranked("feature", "nonsense") == []
    dead = found.evidence(0)
    assert dead.strongest == dead.weaker == dead.histogram == dead.promoted == ()
    assert dead.facts["mean"] is None
    assert "never fires" in dead.no_effect


def test_ranking_falls_with_the_metric_and_features_without_one_come_last(index):
    for metric in ("max", "density", "f1"):
        values = index.table.set_index("feature")[metric].loc[index.ranked(metric)]
        present = values.dropna().tolist()
        assert present == sorted(present, reverse=True)
        assert values.iloc[len(present) :].isna().all()
    assert index.ranked("feature") == list(range(40))


def test_a_selection_survives_json_and_is_all_that_a_recorded_index_shows(index):
    chosen = index.ranked("max")[:3]
    again = FeatureIndex.from_dict(json.loads(json.dumps(index.to_dict(chosen), allow_nan=False)))
    assert again.evidence(chosen[1]) == index.evidence(chosen[1])
    assert again.ranked("max") == chosen
    assert (again.site, again.tokens, again.dict_size) == (index.site, index.tokens, 40)
    other = index.ranked("max")[3]
    with pytest.raises(ValueError, match=f"feature {other} was not recorded"):
        again.evidence(other)


def test_a_selection_of_nothing_survives_too(index):
    again = FeatureIndex.from_dict(json.loads(json.dumps(index.to_dict([]))))
    assert again.table.empty
    assert list(again.table) == list(index.table)
    assert (again.recorded, again.dict_size) == ({}, 40)


def test_a_threshold_that_training_moves_is_left_alone(models, tokenizer, stories):
    dictionary = autoencoder("blocks.0", activation=BatchTopK(4)).train()
    feature_index(models["transformer"], tokenizer, dictionary, stories)
    assert float(dictionary.activation.threshold) == -1
    assert dictionary.training


def test_stories_without_any_concept_still_have_an_index(models, tokenizer, stories):
    bare = ConceptData(stories.idx, stories.mask, stories.labels[..., :0], ())
    found = feature_index(models["kgram"], tokenizer, autoencoder("hidden"), bare)
    assert set(found.table["concept"]) == {""}
    assert found.evidence(found.ranked("max")[0]).strongest


@pytest.mark.parametrize("feature", [-1, 40, 10**9])
def test_a_feature_out_of_range_is_answered_with_the_range(index, feature):
    with pytest.raises(ValueError, match=f"feature is {feature}; .* has features 0 to 39"):
        index.evidence(feature)


def test_what_cannot_be_indexed_is_refused_with_the_reason(models, tokenizer, stories, index):
    model = models["transformer"]
    with pytest.raises(ValueError, match="reads width 24, but the transformer model has 16"):
        feature_index(model, tokenizer, autoencoder("hidden", width=24), stories)
    with pytest.raises(ValueError, match=r"has no site 'rnn\.h\.0'"):
        feature_index(model, tokenizer, autoencoder("rnn.h.0"), stories)
    with pytest.raises(ValueError, match="0 stories"):
        feature_index(model, tokenizer, autoencoder(), [])
    with pytest.raises(ValueError, match="cannot be ranked by 'beauty'"):
        index.ranked("beauty")
    small = build_model("kgram-pico", vocab_size=61, n_embd=16)
    with pytest.raises(ValueError, match="tokenizer 'stories-4k' has 4096 tokens but the model has 61"):
        feature_index(small, tokenizer, autoencoder(), stories)
