"""Causal softmax attention with a key/value cache, and its written-out truth."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from picollm_core.config import TransformerConfig
from picollm_core.models.positions import rotate


def causal_mask(n_query: int, n_key: int, device: torch.device) -> Tensor:
    """Boolean (n_query, n_key), true where a query may look; the queries are the last n_query of n_key positions."""
    return torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril(n_key - n_query)


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """Causal softmax weights (B, H, Tq, Tk) of queries q (B, H, Tq, D) on keys k (B, Hkv, Tk, D), Hkv dividing H.

    Every row sums to 1, and later keys have exactly 0 (Vaswani et al. 2017, eq. 1).
    """
    k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, Tq, Tk)
    return scores.masked_fill(~causal_mask(q.size(-2), k.size(-2), q.device), -math.inf).softmax(dim=-1)


def reference_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax attention as the formula has it (Vaswani et al. 2017, eq. 1); the truth for the fast path.

    q is (B, H, Tq, D); k and v are (B, Hkv, Tk, D) with Hkv dividing H; returns (B, H, Tq, D).
    """
    return attention_weights(q, k) @ v.repeat_interleave(q.size(1) // v.size(1), dim=1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """The same through F.scaled_dot_product_attention, with dropout on the weights."""
    n_query, n_key = q.size(-2), k.size(-2)
    whole = n_query == n_key
    mask = None if whole or n_query == 1 else causal_mask(n_query, n_key, q.device)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=whole, enable_gqa=q.size(1) != k.size(1)
    )


class KVCache(NamedTuple):
    """Keys and values of the tokens seen so far, in buffers that may be longer than `length`.

    `filled` is shared by all caches on one buffer and says how far it has been written. Appending to the newest cache
    writes in place; appending to an older one, which would overwrite what a newer one holds, copies first.
    """

    keys: Tensor  # (B, Hkv, capacity, D)
    values: Tensor
    length: int
    filled: list[int]

    def append(self, k: Tensor, v: Tensor) -> "KVCache":
        """The cache after the new keys and values k, v (B, Hkv, T, D)."""
        if self.length == 0:
            return KVCache(k, v, k.size(2), [k.size(2)])
        total = self.length + k.size(2)
        if torch.is_grad_enabled() and (k.requires_grad or self.keys.requires_grad):
            keys, values = (torch.cat([old, new], dim=2) for old, new in ((self.keys_seen, k), (self.values_seen, v)))
            return KVCache(keys, values, total, [total])
        keys, values, filled = self.keys, self.values, self.filled
        if total > keys.size(2) or filled[0] != self.length:
            keys, values, filled = self._roomier(total)
        keys[:, :, self.length : total] = k
        values[:, :, self.length : total] = v
        filled[0] = total
        return KVCache(keys, values, total, filled)

    def _roomier(self, total: int) -> tuple[Tensor, Tensor, list[int]]:
        """Buffers with at least double the room, so that n appended tokens cost O(n) copying in all."""
        capacity = max(2 * self.length, total, 64)
        buffers = []
        for seen in (self.keys_seen, self.values_seen):
            buffer = seen.new_empty(seen.size(0), seen.size(1), capacity, seen.size(3))
            buffer[:, :, : self.length] = seen
            buffers.append(buffer)
        return buffers[0], buffers[1], [self.length]

    @property
    def keys_seen(self) -> Tensor:
        """(B, Hkv, length, D)."""
        return self.keys[:, :, : self.length]

    @property
    def values_seen(self) -> Tensor:
        """(B, Hkv, length, D)."""
        return self.values[:, :, : self.length]


class CausalSelfAttention(nn.Module):
    """Multi-head attention; with n_kv_head < n_head groups of heads share keys and values (arXiv 2305.13245)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.n_kv_head = config.n_kv_head or config.n_head
        self.head_width = config.n_embd // config.n_head
        self.qkv = nn.Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * self.head_width, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.qk_norm = config.qk_norm
        self.weight_dropout = config.dropout
        self.dropout = nn.Dropout(config.dropout)

    def empty_cache(self, batch_size: int) -> KVCache:
        """The cache before any token."""
        nothing = self.proj.weight.new_empty(batch_size, self.n_kv_head, 0, self.head_width)
        return KVCache(nothing, nothing, 0, [0])

    def project(self, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, D), keys and values (B, Hkv, T, D) of x (B, T, C), normalised and rotated as configured."""
        heads = self.qkv(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)  # (B, H + 2 Hkv, T, D)
        q, k, v = heads.split([self.n_head, self.n_kv_head, self.n_kv_head], dim=1)
        if self.qk_norm:
            q, k = (F.rms_norm(x, (self.head_width,)) for x in (q, k))
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        return q, k, v

    def forward(self, x: Tensor, cache: KVCache, angles: tuple[Tensor, Tensor] | None) -> tuple[Tensor, KVCache]:
        """x (B, T, C) that follows `cache`; `angles` are RoPE's cos and sin (T, D) or None. Returns (B, T, C)."""
        q, k, v = self.project(x, angles)
        cache = cache.append(k, v)
        dropout = self.weight_dropout if self.training else 0.0
        y = causal_attention(q, cache.keys_seen, cache.values_seen, dropout)  # (B, H, T, D)
        return self.dropout(self.proj(y.transpose(1, 2).flatten(-2))), cache
