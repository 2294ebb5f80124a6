"""Batches of training windows: every window exactly once an epoch, in an order that a seed fixes and a state resumes.

Two row formats. PackedBatches cuts the stream of stories into windows; LineBatches (the course's starter format) puts
one example on a row and pads it. MixedBatches draws the source of every row by weight. The rows of all epochs form one
sequence, of which a batch is the next `batch_size`: batches are always full and no row is lost between epochs.

B batch, T time. Targets that must not be scored are IGNORED (-100).
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import tiktoken
import torch

from picollm_core.token_store import TokenStore, token_store

if TYPE_CHECKING:
    from picollm_core.corpora import Corpus

IGNORED = -100
ORDER_STREAM, MIXTURE_STREAM = 0, 1

Rows = tuple[np.ndarray, np.ndarray]
Batch = tuple[torch.Tensor, torch.Tensor]
logger = logging.getLogger(__name__)


class Batches(Protocol):
    """What the training loop asks of a source of batches."""

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches after which every row has been drawn."""

    def next_batch(self) -> Batch:
        """idx (B, T) and targets (B, T), int64, targets IGNORED where not scored."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able position; after load_state_dict the next batch is the one that would have come."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError when the state belongs to other data or another seed."""


class _ShuffledRows(ABC):
    """Rows 0..n_rows-1 in an order drawn anew for each epoch from (seed, epoch), and the position in that sequence."""

    def __init__(self, store: TokenStore, n_rows: int, batch_size: int, seed: int) -> None:
        self.n_rows, self.batch_size, self.seed = n_rows, batch_size, seed
        self._tokens = np.asarray(store.tokens)
        self.padding = int(self._tokens[-1])  # every store ends in <|endoftext|>
        self.position = 0
        self._shuffled: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def _order(self, epoch: int) -> np.ndarray:
        if self._shuffled[0] != epoch:
            generator = np.random.default_rng([self.seed, ORDER_STREAM, epoch])
            self._shuffled = (epoch, generator.permutation(self.n_rows))
        return self._shuffled[1]

    def _next_rows(self, count: int) -> np.ndarray:
        parts = [np.empty(0, np.int64)]
        while count > 0:
            epoch, start = divmod(self.position, self.n_rows)
            parts.append(self._order(epoch)[start : start + count])
            self.position += parts[-1].size
            count -= parts[-1].size
        return np.concatenate(parts)

    @abstractmethod
    def _gather(self, rows: np.ndarray) -> Rows:
        """The rows of these numbers as idx and targets."""

    def take(self, count: int) -> Rows:
        """The next `count` rows as idx and targets, int64 (count, T)."""
        return self._gather(self._next_rows(count))

    def next_batch(self) -> Batch:
        idx, targets = self.take(self.batch_size)
        return torch.from_numpy(idx), torch.from_numpy(targets)

    @property
    def epoch(self) -> float:
        return self.position / self.n_rows

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.n_rows // self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "seed": self.seed, "n_rows": self.n_rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = self.state_dict()
        for name in ("seed", "n_rows"):
            if state[name] != own[name]:
                raise ValueError(
                    f"the saved loader has {name}={state[name]} but this one has {own[name]}; resume with the same "
                    "corpus, block_size and seed, or start a new run"
                )
        self.position = int(state["position"])


def _check_sizes(rows: str, n_rows: int, block_size: int, batch_size: int) -> None:
    if block_size < 1 or batch_size < 1:
        raise ValueError(f"block_size is {block_size} and batch_size is {batch_size}; both must be at least 1")
    if n_rows < batch_size:
        raise ValueError(
            f"the corpus gives {n_rows} {rows} but a batch needs {batch_size}; "
            "give more text, or choose a smaller batch_size or block_size"
        )


class PackedBatches(_ShuffledRows):
    """Windows of the packed stream: window w is tokens[w T : w T + T + 1], so every target belongs to one window.

    T = block_size. Fewer than T tokens at the very end of the stream fill no window and are not used.
    Raises ValueError when the store has fewer windows than a batch needs.
    """

    def __init__(self, store: TokenStore, block_size: int, batch_size: int, seed: int = 0) -> None:
        if store.n_tokens <= block_size:
            raise ValueError(
                f"the corpus has {store.n_tokens} tokens but one window of block_size={block_size} needs "
                f"{block_size + 1}; give more text or choose a smaller block_size"
            )
        n_windows = (store.n_tokens - 1) // max(block_size, 1)
        _check_sizes(f"windows of block_size={block_size}", n_windows, block_size, batch_size)
        super().__init__(store, n_windows, batch_size, seed)
        self._window = np.arange(block_size + 1)

    def _gather(self, rows: np.ndarray) -> Rows:
        windows = self._tokens[rows[:, None] * (self._window.size - 1) + self._window]  # (B, T+1)
        return windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)  # (B, T) each


class LineBatches(_ShuffledRows):
    """One example a row: `<|endoftext|>`, which starts every text when a model is evaluated or sampled from, then the
    example's first block_size tokens, padded to the longest row of the batch (T <= block_size).

    The final `<|endoftext|>` is a target where it fits. Padding is `<|endoftext|>` in idx and IGNORED in targets.
    Raises ValueError when the store has fewer examples than a batch needs.
    """

    def __init__(self, store: TokenStore, block_size: int, batch_size: int, seed: int = 0) -> None:
        _check_sizes("examples", store.n_stories, block_size, batch_size)
        super().__init__(store, store.n_stories, batch_size, seed)
        self._starts = np.asarray(store.offsets[:-1])
        lengths = np.diff(store.offsets)
        self._lengths = np.minimum(lengths, block_size) + 1
        self.n_truncated = int(np.count_nonzero(lengths > block_size))

    def _gather(self, rows: np.ndarray) -> Rows:
        lengths = self._lengths[rows]
        steps = np.arange(lengths.max(initial=1))  # T+1 of them
        real = steps < lengths[:, None]  # (B, T+1)
        text = real & (steps > 0)
        places = np.where(text, self._starts[rows][:, None] + steps - 1, 0)
        tokens = np.where(text, self._tokens[places], self.padding).astype(np.int64)
        return tokens[:, :-1].copy(), np.where(real[:, 1:], tokens[:, 1:], IGNORED)


def _check_weights(weights: Sequence[float], n_sources: int) -> np.ndarray:
    if len(weights) != n_sources or n_sources == 0:
        raise ValueError(f"{n_sources} sources but {len(weights)} weights; each source needs one weight")
    values = np.asarray(weights, dtype=np.float64)
    if not np.all(values >= 0) or not 0 < values.sum() < np.inf:
        raise ValueError(f"weights {tuple(weights)} sum to {values.sum()}; give weights >= 0, at least one of them > 0")
    return values / values.sum()


class MixedBatches:
    """Rows drawn from several sources: each row's source by weight, from (seed, step); then that source's next row.

    A source of weight 0 is never drawn. `shares()` reports what was drawn. An epoch is as many rows as the sources of
    positive weight have together; each source keeps its own epochs, so a small one may come round several times.
    """

    def __init__(
        self, sources: Sequence[PackedBatches | LineBatches], weights: Sequence[float], batch_size: int, seed: int = 0
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.sources, self.batch_size, self.seed = list(sources), batch_size, seed
        self._weights = _check_weights(weights, len(self.sources))
        self._step = 0
        self._drawn = np.zeros(len(self.sources), dtype=np.int64)
        self.n_rows = sum(source.n_rows for source, w in zip(self.sources, self._weights, strict=True) if w > 0)

    def next_batch(self) -> Batch:
        generator = np.random.default_rng([self.seed, MIXTURE_STREAM, self._step])
        choice = generator.choice(len(self.sources), size=self.batch_size, p=self._weights)
        counts = np.bincount(choice, minlength=len(self.sources))
        parts = {i: self.sources[i].take(counts[i]) for i in np.flatnonzero(counts)}
        width = max(idx.shape[1] for idx, _ in parts.values())
        idx = np.full((self.batch_size, width), self.sources[0].padding, dtype=np.int64)
        targets = np.full((self.batch_size, width), IGNORED, dtype=np.int64)
        for i, (rows, row_targets) in parts.items():
            idx[choice == i, : rows.shape[1]] = rows
            targets[choice == i, : rows.shape[1]] = row_targets
        self._step += 1
        self._drawn += counts
        return torch.from_numpy(idx), torch.from_numpy(targets)

    def shares(self) -> list[float]:
        """Measured share of rows drawn from each source, in their order; zeros before the first batch."""
        return (self._drawn / max(1, self._drawn.sum())).tolist()

    @property
    def epoch(self) -> float:
        return self._step * self.batch_size / self.n_rows

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.n_rows // self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        sources = [source.state_dict() for source in self.sources]
        return {"step": self._step, "seed": self.seed, "drawn": self._drawn.tolist(), "sources": sources}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["seed"] != self.seed or len(state["sources"]) != len(self.sources):
            raise ValueError(
                f"the saved loader has seed={state['seed']} and {len(state['sources'])} sources but this one has "
                f"seed={self.seed} and {len(self.sources)}; resume with the same corpora and seed, or start a new run"
            )
        for source, saved in zip(self.sources, state["sources"], strict=True):
            source.load_state_dict(saved)
        self._step = int(state["step"])
        self._drawn = np.asarray(state["drawn"], dtype=np.int64)


def make_batches(
    corpora: "Sequence[Corpus]",
    weights: Sequence[float],
    tokenizer: tiktoken.Encoding,
    block_size: int,
    batch_size: int,
    seed: int = 0,
    split: str = "train",
    cache_dir: str | Path | None = None,
) -> Batches:
    """Batches over `split` of the corpora, mixed by `weights` where more than one has a positive weight.

    Stories are packed, lines are padded (Corpus.style). A corpus of weight 0 is not even tokenised. Alone, a corpus
    must fill a batch; in a mixture, one row. Raises ValueError for bad weights, an empty split, too little text.
    """
    shares = _check_weights(weights, len(corpora))
    used = [(corpus, share) for corpus, share in zip(corpora, shares, strict=True) if share > 0]
    rows_needed = batch_size if len(used) == 1 else 1
    sources: list[PackedBatches | LineBatches] = []
    for corpus, _ in used:
        store = token_store(corpus, split, tokenizer, cache_dir)
        if corpus.style == "stories":
            sources.append(PackedBatches(store, block_size, rows_needed, seed))
            continue
        lines = LineBatches(store, block_size, rows_needed, seed)
        if lines.n_truncated:
            logger.warning(
                "%d of %d examples of %s are longer than block_size=%d and are cut",
                lines.n_truncated, lines.n_rows, corpus.name, block_size,
            )  # fmt: skip
        sources.append(lines)
    return sources[0] if len(sources) == 1 else MixedBatches(sources, [share for _, share in used], batch_size, seed)
