"""Building blocks: RMSNorm as torch's, the MLPs as their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm_core.config import TransformerConfig
from picollm_core.models.layers import (
    ACTIVATIONS,
    MLP,
    Linear,
    RMSNorm,
    activate,
    build_norm,
    head_std,
    row_product,
)

C = 24


def norms(dtype) -> tuple[RMSNorm, torch.nn.RMSNorm, torch.Tensor]:
    """Ours and torch's with the same gain, and an input."""
    generator = torch.Generator().manual_seed(0)
    ours, torch_s = RMSNorm(C), torch.nn.RMSNorm(C, eps=1e-5)
    with torch.no_grad():
        for module in (ours, torch_s):
            module.weight.copy_(torch.randn(C, generator=generator.manual_seed(1)))
    x = torch.randn(5, 7, C, generator=generator)
    return ours.to(dtype), torch_s.to(dtype), x.to(dtype).requires_grad_()


def test_squared_relu_is_the_square_of_what_is_positive():
    x = torch.tensor([-2.0, 0.0, 0.5, 3.0])
    assert torch.equal(ACTIVATIONS["relu2"](x), torch.tensor([0.0, 0.0, 0.25, 9.0]))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2**-8)], ids=str
)
def test_rmsnorm_and_its_gradients_equal_torch_s(dtype, tolerance):
    ours, torch_s, x = norms(dtype)
    result, expected = ours(x), torch_s(x)
    assert result.dtype == dtype
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)
    direction = torch.randn(x.shape).to(dtype)
    wanted = torch.autograd.grad((expected * direction).sum(), (x, torch_s.weight))
    for a, b in zip(torch.autograd.grad((result * direction).sum(), (x, ours.weight)), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=4 * tolerance, atol=4 * tolerance * b.abs().max().item())


def test_rmsnorm_of_bfloat16_has_statistics_in_float32():
    ours, torch_s, x = norms(torch.bfloat16)
    assert torch.equal(ours(x), torch_s(x))
    large = torch.full((1, C), 6e4, dtype=torch.float16)  # its square overflows float16
    assert torch.equal(RMSNorm(C).half()(large), torch.ones_like(large))


def test_rmsnorm_is_its_formula_and_keeps_zeros_finite():
    x = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    expected = x / math.sqrt((9 + 16) / 2 + 1e-5)
    torch.testing.assert_close(RMSNorm(2).double()(x), expected, rtol=1e-14, atol=0)
    assert torch.equal(RMSNorm(2)(torch.zeros(1, 2)), torch.zeros(1, 2))


def test_layernorm_has_a_gain_and_no_bias():
    norm = build_norm(TransformerConfig(n_embd=C, norm_kind="layer"))
    assert [name for name, _ in norm.named_parameters()] == ["weight"]
    x = torch.randn(4, C)
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected)
    assert isinstance(build_norm(TransformerConfig(n_embd=C)), RMSNorm)


def mlp(activation: str, **changes) -> MLP:
    torch.manual_seed(0)
    return MLP(TransformerConfig(n_embd=C, activation=activation, **changes)).double()


@pytest.mark.parametrize(("name", "function"), [("gelu", F.gelu), ("relu", F.relu), ("silu", F.silu)])
def test_plain_mlp_is_two_matrices_around_an_activation(name, function):
    module = mlp(name)
    x = torch.randn(3, 5, C, dtype=torch.float64)
    assert module.fc.weight.shape == (4 * C, C)
    expected = function(x @ module.fc.weight.T) @ module.proj.weight.T
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_swiglu_is_its_formula():
    """Equation 6 of arXiv 2002.05202: (swish(x W) * (x V)) W2, with W and V stacked in one matrix."""
    module = mlp("swiglu")
    x = torch.randn(3, 5, C, dtype=torch.float64)
    gate, up = module.fc.weight.chunk(2)
    expected = ((x @ gate.T) * torch.sigmoid(x @ gate.T) * (x @ up.T)) @ module.proj.weight.T
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [24, 64, 384, 1000])
def test_swiglu_has_the_parameters_of_the_plain_form_up_to_the_rounding_of_a_third(width):
    counts = {}
    for activation in ("gelu", "swiglu"):
        with torch.device("meta"):
            module = MLP(TransformerConfig(n_embd=width, activation=activation))
        counts[activation] = sum(p.numel() for p in module.parameters())
    assert counts["gelu"] == 8 * width * width
    assert counts["swiglu"] == 3 * width * (8 * width // 3)
    assert 0 <= counts["gelu"] - counts["swiglu"] < 3 * width


def test_mlp_has_no_biases_and_drops_in_training_only():
    module = mlp("gelu", dropout=0.5)
    assert {p.ndim for p in module.parameters()} == {2}
    x = torch.randn(3, C, dtype=torch.float64)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize("width", [1, 32, 100, 256, 4096])
def test_head_scale_costs_at_most_two_hundredths_of_a_nat_at_unit_hidden_scale(width):
    assert head_std(width) <= 0.02
    assert head_std(width) ** 2 * width / 2 <= 0.02 + 1e-12
    assert head_std(32) == 0.02


def test_clamped_swiglu_is_the_formula_of_gpt_oss():
    gate = torch.tensor([-9.0, -1.0, 0.5, 9.0], dtype=torch.float64)
    x = torch.tensor([9.0, -9.0, 0.3, 2.0], dtype=torch.float64)
    expected = [g * (1 / (1 + math.exp(-1.702 * g))) * (y + 1) for g, y in ((-9, 7), (-1, -7), (0.5, 0.3), (7, 2))]
    torch.testing.assert_close(activate(torch.cat([gate, x]), "swiglu_clamped"), torch.tensor(expected).double())


def test_tanh_gelu_is_gpt_2_s_approximation():
    x = torch.linspace(-4, 4, 9, dtype=torch.float64)
    written = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    torch.testing.assert_close(ACTIVATIONS["gelu_tanh"](x), written)
    assert 0 < (written - ACTIVATIONS["gelu"](x)).abs().max() < 1e-3


@pytest.mark.parametrize(("activation", "shapes"), [("gelu", ((7, C), (C, 7))), ("swiglu", ((14, C), (C, 7)))])
def test_a_given_hidden_width_is_that_of_what_the_second_layer_reads(activation, shapes):
    mlp = MLP(TransformerConfig(n_embd=C, activation=activation, mlp_width=7, bias=True))
    assert (mlp.fc.weight.shape, mlp.proj.weight.shape) == shapes
    assert not mlp.fc.bias.any()
    assert not mlp.proj.bias.any()


def norm(**changes) -> torch.nn.Module:
    return build_norm(TransformerConfig(n_embd=4, **changes))


def test_layer_norm_has_a_bias_where_asked_and_rms_norm_never():
    assert norm(norm_kind="layer", bias=True).bias is not None
    assert norm(norm_kind="layer").bias is None
    assert not hasattr(norm(bias=True), "bias")


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_add_the_configured_epsilon_to_the_variance(kind):
    x = torch.tensor([1e-3, -1e-3, 1e-3, -1e-3])
    assert norm(norm_kind=kind, norm_eps=1e-12)(x).abs().mean().item() == pytest.approx(1, rel=1e-4)
    assert norm(norm_kind=kind, norm_eps=1e-6)(x).abs().mean().item() == pytest.approx(0.5**0.5, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_one_row_s_product_in_parts_is_the_product(n_in, n_out, parts, transposed):
    generator = torch.Generator().manual_seed(n_in * 1000 + n_out)
    x = torch.randn(1, n_in, generator=generator, dtype=torch.float64)
    weight = torch.randn(n_out, n_in, generator=generator, dtype=torch.float64)
    weight = weight.T.contiguous().T if transposed else weight
    torch.testing.assert_close(row_product(x, weight, parts), x @ weight.T, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("bias", [False, True])
def test_a_large_linear_layer_gives_one_row_what_it_gives_that_row_among_others(bias):
    torch.manual_seed(0)
    layer = Linear(513, 8200, bias=bias)
    rows = torch.randn(2, 3, 513)
    with torch.no_grad():
        together = layer(rows)
        alone = layer(rows[1:, 2:])
    assert alone.shape == (1, 1, 8200)
    torch.testing.assert_close(alone[0, 0], together[1, 2], rtol=1e-5, atol=1e-5)


def test_a_single_row_that_is_trained_on_has_gradients():
    layer = Linear(512, 8192, bias=False)
    layer(torch.ones(1, 512)).sum().backward()
    torch.testing.assert_close(layer.weight.grad, torch.ones(8192, 512))
