"""One file that holds everything a training run needs to go on exactly: safetensors, so it cannot execute code."""

import json
import os
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


def load_checkpoint(path: Path, model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Any]:
    """Restore what save_checkpoint wrote and return its `progress`. Also sets torch's generators.

    Raises ValueError naming the file when it is truncated or belongs to another model.
    """
    generators = {"generator.cpu": torch.set_rng_state}
    if torch.cuda.is_available():
        generators["generator.cuda"] = torch.cuda.set_rng_state
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            progress, groups = json.loads(metadata["progress"]), json.loads(metadata["groups"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                saved = tensors[f"model.{name}"]
                if saved.shape != parameter.shape:
                    raise ValueError(f"{name} has shape {tuple(saved.shape)}, expected {tuple(parameter.shape)}")
                parameter.copy_(saved)
        _restore(optimizers, tensors, groups)
        for name, restore in generators.items():
            restore(tensors[name])
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise ValueError(
            f"{path} is not a usable checkpoint of this run ({error}); delete it to start the run anew"
        ) from error
    return progress
