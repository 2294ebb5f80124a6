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


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "relu2": squared_relu,
}


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
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (normed * self.weight).to(x.dtype)


def build_norm(kind: str, width: int) -> nn.Module:
    """RMSNorm ("rms") or LayerNorm without bias ("layer"), eps 1e-5."""
    return RMSNorm(width) if kind == "rms" else nn.LayerNorm(width, eps=1e-5, bias=False)


class MLP(nn.Module):
    """Position-wise feed-forward layer, (..., C) -> (..., C).

    Two layers of hidden width 4C; for "swiglu" (Shazeer 2020, arXiv 2002.05202, eq. 6) a gated pair of hidden width
    8C/3, which keeps the parameter count of the plain form.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.n_embd
        self.gated = config.activation == "swiglu"
        hidden = 8 * width // 3 if self.gated else 4 * width
        self.activation = ACTIVATIONS["silu" if self.gated else config.activation]
        self.fc = nn.Linear(width, 2 * hidden if self.gated else hidden, bias=False)
        self.proj = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)  # (..., hidden), or (..., 2 hidden) when gated
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            x = self.activation(gate) * x
        else:
            x = self.activation(x)
        return self.dropout(self.proj(x))


def head_std(width: int) -> float:
    """Standard deviation of output weights that keeps the initial loss within 0.05 nats of ln V.

    For hidden states of unit scale the logits have standard deviation std * sqrt(width), and half their variance is
    the excess of the expected loss over ln V; 0.2 keeps it at 0.02 nats. GPT-2's 0.02 is the upper bound.
    """
    return min(0.02, 0.2 / math.sqrt(width))
