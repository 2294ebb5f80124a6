import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from picollm_core.config import SamplingConfig
from picollm_core.interpret.baselines import neuron_basis
from picollm_core.interpret.concepts import ConceptData, concept_data, storyworld_concepts
from picollm_core.interpret.hooks import activations, hooked
from picollm_core.interpret.sae import SparseAutoencoder
from picollm_core.interpret.sparsity import BatchTopK, TopK
from picollm_core.interpret.steering import (
    ABLATION_COLUMNS,
    ablate_feature,
    ablation_effects,
    concept_tokens,
    never_falls,
    steer,
    steered_text,
    steering_curve,
)
from picollm_core.models import LanguageModel, build_model
from picollm_core.sampling import generate
from picollm_core.storyworld.stories import labelled_stories
from picollm_core.tokenizers import load_tokenizer
from tests.conftest import TINY

TOKENIZER = load_tokenizer("stories-4k")
T, C = 48, 16
NAMES = ["pronoun:female", "sentence:end", "hero:female"]
DATA = storyworld_concepts(labelled_stories(12, seed=7), TOKENIZER, T).pick(NAMES)
SHE = torch.tensor(TOKENIZER.encode_ordinary(" she her"))


def model_of(kind: str = "transformer") -> LanguageModel:
    torch.manual_seed(1)
    model = build_model(TINY[kind].replace(vocab_size=TOKENIZER.n_vocab, block_size=T)).eval()
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(2))  # far from even predictions
    return model


def autoencoder(site: str, first: Tensor | None = None, k: int = 3) -> SparseAutoencoder:
    """Untrained, so it explains little of what passes; feature 0 can be given a direction."""
    sae = SparseAutoencoder(C, 12, TopK(k), site, torch.Generator().manual_seed(0)).eval()
    if first is not None:
        with torch.no_grad():
            sae.W_dec[0] = F.normalize(first, dim=0)
            sae.W_enc[:, 0] = sae.W_dec[0]
    sae.scale.fill_(2.0)
    return sae


def towards_she(model: LanguageModel) -> Tensor:
    weight = model.head.weight.detach()
    return weight[SHE].mean(0) - weight.mean(0)


def test_ablation_takes_away_the_features_share_and_nothing_where_it_is_silent():
    sae, x = autoencoder("hidden"), torch.randn(5, 7, C, generator=torch.Generator().manual_seed(3))
    z = sae.encode(x).detach()
    left = ablate_feature(sae, 2)(x)
    silent = z[..., 2] == 0
    assert 0 < silent.sum() < silent.numel()
    assert torch.equal(left[silent], x[silent])
    torch.testing.assert_close(x - left, z[..., 2:3] * sae.W_dec[2].detach() / 2.0)


def test_steering_adds_the_direction_in_the_models_units_everywhere():
    sae, x = autoencoder("hidden"), torch.randn(2, 3, C)
    torch.testing.assert_close(steer(sae, 4, 3.0)(x) - x, (1.5 * sae.W_dec[4]).detach().expand(2, 3, C))
    assert torch.equal(steer(sae, 4, 0.0)(x), x)
    basis = neuron_basis(torch.zeros(C), 3)
    assert (steer(basis, 5, -2.0)(x) - x)[..., 5] == pytest.approx(torch.full((2, 3), -2.0).numpy(), abs=1e-6)


def test_taking_away_a_feature_that_never_fires_leaves_every_logit_as_it_was():
    """The autoencoder is a bad one: were its reconstruction put in, all logits would change."""
    model, sae = model_of(), autoencoder("blocks.0")
    with torch.no_grad():
        sae.b_enc[3] = -1e6
    expected = model(DATA.idx)
    with hooked(model, edit={"blocks.0": ablate_feature(sae, 3)}):
        assert torch.equal(model(DATA.idx), expected)
    with hooked(model, edit={"blocks.0": sae}):
        assert not torch.allclose(model(DATA.idx), expected, atol=1e-2)


def test_characteristic_tokens_belong_to_the_concept_often_enough():
    text = "a b a b a c c c"
    spans = {"x": [(0, 1), (4, 5), (10, 11)], "y": [(2, 3), (6, 7)]}
    data = concept_data([(text, spans)], ["x", "y"], TOKENIZER, 12)
    ids = TOKENIZER.encode_ordinary(text)

    def pick(**options):
        return {name: set(found.tolist()) for name, found in concept_tokens(data, **options).items()}

    assert pick(min_share=0.5, min_count=1) == {"x": {ids[0], ids[2]}, "y": {ids[1]}}  # "a" alone, " a" twice
    assert pick(min_share=0.3, min_count=2) == {"x": {ids[2], ids[5]}, "y": {ids[1]}}
    assert pick(min_share=0.3, min_count=3) == {"x": {ids[5]}, "y": set()}


def obvious_effect(model: LanguageModel, sae: SparseAutoencoder, feature: int, data: ConceptData, k: int) -> dict:
    """One story and one target at a time."""
    tokens = concept_tokens(data)[data.names[k]]
    inside, outside, masses, changes = [], [], [], []
    for row, real, labels in zip(data.idx, data.mask, data.labels, strict=True):
        x = activations(model, row[None], [sae.site])[sae.site]
        without = x - sae.encode(x)[..., feature, None] * sae.directions[feature]
        clean = model(row[None])[0].log_softmax(-1)
        with hooked(model, edit={sae.site: lambda _, new=without: new}):
            ablated = model(row[None])[0].log_softmax(-1)
        for t in range(1, data.idx.size(1)):
            if real[t]:
                change = (clean[t - 1, row[t]] - ablated[t - 1, row[t]]).item()
                (inside if labels[t, k] else outside).append(change)
                if labels[t, k]:
                    before, after = (p[t - 1, tokens].exp().sum().item() for p in (clean, ablated))
                    masses.append(before)
                    changes.append(after - before)
    values = {"targets": len(inside), "inside": np.mean(inside), "outside": np.mean(outside)}
    return values | {"mass": np.mean(masses), "mass_change": np.mean(changes)}


@pytest.mark.parametrize(("kind", "site"), [("transformer", "blocks.0"), ("lstm", "rnn"), ("kgram-learned", "hidden")])
def test_the_effect_of_ablation_is_what_going_through_every_target_gives(kind, site):
    model, sae = model_of(kind), autoencoder(site, k=6)
    table = ablation_effects(model, sae, [1, 5], DATA).set_index(["feature", "concept"])
    for feature in (1, 5):
        for k, name in enumerate(NAMES[:2]):
            row = table.loc[(feature, name)]
            truth = obvious_effect(model, sae, feature, DATA, k)
            assert {column: row[column] for column in truth} == pytest.approx(truth, abs=2e-5)
            assert row["difference"] == pytest.approx(truth["inside"] - truth["outside"], abs=4e-5)
            for column in ("inside", "outside", "difference", "mass_change"):
                assert row[f"{column}_low"] <= row[column] <= row[f"{column}_high"]
    assert table["inside"].abs().max() > 1e-3


def test_a_feature_that_speaks_for_a_concept_moves_that_concept_and_not_another():
    model = model_of()
    sae = autoencoder("hidden", towards_she(model), k=12)
    with torch.no_grad():
        sae.b_enc[0] = 20.0  # fires everywhere, and what it says is "she"
    table = ablation_effects(model, sae, [0], DATA).set_index("concept")
    assert table.loc["pronoun:female", "difference_low"] > 1
    assert table.loc["sentence:end", "difference"] < 0.5 * table.loc["pronoun:female", "difference"]
    assert table.loc["pronoun:female", "mass_change_high"] < 0


def test_concepts_without_own_tokens_have_no_mass_and_those_without_targets_no_row():
    model, sae = model_of(), autoencoder("blocks.0")
    labels = torch.cat([DATA.labels, torch.zeros_like(DATA.labels[..., :1]), DATA.mask[..., None]], dim=-1)
    labels[0, 5, -2] = True  # in one story only
    data = ConceptData(DATA.idx, DATA.mask, labels, (*NAMES, "once", "always"))
    tokens = concept_tokens(DATA) | {"hero:female": torch.empty(0, dtype=torch.long)}
    table = ablation_effects(model, sae, [0], data, tokens=tokens).set_index("concept")
    assert tuple(table.reset_index()[list(ABLATION_COLUMNS)].columns) == ABLATION_COLUMNS
    assert table.index.tolist() == NAMES
    assert table.loc["hero:female", ["mass", "mass_change", "mass_change_low", "mass_change_high"]].isna().all()
    assert not table.loc["pronoun:female"].isna().any()


def test_an_autoencoder_left_in_training_mode_is_measured_in_evaluation_mode_and_left_as_it_was():
    model = model_of()
    sae = SparseAutoencoder(C, 12, BatchTopK(3), "blocks.0", torch.Generator().manual_seed(0)).train()
    sae(torch.randn(100, C))
    first = ablation_effects(model, sae, [1], DATA, n_bootstrap=2)
    assert sae.training
    assert first.equals(ablation_effects(model, sae.eval(), [1], DATA, n_bootstrap=2))


def test_turning_a_feature_up_makes_its_tokens_likelier_step_by_step():
    model = model_of()
    sae = autoencoder("hidden", towards_she(model))
    curve = steering_curve(model, sae, 0, SHE, [4, 0, -4, 8], DATA)
    assert curve["amount"].tolist() == [-4, 0, 4, 8]
    assert curve["monotone"].all()
    assert (curve["mass"].diff().dropna() > 0).all()
    assert ((curve["low"] <= curve["mass"]) & (curve["mass"] <= curve["high"])).all()
    probabilities = model(DATA.idx[:, :-1]).softmax(-1)[..., SHE].sum(-1)[DATA.mask[:, 1:]]
    assert curve.loc[1, "mass"] == pytest.approx(probabilities.mean().item(), rel=1e-4)


def test_a_feature_that_pushes_the_other_way_is_not_monotone():
    model = model_of()
    sae = autoencoder("hidden", -towards_she(model))
    assert not steering_curve(model, sae, 0, SHE, [0, 4, 8], DATA)["monotone"].any()


def test_never_falls_allows_the_tolerance_below_the_highest_so_far_and_asks_for_a_rise():
    assert never_falls([0.1, 0.2, 0.2, 0.3])
    assert never_falls([0.1, 0.3, 0.29995])
    assert not never_falls([0.1, 0.3, 0.2999, 0.29985, 0.2998])  # a slow slide is a fall
    assert not never_falls([0.3, 0.3])
    assert never_falls([0.1, 0.3, 0.25], tolerance=0.1)


@pytest.mark.parametrize(
    ("kind", "site"), [("transformer", "blocks.1"), ("lstm", "rnn.h.1"), ("kgram-learned", "hidden")]
)
def test_text_without_a_push_is_the_models_own_and_with_one_another(kind, site):
    model, sae = model_of(kind), autoencoder(site)
    plain = generate(model, TOKENIZER, "Once upon", max_new_tokens=12, seed=3)
    assert steered_text(model, TOKENIZER, sae, 1, 0.0, "Once upon", length=12, seed=3) == plain
    assert steered_text(model, TOKENIZER, sae, 1, 500.0, "Once upon", length=12, seed=3) != plain
    assert generate(model, TOKENIZER, "Once upon", max_new_tokens=12, seed=3) == plain


def test_a_strong_push_towards_a_word_makes_the_model_say_it():
    model = model_of()
    word = int(model.head.weight.norm(dim=-1).argmax())  # no other row is more alike to it than itself
    sae = autoencoder("hidden", model.head.weight.detach()[word])
    greedy = SamplingConfig(temperature=0.0)
    text = steered_text(model, TOKENIZER, sae, 0, 500.0, "Then", sampling=greedy, length=3)
    assert text == "Then" + TOKENIZER.decode([word] * 3)


def test_bad_input_is_named():
    model, sae = model_of(), autoencoder("blocks.0")
    for make in (ablate_feature, lambda d, f: steer(d, f, 1.0)):
        with pytest.raises(ValueError, match="feature is 12; this dictionary has the features 0 to 11"):
            make(sae, 12)
    with pytest.raises(ValueError, match="amount is nan"):
        steer(sae, 0, float("nan"))
    with pytest.raises(ValueError, match="min_share is 0"):
        concept_tokens(DATA, min_share=0)
    with pytest.raises(ValueError, match="at least 2 different"):
        steering_curve(model, sae, 0, SHE, [1, 1.0], DATA)
    with pytest.raises(ValueError, match="there are 0 tokens to watch"):
        steering_curve(model, sae, 0, SHE[:0], [0, 1], DATA)
    with pytest.raises(ValueError, match="beyond the vocabulary of 4096"):
        steering_curve(model, sae, 0, torch.tensor([4096]), [0, 1], DATA)
    other = SparseAutoencoder(5, 12, TopK(3), "blocks.0")
    for call in (
        lambda: ablation_effects(model, other, [0], DATA),
        lambda: steering_curve(model, other, 0, SHE, [0, 1], DATA),
        lambda: steered_text(model, TOKENIZER, other, 0, 1.0, "Then"),
    ):
        with pytest.raises(ValueError, match="the dictionary reads width 5, but the transformer model has 16"):
            call()
