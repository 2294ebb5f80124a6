"""Decoder-only Transformer: GPT-2's plan with RMSNorm, and the choices of TransformerConfig."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from picollm_core.config import TransformerConfig
from picollm_core.models.attention import CausalSelfAttention, KVCache
from picollm_core.models.base import LanguageModel
from picollm_core.models.layers import MLP, build_norm, head_std
from picollm_core.models.positions import RotaryPositions

INIT_STD = 0.02  # GPT-2


class TransformerState(NamedTuple):
    """One cache a layer, and how many tokens have been seen."""

    length: int
    caches: tuple[KVCache, ...]


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream.

    Pre-norm: x + f(norm(x)). Post-norm: norm(x + f(x)) (Xiong et al. 2020, arXiv 2002.04745, figure 1).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm_attention = build_norm(config.norm_kind, config.n_embd)
        self.attention = CausalSelfAttention(config)
        self.norm_mlp = build_norm(config.norm_kind, config.n_embd)
        self.mlp = MLP(config)
        self.pre = config.norm == "pre"

    def forward(self, x: Tensor, cache: KVCache, angles: tuple[Tensor, Tensor] | None) -> tuple[Tensor, KVCache]:
        if self.pre:
            mixed, cache = self.attention(self.norm_attention(x), cache, angles)
            x = x + mixed
            return x + self.mlp(self.norm_mlp(x)), cache
        mixed, cache = self.attention(x, cache, angles)
        x = self.norm_attention(x + mixed)
        return self.norm_mlp(x + self.mlp(x)), cache


class Transformer(LanguageModel):
    """Embedding, blocks, final norm, head. The state is a key/value cache a layer.

    A final norm stands before the head in the post-norm form too, so both forms have the same parameters.
    With learned absolute positions a state holds at most block_size tokens; with "rope" and "none" `hidden` takes
    any length, and generation still keeps to block_size, the length the model was trained at.
    """

    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions = nn.Embedding(config.block_size, config.n_embd) if config.position == "absolute" else None
        head_width = config.n_embd // config.n_head
        self.rope = RotaryPositions(head_width, config.rope_base) if config.position == "rope" else None
        self.blocks: list[Block] = nn.ModuleList(Block(config) for _ in range(config.n_layer))  # type: ignore[assignment]
        self.norm = build_norm(config.norm_kind, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self._initialise()

    def _initialise(self) -> None:
        """N(0, 0.02), residual projections by 1/sqrt(2 n_layer) (Radford et al. 2019, section 2.3).

        With a tied head the embedding has to stay at 0.02, so wide models start with a smaller gain of the final
        norm instead; either way the initial loss is within 0.05 nats of ln V.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith("proj.weight")
                nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * self.config.n_layer) if residual else INIT_STD)
        if self.config.tied:
            self.head.weight = self.embedding.weight
            nn.init.constant_(self.norm.get_parameter("weight"), head_std(self.config.n_embd) / INIT_STD)
        else:
            nn.init.normal_(self.head.weight, std=head_std(self.config.n_embd))

    @property
    def context_limit(self) -> int:
        return self.config.block_size

    def init_state(self, batch_size: int) -> TransformerState:
        return TransformerState(0, tuple(block.attention.empty_cache(batch_size) for block in self.blocks))

    def hidden(self, idx: Tensor, state: TransformerState | None = None) -> tuple[Tensor, TransformerState]:
        """As the contract; ValueError when learned positions run out."""
        self.check_ids(idx)
        state = self.init_state(idx.size(0)) if state is None else state
        start, length = state.length, idx.size(1)
        x = self.embedding(idx)  # (B, T, C)
        if self.positions is not None:
            if start + length > self.config.block_size:
                raise ValueError(
                    f"{start + length} tokens exceed the {self.config.block_size} learned positions (block_size); "
                    'shorten the input, or train with position="rope" or "none"'
                )
            x = x + self.positions(torch.arange(start, start + length, device=idx.device))
        x = self.dropout(x)
        angles = None if self.rope is None else self.rope.angles(start, length, x)
        caches = []
        for block, cache in zip(self.blocks, state.caches, strict=True):
            x, cache = block(x, cache, angles)
            caches.append(cache)
        return self.norm(x), TransformerState(start + length, tuple(caches))
