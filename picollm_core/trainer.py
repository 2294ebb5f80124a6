"""The training loop's body: one update of any model, and what it takes to go on with it later."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from picollm_core.batches import Batches
from picollm_core.config import TrainConfig, require
from picollm_core.devices import memory_mb, pick_precision, to_device
from picollm_core.distributed import ALONE, Alone
from picollm_core.losses import next_token_loss
from picollm_core.models import LanguageModel
from picollm_core.optim import build_optimizers, learning_rate, set_learning_rate
from picollm_core.presets import default_learning_rate

logger = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """The loss stopped being a number; says at which step and what was last seen."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's generators seeded inside, and as they were outside."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def number_format(precision: torch.dtype) -> str:
    """The name of a number format as it is recorded and printed, such as "bfloat16"."""
    return str(precision).removeprefix("torch.")


def _scored(targets: Tensor) -> int:
    """How many of the targets are scored."""
    return int((targets >= 0).sum())


class Trainer:
    """Model, optimizers, data and clock of one run; `advance` is one update, everything else is bookkeeping.

    With several `ranks` each is given the same `batches` and trains on its share of their rows, to the same weights
    and history as one process would reach, up to rounding and to the masks of dropout. ValueError for more ranks than
    rows in a batch.
    """

    def __init__(self, model: LanguageModel, batches: Batches, config: TrainConfig, ranks: Alone = ALONE) -> None:
        if config.learning_rate is None:
            config = config.replace(learning_rate=default_learning_rate(model.config))
        require(
            ranks.size <= config.batch_size,
            f"{ranks.size} processes share a batch of batch_size={config.batch_size} rows, so some would have none; "
            f"start at most {config.batch_size}, or choose a larger batch_size",
        )
        self.config, self.batches, self.ranks = config, batches, ranks
        self.device = ranks.pick_device(config.device)
        self.precision = pick_precision(config.precision, self.device)
        self.model = model.to(self.device).train()
        self.optimizers: list[Optimizer] = build_optimizers(self.model, config)
        if config.compile:  # the loss stays outside: its chunks are as fast as they are
            self.model.hidden = torch.compile(self.model.hidden)  # type: ignore[method-assign]
        per_epoch = batches.steps_per_epoch / config.grad_accumulation
        self.total_steps = config.max_steps or max(1, math.ceil(config.epochs * per_epoch))
        self.step, self.tokens, self.seconds = 0, 0, 0.0

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps beside tensors."""
        counters = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        return counters | {"batches": self.batches.state_dict(), "precision": number_format(self.precision)}

    def restore(self, progress: dict[str, Any]) -> None:
        """Inverse of progress(). Logs a warning when the run goes on with matrix products of another number format."""
        self.step, self.tokens, self.seconds = progress["step"], progress["tokens"], progress["seconds"]
        self.batches.load_state_dict(progress["batches"])
        before, now = progress.get("precision", number_format(self.precision)), number_format(self.precision)
        if before != now and self.ranks.leads:
            logger.warning("the run was trained with %s matrix products up to here and goes on with %s", before, now)

    def _autocast(self) -> Any:
        lowered = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision) if lowered else nullcontext()

    def _accumulate(self) -> tuple[float, int]:
        """Mean loss over the scored tokens of one update, its gradients added up, and the number of those tokens.

        Each micro-batch, and each rank's share of it, counts by its scored tokens, so splitting a padded batch changes
        nothing.
        """
        parts = [self.batches.next_batch() for _ in range(self.config.grad_accumulation)]
        total, scored = 0.0, sum(_scored(targets) for _, targets in parts)
        for batch in parts:
            idx, targets = (self.ranks.share(t) for t in batch)
            count = _scored(targets)
            if count == 0 and scored > 0:  # rows that are all padding
                continue
            idx, targets = to_device(self.device, idx, targets)
            with self._autocast():
                loss = next_token_loss(self.model, idx, targets) * (count / scored)
            loss.backward()
            total += loss.item()
        return self.ranks.sum_gradients(list(self.model.parameters()), total), scored

    def _require_finite(self, name: str, value: float, rate: float) -> None:
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the {name} became {value} at step {self.step + 1} with learning rate {rate:.2e}; "
                "lower the learning rate or clip harder"
            )

    def advance(self) -> dict[str, float]:
        """One update; returns its row of the history. Raises TrainingDiverged when loss or gradient is not finite."""
        started = time.perf_counter()
        self.ranks.reseed(self.config.seed, self.step)
        rate = learning_rate(self.step, self.total_steps, self.config)
        set_learning_rate(self.optimizers, rate)
        loss, scored = self._accumulate()
        self._require_finite("loss", loss, rate)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        largest = max(torch._foreach_norm(gradients, ord=math.inf)).item()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip).item()
        self._require_finite("gradient norm", norm, rate)  # before the weights are touched
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
            **self.model.statistics(),
        }


def _norm(tensors: list[Tensor]) -> float:
    return torch.stack([n.float() for n in torch._foreach_norm([t.detach() for t in tensors])]).norm().item()
