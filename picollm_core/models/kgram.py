"""k-gram MLP: the next token from the last k tokens, the current one included."""

import math

import torch
from torch import Tensor, nn

from picollm_core.config import KGramConfig
from picollm_core.models.base import LanguageModel
from picollm_core.models.layers import ACTIVATIONS, Linear, head_std

SILU_GAIN = 1.68  # 1 / sqrt(E[silu(x)^2]) for x ~ N(0, 1): keeps the scale of activations through the layers
NO_TOKEN = -1  # stands in the window before the first token; contributes exactly zero


class OneHotInput(nn.Module):
    """Linear layer on k concatenated one-hot vectors, (B, T, k) ids -> (B, T, C).

    A one-hot vector times a matrix selects a row, so the k x V input is never built: row j * V + id of the weight
    is gathered for the token at place j of the window and the k rows are summed.
    """

    def __init__(self, config: KGramConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.k * config.vocab_size, config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd))
        self.vocab_size = config.vocab_size
        nn.init.normal_(self.weight, std=1 / math.sqrt(config.k))

    def forward(self, window: Tensor) -> Tensor:
        first_row = torch.arange(window.size(-1), device=window.device) * self.vocab_size  # (k,)
        present = window >= 0
        rows = nn.functional.embedding(window.clamp(min=0) + first_row, self.weight)  # (B, T, k, C)
        if not present.all():
            rows = rows * present.unsqueeze(-1)
        return rows.sum(dim=-2) + self.bias


class EmbeddingInput(nn.Module):
    """Embeds every token of the window, then mixes: (B, T, k) ids -> (B, T, C).

    "learned": one table of width C, k vectors concatenated, linear layer. "scaled": the same with width C // k, so
    that the concatenation is as wide as the layers after it. "conv": width C, depthwise convolution over the places.
    """

    def __init__(self, config: KGramConfig) -> None:
        super().__init__()
        width = config.n_embd // config.k if config.embedding == "scaled" else config.n_embd
        self.table = nn.Embedding(config.vocab_size, width)
        self.depthwise = config.embedding == "conv"
        if self.depthwise:
            self.weight = nn.Parameter(torch.randn(config.k, width) / math.sqrt(config.k))
            self.bias = nn.Parameter(torch.zeros(width))
        else:
            self.mix = nn.Linear(config.k * width, config.n_embd)
            nn.init.normal_(self.mix.weight, std=1 / math.sqrt(config.k * width))
            nn.init.zeros_(self.mix.bias)

    def forward(self, window: Tensor) -> Tensor:
        vectors = self.table(window.clamp(min=0))  # (B, T, k, C or C // k)
        present = window >= 0
        if not present.all():
            vectors = vectors * present.unsqueeze(-1)
        if self.depthwise:
            return (vectors * self.weight).sum(dim=-2) + self.bias
        return self.mix(vectors.flatten(-2))


class KGramMLP(LanguageModel):
    """Input layer over the window, then n_layer inner layers of width C, then the head.

    The streaming state is the (B, k - 1) last token ids (one more with `offset=1`), NO_TOKEN before the start.
    """

    config: KGramConfig

    def __init__(self, config: KGramConfig) -> None:
        super().__init__(config)
        self.input = OneHotInput(config) if config.embedding == "onehot" else EmbeddingInput(config)
        width = config.n_embd
        self.layers: list[nn.Linear] = nn.ModuleList(  # type: ignore[assignment]
            nn.Linear(width, width) for _ in range(config.n_layer)
        )
        self.head = Linear(config.n_embd, config.vocab_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.activation = ACTIVATIONS[config.activation]
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=SILU_GAIN / math.sqrt(config.n_embd))
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.head.weight, std=head_std(config.n_embd))

    def init_state(self, batch_size: int) -> Tensor:
        length = self.config.k - 1 + self.config.offset
        return torch.full((batch_size, length), NO_TOKEN, dtype=torch.long, device=self.head.weight.device)

    def hidden(self, idx: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_ids(idx)
        state = self.init_state(idx.size(0)) if state is None else state
        seen = torch.cat([state, idx], dim=1)  # (B, k - 1 + offset + T)
        window = seen.unfold(1, self.config.k, 1)[:, : idx.size(1)]  # (B, T, k), the last entry is the newest token
        x = self.input(window)
        for layer in self.layers:
            x = layer(self.dropout(self.activation(x)))
        return self.dropout(self.activation(x)), seen[:, seen.size(1) - state.size(1) :]
