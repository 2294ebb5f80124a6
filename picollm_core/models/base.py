"""The contract of a language model: batch-first, one logit vector for every position, a streaming state."""

import json
import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from torch import Tensor, nn

from picollm_core.config import ModelConfig, model_config_from_dict, require

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


class LanguageModel(nn.Module, PyTorchModelHubMixin, ABC):
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

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write config.json and model.safetensors; called by the mixin's save_pretrained."""
        safetensors.torch.save_model(self, str(save_directory / WEIGHTS_FILE))
        config = json.dumps(self.config.to_dict(), indent=2) + "\n"
        (save_directory / CONFIG_FILE).write_text(config, encoding="utf-8")

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write weights, configuration and model card to a folder; options are those of PyTorchModelHubMixin.

        The files are complete before they replace older ones, which a failure leaves as they were (the mixin alone
        would delete config.json first). A model card that is there is kept. Raises OSError when writing fails.
        """
        folder = Path(save_directory)
        staging = folder / ".saving"
        options.setdefault("repo_id", folder.name)
        shutil.rmtree(staging, ignore_errors=True)  # of a save that was killed
        try:
            url = super().save_pretrained(staging, **options)
            for file in sorted(staging.iterdir(), reverse=True):  # weights before config.json
                if file.name != "README.md" or not (folder / file.name).exists():
                    os.replace(file, folder / file.name)
        except SafetensorError as error:
            raise OSError(f"cannot write {folder / WEIGHTS_FILE}: {error}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return url

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load a folder or hub repository written by `save_pretrained`, in evaluation mode; safetensors only.

        Options are those of huggingface_hub.hf_hub_download (revision, token, cache_dir, local_files_only, ...).
        Raises ValueError when the folder is not such a model, and when a file is truncated or does not fit.
        """
        source = str(pretrained_model_name_or_path)
        if os.path.isdir(source):
            paths = {name: Path(source, name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
            missing = [name for name, path in paths.items() if not path.is_file()]
            if missing:
                raise ValueError(f"{source} is not a saved model: it has no {' and no '.join(missing)}")
        else:
            try:
                paths = {name: Path(hf_hub_download(source, name, **options)) for name in (CONFIG_FILE, WEIGHTS_FILE)}
            except Exception as error:
                raise ValueError(f"{source} is neither a folder here nor a readable hub repository: {error}") from error
        model = build_from_config_file(paths[CONFIG_FILE])
        if not isinstance(model, cls):
            raise ValueError(f"{source} holds a {type(model).__name__}, not a {cls.__name__}")
        load_weights(model, paths[WEIGHTS_FILE])
        return model.eval()


def build_from_config_file(path: Path) -> LanguageModel:
    """An untrained model from a config.json; ValueError naming the file when it cannot be read."""
    from picollm_core.models import build_model

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        require("model_type" not in values, "it is one of Hugging Face's transformers; convert it with picollm import")
        return build_model(model_config_from_dict(values))
    except (ValueError, AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is not a model configuration of this package: {error}") from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` from a safetensors file; ValueError naming the file when it is truncated, foreign or misfitting."""
    try:
        safetensors.torch.load_model(model, path)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ValueError(f"{path} cannot be loaded as the weights of this model: {reason}") from error


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
