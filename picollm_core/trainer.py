"""The training loop's body: one update of any model, and what it takes to go on with it later."""

import math
import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from picollm_core.batches import Batches
from picollm_core.config import TrainConfig
from picollm_core.devices import memory_mb, pick_device, pick_precision
from picollm_core.losses import next_token_loss
from picollm_core.models import LanguageModel
from picollm_core.optim import build_optimizers, learning_rate, set_learning_rate


class TrainingDiverged(RuntimeError):
    """The loss stopped being a number; says at which step and what was last seen."""


class Trainer:
    """Model, optimizers, data and clock of one run; `advance` is one update, everything else is bookkeeping."""

    def __init__(self, model: LanguageModel, batches: Batches, config: TrainConfig) -> None:
        self.config, self.batches = config, batches
        self.device = pick_device(config.device)
        self.precision = pick_precision(config.precision, self.device)
        self.model = model.to(self.device).train()
        self.optimizers: list[Optimizer] = build_optimizers(self.model, config)
        self.loss = torch.compile(next_token_loss) if config.compile else next_token_loss
        per_epoch = batches.steps_per_epoch / config.grad_accumulation
        self.total_steps = config.max_steps or max(1, math.ceil(config.epochs * per_epoch))
        self.step, self.tokens, self.seconds = 0, 0, 0.0

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps beside tensors."""
        counters = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        return counters | {"batches": self.batches.state_dict()}

    def restore(self, progress: dict[str, Any]) -> None:
        """Inverse of progress()."""
        self.step, self.tokens, self.seconds = progress["step"], progress["tokens"], progress["seconds"]
        self.batches.load_state_dict(progress["batches"])

    def _autocast(self) -> Any:
        lowered = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision) if lowered else nullcontext()

    def _accumulate(self) -> tuple[float, int]:
        """Mean loss over the micro-batches of one update, gradients added up, and the number of scored tokens."""
        total, scored, parts = 0.0, 0, self.config.grad_accumulation
        for _ in range(parts):
            idx, targets = (t.to(self.device, non_blocking=True) for t in self.batches.next_batch())
            with self._autocast():
                loss = self.loss(self.model, idx, targets) / parts
            loss.backward()
            total += loss.item()
            scored += int((targets >= 0).sum())
        return total, scored

    def advance(self) -> dict[str, float]:
        """One update; returns its row of the history. Raises TrainingDiverged when the loss is not finite."""
        started = time.perf_counter()
        rate = learning_rate(self.step, self.total_steps, self.config)
        set_learning_rate(self.optimizers, rate)
        loss, scored = self._accumulate()
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"the loss became {loss} at step {self.step + 1} with learning rate {rate:.2e}; "
                "lower the learning rate or clip harder"
            )
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        largest = max(torch._foreach_norm(gradients, ord=math.inf)).item()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip).item()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        elapsed = time.perf_counter() - started
        self.step, self.tokens, self.seconds = self.step + 1, self.tokens + scored, self.seconds + elapsed
        return {
            "step": self.step,
            "epoch": self.batches.epoch,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": norm,
            "grad_norm_clipped": min(norm, self.config.grad_clip),
            "max_gradient": largest,
            "weight_norm": _norm(list(self.model.parameters())),
            "tokens_per_second": scored / elapsed,
            "memory_mb": memory_mb(self.device),
        }


def _norm(tensors: list[Tensor]) -> float:
    return torch.stack([n.float() for n in torch._foreach_norm([t.detach() for t in tensors])]).norm().item()
