"""Taking a part away does exactly that, is measured on real tokens only, and is undone afterwards."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from picollm_core.config import TransformerConfig
from picollm_core.interpret.ablation import ablation_effect, head_ablation, head_edits, site_ablation, site_means
from picollm_core.interpret.hooks import activations, head_outputs, hooked
from picollm_core.models import build_model
from tests.conftest import TINY, VOCAB

TRANSFORMERS = [name for name, config in TINY.items() if isinstance(config, TransformerConfig)]


def model_of(name: str):
    """A tiny model in which every part matters."""
    torch.manual_seed(0)
    model = build_model(TINY[name])
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def ids(batch=3, time=9, seed=0) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, time), generator=torch.Generator().manual_seed(seed))


def losses(model, idx) -> torch.Tensor:
    """Loss (B, T - 1) of every token but the first."""
    logits = model(idx)[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten(), reduction="none").view(len(idx), -1).detach()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_head_set_to_zero_is_a_head_whose_columns_of_the_projection_are_zero(name):
    model = model_of(name)
    table = head_ablation(model, ids(), kinds=["zero"])
    config = TINY[name]
    heads = [[layer, head] for layer in range(1, config.n_layer + 1) for head in range(1, config.n_head + 1)]
    assert table[["layer", "head"]].to_numpy().tolist() == heads
    assert (table.effect.abs() > 1e-9).all()
    clean = losses(model, ids()).mean().item()
    assert table.nll_clean.tolist() == pytest.approx([clean] * len(table), rel=1e-12)
    for row in table.itertuples():
        weight = model.blocks[row.layer - 1].attention.proj.weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.unflatten(1, (config.n_head, -1))[:, row.head - 1] = 0
        assert row.nll == pytest.approx(losses(model, ids()).mean().item(), rel=1e-12)
        with torch.no_grad():
            weight.copy_(kept)
        assert row.effect == pytest.approx(row.nll - clean, abs=1e-12)


def test_the_mean_of_a_head_is_that_of_real_tokens_over_rows_and_positions():
    model, idx = model_of("transformer"), ids(4)
    mask = torch.ones_like(idx, dtype=torch.bool)
    mask[:, 0], mask[2, 5:] = False, False
    table = head_ablation(model, idx, mask, kinds=["mean"])
    outputs = activations(model, idx, [head_outputs(1)])[head_outputs(1)]
    mean = torch.stack([outputs[b, t] for b in range(4) for t in range(9) if mask[b, t]]).mean(0)

    def second_head(x):
        return torch.cat([x[..., :8], mean[8:].expand_as(x[..., 8:])], dim=-1)

    with hooked(model, edit={head_outputs(1): second_head}):
        expected = losses(model, idx)[mask[:, 1:]].mean().item()
    found = table[(table["layer"] == 2) & (table["head"] == 2)].iloc[0]
    assert found.nll == pytest.approx(expected, rel=1e-12)


def test_means_may_come_from_other_texts_and_both_kinds_are_in_one_table():
    model, idx, other = model_of("transformer"), ids(), ids(seed=5)
    table = head_ablation(model, idx, reference=other)
    assert table.kind.tolist() == ["zero"] * 4 + ["mean"] * 4
    site = head_outputs(0)
    means = {site: activations(model, other, [site])[site].mean((0, 1))}
    torch.testing.assert_close(site_means(model, [site], other)[site], means[site], rtol=1e-12, atol=1e-12)
    effect = ablation_effect(model, idx, head_edits(model, [(1, 2)], means))
    own = table[(table.kind == "mean") & (table["layer"] == 1) & (table["head"] == 2)].iloc[0]
    assert own.effect == pytest.approx(effect["effect"], rel=1e-10)
    assert own.effect != pytest.approx(head_ablation(model, idx, kinds=["mean"]).effect[1], rel=1e-6)


def test_several_heads_are_taken_away_together():
    model = model_of("transformer")
    everything = ablation_effect(model, ids(), head_edits(model, [(2, 1), (2, 2)]))
    whole = site_ablation(model, ids(), ["blocks.1.attention"], "zero").iloc[0]
    assert everything["effect"] == pytest.approx(whole.effect, rel=1e-12)
    both_layers = head_edits(model, [(1, 1), (2, 2)])
    assert list(both_layers) == [head_outputs(0), head_outputs(1)]


def test_an_effect_is_over_all_scored_tokens_and_its_error_over_rows():
    model, idx = model_of("transformer"), ids(5)
    mask = torch.ones_like(idx, dtype=torch.bool)
    mask[1, 3:], mask[4, 7:] = False, False
    edit = {"blocks.0.mlp": torch.zeros_like}
    found = ablation_effect(model, idx, edit, mask)
    clean = losses(model, idx)
    with hooked(model, edit=edit):
        change = (losses(model, idx) - clean) * mask[:, 1:]
    counts = mask[:, 1:].sum(1).double()
    assert found["nll_clean"] == pytest.approx(clean[mask[:, 1:]].mean().item(), rel=1e-12)
    assert found["effect"] == pytest.approx((change.sum() / counts.sum()).item(), rel=1e-12)
    residual = [(change[b].sum() - found["effect"] * counts[b]).item() for b in range(5)]
    expected = math.sqrt(5 / 4 * sum(r * r for r in residual)) / counts.sum().item()
    assert found["standard_error"] == pytest.approx(expected, rel=1e-10)


def test_with_rows_of_one_length_the_error_is_that_of_a_mean_of_paired_differences():
    model, edit = model_of("lstm"), {"rnn.h.0": torch.zeros_like}
    found = ablation_effect(model, ids(6), edit)
    clean = losses(model, ids(6)).mean(1)
    with hooked(model, edit=edit):
        change = losses(model, ids(6)).mean(1) - clean
    assert found["standard_error"] == pytest.approx((change.std() / math.sqrt(6)).item(), rel=1e-10)
    assert math.isnan(ablation_effect(model, ids(1), edit)["standard_error"])


def test_tokens_that_are_not_scored_have_no_say():
    model, idx = model_of("transformer"), ids(3)
    mask = torch.ones_like(idx, dtype=torch.bool)
    mask[:, 6:] = False
    other = idx.clone()
    other[:, 6:] = 7
    assert head_ablation(model, idx, mask).equals(head_ablation(model, other, mask))


def test_more_rows_than_fit_at_once_are_the_same_as_all_together(monkeypatch):
    model, idx = model_of("transformer"), ids(7)
    mask = torch.rand(7, 9, generator=torch.Generator().manual_seed(1)) < 0.7
    whole = head_ablation(model, idx, mask)
    monkeypatch.setattr("picollm_core.interpret.ablation._ROWS", 3)
    parts = head_ablation(model, idx, mask)
    for name in ("nll_clean", "nll", "effect", "standard_error"):
        assert parts[name].tolist() == pytest.approx(whole[name].tolist(), rel=1e-10)


@pytest.mark.parametrize(
    ("name", "sites"),
    {
        "transformer": ["embedding", "blocks.0.mlp", "blocks.1", "positions", "hidden"],
        "transformer-gpt-oss": ["blocks.0.mlp", "blocks.1.mlp.router"],
        "lstm": ["rnn.h.0", "rnn.c.1", "rnn", "hidden"],
        "kgram-onehot": ["input", "layers.0:in", "hidden"],
    }.items(),
)
def test_any_site_of_any_family_can_be_taken_away(name, sites):
    model = model_of(name)
    for kind in ("zero", "mean"):
        table = site_ablation(model, ids(), sites, kind)
        assert table.site.tolist() == sites
        assert set(table.kind) == {kind}
        for row in table.itertuples():
            seen = activations(model, ids(), [row.site])[row.site]
            value = torch.zeros_like(seen[0, 0] if seen.ndim == 3 else seen[0])
            if kind == "mean":
                value = seen.flatten(0, -2).mean(0)
            with hooked(model, edit={row.site: partial(lambda x, v: v.expand_as(x).clone(), v=value)}):
                expected = losses(model, ids()).mean().item()
            assert row.nll == pytest.approx(expected, rel=1e-10)
            assert row.effect == pytest.approx(expected - losses(model, ids()).mean().item(), abs=1e-12)


def test_without_what_the_head_reads_every_token_is_equally_likely():
    found = site_ablation(model_of("kgram-learned"), ids(), ["hidden"], "zero").iloc[0]
    assert found.nll == pytest.approx(math.log(VOCAB), rel=1e-12)


@pytest.mark.parametrize("name", ["transformer", "lstm", "kgram-learned"])
def test_afterwards_the_model_is_as_it_was(name):
    model = model_of(name).train()
    before = losses(model.eval(), ids())
    model.train()
    sites = ["hidden", *(["rnn.c.0"] if name == "lstm" else [])]
    site_ablation(model, ids(), sites)
    if name == "transformer":
        head_ablation(model, ids())
    with pytest.raises(ValueError, match="outside the vocabulary"):
        site_ablation(model, ids() + VOCAB, sites)
    assert model.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert torch.equal(losses(model.eval(), ids()), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bad_input_is_refused_with_the_way_out():
    model = model_of("transformer")
    with pytest.raises(ValueError, match="a lstm model has no attention"):
        head_ablation(model_of("lstm"), ids())
    with pytest.raises(ValueError, match="kind is 'noise'; choose zero or mean"):
        head_ablation(model, ids(), kinds=["noise"])
    with pytest.raises(ValueError, match="kind is 'noise'; choose zero or mean"):
        site_ablation(model, ids(), ["hidden"], "noise")
    with pytest.raises(ValueError, match="no layer 3, head 1; there are 2 of 2 heads"):
        head_edits(model, [(3, 1)])
    with pytest.raises(ValueError, match=r"no layer 0, head 1"):
        head_edits(model, [(0, 1)])
    with pytest.raises(ValueError, match=r"has no site 'blocks\.9'"):
        site_ablation(model, ids(), ["blocks.9"])
    with pytest.raises(ValueError, match="token ids pass at 'input:in'"):
        site_ablation(model_of("kgram-onehot"), ids(), ["input:in"])
    with pytest.raises(ValueError, match=r"give \(3, 9\) of torch.bool"):
        head_ablation(model, ids(), torch.ones(3, 9))
    only_first = torch.arange(9).expand(3, 9) == 0
    with pytest.raises(ValueError, match="leaves no target"):
        head_ablation(model, ids(), only_first)
    with pytest.raises(ValueError, match="T at least 2"):
        head_ablation(model, ids()[:, :1])
