"""One file that holds everything a training run needs to go on exactly: safetensors, so it cannot execute code."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer


def _flatten(optimizers: list[Optimizer]) -> tuple[dict[str, Tensor], list[list[dict]]]:
    """Tensors of all optimizer states under dotted names, and their parameter groups as plain values."""
    tensors, groups = {}, []
    for place, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        groups.append(state["param_groups"])
        for index, values in state["state"].items():
            for name, value in values.items():
                if value is not None:  # SGD without momentum keeps a None
                    tensors[f"optimizer.{place}.{index}.{name}"] = torch.as_tensor(value)
    return tensors, groups


def _restore(optimizers: list[Optimizer], tensors: dict[str, Tensor], groups: list[list[dict]]) -> None:
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, place, index, key = name.split(".", 3)
            states[int(place)].setdefault(int(index), {})[key] = tensor
    for optimizer, state, group in zip(optimizers, states, groups, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": group})


def save_checkpoint(path: Path, model: nn.Module, optimizers: list[Optimizer], progress: dict[str, Any]) -> None:
    """Write model, optimizers, torch's generators and `progress` (JSON values) to one file, atomically.

    The file replaces an older one only when it is complete and on disk: a full disk or a kill leaves the older one.
    Raises OSError when it cannot be written.
    """
    tensors, groups = _flatten(optimizers)
    tensors |= {f"model.{name}": p.detach() for name, p in model.named_parameters()}  # a tied weight appears once
    tensors["generator.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["generator.cuda"] = torch.cuda.get_rng_state()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        metadata = {"progress": json.dumps(progress), "groups": json.dumps(groups)}
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _unusable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is not a usable checkpoint of this run ({error}); delete it to start the run anew")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds, read into memory: it can be handed to another process."""

    path: Path
    progress: dict[str, Any]
    groups: list[list[dict]]
    tensors: dict[str, Tensor]

    def restore(self, model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Any]:
        """Fill model, optimizers and torch's generators; returns `progress`.

        The devices may be others than those it was written on; a GPU's generator stays as it is when the file has
        none. Raises ValueError naming the file when it belongs to another model or holds other number formats.
        """
        try:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    saved = self.tensors[f"model.{name}"]
                    if saved.shape != parameter.shape:
                        raise ValueError(f"{name} has shape {tuple(saved.shape)}, expected {tuple(parameter.shape)}")
                    if saved.dtype != parameter.dtype:
                        raise ValueError(f"{name} is stored in {saved.dtype}, expected {parameter.dtype}")
                    parameter.copy_(saved)
            _restore(optimizers, self.tensors, self.groups)
            torch.set_rng_state(self.tensors["generator.cpu"])
            if torch.cuda.is_available() and "generator.cuda" in self.tensors:
                torch.cuda.set_rng_state(self.tensors["generator.cuda"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise _unusable(self.path, error) from error
        return self.progress


def read_checkpoint(path: Path) -> Checkpoint:
    """The content of a checkpoint file. Raises ValueError naming the file when it is truncated or something else."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            progress, groups = json.loads(metadata["progress"]), json.loads(metadata["groups"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise _unusable(path, error) from error
    return Checkpoint(path, progress, groups, tensors)


def load_checkpoint(path: Path, model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Any]:
    """Restore what save_checkpoint wrote and return its `progress`; see Checkpoint.restore for the errors."""
    return read_checkpoint(path).restore(model, optimizers)
