import numpy as np
import pytest
import torch
from torch import Tensor

from picollm_core.interpret.baselines import neuron_basis
from picollm_core.interpret.concepts import storyworld_concepts
from picollm_core.interpret.feature_scores import (
    CONCEPT_COLUMNS,
    FEATURE_COLUMNS,
    concept_scores,
    feature_codes,
    feature_concepts,
    first_half,
)
from picollm_core.interpret.hooks import activations
from picollm_core.interpret.sae import SparseAutoencoder
from picollm_core.interpret.sparsity import BatchTopK, TopK
from picollm_core.models import build_model
from picollm_core.storyworld.stories import labelled_stories
from picollm_core.tokenizers import load_tokenizer
from tests.conftest import TINY

M, F, K = 600, 9, 4
NAMES = ("a", "b", "c", "d")


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """Sparse codes that say something about some concepts, labels, and stories of 20 tokens."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.rand(M, K, generator=generator) < torch.tensor([0.5, 0.2, 0.1, 0.05])
    z = torch.rand(M, F, generator=generator) * (torch.rand(M, F, generator=generator) < 0.3)
    z[:, 1] += 0.6 * labels[:, 1]
    z[:, 4] += 0.8 * labels[:, 3] * (torch.rand(M, generator=generator) < 0.8)
    return z.mul(8).round() / 8, labels, torch.arange(M) // 20  # ties on purpose


def f1_of(fires: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1, counted one token at a time."""
    hits = sum(1 for f, t in zip(fires, truth, strict=True) if f and t)
    fired, true = int(fires.sum()), int(truth.sum())
    precision, recall = hits / fired if fired else np.nan, hits / true
    return precision, recall, 2 * hits / (fired + true)


def obvious(z: Tensor, labels: Tensor, groups: Tensor, k: int, signed: bool) -> dict:
    """The slow truth: every feature, every sign, every value it takes as a threshold."""
    choosing = first_half(groups).numpy()
    best: dict = {"f1_chosen": -1.0}
    for feature in range(z.size(1)):
        for sign in (1, -1) if signed else (1,):
            code, truth = sign * z[:, feature].numpy(), labels[:, k].numpy()
            seen = np.unique(code[choosing & (code > 0)])
            for threshold in [0.0, *seen[1:]]:
                fires = (code > 0) & (code >= threshold)
                f1 = f1_of(fires[choosing], truth[choosing])[2]
                if f1 > best["f1_chosen"]:
                    precision, recall, other = f1_of(fires[~choosing], truth[~choosing])
                    best = {"feature": feature, "sign": sign, "threshold": threshold, "precision": precision,
                            "recall": recall, "f1": other, "f1_chosen": f1, "density": (code > 0).mean()}  # fmt: skip
    return best


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_best_feature_of_each_concept_is_the_one_that_trying_everything_finds(case, signed, sparse):
    z, labels, groups = case
    z = z - 0.5 * (z.roll(1, 0) > 0.8) if signed else z
    table = concept_scores(z.to_sparse() if sparse else z, labels, groups, NAMES, signed=signed)
    assert tuple(table.columns) == CONCEPT_COLUMNS
    assert table["concept"].tolist() == list(NAMES)
    for k, row in table.iterrows():
        truth = obvious(z, labels, groups, k, signed)
        assert {name: row[name] for name in truth} == pytest.approx(truth, abs=1e-6, nan_ok=True)


def test_a_feature_that_points_the_other_way_is_found_when_codes_are_signed(case):
    _, labels, groups = case
    z = torch.zeros(M, 2)
    z[:, 1] = -0.25 - 0.5 * labels[:, 1]
    row = concept_scores(z, labels, groups, NAMES, signed=True).set_index("concept").loc["b"]
    assert (row["feature"], row["sign"], row["threshold"], row["f1"]) == (1, -1, 0.75, 1.0)
    with pytest.raises(ValueError, match=r"feature 1 has the code -0.75 < 0; pass signed=True"):
        concept_scores(z, labels, groups, NAMES)


def test_choosing_among_many_useless_features_does_not_flatter_the_score():
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(400, 1500, generator=generator).sub(0.9).clamp(min=0)
    labels = torch.rand(400, 1, generator=generator) < 0.1
    row = concept_scores(z, labels, torch.arange(400) // 10, ["noise"]).iloc[0]
    assert row["f1_chosen"] > 0.35
    assert row["f1"] < row["f1_chosen"] - 0.15
    assert row["floor"] == pytest.approx(2 * row["base_rate"] / (1 + row["base_rate"]))


def test_base_rate_and_floor_belong_to_the_half_that_scores(case):
    z, labels, groups = case
    scoring = ~first_half(groups)
    table = concept_scores(z, labels, groups, NAMES).set_index("concept")
    for k, name in enumerate(NAMES):
        truth = labels[scoring, k].numpy()
        assert table.loc[name, "base_rate"] == pytest.approx(truth.mean())
        assert table.loc[name, "floor"] == pytest.approx(f1_of(np.ones_like(truth), truth)[2])


def test_the_interval_holds_the_score_and_shrinks_with_more_stories(case):
    z, labels, groups = case
    few = concept_scores(z, labels, groups, NAMES).set_index("concept").loc["b"]
    many = concept_scores(
        z.repeat(9, 1), labels.repeat(9, 1), torch.cat([groups + 1000 * i for i in range(9)]), NAMES
    ).set_index("concept").loc["b"]  # fmt: skip
    assert few["f1_low"] < few["f1"] < few["f1_high"]
    assert many["f1_high"] - many["f1_low"] < 0.6 * (few["f1_high"] - few["f1_low"])


def test_a_concept_that_one_half_does_not_have_is_left_out(case):
    z, labels, groups = case
    labels = labels.clone()
    labels[:, 2] = False
    labels[~first_half(groups), 3] = False
    assert concept_scores(z, labels, groups, NAMES)["concept"].tolist() == ["a", "b"]
    assert set(feature_concepts(z, labels, groups, NAMES)["concept"]) <= {"a", "b"}


def test_every_feature_gets_the_concept_that_it_lifts_most_above_the_floor(case):
    z, labels, groups = case
    z = z.clone()
    z[:, 7] = 0
    table = feature_concepts(z, labels, groups, NAMES)
    assert tuple(table.columns) == FEATURE_COLUMNS
    assert table["feature"].tolist() == list(range(F))
    assert table.loc[1, "concept"] == "b"
    assert table.loc[4, "concept"] == "d"
    best = concept_scores(z, labels, groups, NAMES).set_index("concept")
    for name, feature in (("b", 1), ("d", 4)):
        assert best.loc[name, "feature"] == feature
        for column in ("threshold", "precision", "recall", "f1", "f1_chosen", "floor", "density"):
            assert table.loc[feature, column] == pytest.approx(best.loc[name, column])


def test_a_feature_that_never_fires_has_no_concept_and_no_numbers(case):
    z, labels, groups = case
    z = z.clone()
    z[:, 7] = 0
    dead = feature_concepts(z, labels, groups, NAMES).loc[7]
    assert (dead["concept"], dead["density"]) == ("", 0.0)
    assert np.isnan(dead["f1"])


def test_a_feature_that_always_fires_is_not_called_after_the_commonest_concept():
    labels = torch.zeros(200, 2, dtype=torch.bool)
    labels[:, 0] = torch.arange(200) % 10 < 7  # always yes already has F1 0.82
    labels[:, 1] = torch.arange(200) % 4 == 0
    z = torch.ones(200, 1) + labels[:, 1:]
    table = feature_concepts(z, labels, torch.arange(200) // 20, ["common", "rare"])
    assert (table.loc[0, "concept"], table.loc[0, "threshold"], table.loc[0, "f1"]) == ("rare", 2.0, 1.0)


def test_signed_features_get_one_row_each_with_the_better_direction(case):
    _, labels, groups = case
    z = torch.stack([0.1 - labels[:, 1].float(), labels[:, 3].float() - 0.1], dim=1)
    table = feature_concepts(z, labels, groups, NAMES, signed=True)
    assert table[["feature", "concept", "sign"]].values.tolist() == [[0, "b", -1], [1, "d", 1]]


def test_a_story_lies_in_one_half_only_and_the_seed_decides_which():
    groups = torch.randint(0, 31, (500,), generator=torch.Generator().manual_seed(0)) * 7
    choosing = first_half(groups, seed=1)
    assert all(choosing[groups == g].unique().numel() == 1 for g in groups.unique())
    assert len(groups[choosing].unique()) == 16
    assert not torch.equal(choosing, first_half(groups, seed=2))
    assert torch.equal(choosing, first_half(groups, seed=1))


@pytest.mark.parametrize("activation", [TopK(3), BatchTopK(3)], ids=["topk", "batchtopk"])
def test_codes_of_all_story_tokens_are_those_of_reading_each_story_alone(activation):
    tokenizer = load_tokenizer("stories-4k")
    torch.manual_seed(0)
    model = build_model(TINY["transformer"].replace(vocab_size=tokenizer.n_vocab, block_size=40))
    data = storyworld_concepts(labelled_stories(18, seed=2), tokenizer, 40)
    sae = SparseAutoencoder(16, 32, activation, "blocks.0", torch.Generator().manual_seed(0))
    if isinstance(activation, BatchTopK):
        sae.train()(torch.randn(200, 16))
    codes = feature_codes(model, sae, data)
    assert codes.is_sparse
    assert codes.shape == (int(data.mask.sum()), 32)
    alone = [sae.eval().encode(activations(model, row[None], ["blocks.0"])["blocks.0"][0]) for row in data.idx]
    expected = torch.stack(alone)[data.mask]
    torch.testing.assert_close(codes.to_dense(), expected.detach(), atol=1e-5, rtol=1e-5)


def test_a_dictionary_of_another_site_or_width_is_refused():
    tokenizer = load_tokenizer("stories-4k")
    model = build_model(TINY["lstm"].replace(vocab_size=tokenizer.n_vocab))
    data = storyworld_concepts(labelled_stories(2, seed=2), tokenizer, 12)
    with pytest.raises(ValueError, match=r"the dictionary reads width 5, but the lstm model has 16 at 'rnn.h.0'"):
        feature_codes(model, neuron_basis(torch.zeros(5), 2, "rnn.h.0"), data)
    with pytest.raises(ValueError, match=r"has no site 'blocks.0'"):
        feature_codes(model, neuron_basis(torch.zeros(16), 2, "blocks.0"), data)


def test_shapes_that_do_not_fit_and_a_single_story_are_refused(case):
    z, labels, groups = case
    with pytest.raises(ValueError, match=r"z \(600, 9\), labels \(600, 4\), groups \(600,\) and 3 names do not fit"):
        concept_scores(z, labels, groups, NAMES[:3])
    with pytest.raises(ValueError, match=r"groups \(599,\)"):
        feature_concepts(z, labels, groups[1:], NAMES)
    with pytest.raises(ValueError, match="there are 1 stories"):
        concept_scores(z, labels, torch.zeros(M), NAMES)
