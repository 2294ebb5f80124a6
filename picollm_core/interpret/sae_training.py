"""Training a sparse autoencoder on what passes at a site while the model reads text, with bounded memory.

C width of the site, F size of the dictionary.
"""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from picollm_core.config_base import require
from picollm_core.interpret.hooks import activations, require_site, site_width
from picollm_core.interpret.sae import SparseAutoencoder
from picollm_core.interpret.sparsity import SparseActivation
from picollm_core.models import LanguageModel
from picollm_core.trainer import TrainingDiverged

EXPANSION = 8
"""Features for each dimension of the site, unless a size is asked for."""
BUFFER = 16
"""Batches that are mixed before one is drawn: neighbouring tokens of a story are alike."""
THRESHOLD_RATE = 10.0
"""Rate of the activation's own parameters, JumpReLU's thresholds, in units of that of the weights."""
LOGGED = 100
"""Rows of a history."""


class TokenSource(Protocol):
    """What gives windows of token ids: batches.Batches, or anything with `next_batch`."""

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Ids (B, T) and what follows each, which is not used here."""
        ...


def stream_activations(
    model: LanguageModel, site: str, source: TokenSource, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Endless batches (batch_size, C) of what passes at `site`, in random order, from windows that `source` gives.

    At most BUFFER batches and one window's worth are held; half of the buffer is refilled at a time. What passes at the
    end-of-text token at which a story starts is kept like any other.
    """
    held, size = torch.empty(0), BUFFER * batch_size
    while True:
        parts = [held] if len(held) else []
        count = len(held)
        while count < size:
            idx = source.next_batch()[0].to(model.head.weight.device)
            x = activations(model, idx, [site])[site].flatten(0, -2)  # (B T, C)
            parts.append(x)
            count += len(x)
        held = torch.cat(parts)
        held = held[torch.randperm(len(held), generator=generator)]
        while len(held) >= max(size // 2, batch_size):
            yield held[:batch_size]
            held = held[batch_size:]


def geometric_median(x: Tensor, steps: int = 50) -> Tensor:
    """The point (C,) with the least mean distance to the rows of x (N, C), by Weiszfeld's iteration."""
    median = x.mean(0)
    for _ in range(steps):
        weight = 1 / (x - median).norm(dim=-1, keepdim=True).clamp(min=1e-8)  # (N, 1)
        median = (weight * x).sum(0) / weight.sum()
    return median


@torch.no_grad()
def prepare(sae: SparseAutoencoder, x: Tensor) -> None:
    """Set the scale, so that x (N, C) has variance 1 a dimension on average, b_dec to the geometric median, and the
    activation's start."""
    spread = (x - x.mean(0)).square().mean().sqrt()
    require(
        bool(spread > 0), f"what passes at {sae.site!r} is the same for all {len(x)} tokens; nothing can be learned"
    )
    sae.scale.copy_(1 / spread)
    sae.b_dec.copy_(geometric_median(x * sae.scale))
    sae.b_enc.add_(sae.activation.start(sae.pre_activations(x)))


class SAETrainer:
    """One autoencoder, its optimizer and what it knows of dead features; `step` is one update.

    Adam, the rate rising over the first 5% of the updates and falling linearly to zero over the last 30%. A feature is
    dead when it has not fired for `dead_after` tokens; dead features are asked to explain what the others leave over,
    at 1/32 of the weight (Gao et al. 2024, appendix A.2), which brings them back.
    """

    def __init__(self, sae: SparseAutoencoder, n_steps: int, learning_rate: float, dead_after: int) -> None:
        self.sae, self.n_steps, self.dead_after = sae, n_steps, dead_after
        self.rate = learning_rate
        thresholds = list(sae.activation.parameters())
        rest = [p for name, p in sae.named_parameters() if not name.startswith("activation.")]
        groups = [{"params": rest, "share": 1.0}]
        if thresholds:  # in steps of their logarithm, so the rate of the weights would leave them behind
            groups.append({"params": thresholds, "share": THRESHOLD_RATE})
        self.optimizer = torch.optim.Adam(groups, lr=learning_rate, fused=True)
        self.done, self.tokens = 0, 0
        self.silent = torch.zeros(sae.dict_size, dtype=torch.long, device=sae.W_dec.device)  # tokens since it fired

    @property
    def dead(self) -> Tensor:
        """(F,) bool."""
        return self.silent > self.dead_after

    def _set_rate(self) -> float:
        warm = (self.done + 1) / max(1.0, 0.05 * self.n_steps)
        cool = (self.n_steps - self.done) / max(1.0, 0.3 * self.n_steps)
        rate = self.rate * min(1.0, warm, cool)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        return rate

    def _revival(self, pre: Tensor, error: Tensor) -> Tensor:
        """What the dead features leave of `error` (N, C), as a share, from pre-activations (N, F)."""
        dead = self.dead.nonzero().squeeze(-1)
        if len(dead) == 0:
            return error.new_zeros(())
        top = pre[:, dead].topk(min(len(dead), max(1, self.sae.activation_dim // 2)), dim=-1)
        codes = torch.zeros_like(pre[:, dead]).scatter(-1, top.indices, top.values.relu())  # (N, dead)
        target = error.detach()
        return (target - codes @ self.sae.W_dec[dead]).square().sum() / target.square().sum().clamp(min=1e-12)

    def step(self, x: Tensor) -> dict[str, float]:
        """One update on x (N, C); its row of the history."""
        sae, rate = self.sae, self._set_rate()
        scaled = x * sae.scale
        pre = sae.pre_activations(x)  # (N, F)
        z = sae.activation(pre)
        error = scaled - (z @ sae.W_dec + sae.b_dec)
        loss = error.square().mean()
        if not math.isfinite(loss.item()):  # before the weights are touched
            raise TrainingDiverged(
                f"the autoencoder's loss became {loss.item()} at update {self.done + 1}; lower the rate"
            )
        (loss + sae.activation.penalty(pre, z) + self._revival(pre, error) / 32).backward()
        sae.remove_parallel_gradient()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        sae.normalise_decoder()
        active = z.detach() > 0
        self.silent = torch.where(active.any(0), 0, self.silent + len(x))
        self.done, self.tokens = self.done + 1, self.tokens + len(x)
        return {
            "step": self.done,
            "tokens": self.tokens,
            "loss": loss.item(),
            "l0": active.sum().item() / len(x),
            "dead": self.dead.float().mean().item(),
            "learning_rate": rate,
        }


def train_sae(
    model: LanguageModel,
    site: str,
    source: TokenSource,
    *,
    n_tokens: int,
    dict_size: int | None = None,
    activation: SparseActivation | None = None,
    batch_size: int = 1_024,
    learning_rate: float = 3e-3,
    dead_after: int = 200_000,
    seed: int = 0,
    progress: bool = True,
) -> tuple[SparseAutoencoder, pd.DataFrame]:
    """An autoencoder of `dict_size` features (8 a dimension by default) trained on `n_tokens` tokens, and its history.

    `source` gives windows of ids for the model to read; memory does not grow with n_tokens. The history has about
    LOGGED rows: tokens, loss (squared error a dimension, in units of the site's variance: near FVU), l0, share of dead
    features. The same seed gives the same weights. ValueError for an unknown site, a dictionary smaller than the
    activation's k, and fewer tokens than a batch.
    """
    require_site(model, site)
    require(batch_size >= 1, f"batch_size is {batch_size}; it must be at least 1")
    require(n_tokens >= batch_size, f"n_tokens is {n_tokens}, fewer than a batch of {batch_size}; give more tokens")
    require(learning_rate > 0, f"learning_rate is {learning_rate}; it must be above 0")
    generator = torch.Generator().manual_seed(seed)
    width = site_width(model, site)
    sae = SparseAutoencoder(width, dict_size or EXPANSION * width, activation, site, generator)
    sae = sae.to(model.head.weight.device).train()
    stream = stream_activations(model, site, source, batch_size, generator)
    n_steps = n_tokens // batch_size
    trainer = SAETrainer(sae, n_steps, learning_rate, min(dead_after, n_tokens // 4))
    rows: list[dict[str, Any]] = []
    every = max(1, n_steps // LOGGED)
    for step in tqdm(range(n_steps), desc=f"autoencoder at {site}", unit="step", leave=False, disable=not progress):
        x = next(stream).float()
        if step == 0:
            prepare(sae, x)
        row = trainer.step(x)
        if (step + 1) % every == 0 or step + 1 == n_steps:
            rows.append(row)
    return sae.eval(), pd.DataFrame(rows)
