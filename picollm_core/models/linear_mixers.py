"""Sequence mixers whose memory has a fixed size: linear attention, gated linear attention, Gated DeltaNet.

Each takes the place of softmax attention in a block. They know the order of tokens by their recurrence (and the delta
rule's convolution), so rotary angles do not reach them; learned and sinusoidal positions, added to the embeddings, do.
Symbols as in linear_attention; C is the width of the residual stream, Wk = H Dk and Wv = H Dv.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from picollm_core.config import TransformerConfig
from picollm_core.models.layers import RMSNorm, linear
from picollm_core.models.linear_attention import (
    DELTA_CHUNK,
    Form,
    gated_delta_rule,
    gated_linear_attention,
    linear_attention,
    positive_features,
)
from picollm_core.models.positions import Place

GATE_RANK = 16
GATE_TEMPERATURE = 16.0  # decay at initialisation sigmoid(0)^(1/16) = 0.958: half of a memory is left after 16 tokens
CONVOLUTION_WIDTH = 4
LEAST_RATE, GREATEST_RATE = 1e-4, 16.0  # of Gated DeltaNet's A; the paper's range begins at 0, whose logarithm is -inf
LEAST_STEP, GREATEST_STEP = 1e-3, 0.1  # of its dt


class LinearState(NamedTuple):
    """What is carried from token to token; no tensor of it is ever written to."""

    memory: Tensor
    """(B, H, Dk, Dv), or (B, H, Dk, Dv + 1) with the normaliser."""
    tail: Tensor | None = None
    """(B, 3, 2 Wk + Wv), the inputs of the convolution that later tokens still see."""


def _wide(x: Tensor) -> Tensor:
    """At least float32: gates and lengths are too delicate for half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class LinearMixer(nn.Module, ABC):
    """What all have in common: projections in and out, heads, state. Subclasses say what enters their kernel."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.chunk_size = config.chunk_size
        self.key_width = round(config.expand_k * config.n_embd) // config.n_head
        self.value_width = round(config.expand_v * config.n_embd) // config.n_head
        self.widths = [width * config.n_head for width in (self.key_width, self.key_width, self.value_width)]
        self.qkv = linear(config.n_embd, sum(self.widths), config.bias)
        self.proj = linear(self.widths[-1], config.n_embd, config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, H D) to (B, H, T, D)."""
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, 2 Wk + Wv) to queries and keys (B, H, T, Dk) and values (B, H, T, Dv)."""
        q, k, v = (self.heads(x) for x in qkv.split(self.widths, dim=-1))
        return q, k, v

    def empty_state(self, batch_size: int) -> LinearState:
        """The state before any token."""
        return LinearState(self.proj.weight.new_zeros(batch_size, self.n_head, self.key_width, self.value_width))

    def inputs(self, x: Tensor, tail: Tensor | None, resets: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Queries, keys, values and gates for the kernel, from x (B, T, C); and the convolution's next tail."""
        return self.split(self.qkv(x)), None

    @abstractmethod
    def kernel(self, *inputs: Tensor, form: Form, state: Tensor | None, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs (B, H, T, Dv) and the memory after them."""

    def read(self, o: Tensor, x: Tensor) -> Tensor:
        """Outputs (B, T, H, Dv) made ready for the projection, with the layer's input x (B, T, C) at hand."""
        return o.flatten(-2)

    def forward(self, x: Tensor, state: LinearState, place: Place | None) -> tuple[Tensor, LinearState]:
        """x (B, T, C) that follows `state`; `place.resets` empties it. Returns (B, T, C) and the state after it."""
        resets = None if place is None else place.resets
        inputs, tail = self.inputs(x, state.tail, resets)
        o, memory = self.kernel(*inputs, form="chunked", state=state.memory, resets=resets)
        y = self.read(o.transpose(1, 2).to(x.dtype), x)  # (B, T, Wv)
        return self.dropout(self.proj(y)), LinearState(memory, tail)

    def pattern(self, x: Tensor, place: Place | None) -> Tensor:
        """(B, H, T, T): the factor of token j's value in the output at token i, from an empty state, before norms.

        It is what the kernel makes of the identity for values. Rows sum to 1 only in the normalised form, and
        factors may be negative.
        """
        resets = None if place is None else place.resets
        (q, k, v, *gates), _ = self.inputs(x, self.empty_state(x.size(0)).tail, resets)
        identity = torch.eye(x.size(1), dtype=q.dtype, device=x.device).expand(*v.shape[:3], -1)
        return self.kernel(q, k, identity, *gates, form="quadratic", state=None, resets=resets)[0]


class LinearAttention(LinearMixer):
    """Linear attention without decay (Katharopoulos et al. 2020, arXiv 2006.16236).

    `normalised` is the paper's: features elu + 1, outputs divided by the sum of their weights. Without it, features
    are the projections themselves, and as sums then grow with the length, each head's output is brought to unit RMS
    (Qin et al. 2022, arXiv 2210.10340, section 4.2).
    """

    def __init__(self, config: TransformerConfig, normalised: bool) -> None:
        super().__init__(config)
        self.normalised = normalised

    def empty_state(self, batch_size: int) -> LinearState:
        memory = super().empty_state(batch_size).memory
        return LinearState(F.pad(memory, (0, 1)) if self.normalised else memory)

    def inputs(self, x: Tensor, tail: Tensor | None, resets: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor | None]:
        q, k, v = self.split(self.qkv(x))
        return ((positive_features(_wide(q)), positive_features(_wide(k)), v) if self.normalised else (q, k, v)), None

    def kernel(self, *inputs: Tensor, form: Form, state: Tensor | None, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = inputs
        return linear_attention(
            q, k, v, form=form, chunk_size=self.chunk_size, state=state, normalised=self.normalised, resets=resets
        )

    def read(self, o: Tensor, x: Tensor) -> Tensor:
        return (o if self.normalised else F.rms_norm(o, (self.value_width,))).flatten(-2)


class GatedReadout(nn.Module):
    """RMSNorm of every head's output, times swish of a gate from the layer's input (arXiv 2312.06635, section 4.4)."""

    def __init__(self, config: TransformerConfig, value_width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(value_width)
        self.gate = linear(config.n_embd, config.n_head * value_width, config.bias)

    def forward(self, o: Tensor, x: Tensor) -> Tensor:
        """o (B, T, H, Dv) and x (B, T, C) to (B, T, Wv)."""
        return self.norm(o).flatten(-2) * F.silu(self.gate(x))


def retention_decays(n_head: int) -> Tensor:
    """(H,) log decays of RetNet's heads, decay 1 - 2^(-5-h) for h = 0 .. H - 1 (arXiv 2307.08621, eq. 8)."""
    return torch.log1p(-(2.0 ** -(5 + torch.arange(n_head, dtype=torch.float64)))).float()


class LowRankGate(nn.Module):
    """Log decays logsigmoid(W2 W1 x + b) / 16 <= 0 from x (B, T, C), W1 to rank 16 (arXiv 2312.06635, section 4.4)."""

    def __init__(self, width: int, n_out: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, GATE_RANK, bias=False)
        self.up = linear(GATE_RANK, n_out, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, n_out)."""
        return F.logsigmoid(_wide(self.up(self.down(x)))) / GATE_TEMPERATURE


class GatedLinearAttention(LinearMixer):
    """GLA (Yang et al. 2024, arXiv 2312.06635). What decays the memory is `config.gate`.

    "vector" is the paper's, one decay a key channel and token; "scalar" one a head and token; "fixed" RetNet's
    constants; "none" nothing. The rest of the layer is the same for all.
    """

    log_decays: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.kind = config.gate
        self.decay: LowRankGate | None = None
        if self.kind in ("vector", "scalar"):
            self.decay = LowRankGate(config.n_embd, self.widths[0] if self.kind == "vector" else self.n_head)
        if self.kind == "fixed":
            self.register_buffer("log_decays", retention_decays(self.n_head), persistent=False)
        self.readout = GatedReadout(config, self.value_width)

    def inputs(self, x: Tensor, tail: Tensor | None, resets: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor | None]:
        q, k, v = self.split(self.qkv(x))
        if self.decay is not None:
            return (q, k, v, self.heads(self.decay(x))), None
        if self.kind == "fixed":
            return (q, k, v, self.log_decays.view(1, -1, 1, 1).expand(*q.shape[:3], 1)), None
        return (q, k, v), None

    def kernel(self, *inputs: Tensor, form: Form, state: Tensor | None, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v, *gates = inputs
        if not gates:
            return linear_attention(q, k, v, form=form, chunk_size=self.chunk_size, state=state, resets=resets)
        return gated_linear_attention(
            q, k, v, gates[0], form=form, chunk_size=self.chunk_size, state=state, resets=resets
        )

    def read(self, o: Tensor, x: Tensor) -> Tensor:
        return self.readout(o, x)


class CausalConvolution(nn.Module):
    """Depthwise convolution over a token and the three before it, then SiLU; resets hide what came before them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # as nn.Conv1d holds and initialises it: three axes, so that the initialisation of matrices leaves it alone
        self.weight = nn.Parameter(torch.empty(channels, 1, CONVOLUTION_WIDTH))
        nn.init.uniform_(self.weight, -(CONVOLUTION_WIDTH**-0.5), CONVOLUTION_WIDTH**-0.5)

    def forward(self, x: Tensor, tail: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, W) after `tail` (B, 3, W): the result (B, T, W) and the next tail."""
        before, length = tail.size(1), x.size(1)
        x = torch.cat([tail.to(x.dtype), x], dim=1)  # (B, 3 + T, W)
        piece = None if resets is None else F.pad(resets.cumsum(dim=1), (before, 0)).unsqueeze(-1)  # (B, 3 + T, 1)
        y = x[:, before:] * self.weight[:, 0, before]
        for tap in range(before):
            term = x[:, tap : tap + length] * self.weight[:, 0, tap]
            y = y + (term if piece is None else term * (piece[:, tap : tap + length] == piece[:, before:]))
        last = x[:, length:]
        return F.silu(y), last if piece is None else last * (piece[:, length:] == piece[:, -1:])


class GatedDeltaNet(LinearMixer):
    """Gated DeltaNet (Yang et al. 2025, arXiv 2412.06464, section 3.4).

    q, k and v pass a short convolution; q and k have unit length. Write strength beta = sigmoid, or twice that with
    `config.negative_eigenvalues`, which lets a memory change its sign, so that parity can be learned (arXiv
    2411.12537). Log decay g = -exp(A_log) softplus(a x + dt_bias), with A_log and dt_bias, as vectors, outside weight
    decay.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.convolution = CausalConvolution(sum(self.widths))
        self.strength = linear(config.n_embd, self.n_head, config.bias)
        self.greatest_strength = 2.0 if config.negative_eigenvalues else 1.0
        self.step = nn.Linear(config.n_embd, self.n_head, bias=False)
        self.A_log = nn.Parameter(torch.empty(self.n_head).uniform_(LEAST_RATE, GREATEST_RATE).log())
        dt = torch.empty(self.n_head).uniform_(math.log(LEAST_STEP), math.log(GREATEST_STEP)).exp()
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus(dt_bias) = dt
        self.readout = GatedReadout(config, self.value_width)

    def empty_state(self, batch_size: int) -> LinearState:
        memory = super().empty_state(batch_size).memory
        return LinearState(memory, memory.new_zeros(batch_size, CONVOLUTION_WIDTH - 1, sum(self.widths)))

    def inputs(self, x: Tensor, tail: Tensor | None, resets: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor | None]:
        assert tail is not None, "the state of Gated DeltaNet has a tail"
        convolved, tail = self.convolution(self.qkv(x), tail, resets)
        q, k, v = self.split(convolved)
        q, k = (F.normalize(_wide(part), dim=-1, eps=1e-6) for part in (q, k))
        beta = self.greatest_strength * _wide(self.strength(x)).sigmoid()  # (B, T, H)
        g = -_wide(self.A_log).exp() * F.softplus(_wide(self.step(x)) + _wide(self.dt_bias))  # (B, T, H)
        return (q, k, v, g.transpose(1, 2), beta.transpose(1, 2)), tail

    def kernel(self, *inputs: Tensor, form: Form, state: Tensor | None, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v, g, beta = inputs
        chunk = min(self.chunk_size, DELTA_CHUNK)
        return gated_delta_rule(q, k, v, g, beta, form=form, chunk_size=chunk, state=state, resets=resets)

    def read(self, o: Tensor, x: Tensor) -> Tensor:
        return self.readout(o, x)
