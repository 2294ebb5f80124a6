"""Decoder-only Transformer: blocks of a sequence mixer and a channel mixer, as TransformerConfig chooses them."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from picollm_core.config import LINEAR_MIXERS, TransformerConfig
from picollm_core.models.attention import CausalSelfAttention
from picollm_core.models.base import LanguageModel
from picollm_core.models.experts import MixtureOfExperts
from picollm_core.models.layers import MLP, Linear, build_norm, head_std
from picollm_core.models.linear_mixers import GatedDeltaNet, GatedLinearAttention, LinearAttention
from picollm_core.models.positions import Place, RotaryPositions, SinusoidalPositions

INIT_STD = 0.02  # GPT-2

SequenceMixer = CausalSelfAttention | LinearAttention | GatedLinearAttention | GatedDeltaNet


def build_mixer(config: TransformerConfig, kind: str) -> SequenceMixer:
    """One layer's sequence mixer: `empty_state(batch_size)`, `forward(x, state, place)` and `pattern(x, place)`."""
    if kind in ("softmax", "window"):
        return CausalSelfAttention(config, kind)
    if kind == "gla":
        return GatedLinearAttention(config)
    return GatedDeltaNet(config) if kind == "delta" else LinearAttention(config, normalised=kind == "linear")


class TransformerState(NamedTuple):
    """One cache or matrix state a layer, and how many tokens have been seen."""

    length: int
    caches: tuple[Any, ...]


class Block(nn.Module):
    """Sequence mixer, then MLP or mixture of experts, each added to the residual stream.

    Pre-norm: x + f(norm(x)). Post-norm: norm(x + f(x)) (Xiong et al. 2020, arXiv 2002.04745, figure 1). Sandwich:
    x + norm(f(norm(x))) (Ding et al. 2021, CogView, arXiv 2105.13290, section 2.4).
    """

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.norm_attention = build_norm(config)
        self.attention = build_mixer(config, config.mixer(layer))
        self.norm_mlp = build_norm(config)
        self.mlp = MixtureOfExperts(config) if config.n_expert else MLP(config)
        self.place_of_norm = config.norm
        if config.norm == "sandwich":
            self.norm_attention_out, self.norm_mlp_out = build_norm(config), build_norm(config)

    def forward(self, x: Tensor, state: Any, place: Place | None) -> tuple[Tensor, Any]:
        """x (B, T, C) that follows `state`; returns (B, T, C) and the state after it."""
        if self.place_of_norm == "post":
            mixed, state = self.attention(x, state, place)
            x = self.norm_attention(x + mixed)
            return self.norm_mlp(x + self.mlp(x)), state
        mixed, state = self.attention(self.norm_attention(x), state, place)
        if self.place_of_norm == "pre":
            x = x + mixed
            return x + self.mlp(self.norm_mlp(x)), state
        x = x + self.norm_attention_out(mixed)
        return x + self.norm_mlp_out(self.mlp(self.norm_mlp(x))), state


class Transformer(LanguageModel):
    """Embedding, blocks, final norm, head. The state is a cache or a matrix state a layer.

    A final norm stands before the head in every form, so pre- and post-norm have the same parameters.
    With learned absolute positions a state holds at most block_size tokens; otherwise `hidden` takes any length.
    Generation keeps to block_size, the length the model was trained at, where any layer or position refers to all
    tokens; models of windows and linear mixers alone have no limit.
    """

    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions = nn.Embedding(config.block_size, config.n_embd) if config.position == "absolute" else None
        self.waves = SinusoidalPositions(config.n_embd, INIT_STD) if config.position == "sinusoidal" else None
        self.rope: RotaryPositions | None = None
        if config.position == "rope":
            width = config.head_width or config.n_embd // config.n_head
            self.rope = RotaryPositions(
                width, config.rope_base, config.rope_pairs, config.yarn_factor, config.yarn_length
            )
        self.blocks: list[Block] = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))  # type: ignore[assignment]
        self.norm = build_norm(config)
        self.head = Linear(config.n_embd, config.vocab_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self._initialise()

    def _initialise(self) -> None:
        """N(0, 0.02), residual projections by 1/sqrt(2 n_layer) (Radford et al. 2019, section 2.3).

        With a tied head the embedding has to stay at 0.02, so wide models start with a smaller gain of the final
        norm instead; either way the initial loss is within 0.05 nats of ln V.
        """
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=residual_std if name.endswith("proj.weight") else INIT_STD)
        for module in self.modules():
            if isinstance(module, MixtureOfExperts):
                module.initialise(INIT_STD, residual_std)
        if self.config.tied:
            self.head.weight = self.embedding.weight
            nn.init.constant_(self.norm.get_parameter("weight"), head_std(self.config.n_embd) / INIT_STD)
        else:
            nn.init.normal_(self.head.weight, std=head_std(self.config.n_embd))

    @property
    def context_limit(self) -> int | None:
        bounded = all(kind == "window" or kind in LINEAR_MIXERS for kind in self.config.mixers)
        return None if bounded and self.config.position in ("rope", "alibi", "none") else self.config.block_size

    def statistics(self) -> dict[str, float]:
        """Shares of tokens of the most and the least used expert of any layer in the last pass, in units of 1 / E."""
        loads = [module.load * module.load.numel() for module in self.modules() if isinstance(module, MixtureOfExperts)]
        if not loads:
            return {}
        shares = torch.stack(loads)  # (L, E)
        return {"expert_load_max": shares.max().item(), "expert_load_min": shares.min().item()}

    def init_state(self, batch_size: int) -> TransformerState:
        return TransformerState(0, tuple(block.attention.empty_state(batch_size) for block in self.blocks))

    def embed(self, idx: Tensor, start: int = 0) -> Tensor:
        """Embeddings (B, T, C) of token ids `idx` (B, T) at positions start, start + 1, ..., positions added.

        ValueError when learned positions run out.
        """
        length = idx.size(1)
        x = self.embedding(idx)  # (B, T, C)
        if self.waves is not None:
            x = x + self.waves.table(start, length, x)
        if self.positions is not None:
            if start + length > self.config.block_size:
                raise ValueError(
                    f"{start + length} tokens exceed the {self.config.block_size} learned positions (block_size); "
                    'shorten the input, or train with position="rope" or "none"'
                )
            x = x + self.positions(torch.arange(start, start + length, device=idx.device))
        return self.dropout(x)

    def hidden(self, idx: Tensor, state: TransformerState | None = None) -> tuple[Tensor, TransformerState]:
        """As the contract; ValueError when learned positions run out."""
        self.check_ids(idx)
        state = self.init_state(idx.size(0)) if state is None else state
        x = self.embed(idx, state.length)
        angles = None if self.rope is None else self.rope.angles(state.length, idx.size(1), x)
        resets = None if self.config.reset_token is None else idx == self.config.reset_token
        place = Place(state.length, angles, resets)
        caches = []
        for block, cache in zip(self.blocks, state.caches, strict=True):
            x, cache = block(x, cache, place)
            caches.append(cache)
        return self.norm(x), TransformerState(state.length + idx.size(1), tuple(caches))
