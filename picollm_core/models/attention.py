"""Causal softmax attention with a key/value cache, and its written-out truth.

B batch, H query heads, Hkv key/value heads (dividing H), T time, D head width.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from picollm_core.config import TransformerConfig
from picollm_core.models.kv_cache import KVCache
from picollm_core.models.layers import linear
from picollm_core.models.positions import Place, alibi_slopes, rotate


def causal_mask(n_query: int, n_key: int, device: torch.device, window: int | None = None) -> Tensor:
    """Boolean (n_query, n_key), true where a query may look; the queries are the last n_query of n_key positions.

    With a `window` a query sees that many keys, its own included.
    """
    mask = torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril(n_key - n_query)
    return mask if window is None else mask.triu(n_key - n_query - window + 1)


def distances(n_query: int, n_key: int, device: torch.device) -> Tensor:
    """(n_query, n_key) how many positions a key lies before the query; negative for later keys."""
    place = torch.arange(n_key, device=device)
    return place[n_key - n_query :, None] - place


_SHORT = 512  # keys; from about 1,000 on the fused kernel is faster in bfloat16 as well


class Scoring(NamedTuple):
    """What a layer of attention adds to the plain product of queries and keys."""

    window: int | None = None
    slopes: Tensor | None = None  # (H,) of ALiBi
    sinks: Tensor | None = None  # (H,) logits of the place that holds nothing
    softcap: float | None = None


PLAIN = Scoring()


def attention_weights(q: Tensor, k: Tensor, scoring: Scoring = PLAIN) -> Tensor:
    """Causal softmax weights (B, H, Tq, Tk) of queries q (B, H, Tq, D) on keys k (B, Hkv, Tk, D).

    Every row sums to 1, or to less by what a sink takes, and hidden keys have exactly 0 (Vaswani et al. 2017, eq. 1).
    Logits are soft-capped (Gemma 2, arXiv 2408.00118), then lowered with distance (ALiBi), then masked; a sink
    (gpt-oss, arXiv 2508.10925) adds exp(sink) to the denominator.
    """
    k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)
    logits = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, Tq, Tk)
    if scoring.softcap is not None:
        logits = scoring.softcap * torch.tanh(logits / scoring.softcap)
    n_query, n_key = logits.shape[-2:]
    if scoring.slopes is not None:
        logits = logits - scoring.slopes.to(logits)[:, None, None] * distances(n_query, n_key, q.device)
    logits = logits.masked_fill(~causal_mask(n_query, n_key, q.device, scoring.window), -math.inf)
    if scoring.sinks is None:
        return logits.softmax(dim=-1)
    sink = scoring.sinks.to(logits)[:, None, None].expand(*logits.shape[:-1], 1)
    return torch.cat([logits, sink], dim=-1).softmax(dim=-1)[..., :-1]


def reference_attention(q: Tensor, k: Tensor, v: Tensor, scoring: Scoring = PLAIN) -> Tensor:
    """Causal softmax attention as the formula has it (Vaswani et al. 2017, eq. 1); the truth for the fast path.

    q is (B, H, Tq, D); k and v are (B, Hkv, Tk, D); returns (B, H, Tq, D).
    """
    return attention_weights(q, k, scoring) @ v.repeat_interleave(q.size(1) // v.size(1), dim=1)


def _mask(q: Tensor, n_key: int, scoring: Scoring) -> Tensor | None:
    """What F.scaled_dot_product_attention needs beyond its own causal rule, or None."""
    n_query, window = q.size(-2), scoring.window
    narrow = window is not None and window < n_key
    if scoring.slopes is None and scoring.sinks is None and not narrow and n_query in (1, n_key):
        return None
    mask = causal_mask(n_query, n_key, q.device, window)
    if scoring.slopes is not None:
        slopes = scoring.slopes.to(q)[:, None, None]
        mask = (-slopes * distances(n_query, n_key, q.device)).masked_fill(~mask, -math.inf)  # (H, Tq, Tk)
    if scoring.sinks is None:
        return mask
    seen = torch.zeros_like(mask[..., :1]) if mask.is_floating_point() else torch.ones_like(mask[..., :1])
    return torch.cat([seen, mask], dim=-1)


def _short_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scale: float) -> Tensor:
    """softmax(q k^T scale, masked) v with weights (B, H, T, T) in the type of q.

    On a processor three matrix products in bfloat16 train short windows two to seven times faster than the fused
    kernel, which computes in float32.
    """
    if mask is None:
        mask = causal_mask(q.size(-2), k.size(-2), q.device)
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
    groups = q.size(1) // k.size(1)
    k, v = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (k, v))
    weights = ((q * scale) @ k.transpose(-2, -1) + mask.to(q)).softmax(dim=-1)  # (B, H, T, T)
    return F.dropout(weights, dropout) @ v


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, scoring: Scoring = PLAIN) -> Tensor:
    """The same through F.scaled_dot_product_attention, with dropout on the weights.

    A sink is one more key in front, all zeros but for a 1 in an extra coordinate, where the queries hold the sink's
    logit; its value is zero. A soft cap has no fast kernel and is computed as written; so are short windows that train
    in bfloat16 on a processor.
    """
    width = q.size(-1)
    if scoring.softcap is not None:
        weights = F.dropout(attention_weights(q, k, scoring), dropout)
        return weights @ v.repeat_interleave(q.size(1) // v.size(1), dim=1)
    mask = _mask(q, k.size(-2), scoring)
    if scoring.sinks is not None:
        finite = torch.finfo(q.dtype).min / (2 * math.sqrt(width))  # -inf times the other keys' 0 would be NaN
        sink = scoring.sinks.to(q).clamp(min=finite)[:, None, None] * math.sqrt(width)
        q = torch.cat([q, sink.expand(*q.shape[:-1], 1)], dim=-1)  # (B, H, Tq, D + 1)
        k, v = F.pad(k, (0, 1, 1, 0)), F.pad(v, (0, 1, 1, 0))  # (B, Hkv, 1 + Tk, D + 1)
        k[:, :, 0, -1] = 1.0
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") and q.device.type == "cpu" else None
    if low is not None and q.requires_grad and q.size(-2) > 1 and k.size(-2) <= _SHORT:
        y = _short_attention(q.to(low), k.to(low), v.to(low), mask, dropout, width**-0.5)
        return y[..., :width]
    y = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and q.size(-2) == k.size(-2),
        scale=width**-0.5,
        enable_gqa=q.size(1) != k.size(1),
    )
    return y[..., :width]


class CausalSelfAttention(nn.Module):
    """Multi-head attention; with n_kv_head < n_head groups of heads share keys and values (arXiv 2305.13245).

    A layer of kind "window" sees config.window keys (Child et al. 2019, arXiv 1904.10509; Mistral, arXiv 2310.06825).
    """

    def __init__(self, config: TransformerConfig, mixer: str = "softmax") -> None:
        super().__init__()
        self.n_head = config.n_head
        self.n_kv_head = config.n_kv_head or config.n_head
        self.head_width = config.head_width or config.n_embd // config.n_head
        width = self.n_head * self.head_width
        self.qkv = linear(config.n_embd, width + 2 * self.n_kv_head * self.head_width, config.bias)
        self.proj = linear(width, config.n_embd, config.bias)
        self.window = config.window if mixer == "window" else None
        self.softcap = config.softcap
        self.sinks = nn.Parameter(torch.zeros(self.n_head)) if config.sinks else None
        slopes = alibi_slopes(self.n_head).float() if config.position == "alibi" else None
        self.register_buffer("slopes", slopes, persistent=False)
        self.pairs = config.rope_pairs
        self.qk_norm = config.qk_norm
        self.weight_dropout = config.dropout
        self.dropout = nn.Dropout(config.dropout)

    @property
    def scoring(self) -> Scoring:
        """What this layer adds to the product of queries and keys."""
        return Scoring(self.window, self.slopes, self.sinks, self.softcap)  # type: ignore[arg-type]

    def empty_state(self, batch_size: int) -> KVCache:
        """The cache before any token."""
        nothing = self.proj.weight.new_empty(batch_size, self.n_kv_head, 0, self.head_width)
        return KVCache(nothing, nothing, 0, [0])

    def project(self, x: Tensor, place: Place | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, D), keys and values (B, Hkv, T, D) of x (B, T, C), normalised and rotated as configured."""
        heads = self.qkv(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)  # (B, H + 2 Hkv, T, D)
        q, k, v = heads.split([self.n_head, self.n_kv_head, self.n_kv_head], dim=1)
        if self.qk_norm:
            q, k = (F.rms_norm(x, (self.head_width,)) for x in (q, k))
        if place is not None and place.angles is not None:
            q, k = (rotate(x, *place.angles, self.pairs) for x in (q, k))
        return q, k, v

    def pattern(self, x: Tensor, place: Place | None) -> Tensor:
        """Attention weights (B, H, T, T) of x (B, T, C) that follows nothing."""
        q, k, _ = self.project(x, place)
        return attention_weights(q, k, self.scoring)

    def forward(self, x: Tensor, cache: KVCache, place: Place | None) -> tuple[Tensor, KVCache]:
        """x (B, T, C) that follows `cache` and stands at `place`. Returns (B, T, C) and the cache after it."""
        q, k, v = self.project(x, place)
        cache = cache.append(k, v, self.window)
        dropout = self.weight_dropout if self.training else 0.0
        y = causal_attention(q, cache.keys_seen, cache.values_seen, dropout, self.scoring)  # (B, H, T, D)
        return self.dropout(self.proj(y.transpose(1, 2).flatten(-2))), cache
