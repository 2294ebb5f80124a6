"""Optimizers and learning-rate schedules."""

import math

import torch
from torch import nn
from torch.optim import Optimizer

from picollm_core.config import TrainConfig


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Learning rate of update `step` (from 0) of `total`: linear warm-up, then the schedule.

    The first update has a positive rate and the warm-up ends at the peak. "cosine" and "linear" fall to
    min_lr_ratio times the peak at the last update (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5).
    """
    peak = config.learning_rate
    assert peak is not None, "the trainer fills in the family's learning rate"
    warmup = round(config.warmup_ratio * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, total - 1 - warmup)
    share = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return peak * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)


def _decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict]:
    """Weight decay for matrices, none for biases and norm gains."""
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """What Muon orthogonalises: matrices of linear and recurrent layers; no embedding, no one-hot table, no head."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.LSTM) and m is not model.head]
    return [p for layer in layers for p in layer.parameters() if p.ndim == 2]


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """The optimizer of `config`, in a list; "muon" brings AdamW for everything that is not a hidden matrix.

    Muon (Jordan et al. 2024) uses the same learning rate with updates scaled to AdamW's size. Raises ValueError when
    this torch has no Muon.
    """
    betas = (config.beta1, config.beta2)
    parameters = list(model.parameters())
    if config.optimizer == "sgd":
        return [torch.optim.SGD(_decay_groups(parameters, config.weight_decay), lr=0.0, momentum=config.beta1)]
    if config.optimizer == "adam":
        groups = _decay_groups(parameters, config.weight_decay)
        return [torch.optim.Adam(groups, lr=0.0, betas=betas, fused=True)]
    matrices: list[nn.Parameter] = []
    optimizers: list[Optimizer] = []
    if config.optimizer == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"optimizer='muon' needs torch >= 2.9 and this is {torch.__version__}; use 'adamw'")
        matrices = _hidden_matrices(model)
        if matrices:
            muon = torch.optim.Muon(matrices, lr=0.0, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
            optimizers.append(muon)
    taken = {id(p) for p in matrices}
    rest = [p for p in parameters if id(p) not in taken]
    groups = _decay_groups(rest, config.weight_decay)
    return [*optimizers, torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)]


def set_learning_rate(optimizers: list[Optimizer], rate: float) -> None:
    """Give every parameter group this learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
