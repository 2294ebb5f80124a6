"""Small tasks on made-up sequences, where one knows what a model would have to do: copy, reverse, add, recall, parity.

Every task draws its rows from a numpy generator and scores the answer alone: all other targets are IGNORED, padding
too. `length` counts what makes a row hard (symbols, digits, pairs, bits), and rows of one length are equally wide.
Tasks are trained at lengths min_length..max_length, each equally likely, and can be tested at any.

Every vocabulary starts with PADDING, BEGIN, SEPARATOR and END. In the first three tasks the model writes the answer
token by token after the separator, END included, so that it has to know when to stop:

    copy      ^ c a f > c a f $      reverse   ^ c a f > f a c $      addition  ^ 3 1 + 9 4 > 2 6 0 $  (13 + 49)

In the other two the answer to a token is predicted on that token and never read again ("." is not scored):

    recall    ^ a 7 c 2 c a          parity    ^ 1 0 1 1
              . . . . . 2 7                    . o o e o

B batch, T time (tokens of a row), N rows of one length.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from picollm_core.batches import IGNORED, Batch, Rows
from picollm_core.config import Config, require

PADDING, BEGIN, SEPARATOR, END, FIRST_SYMBOL = range(5)
TRAIN_STREAM, TEST_STREAM = 0, 1
_MARKS = ("_", "^", ">", "$")


@dataclass(frozen=True)
class SequenceTask(Config, ABC):
    """What rows look like, and the lengths that training draws from."""

    family: ClassVar[str]
    min_length: int = 1
    max_length: int = 20

    def validate(self) -> None:
        require(
            1 <= self.min_length <= self.max_length,
            f"training lengths go from {self.min_length} to {self.max_length}; the first must be at least 1 and not "
            "exceed the last",
        )

    @property
    @abstractmethod
    def symbols(self) -> tuple[str, ...]:
        """One readable sign for each token id from FIRST_SYMBOL on."""

    @property
    def vocab_size(self) -> int:
        """Symbols and the four marks."""
        return FIRST_SYMBOL + len(self.symbols)

    @abstractmethod
    def width(self, length: int) -> int:
        """Tokens T in a row of this length."""

    @abstractmethod
    def _draw(self, length: int, count: int, generator: np.random.Generator) -> Rows:
        """idx and targets, each (count, width(length)), of rows of one length."""

    def rows(self, length: int, count: int, generator: np.random.Generator) -> Rows:
        """`count` rows of one length: idx and targets, int64 (N, T), targets IGNORED where nothing is to be predicted.

        Raises ValueError for a length below 1 or one that the task has too few symbols for.
        """
        require(length >= 1, f"length is {length}; it must be at least 1")
        return self._draw(length, count, generator)

    def spell(self, ids: np.ndarray | torch.Tensor) -> str:
        """A row of idx or of targets (T,) as readable signs, "." where a target is not scored."""
        signs = (*_MARKS, *self.symbols)
        return " ".join("." if token == IGNORED else signs[token] for token in ids.tolist())


def _answered(question: np.ndarray, answer: np.ndarray) -> Rows:
    """Rows BEGIN question SEPARATOR answer END, scored from the answer's first token to END."""
    mark = np.ones((len(question), 1), dtype=np.int64)
    tokens = np.concatenate([BEGIN * mark, question, SEPARATOR * mark, answer, END * mark], axis=1)
    targets = tokens[:, 1:].copy()
    targets[:, : question.shape[1] + 1] = IGNORED
    return tokens[:, :-1].copy(), targets


@dataclass(frozen=True)
class CopyTask(SequenceTask):
    """Write a random string again (Kazemnejad et al. 2023, arXiv 2305.19466, section 3). `length` counts its symbols.

    The paper draws from 100 words. The more symbols, the rarer a repeated pair of neighbours, and the further a model
    gets that merely finds what followed its last symbols before.
    """

    family: ClassVar[str] = "copy"
    n_symbols: int = 10

    def validate(self) -> None:
        super().validate()
        require(2 <= self.n_symbols <= 100, f"n_symbols is {self.n_symbols}; it must lie in 2..100")

    @property
    def symbols(self) -> tuple[str, ...]:
        return _names(self.n_symbols)

    def width(self, length: int) -> int:
        return 2 * length + 2

    def _draw(self, length: int, count: int, generator: np.random.Generator) -> Rows:
        string = generator.integers(FIRST_SYMBOL, self.vocab_size, size=(count, length))
        return _answered(string, self._answer(string))

    def _answer(self, string: np.ndarray) -> np.ndarray:
        return string


@dataclass(frozen=True)
class ReverseTask(CopyTask):
    """Write a random string from its end to its start (arXiv 2305.19466, section 3)."""

    family: ClassVar[str] = "reverse"

    def _answer(self, string: np.ndarray) -> np.ndarray:
        return string[:, ::-1]


@dataclass(frozen=True)
class AdditionTask(SequenceTask):
    """Add two numbers of `length` digits, leading zeros included; the sum has length + 1 digits.

    The digits of all three stand least significant first by default, so that each digit of the sum follows from what
    has been written: with the other order the first digit hangs on every carry behind it, and small models need far
    more training (Lee et al. 2023, arXiv 2307.03381, section 3). The paper on positions (arXiv 2305.19466) writes the
    most significant digit first and draws the two lengths independently, at 107M parameters.
    """

    family: ClassVar[str] = "addition"
    base: int = 10
    first_digit: Literal["least", "most"] = "least"

    def validate(self) -> None:
        super().validate()
        require(2 <= self.base <= 10, f"base is {self.base}; it must lie in 2..10")

    @property
    def symbols(self) -> tuple[str, ...]:
        return (*"0123456789"[: self.base], "+")

    def width(self, length: int) -> int:
        return 3 * length + 4

    def _draw(self, length: int, count: int, generator: np.random.Generator) -> Rows:
        digits = generator.integers(0, self.base, size=(count, 2, length))  # least significant first
        total = np.zeros((count, length + 1), dtype=np.int64)
        total[:, :length] = digits.sum(axis=1)
        for place in range(length):
            total[:, place + 1] += total[:, place] // self.base
            total[:, place] %= self.base
        if self.first_digit == "most":
            digits, total = digits[:, :, ::-1], total[:, ::-1]
        plus = np.full((count, 1), self.base)
        question = np.concatenate([digits[:, 0], plus, digits[:, 1]], axis=1)
        return _answered(FIRST_SYMBOL + question, FIRST_SYMBOL + total)


@dataclass(frozen=True)
class RecallTask(SequenceTask):
    """Multi-query associative recall: `length` pairs of key and value, then every key once, in random order.

    The target on each repeated key is its value (Arora et al. 2023, arXiv 2312.04927, section 4). Keys of a row differ,
    values are drawn independently. The paper spreads the queries over a longer row; here they follow at once, so that a
    row has 3 length + 1 tokens and every one of them counts.
    """

    family: ClassVar[str] = "recall"
    max_length: int = 16
    n_keys: int = 64
    n_values: int = 64

    def validate(self) -> None:
        super().validate()
        require(self.n_values >= 2, f"n_values is {self.n_values}; with fewer than 2 there is nothing to recall")
        self._require_keys(self.max_length)

    def _require_keys(self, length: int) -> None:
        require(length <= self.n_keys, f"{length} pairs need as many different keys, but n_keys is {self.n_keys}")

    @property
    def symbols(self) -> tuple[str, ...]:
        return (*(f"k{i}" for i in range(self.n_keys)), *(f"v{i}" for i in range(self.n_values)))

    def width(self, length: int) -> int:
        return 3 * length + 1

    def _draw(self, length: int, count: int, generator: np.random.Generator) -> Rows:
        self._require_keys(length)
        keys = generator.random((count, self.n_keys)).argsort(axis=1)[:, :length]  # (N, length), all different
        values = generator.integers(0, self.n_values, size=(count, length))
        order = generator.random((count, length)).argsort(axis=1)
        idx = np.full((count, self.width(length)), BEGIN, dtype=np.int64)
        idx[:, 1 : 2 * length : 2] = FIRST_SYMBOL + keys
        idx[:, 2 : 2 * length + 1 : 2] = FIRST_SYMBOL + self.n_keys + values
        idx[:, 2 * length + 1 :] = FIRST_SYMBOL + np.take_along_axis(keys, order, axis=1)
        targets = np.full_like(idx, IGNORED)
        targets[:, 2 * length + 1 :] = FIRST_SYMBOL + self.n_keys + np.take_along_axis(values, order, axis=1)
        return idx, targets


@dataclass(frozen=True)
class ParityTask(SequenceTask):
    """Whether the ones so far are even or odd in number, asked on every one of `length` random bits.

    No linear recurrence whose transition has only positive eigenvalues solves it at every length (Grazzi et al. 2024,
    arXiv 2411.12537, theorem 1). Guessing gets half the bits right.
    """

    family: ClassVar[str] = "parity"
    max_length: int = 40

    @property
    def symbols(self) -> tuple[str, ...]:
        return ("0", "1", "e", "o")

    def width(self, length: int) -> int:
        return length + 1

    def _draw(self, length: int, count: int, generator: np.random.Generator) -> Rows:
        bits = generator.integers(0, 2, size=(count, length))
        mark = np.ones((count, 1), dtype=np.int64)
        idx = np.concatenate([BEGIN * mark, FIRST_SYMBOL + bits], axis=1)
        targets = np.concatenate([IGNORED * mark, FIRST_SYMBOL + 2 + bits.cumsum(axis=1) % 2], axis=1)
        return idx, targets


TASKS: dict[str, type[SequenceTask]] = {
    task.family: task for task in (CopyTask, ReverseTask, AdditionTask, RecallTask, ParityTask)
}


def _names(count: int) -> tuple[str, ...]:
    """a, b, ..., z, then s26, s27, ..."""
    return tuple(chr(ord("a") + i) if i < 26 else f"s{i}" for i in range(count))


class TaskBatches:
    """Fresh rows for every step, drawn from (seed, step): the Batches of the training loop, without an end.

    The lengths of a batch are drawn uniformly from the task's; shorter rows are padded to the longest. No row is kept,
    so `steps_per_epoch` merely says how many batches are to be called an epoch.
    """

    def __init__(self, task: SequenceTask, batch_size: int, seed: int = 0, steps_per_epoch: int = 1_000) -> None:
        require(
            batch_size >= 1 and steps_per_epoch >= 1,
            f"batch_size is {batch_size} and steps_per_epoch is {steps_per_epoch}; both must be at least 1",
        )
        self.task, self.batch_size, self.seed = task, batch_size, seed
        self._steps_per_epoch, self._step = steps_per_epoch, 0

    def next_batch(self) -> Batch:
        """idx and targets, int64 (B, T) with T the width of the longest row drawn."""
        generator = np.random.default_rng([self.seed, TRAIN_STREAM, self._step])
        lengths = generator.integers(self.task.min_length, self.task.max_length, size=self.batch_size, endpoint=True)
        width = self.task.width(int(lengths.max()))
        idx = np.full((self.batch_size, width), PADDING, dtype=np.int64)
        targets = np.full((self.batch_size, width), IGNORED, dtype=np.int64)
        for length in np.unique(lengths).tolist():
            places = np.flatnonzero(lengths == length)
            own = self.task.width(length)
            idx[places, :own], targets[places, :own] = self.task.rows(length, len(places), generator)
        self._step += 1
        return torch.from_numpy(idx), torch.from_numpy(targets)

    @property
    def epoch(self) -> float:
        return self._step / self._steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        return self._steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "seed": self.seed, "batch_size": self.batch_size, "task": self.task.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = self.state_dict()
        for name in ("seed", "batch_size", "task"):
            require(
                state[name] == own[name],
                f"the saved loader has {name}={state[name]} but this one has {own[name]}; resume with the same task, "
                "batch_size and seed, or start a new run",
            )
        self._step = int(state["step"])


def held_out_rows(task: SequenceTask, length: int, count: int, seed: int = 0) -> Batch:
    """`count` rows of one length for testing, from a stream that training never draws from; idx and targets (N, T)."""
    idx, targets = task.rows(length, count, np.random.default_rng([seed, TEST_STREAM, length]))
    return torch.from_numpy(idx), torch.from_numpy(targets)
