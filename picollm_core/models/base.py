"""The contract of a language model: batch-first, one logit vector for every position, a streaming state."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from picollm_core.config import ModelConfig, model_config_from_dict, require
from picollm_core.models.saving import SavedModule


class LanguageModel(SavedModule):
    """Base of every family. Shape legend: B batch, T time, C width, V vocabulary.

    Subclasses set `head` (C -> V, no bias) and implement `hidden` and `init_state`.
    """

    head: nn.Linear

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def context_limit(self) -> int | None:
        """Most tokens that one state may hold; None where the family has no limit."""
        return None

    @abstractmethod
    def hidden(self, idx: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Hidden states (B, T, C) of token ids `idx` (B, T) that follow `state`, and the state after them.

        For any split of a sequence, two calls with the carried state give what one call on the whole gives.
        """

    @abstractmethod
    def init_state(self, batch_size: int) -> Any:
        """The streaming state before any token; equal in effect to `state=None`."""

    def forward(self, idx: Tensor) -> Tensor:
        """Logits (B, T, V) for token ids `idx` (B, T); position t sees tokens 0..t of its own row and nothing else."""
        return self.head(self.hidden(idx)[0])

    def num_parameters(self) -> int:
        """Number of trained numbers; tied weights count once."""
        return sum(p.numel() for p in self.parameters())

    def statistics(self) -> dict[str, float]:
        """What the last training step did inside the model, for the history; nothing for most models."""
        return {}

    def check_ids(self, idx: Tensor) -> None:
        """Raise ValueError when `idx` is not (B, T) with at least one token, or an id is outside [0, vocab_size)."""
        if idx.ndim != 2 or idx.numel() == 0:
            raise ValueError(f"token ids have shape {tuple(idx.shape)}; expected (batch, time), both at least 1")
        if not torch.compiler.is_compiling() and idx.device.type == "cpu":
            low, high = (int(v) for v in torch.aminmax(idx))
            if low < 0 or high >= self.config.vocab_size:
                bad = low if low < 0 else high
                raise ValueError(f"token id {bad} is outside the vocabulary of {self.config.vocab_size}")

    def config_values(self) -> dict[str, Any]:
        return self.config.to_dict()

    @classmethod
    def from_config_values(cls, values: dict[str, Any]) -> "LanguageModel":
        from picollm_core.models import build_model

        require("model_type" not in values, "it is one of Hugging Face's transformers; convert it with picollm import")
        return build_model(model_config_from_dict(values))


class SeqFirst(nn.Module):
    """Wraps a model for code that is time-first: ids (T, B) -> logits (T, B, V)."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, idx: Tensor) -> Tensor:
        return self.model(idx.transpose(0, 1)).transpose(0, 1)


def seq_first(model: LanguageModel) -> SeqFirst:
    """Adapter to the course's starter code, whose tensors are (time, batch)."""
    return SeqFirst(model)
