"""Test loss against width on a few training windows: is there a second descent beyond the point of perfect fit?

A k-gram on letters, trained on the same few windows until nothing moves, with a constant rate and no weight decay.
Classical theory has the test loss rise once a model can fit its training set; Belkin et al. 2019 (arXiv 1812.11118)
and Nakkiran et al. 2019 (arXiv 1912.02292) saw it peak there and fall again for wider models. Every training window
has a context of its own, so that all of them can be fitted. N windows, K letters of context, V letters in all.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from picollm_core.batches import IGNORED, Batch
from picollm_core.config import Config, KGramConfig, TrainConfig, require
from picollm_core.inference import evaluation_mode
from picollm_core.lab import Lab
from picollm_core.models import LanguageModel, build_model
from picollm_core.trainer import Trainer, seeded

LETTERS = "abcdefghijklmnopqrstuvwxyz .,'\"\n"
"""What is left of a text: lower case, without what is not listed here. The number of a letter is its place."""

LOSS, ERROR = "loss, nats per letter", "error, share of wrong letters"


@dataclass(frozen=True)
class DescentSetting(Config):
    """One such experiment but for width and seed."""

    windows: int = 400
    """Training windows, each with another context."""
    test_windows: int = 2_000
    k: int = 4
    """Letters of context."""
    noise: float = 0.0
    """Share of training targets that are replaced by a letter at random, drawn evenly."""
    updates: int = 2_000
    """All windows in every batch."""
    every: int = 100
    """Updates between two looks at the test windows."""
    learning_rate: float = 0.01

    def validate(self) -> None:
        for name in ("windows", "test_windows", "k", "updates", "every"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(0 <= self.noise <= 1, f"noise is {self.noise}; it must be a share in [0, 1]")


def letter_windows(texts: Iterable[str], k: int, count: int, seed: int, distinct: bool) -> np.ndarray:
    """`count` windows of k letters and the next one, (count, k + 1) numbers in LETTERS, from random places.

    With `distinct` no two windows have the same context. Raises ValueError when the texts hold fewer.
    """
    joined = "\n".join(texts).lower()
    ids = np.array([place for letter in joined if (place := LETTERS.find(letter)) >= 0], dtype=np.int64)
    require(ids.size > k, f"the texts hold {ids.size} letters; a window needs {k + 1}")
    windows = np.lib.stride_tricks.sliding_window_view(ids, k + 1)
    order = np.random.default_rng(seed).permutation(len(windows))
    if distinct:
        order = order[np.sort(np.unique(windows[order, :k], axis=0, return_index=True)[1])]
    require(len(order) >= count, f"{count} windows were asked for, but the texts hold {len(order)}; ask for fewer")
    return windows[order[:count]]


def with_noise(windows: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The windows (N, K + 1) with this share of their last letters replaced by letters drawn evenly."""
    changed, generator = windows.copy(), np.random.default_rng(seed)
    rows = generator.choice(len(windows), round(share * len(windows)), replace=False)
    changed[rows, -1] = generator.integers(len(LETTERS), size=len(rows))
    return changed


class WholeBatch:
    """Batches that are all windows (N, K + 1) every time: the gradient of an update is that of the training loss."""

    def __init__(self, windows: np.ndarray) -> None:
        ids = torch.from_numpy(windows)
        targets = torch.full_like(ids[:, 1:], IGNORED)
        targets[:, -1] = ids[:, -1]  # only the last letter is seen after a whole context
        self._batch, self._drawn = (ids[:, :-1], targets), 0

    def next_batch(self) -> Batch:
        self._drawn += 1
        return self._batch

    @property
    def epoch(self) -> float:
        return float(self._drawn)

    @property
    def steps_per_epoch(self) -> int:
        return 1

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self._drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._drawn = int(state["drawn"])


@torch.no_grad()
def _loss_and_error(model: LanguageModel, windows: Tensor) -> tuple[float, float]:
    """Nats per letter, and the share of windows (N, K + 1) whose likeliest next letter is wrong."""
    with evaluation_mode(model):
        logits = model(windows[:, :-1])[:, -1].float()  # (N, V)
    loss = torch.nn.functional.cross_entropy(logits, windows[:, -1])
    return float(loss), float((logits.argmax(-1) != windows[:, -1]).float().mean())


def descent_run(
    train: np.ndarray, test: np.ndarray, width: int, setting: DescentSetting, seed: int
) -> dict[str, float | int]:
    """Train one one-hot k-gram with one inner layer of `width` on windows `train` (N, K + 1).

    At the end: train_loss, test_loss (nats per letter), train_error, test_error (shares); stopped, the lowest test
    loss that was seen every `setting.every` updates, as a perfect early stopping would have it; and parameters.
    """
    config = KGramConfig(
        vocab_size=len(LETTERS), block_size=setting.k, k=setting.k, n_embd=width, n_layer=1, embedding="onehot"
    )
    settings = TrainConfig(
        max_steps=setting.updates,
        learning_rate=setting.learning_rate,
        batch_size=len(train),
        schedule="constant",
        weight_decay=0.0,
        precision="float32",
        device="cpu",
        seed=seed,
    )
    seen, unseen = torch.from_numpy(train), torch.from_numpy(test)
    with seeded(seed):
        trainer = Trainer(build_model(config), WholeBatch(train), settings)
        stopped = np.inf
        while trainer.step < setting.updates:
            trainer.advance()
            if trainer.step % setting.every == 0 or trainer.step == setting.updates:
                stopped = min(stopped, _loss_and_error(trainer.model, unseen)[0])
    (train_loss, train_error), (test_loss, test_error) = (
        _loss_and_error(trainer.model, part) for part in (seen, unseen)
    )
    losses = {"train_loss": train_loss, "test_loss": test_loss, "stopped": float(stopped)}
    errors = {"train_error": train_error, "test_error": test_error}
    numbers = {"width": width, "seed": seed, "parameters": trainer.model.num_parameters()}
    return numbers | {name: round(value, 5) for name, value in (losses | errors).items()}


def descent_study(
    lab: Lab, widths: Sequence[int], setting: DescentSetting, seeds: Sequence[int], *, stories: int = 200
) -> list[dict[str, float | int]]:
    """`descent_run` for every width and seed on the lab's corpus, recorded by the lab: one measurement a width.

    Windows come from the first `stories` training and held-out stories; a seed draws its own training windows and
    weights, the test windows are the same for all. Raises ValueError without widths or seeds.
    """
    require(bool(widths) and bool(seeds), f"{len(widths)} widths and {len(seeds)} seeds; at least one of each")
    rows: list[dict[str, float | int]] = []
    for width in widths:

        def compute(width: int = width) -> list[dict[str, float | int]]:
            corpus = lab.corpus()
            texts = {
                s: [t for t, _ in zip(corpus.texts(s), range(stories), strict=False)] for s in ("train", "validation")
            }
            test = letter_windows(texts["validation"], setting.k, setting.test_windows, 0, distinct=False)
            found = []
            for seed in seeds:
                train = letter_windows(texts["train"], setting.k, setting.windows, seed, distinct=True)
                found.append(descent_run(with_noise(train, setting.noise, seed), test, width, setting, seed))
            return found

        given = {"width": width, "setting": setting.to_dict(), "seeds": list(seeds), "stories": stories}
        rows += lab.measure("double descent", compute, **given)
    return rows


def descent_lines(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `descent_study` as lines over the width: panel (LOSS or ERROR), arm, seed, width, value."""
    parts = [
        rows[["width", "seed"]].assign(panel=panel, arm=arm, value=rows[column])
        for column, (panel, arm) in {
            "test_loss": (LOSS, "test, at the end"),
            "stopped": (LOSS, "test, lowest of the looks"),
            "test_error": (ERROR, "test, at the end"),
            "train_error": (ERROR, "training"),
        }.items()
    ]
    return pd.concat(parts, ignore_index=True)
