"""Interpolated Kneser-Ney n-gram models: the count-based floor that every neural model has to beat.

Chen & Goodman 1998 (TR-10-98), the interpolated form of modified Kneser-Ney. For a context h of m - 1 tokens
    P_m(w | h) = max(c(h w) - D(c), 0) / c(h .) + gamma(h) P_{m-1}(w | h without its oldest token),   P_0 = 1 / V,
where gamma(h) gives back what was discounted, and unseen contexts leave all to P_{m-1}. The highest order counts
occurrences. Below it c counts in how many different ways an n-gram is continued to the left; an n-gram at the start of
a story has nothing to its left, so there c counts occurrences again.

An n-gram is one unsigned integer, its oldest token in the highest bits, so that sorting groups n-grams by context.
Shape legend: S stories, N tokens to predict, K different n-grams, U different contexts, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import tiktoken
from numpy.typing import ArrayLike, NDArray

from picollm_core.config import require
from picollm_core.evaluate import Evaluation, encode_stories, summarise

Keys = NDArray[np.uint64]
_KEY_BITS = 64
_FALLBACK_DISCOUNT = 0.5


def estimate_discounts(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """D(c) for c = 0, 1, 2, 3 and more, (4,), from the counts (K,) of one order (Chen & Goodman 1998).

    With n_c n-grams of count c and Y = n_1 / (n_1 + 2 n_2): D(c) = c - (c + 1) Y n_{c+1} / n_c. Where a text is too
    small for three of them to be defined and in (0, c], all are Y, and 1/2 where not even that lies in (0, 1).
    """
    n = np.bincount(np.minimum(counts, 5), minlength=5)[:5].astype(float)  # n[c] for c <= 4
    y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.0
    if n[1:4].all():
        three = [c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3)]
        if all(0 < discount <= c for c, discount in enumerate(three, start=1)):
            return np.array([0.0, *three])
    single = y if 0 < y < 1 else _FALLBACK_DISCOUNT
    return np.array([0.0, single, single, single])


def _look_up(keys: Keys, values: NDArray[np.float64], wanted: Keys, missing: float) -> NDArray[np.float64]:
    """The values (N,) of the `wanted` keys (N,) in a sorted table, `missing` where a key is not in it."""
    place = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    return np.where(keys[place] == wanted, values[place], missing)


@dataclass(frozen=True)
class _Order:
    """What one order knows: discounted shares of n-grams, and what each context leaves to the order below."""

    ngrams: Keys  # (K,) sorted
    shares: NDArray[np.float64]  # (K,) (c - D(c)) / c(h .)
    contexts: Keys  # (U,) sorted
    backoff: NDArray[np.float64]  # (U,) gamma(h)

    @classmethod
    def from_counts(cls, ngrams: Keys, counts: NDArray[np.int64], bits: int) -> Self:
        """Sorted different n-grams (K,) with their counts (K,), `bits` a token."""
        discounts = estimate_discounts(counts)[np.minimum(counts, 3)]  # (K,)
        of_ngram = ngrams >> np.uint64(bits)  # (K,) the context of each
        starts = np.flatnonzero(np.r_[True, of_ngram[1:] != of_ngram[:-1]])  # (U,)
        totals = np.add.reduceat(counts, starts)
        sizes = np.diff(np.r_[starts, ngrams.size])
        shares = (counts - discounts) / np.repeat(totals, sizes)
        return cls(ngrams, shares, of_ngram[starts], np.add.reduceat(discounts, starts) / totals)

    def interpolate(self, ngrams: Keys, contexts: Keys, lower: NDArray[np.float64]) -> NDArray[np.float64]:
        """P_m of the n-grams (N,) in their contexts (N,), from P_{m-1} (N,)."""
        left_to_lower = _look_up(self.contexts, self.backoff, contexts, 1.0)
        return _look_up(self.ngrams, self.shares, ngrams, 0.0) + left_to_lower * lower


class KneserNey:
    """Interpolated modified Kneser-Ney model of n-grams up to `order` tokens over a vocabulary of `vocab_size`.

    A story is preceded by one end-of-text token, as for the neural models, and n-grams never reach across it.
    Every token has a positive probability. Raises ValueError when order < 1, vocab_size < 1, or when an n-gram does
    not fit 64 bits.
    """

    def __init__(self, order: int, vocab_size: int) -> None:
        require(order >= 1, f"order is {order}; it must be at least 1")
        require(vocab_size >= 1, f"vocab_size is {vocab_size}; it must be at least 1")
        self.order, self.vocab_size = order, vocab_size
        self.bits = max(1, (vocab_size - 1).bit_length())
        require(
            order * self.bits <= _KEY_BITS,
            f"order={order} at vocab_size={vocab_size} needs {order * self.bits} bits an n-gram, not {_KEY_BITS}; "
            f"use order <= {_KEY_BITS // self.bits} or a tokenizer with fewer tokens",
        )
        self.eot: int | None = None
        self._orders: list[_Order] = []

    def fit(self, tokens: ArrayLike, offsets: ArrayLike) -> Self:
        """Count the stories tokens[offsets[s] : offsets[s + 1]], each closed by the end-of-text token; returns self.

        tokens (N,) are ids, offsets (S + 1,) rise from 0 to N, as a TokenStore has them. Raises ValueError for ids
        outside the vocabulary, empty stories and stories that end in different ids.
        """
        ids, bounds = np.asarray(tokens).astype(np.uint64), np.asarray(offsets).astype(np.int64)
        lengths = np.diff(bounds)  # (S,)
        require(lengths.size >= 1 and bool(lengths.min() >= 1), "there is no story, or an empty one")
        spanned = (int(bounds[0]), int(bounds[-1]))
        require(spanned == (0, ids.size), f"offsets span {spanned} but there are {ids.size} tokens from 0")
        largest, closing = int(ids.max()), np.unique(ids[bounds[1:] - 1])
        require(largest < self.vocab_size, f"token id {largest} is outside the vocabulary of {self.vocab_size}")
        require(closing.size == 1, f"stories end in {closing.size} different ids; each must end in the end-of-text id")
        self.eot = int(closing[0])
        recent, known = self._recent(ids, lengths)
        orders, longer = [], None
        for m in range(self.order, 0, -1):
            ngrams, counts = np.unique(self._pack(recent[:m])[known >= m - 1], return_counts=True)  # (K,), (K,)
            if ngrams.size == 0:  # every story is shorter than that
                continue
            if longer is not None:  # different ways to the left; n-grams at a story's start have none and keep theirs
                endings, ways = np.unique(longer & np.uint64((1 << m * self.bits) - 1), return_counts=True)
                counts[np.searchsorted(ngrams, endings)] = ways
            orders.append(_Order.from_counts(ngrams, counts, self.bits))
            longer = ngrams
        self._orders = orders[::-1]
        return self

    def _pack(self, recent: Sequence[Keys]) -> Keys:
        """N-grams as integers (N,), from their tokens (N,) each, the newest first."""
        packed = np.zeros_like(recent[0])
        for distance, ids in enumerate(recent):
            packed |= ids << np.uint64(distance * self.bits)
        return packed

    def _recent(self, ids: Keys, lengths: NDArray[np.int64]) -> tuple[list[Keys], NDArray[np.int64]]:
        """The token 0, 1, ... places back from each target (N,), and how many tokens of context it has (N,).

        Before a story stands the end-of-text token that closes the story before it, or the last one for the first.
        """
        starts = np.repeat(lengths.cumsum() - lengths, lengths)
        return [np.roll(ids, distance) for distance in range(self.order)], np.arange(ids.size) - starts + 1

    def _probabilities(self, recent: Sequence[Keys], known: NDArray[np.int64]) -> NDArray[np.float64]:
        """P (N,) of the tokens recent[0] after recent[1], recent[2], ..., of which `known` (N,) exist."""
        require(self.eot is not None, "this Kneser-Ney model has no counts yet; call fit first")
        probability = np.full(recent[0].shape, 1 / self.vocab_size)
        for m, order in enumerate(self._orders[: len(recent)], start=1):
            ngrams = self._pack(recent[:m])
            interpolated = order.interpolate(ngrams, ngrams >> np.uint64(self.bits), probability)
            probability = np.where(known >= m - 1, interpolated, probability)
        return probability

    def distribution(self, context: Sequence[int]) -> NDArray[np.float64]:
        """Probabilities (V,) of the token after a story that has begun with the ids `context`; they sum to 1."""
        history = [self.eot or 0, *context][::-1][: self.order - 1]  # newest first
        recent = np.broadcast_arrays(np.arange(self.vocab_size, dtype=np.uint64), *np.array(history, np.uint64))
        return self._probabilities(recent, np.full(self.vocab_size, len(history)))

    def token_nats(self, story: ArrayLike) -> NDArray[np.float64]:
        """-ln P (N,) of each token of one story (N,), the closing end-of-text token included and required."""
        ids = np.asarray(story).astype(np.uint64)
        require(ids.size >= 1 and int(ids[-1]) == self.eot, f"a story must end in the end-of-text token {self.eot}")
        return -np.log(self._probabilities(*self._recent(ids, np.array([ids.size]))))

    def evaluate(
        self, texts: Iterable[str], tokenizer: tiktoken.Encoding, *, n_bootstrap: int = 1000, seed: int = 0
    ) -> Evaluation:
        """The evaluation of picollm_core.evaluate, for these counts; accuracy is None, since no argmax is taken.

        Raises ValueError for another tokenizer than the one whose ids were counted, and where there is no text.
        """
        expected, given = (self.vocab_size, self.eot), (tokenizer.n_vocab, tokenizer.eot_token)
        require(expected == given, f"counted with (vocabulary, end-of-text) {expected} but the tokenizer has {given}")
        stories = encode_stories(texts, tokenizer)
        recent, known = self._recent(stories.targets.astype(np.uint64), stories.lengths)
        return summarise(stories, -np.log(self._probabilities(recent, known)), n_bootstrap=n_bootstrap, seed=seed)
