"""The parts of a prediction add up to it, and each is what the model computes without the others."""

import pytest
import torch

from picollm_core.config import TransformerConfig
from picollm_core.interpret.attribution import direct_attribution, neuron_attribution
from picollm_core.interpret.hooks import activations, head_outputs
from picollm_core.models import build_model
from tests.conftest import TINY, VOCAB

TRANSFORMERS = {name: config for name, config in TINY.items() if isinstance(config, TransformerConfig)}
_SMALL = {"vocab_size": VOCAB, "block_size": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}
VARIANTS = {
    f"{norm}-{norm_kind}{'-bias' if bias else ''}-{'tied' if tied else 'untied'}": TransformerConfig(
        **_SMALL, norm=norm, norm_kind=norm_kind, bias=bias, tied=tied, position=position
    )
    for norm, position in (("pre", "absolute"), ("post", "rope"), ("sandwich", "sinusoidal"))
    for norm_kind in ("rms", "layer")
    for bias in (False, True)
    for tied in (False, True)
}
ALL = TRANSFORMERS | VARIANTS


def model_of(config, dtype=torch.float64):
    """A model whose every parameter, norms and biases too, is far from its start and from zero."""
    torch.manual_seed(0)
    model = build_model(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.3)
        elif not name.endswith(("A_log", "dt_bias")):
            torch.nn.init.normal_(parameter, mean=0.2, std=0.5)
    return model.to(dtype).eval()


def ids(batch=2, time=9) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, time), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ALL)
def test_shares_sum_to_the_logits_for_every_kind_of_transformer(name):
    model = model_of(ALL[name])
    for position in (-1, 3):
        found = direct_attribution(model, ids(), position)
        expected = model(ids())[:, position]
        torch.testing.assert_close(found.contributions().sum(0), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.logits(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["transformer", "transformer-gpt-oss", "transformer-alibi-sandwich", "post-layer-tied"]
)
def test_in_float32_they_sum_to_the_logits_to_1e_5(name):
    model = model_of(ALL[name], torch.float32)
    found = direct_attribution(model, ids()).logits().float()
    torch.testing.assert_close(found, model(ids())[:, -1], rtol=1e-5, atol=1e-5)


def test_parts_are_named_in_the_order_in_which_they_add():
    layers = [f"layer {layer} {part}" for layer in (1, 2) for part in ("head 1", "head 2", "MLP")]
    assert direct_attribution(model_of(VARIANTS["pre-rms-tied"]), ids()).names == ("embedding", "position", *layers)
    with_bias = direct_attribution(model_of(VARIANTS["post-layer-bias-untied"]), ids()).names
    assert with_bias == ("embedding", *layers, "biases")  # rope adds nothing to the embedding
    names = direct_attribution(model_of(TRANSFORMERS["transformer-gpt-oss"]), ids()).names
    assert "layer 2 experts" in names
    assert "layer 2 head 4" in names


def test_a_head_s_share_is_what_the_head_direction_sees_of_what_it_adds():
    model = model_of(TRANSFORMERS["transformer-rope-gqa"])  # pre-norm, untied, four heads
    found = direct_attribution(model, ids())
    seen = activations(model, ids(), [head_outputs(1), "norm:in"])
    head = slice(8, 12)  # the third of four, each of width 4
    added = seen[head_outputs(1)][:, -1, head] @ model.blocks[1].attention.proj.weight[:, head].T
    rms = (seen["norm:in"][:, -1].square().mean(-1, keepdim=True) + model.norm.eps).sqrt()
    expected = added / rms * model.norm.weight @ model.head.weight.T
    torch.testing.assert_close(found.contributions()[found.names.index("layer 2 head 3")], expected, rtol=1e-12, atol=0)


def test_chosen_tokens_are_columns_of_all_and_centring_moves_no_probability():
    found = direct_attribution(model_of(VARIANTS["pre-rms-tied"]), ids())
    everything = found.contributions()
    assert everything.shape == (len(found.names), 2, VOCAB)
    assert found.hidden.shape == (8, 2, 16)
    torch.testing.assert_close(found.contributions([5, 0]), everything[..., [5, 0]], rtol=1e-12, atol=1e-12)
    centred = found.contributions(centred=True)
    torch.testing.assert_close(centred.mean(-1), torch.zeros(8, 2, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(centred.sum(0).softmax(-1), found.logits().softmax(-1), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.contributions([5], centred=True), centred[..., [5]], rtol=1e-12, atol=1e-12)


def test_looking_leaves_no_trace_and_ignores_dropout():
    torch.manual_seed(0)
    model = build_model(TRANSFORMERS["transformer"].replace(dropout=0.5)).train()
    first = direct_attribution(model, ids())
    assert torch.equal(first.hidden, direct_attribution(model, ids()).hidden)
    assert not first.hidden.requires_grad
    assert model.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["lstm", "lstm-tied", "kgram-learned", "transformer"])
def test_neurons_times_their_columns_sum_to_the_logits_in_every_family(family):
    model = model_of(TINY[family])
    found = neuron_attribution(model, ids(), 4)
    assert found.names[::15] == ("neuron 1", "neuron 16")
    torch.testing.assert_close(found.logits(), model(ids())[:, 4], rtol=1e-12, atol=1e-12)
    hidden = model.hidden(ids())[0][:, 4]
    expected = hidden[:, 2, None] * model.head.weight[:, 2]
    torch.testing.assert_close(found.contributions()[2], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["lstm", "kgram-onehot"])
def test_a_family_without_a_residual_stream_is_refused_with_the_way_out(family):
    with pytest.raises(ValueError, match=rf"a {family.split('-')[0]} model has no residual stream.*neuron_attribution"):
        direct_attribution(build_model(TINY[family]), ids())


def test_positions_shapes_and_tokens_that_are_not_there_are_refused():
    model = model_of(TRANSFORMERS["transformer"])
    for attribute in (direct_attribution, neuron_attribution):
        with pytest.raises(ValueError, match="position is 9, but the ids have 9"):
            attribute(model, ids(), 9)
        with pytest.raises(ValueError, match="position is -10"):
            attribute(model, ids(), -10)
        with pytest.raises(ValueError, match=r"\(B, T\)"):
            attribute(model, ids()[0])
    with pytest.raises(ValueError, match="token 61 is outside the vocabulary of 61"):
        direct_attribution(model, ids()).contributions([61])
