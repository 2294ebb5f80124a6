import numpy as np
import pytest
import torch

from picollm_core.interpret.concepts import ConceptData, concept_data, storyworld_concepts
from picollm_core.interpret.probes import (
    METRICS,
    PROBE_COLUMNS,
    auroc,
    control_labels,
    fit_probes,
    probe_metrics,
    probe_study,
)
from picollm_core.models import LanguageModel, build_model
from picollm_core.storyworld.stories import labelled_stories
from picollm_core.tokenizers import load_tokenizer
from tests.conftest import TINY

TOKENIZER = load_tokenizer("stories-4k")
T = 96
DATA = storyworld_concepts(labelled_stories(40, seed=4), TOKENIZER, T).pick(["pronoun:female", "quote:inside"])


def model_of(kind: str, seed: int = 3) -> LanguageModel:
    torch.manual_seed(seed)
    return build_model(TINY[kind].replace(vocab_size=TOKENIZER.n_vocab, block_size=T, n_embd=64))


def test_probes_minimise_the_cross_entropy_plus_the_penalty():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=generator, dtype=torch.float64) * torch.tensor([1, 9, 0.1, 1, 1, 1]) + 3
    labels = (x @ torch.randn(6, 2, generator=generator, dtype=torch.float64) > 1) ^ (torch.rand(300, 2) < 0.1)
    probes = fit_probes(x, labels, l2=0.02)
    weight, bias = probes.weight.clone().requires_grad_(), probes.bias.clone().requires_grad_()
    p = torch.sigmoid((x - x.mean(0)) / x.std(0, correction=0) @ weight + bias)
    loss = -torch.where(labels, p, 1 - p).log().mean(0).sum() + 0.01 * (weight**2).sum()
    loss.backward()
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 2e-4  # the problem is convex: no slope, no better
    assert weight.abs().max() > 0.1


def test_probes_read_what_is_linear_and_ignore_a_coordinate_that_never_varies():
    x = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    x[:, 4] = 0.1  # whose mean is not exactly 0.1
    labels = x[:, :2] @ torch.tensor([[1.0, 0.0], [2.0, -1.0]]) > 0.5
    probes = fit_probes(x[:200], labels[:200], l2=1e-4)
    assert probe_metrics(probes.logits(x[200:]), labels[200:], labels.float().mean(0))["accuracy"].min() > 0.95
    moved = x[200:].clone()
    moved[:, 4] = -50.0
    assert torch.equal(probes.logits(moved), probes.logits(x[200:]))


def test_auroc_counts_pairs_with_ties_as_a_half():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randint(0, 5, (60, 3), generator=generator), torch.rand(60, 3, generator=generator) < 0.3
    for k, value in enumerate(auroc(scores.float(), labels).tolist()):
        yes, no = scores[labels[:, k], k].tolist(), scores[~labels[:, k], k].tolist()
        pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in yes for b in no]
        assert value == pytest.approx(np.mean(pairs))
    assert torch.isnan(auroc(torch.zeros(4, 1), torch.zeros(4, 1, dtype=torch.bool))).all()


def test_metrics_of_a_hand_made_case():
    logits = torch.tensor([[2.0], [-1.0], [-3.0], [1.0], [-2.0]])
    labels = torch.tensor([[True], [True], [False], [False], [False]])
    found = probe_metrics(logits, labels, torch.tensor([0.2]))  # logit of 0.2 is -1.39
    assert found["accuracy"].item() == pytest.approx(3 / 5)
    assert found["f1"].item() == pytest.approx(2 * 1 / (2 + 2))
    assert found["balanced_accuracy"].item() == pytest.approx((1 + 2 / 3) / 2)
    assert found["auroc"].item() == pytest.approx(5 / 6)


def test_a_probe_on_shuffled_labels_is_at_chance():
    order = torch.randperm(int(DATA.mask.sum()), generator=torch.Generator().manual_seed(0))
    labels = torch.zeros_like(DATA.labels)
    labels[DATA.mask] = DATA.flat_labels[order]
    shuffled = ConceptData(DATA.idx, DATA.mask, labels, DATA.names)
    table = probe_study(model_of("transformer"), ["hidden"], shuffled, untrained=False)
    assert (table[["auroc", "balanced_accuracy"]] - 0.5).abs().to_numpy().max() < 0.06


@pytest.mark.parametrize("kind", ["kgram-learned", "lstm", "transformer"])
def test_a_word_is_read_off_its_own_vector_in_every_family_and_better_than_random_labels(kind):
    model = model_of(kind)
    site = "input" if kind.startswith("kgram") else "embedding"
    table = probe_study(model, [site, "hidden"], DATA, max_tokens=3000)
    assert tuple(table.columns) == PROBE_COLUMNS
    places = table[["site", "weights", "concept"]].values.tolist()
    names = [[site, DATA.names], ["hidden", DATA.names]]
    assert places == [[s, w, c] for w in ("trained", "untrained") for s, own in names for c in own]
    row = table.iloc[0]
    assert row["concept"] == "pronoun:female"
    assert row["auroc"] > 0.95
    assert row["selectivity"] == pytest.approx(row["balanced_accuracy"] - row["control_balanced_accuracy"])
    assert 0 < row["base_rate"] < 0.1
    assert table[list(METRICS)].to_numpy().max() <= 1


def test_stories_that_train_are_not_scored():
    """Each story is one word of its own: whoever has seen a story's other tokens knows its label."""
    ids = [i for i in range(300, 4000) if len(TOKENIZER.decode([i]).strip()) > 3 and TOKENIZER.decode([i])[0] == " "]
    chosen = torch.rand(60, generator=torch.Generator().manual_seed(1)) < 0.5
    texts = [TOKENIZER.decode([i]) * 12 for i in ids[:60]]
    spans = [{"chosen": [(0, len(text))] if yes else []} for text, yes in zip(texts, chosen.tolist(), strict=True)]
    data = concept_data(zip(texts, spans, strict=True), ["chosen"], TOKENIZER, 13)
    table = probe_study(model_of("transformer"), ["embedding"], data, untrained=False)
    assert table["auroc"].item() < 0.85


def test_control_labels_are_a_function_of_the_token_with_the_concepts_base_rate():
    tokens, labels = DATA.idx[DATA.mask], DATA.flat_labels
    control = control_labels(tokens, labels, seed=0)
    for i in tokens.unique():
        assert (control[tokens == i] == control[tokens == i][0]).all()
    torch.testing.assert_close(control.float().mean(0), labels.float().mean(0), atol=0.002, rtol=0)
    assert not torch.equal(control, control_labels(tokens, labels, seed=1))
    assert torch.equal(control, control_labels(tokens, labels, seed=0))
    assert not torch.equal(control[:, 0], labels[:, 0])


def test_the_untrained_model_is_fresh_and_leaves_torchs_generator_alone():
    model = model_of("lstm")
    with torch.no_grad():
        model.embedding.weight.zero_()  # nothing can be read off this one
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    table = probe_study(model, ["embedding"], DATA.pick(["pronoun:female"]), max_tokens=3000).set_index("weights")
    assert torch.equal(torch.rand(1), expected)
    assert table.loc["trained", "auroc"] == 0.5
    assert table.loc["untrained", "auroc"] > 0.9


def test_the_same_seed_gives_the_same_study_and_another_seed_another():
    model, one = model_of("lstm"), DATA.pick(["quote:inside"])
    first, again, other = (
        probe_study(model, ["hidden"], one, untrained=False, max_tokens=800, seed=seed) for seed in (0, 0, 1)
    )
    assert first.equals(again)
    assert not first.equals(other)


def test_concepts_that_do_not_occur_are_left_out():
    labels = DATA.labels.clone()
    labels[..., 1] = False
    table = probe_study(model_of("lstm"), ["hidden"], ConceptData(DATA.idx, DATA.mask, labels, DATA.names),
                        untrained=False, max_tokens=2000)  # fmt: skip
    assert table["concept"].tolist() == ["pronoun:female"]


def test_bad_input_is_named():
    model = model_of("lstm")
    with pytest.raises(ValueError, match=r"an? lstm model has no site 'blocks.0'"):
        probe_study(model, ["blocks.0"], DATA)
    with pytest.raises(ValueError, match="there are 0 sites"):
        probe_study(model, [], DATA)
    with pytest.raises(ValueError, match="max_tokens is 1"):
        probe_study(model, ["hidden"], DATA, max_tokens=1)
    with pytest.raises(ValueError, match=r"x \(3, 2\) and labels \(4, 1\) do not fit"):
        fit_probes(torch.zeros(3, 2), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="l2 is 0"):
        fit_probes(torch.zeros(3, 2), torch.zeros(3, 1), l2=0)
