"""Building blocks shared by the families: activations, RMSNorm, MLPs, initialisation rules."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from picollm_core.config import TransformerConfig


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, Primer, arXiv 2109.08668)."""
    return F.relu(x).square()


def clamped_swiglu(gate: Tensor, x: Tensor) -> Tensor:
    """gate * sigmoid(1.702 gate) * (x + 1), gate at most 7 and x within 7 of 0 (gpt-oss, arXiv 2508.10925)."""
    gate, x = gate.clamp(max=7.0), x.clamp(-7.0, 7.0)
    return gate * torch.sigmoid(1.702 * gate) * (x + 1)


def swiglu(gate: Tensor, x: Tensor) -> Tensor:
    """silu(gate) * x (Shazeer 2020, arXiv 2002.05202, eq. 6)."""
    return F.silu(gate) * x


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in the tanh approximation that GPT-2 was trained with (Hendrycks & Gimpel 2016, section 2)."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
    "silu": F.silu,
    "relu2": squared_relu,
}
GATED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"swiglu": swiglu, "swiglu_clamped": clamped_swiglu}


class RMSNorm(nn.Module):
    """x / RMS(x) * weight with RMS(x) = sqrt(mean(x^2) + eps) over the last axis (Zhang & Sennrich 2019, eq. 4).

    Takes and returns (..., C). The statistics are computed in float32 whatever the input's type.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        normed = F.rms_norm(wide, wide.shape[-1:], eps=self.eps)
        return (normed * self.weight).to(x.dtype)


def build_norm(config: TransformerConfig) -> nn.Module:
    """A norm of the residual stream: RMSNorm, or LayerNorm with or without bias."""
    if config.norm_kind == "rms":
        return RMSNorm(config.n_embd, config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


_LARGE, _BROAD = 2**17, 128  # weights, and inputs, from which on slices read a matrix faster than torch's own product


def row_product(x: Tensor, weight: Tensor, parts: int) -> Tensor:
    """x W^T for one row x (1, n_in) and a weight (n_out, n_in), computed in `parts` at once; returns (1, n_out).

    A matrix times one vector runs on a single thread on most processors, and there at a third of the speed of memory;
    a batch of products, each with a slice of the weight, does not.
    """
    n_out, n_in = weight.shape
    parts = min(parts, n_out)
    whole = n_out // parts * parts
    slices = weight[:whole].unflatten(0, (parts, -1))  # (parts, n_out / parts, n_in), a view
    y = torch.bmm(slices, x.T.expand(parts, n_in, 1)).view(1, whole)
    return y if whole == n_out else torch.cat([y, F.linear(x, weight[whole:])], dim=1)


class Linear(nn.Linear):
    """torch's linear layer, with a product of its own for the single row that generation asks for token by token."""

    def forward(self, x: Tensor) -> Tensor:
        single = x.numel() == self.in_features >= _BROAD and self.weight.numel() >= _LARGE
        if not single or x.device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        y = row_product(x.reshape(1, -1), self.weight, max(2, torch.get_num_threads()))
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], self.out_features)


def linear(n_in: int, n_out: int, bias: bool) -> nn.Linear:
    """A linear layer whose bias, where it has one, starts at zero."""
    layer = Linear(n_in, n_out, bias=bias)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def mlp_widths(config: TransformerConfig) -> tuple[int, int]:
    """Outputs of the first layer of an MLP and inputs of its second: (hidden, hidden), or (2 hidden, hidden) if gated.

    A gated pair of hidden width 8C/3 has the parameter count of a plain MLP of 4C.
    """
    gated = config.activation in GATED
    hidden = config.mlp_width or (8 * config.n_embd // 3 if gated else 4 * config.n_embd)
    return (2 * hidden if gated else hidden), hidden


def activate(x: Tensor, activation: str) -> Tensor:
    """(..., hidden), or the two halves of (..., 2 hidden) where `activation` is gated, to (..., hidden)."""
    if activation in GATED:
        return GATED[activation](*x.chunk(2, dim=-1))
    return ACTIVATIONS[activation](x)


class MLP(nn.Module):
    """Position-wise feed-forward layer of two matrices, (..., C) -> (..., C)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        outer, inner = mlp_widths(config)
        self.activation = config.activation
        self.fc = linear(config.n_embd, outer, config.bias)
        self.proj = linear(inner, config.n_embd, config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.proj(activate(self.fc(x), self.activation)))


def head_std(width: int) -> float:
    """Standard deviation of output weights that keeps the initial loss within 0.05 nats of ln V.

    For hidden states of unit scale the logits have standard deviation std * sqrt(width), and half their variance is
    the excess of the expected loss over ln V; 0.2 keeps it at 0.02 nats. GPT-2's 0.02 is the upper bound.
    """
    return min(0.02, 0.2 / math.sqrt(width))
