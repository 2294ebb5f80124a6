"""Saving and loading: a folder or hub repository with config.json and model.safetensors, and nothing that can run."""

import json
import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from torch import nn

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` from a safetensors file; ValueError naming the file when it is truncated, foreign or misfitting."""
    try:
        safetensors.torch.load_model(model, path)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ValueError(f"{path} cannot be loaded as the weights of this model: {reason}") from error


class SavedModule(nn.Module, PyTorchModelHubMixin, ABC):
    """A module that a folder can hold: subclasses say how a configuration describes them."""

    @abstractmethod
    def config_values(self) -> dict[str, Any]:
        """JSON values from which `from_config_values` builds the module anew."""

    @classmethod
    @abstractmethod
    def from_config_values(cls, values: dict[str, Any]) -> "SavedModule":
        """The module, with fresh weights, that the values describe. ValueError when they describe none."""

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write config.json and model.safetensors; called by the mixin's save_pretrained."""
        safetensors.torch.save_model(self, str(save_directory / WEIGHTS_FILE))
        config = json.dumps(self.config_values(), indent=2) + "\n"
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
        model = cls._build(paths[CONFIG_FILE])
        if not isinstance(model, cls):
            raise ValueError(f"{source} holds a {type(model).__name__}, not a {cls.__name__}")
        load_weights(model, paths[WEIGHTS_FILE])
        return model.eval()

    @classmethod
    def _build(cls, path: Path) -> "SavedModule":
        """An untrained module from a config.json; ValueError naming the file when it cannot be read."""
        try:
            return cls.from_config_values(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, AttributeError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is not a model configuration of this package: {error}") from error
