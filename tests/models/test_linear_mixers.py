"""The layers around the linear attention kernels: gates, convolution, norms, state, resets, implicit maps."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from picollm_core.config import TrainConfig, TransformerConfig
from picollm_core.models import build_model
from picollm_core.models.linear_attention import gated_delta_rule, positive_features
from picollm_core.models.linear_mixers import (
    CausalConvolution,
    GatedDeltaNet,
    GatedLinearAttention,
    LinearAttention,
    LinearMixer,
    LowRankGate,
    retention_decays,
)
from picollm_core.models.positions import Place
from picollm_core.optim import build_optimizers

C, H, T = 16, 2, 23
SHAPE = {"vocab_size": 61, "block_size": 32, "n_embd": C, "n_head": H, "position": "none", "chunk_size": 8}


def config(**changes) -> TransformerConfig:
    return TransformerConfig(**{**SHAPE, **changes})


def build(kind: str) -> LinearMixer:
    """A mixer in float64 with weights large enough that everything matters."""
    torch.manual_seed(0)
    layers = {
        "linear": lambda: LinearAttention(config(), normalised=True),
        "plain": lambda: LinearAttention(config(bias=True), normalised=False),
        **{f"gla-{g}": lambda g=g: GatedLinearAttention(config(gate=g)) for g in ("none", "fixed", "scalar", "vector")},
        "delta": lambda: GatedDeltaNet(config()),
        "delta-negative": lambda: GatedDeltaNet(config(negative_eigenvalues=True, expand_k=1.0, expand_v=2.0)),
    }
    return layers[kind]().double()


KINDS = ("linear", "plain", "gla-none", "gla-fixed", "gla-scalar", "gla-vector", "delta", "delta-negative")
every_kind = pytest.mark.parametrize("kind", KINDS)


def inputs(batch: int = 2, length: int = T) -> Tensor:
    return torch.randn(batch, length, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def at(resets: Tensor | None) -> Place:
    return Place(0, None, resets)


def some_resets() -> Tensor:
    """In one row at 0, 6, 7 and 15, in the other at 9."""
    resets = torch.zeros(2, T, dtype=torch.bool)
    resets[0, [0, 6, 7, 15]] = True
    resets[1, 9] = True
    return resets


@every_kind
@pytest.mark.parametrize("cuts", [[1], [T - 1], [5, 6, 7], list(range(1, T))], ids=str)
def test_any_split_with_carried_state_and_resets_gives_the_same(kind, cuts):
    mixer, x, resets = build(kind), inputs(), some_resets()
    whole, final = mixer(x, mixer.empty_state(2), at(resets))
    state, pieces = mixer.empty_state(2), []
    for start, end in pairwise([0, *cuts, T]):
        y, state = mixer(x[:, start:end], state, at(resets[:, start:end]))
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-12, atol=1e-12)
    for found, expected in zip(state, final, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@every_kind
def test_stories_in_one_window_with_resets_equal_the_stories_alone(kind):
    mixer, x, resets = build(kind), inputs(), some_resets()
    y, _ = mixer(x, mixer.empty_state(2), at(resets))
    for row, starts in ((0, [0, 6, 7, 15, T]), (1, [0, 9, T])):
        for start, end in pairwise(starts):
            alone, _ = mixer(x[row : row + 1, start:end], mixer.empty_state(1), None)
            torch.testing.assert_close(y[row : row + 1, start:end], alone, rtol=1e-12, atol=1e-12)


@every_kind
def test_without_resets_the_past_matters(kind):
    mixer, x = build(kind), inputs()
    y, _ = mixer(x, mixer.empty_state(2), None)
    later, _ = mixer(x[:, 5:], mixer.empty_state(2), at(None))
    assert (y[:, 5:] - later).abs().amax() > 1e-4


@every_kind
def test_the_implicit_map_times_the_values_is_what_the_layer_reads(kind):
    mixer, x, resets = build(kind), inputs(), some_resets()
    place, state = at(resets), mixer.empty_state(2)
    (_, _, v, *_), _ = mixer.inputs(x, state.tail, resets)
    pattern = mixer.pattern(x, place)
    assert pattern.shape == (2, H, T, T)
    assert (pattern.triu(1) == 0).all()
    read = mixer.read((pattern @ v).transpose(1, 2), x)
    torch.testing.assert_close(mixer.proj(read), mixer(x, state, place)[0], rtol=1e-11, atol=1e-11)


def test_the_normalised_map_has_positive_rows_that_sum_to_one():
    pattern = build("linear").pattern(inputs(), None)
    torch.testing.assert_close(pattern.sum(dim=-1), torch.ones(2, H, T, dtype=torch.float64))
    assert (pattern.tril() + torch.ones(T, T).triu(1) > 0).all()


@every_kind
def test_gradients_reach_every_parameter_and_exactly_the_past(kind):
    mixer = build(kind)
    x = inputs().requires_grad_()
    y, _ = mixer(x, mixer.empty_state(2), None)
    gradient = torch.autograd.grad(y[1, 12].square().sum(), x, retain_graph=True)[0].abs().sum(dim=-1)
    reached = torch.zeros(2, T, dtype=torch.bool)
    reached[1, :13] = True
    assert torch.equal(gradient > 0, reached)
    y.square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@every_kind
def test_a_state_can_be_continued_twice(kind):
    mixer, x = build(kind), inputs()
    _, state = mixer(x[:, :9], mixer.empty_state(2), None)
    copies = [None if part is None else part.clone() for part in state]
    first, _ = mixer(x[:, 9:], state, None)
    mixer(x[:, :1], state, None)
    again, _ = mixer(x[:, 9:], state, None)
    assert torch.equal(first, again)
    for part, copy in zip(state, copies, strict=True):
        assert part is copy is None or torch.equal(part, copy)


def test_the_normalised_layer_is_the_papers():
    mixer, x = build("linear"), inputs()
    q, k, v = mixer.split(mixer.qkv(x))
    weights = (positive_features(q) @ positive_features(k).mT).tril()  # (B, H, T, T)
    o = weights @ v / weights.sum(dim=-1, keepdim=True)
    expected = mixer.proj(o.transpose(1, 2).flatten(-2))
    torch.testing.assert_close(mixer(x, mixer.empty_state(2), None)[0], expected, rtol=1e-11, atol=1e-11)


def test_gated_layers_norm_each_head_and_multiply_by_the_swish_of_their_gate():
    mixer, x = build("gla-none"), inputs()
    q, k, v = mixer.split(mixer.qkv(x))
    o = ((q @ k.mT).tril() @ v / math.sqrt(q.size(-1))).transpose(1, 2)  # (B, T, H, Dv)
    normed = o / (o.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    gate = mixer.readout.gate(x)
    expected = mixer.proj(normed.flatten(-2) * gate * gate.sigmoid())
    torch.testing.assert_close(mixer(x, mixer.empty_state(2), None)[0], expected, rtol=1e-11, atol=1e-11)


def test_the_delta_layer_is_the_papers():
    mixer, x = build("delta-negative"), inputs()
    projected = F.pad(mixer.qkv(x).mT, (3, 0))  # (B, W, 3 + T)
    convolved = F.silu(F.conv1d(projected, mixer.convolution.weight, groups=projected.size(1))).mT
    q, k, v = mixer.split(convolved)
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    beta = 2 * mixer.strength(x).sigmoid().transpose(1, 2)
    g = (-mixer.A_log.exp() * torch.log1p((mixer.step(x) + mixer.dt_bias).exp())).transpose(1, 2)
    o, _ = gated_delta_rule(q, k, v, g, beta, form="recurrent")
    expected = mixer.proj(mixer.readout(o.transpose(1, 2), x))
    torch.testing.assert_close(mixer(x, mixer.empty_state(2), None)[0], expected, rtol=1e-11, atol=1e-11)


def test_a_convolution_sees_three_tokens_back_and_none_across_a_reset():
    convolution = CausalConvolution(5).double()
    x = inputs(1, 8)[..., :5].requires_grad_()
    tail = torch.ones(1, 3, 5, dtype=torch.float64, requires_grad=True)
    resets = torch.zeros(1, 8, dtype=torch.bool)
    resets[0, 4] = True
    y, after = convolution(x, tail, resets)
    for position, first in ((0, 0), (3, 0), (4, 4), (5, 4), (7, 4)):
        reached = torch.autograd.grad(y[0, position].sum(), x, retain_graph=True)[0][0].abs().sum(dim=-1) > 0
        assert reached.nonzero().flatten().tolist() == list(range(max(first, position - 3), position + 1))
    assert (torch.autograd.grad(y[0, 2].sum(), tail, retain_graph=True)[0][0].abs().sum(dim=-1) > 0).tolist() == [
        False,
        False,
        True,
    ]
    assert torch.equal(after[0], x[0, 5:])
    _, after = convolution(x[:, :5], tail, resets[:, :5])
    assert torch.equal(after[0], torch.cat([torch.zeros(2, 5), x[0, 4:5]]))


def in_a_model(**changes) -> LinearMixer:
    """The mixer of a model's first block, as the model initialises it."""
    torch.manual_seed(0)
    return build_model(config(n_embd=128, n_head=4, **changes)).blocks[0].attention


def test_a_memory_of_gla_halves_in_about_16_tokens_at_initialisation():
    """sigmoid(0)^(1/16) = 0.958 a token, and not sigmoid(0 / 16) = 0.5: for normed inputs, after the model's init."""
    for gate in ("vector", "scalar"):
        mixer = in_a_model(mixers=("gla",), gate=gate)
        assert mixer.decay is not None
        decays = mixer.decay(torch.randn(4, 64, 128)).exp()
        assert decays.shape[-1] == (64 if gate == "vector" else 4)
        assert decays.mean().item() == pytest.approx(0.5 ** (1 / 16), abs=1e-3)
        assert decays.std() < 0.01


def test_low_rank_gates_never_amplify():
    gate = LowRankGate(8, 3)
    g = gate(1e4 * torch.randn(100, 8))
    assert (g <= 0).all()
    assert g.min() < -10


def test_fixed_gates_are_retnets():
    torch.testing.assert_close(retention_decays(3).exp(), torch.tensor([1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128]))
    assert not [name for name, _ in build("gla-fixed").named_parameters() if "decay" in name]
    assert "log_decays" not in build("gla-fixed").state_dict()


def test_gated_deltanet_starts_with_the_papers_decays():
    torch.manual_seed(0)
    mixer = GatedDeltaNet(config(n_embd=1_000, n_head=1_000, expand_k=1.0))
    rate, dt = mixer.A_log.exp(), F.softplus(mixer.dt_bias)
    assert 0 < rate.min() < 0.1
    assert 15.9 < rate.max() <= 16
    assert rate.mean().item() == pytest.approx(8, abs=0.5)
    assert dt.min().item() == pytest.approx(1e-3, rel=0.05)
    assert dt.max().item() == pytest.approx(0.1, rel=0.05)
    assert dt.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.1)


def test_the_models_initialisation_leaves_what_the_layer_chose_and_the_outputs_small():
    mixer = in_a_model(mixers=("delta",))
    assert isinstance(mixer, GatedDeltaNet)
    assert (F.softplus(mixer.dt_bias) >= 0.9e-3).all()
    assert mixer.convolution.weight.std().item() == pytest.approx(1 / math.sqrt(12), rel=0.1)  # of U(-0.5, 0.5)
    for kind in ("linear", "plain", "gla", "delta"):
        mixer = in_a_model(mixers=(kind,), bias=True)
        y, _ = mixer(torch.randn(2, 64, 128), mixer.empty_state(2), None)
        assert 1e-4 < y.std() < 0.5
        assert all(
            (p == 0).all() for name, p in mixer.named_parameters() if name.endswith("bias") and name != "dt_bias"
        )


def test_gate_vectors_of_delta_layers_have_no_weight_decay():
    model = build_model(config(mixers=("delta",)))
    (optimizer,) = build_optimizers(model, TrainConfig(optimizer="adamw", learning_rate=1e-3, weight_decay=0.1))
    free = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    mixer = model.blocks[0].attention
    assert {id(mixer.A_log), id(mixer.dt_bias)} <= free
    assert id(mixer.qkv.weight) not in free


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("linear", 0),
        ("gla-none", C * C + 8),
        ("gla-fixed", C * C + 8),
        ("gla-scalar", C * C + 8 + 16 * C + 16 * H + H),
        ("gla-vector", C * C + 8 + 16 * C + 16 * 8 + 8),
        ("delta", C * C + 8 + 4 * 2 * C + 2 * C * H + 2 * H),
    ],
)
def test_layers_have_exactly_the_parameters_they_say(kind, extra):
    """q and k of half the width, v and proj of the whole: 3 C^2; then output gate and norm, gates, convolution."""
    assert sum(p.numel() for p in build(kind).parameters()) == 3 * C * C + extra


@every_kind
def test_layers_run_in_bfloat16_autocast_close_to_float32(kind):
    mixer, x = build(kind).float(), inputs().float()
    exact, _ = mixer(x, mixer.empty_state(2), at(some_resets()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer(x, mixer.empty_state(2), at(some_resets()))
        token, _ = mixer(x[:, :1], state, at(some_resets()[:, :1]))
    assert token.isfinite().all()
    assert (y - exact).norm() < 0.03 * exact.norm()
    assert state.memory.dtype == torch.float32


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    mixer, x = GatedLinearAttention(config(dropout=0.5)).double(), inputs()
    dropped = (mixer(x, mixer.empty_state(2), None)[0] == 0).double().mean().item()
    assert dropped == pytest.approx(0.5, abs=0.1)
    assert (mixer.eval()(x, mixer.empty_state(2), None)[0] != 0).all()
