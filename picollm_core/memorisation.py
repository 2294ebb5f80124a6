"""What a model repeats of the text it was trained on: exact continuations of its stories, and copies in its samples.

Both are counted over token ids, so nothing depends on spelling. S stories, B batch, T time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from picollm_core.config import require
from picollm_core.inference import evaluation_mode
from picollm_core.models.base import LanguageModel

Stories = Sequence[Sequence[int]]
NOVELTY_ORDERS = tuple(range(1, 11))


def _prompts(stories: Stories, start: int, prefix: int, length: int) -> NDArray[np.int64]:
    """The start token and the first prefix + length tokens of every story, (S, 1 + prefix + length)."""
    require(len(stories) > 0, "there are 0 stories; give at least one to continue")
    require(prefix >= 1 and length >= 1, f"prefix is {prefix} and length is {length}; both must be at least 1 token")
    shortest = min(map(len, stories))
    require(
        shortest >= prefix + length,
        f"the shortest story has {shortest} tokens, but a prefix of {prefix} and {length} more are needed; "
        "leave it out (long_enough), or ask for fewer",
    )
    return np.array([[start, *story[: prefix + length]] for story in stories], dtype=np.int64)


def long_enough(stories: Stories, prefix: int, length: int) -> list[Sequence[int]]:
    """The stories that hold at least `prefix` + `length` tokens, in their order."""
    return [story for story in stories if len(story) >= prefix + length]


@torch.no_grad()
def exact_lengths(
    model: LanguageModel, stories: Stories, start: int, *, prefix: int, length: int, batch_size: int = 64
) -> NDArray[np.int64]:
    """For how many tokens greedy decoding repeats each story, (S,): 0 to `length`, after its first `prefix` tokens.

    The model reads `start` (the end-of-text token, which comes before every story in training) and the prefix. It
    is never run token by token: as long as greedy decoding repeats the story it reads the story itself, so the first
    place where the likeliest token is another one is where it leaves. A share of stories that are repeated for all
    `length` tokens is `(exact_lengths(...) == length).mean()`: extractable text in the sense of Carlini et al. 2023
    (arXiv 2202.07646, definition 3.1). Raises ValueError without stories, for stories shorter than prefix + length,
    for numbers below 1, and where prefix + length tokens exceed the model's window.
    """
    idx = torch.from_numpy(_prompts(stories, start, prefix, length))
    limit = model.context_limit
    require(
        limit is None or prefix + length <= limit,
        f"a prefix of {prefix} and {length} more tokens exceed the model's window of {limit}; ask for fewer",
    )
    found = []
    with evaluation_mode(model):
        for rows in idx.to(model.head.weight.device).split(batch_size):
            h, _ = model.hidden(rows[:, :-1], model.init_state(len(rows)))  # (B, T, C)
            likeliest = model.head(h[:, prefix:]).argmax(-1)  # (B, length)
            same = likeliest == rows[:, prefix + 1 :]
            found.append(same.long().cumprod(1).sum(1).cpu().numpy())
    return np.concatenate(found)


def _joined(stories: Stories, end: int) -> NDArray[np.int64]:
    """All stories in one row, (N,), each followed by the mark `end`, which is no token."""
    return np.concatenate([np.append(np.asarray(story, dtype=np.int64), end) for story in stories])


def copied_lengths(samples: Stories, training: Stories) -> list[NDArray[np.int64]]:
    """For every token of every sample: how long a run that starts there stands in a training story, word for word.

    0 for a token that never occurs in training. Runs end with their sample and do not cross stories. Exact, without
    hashing: the runs of length n that both texts hold are numbered, and those of n + 1 are pairs of such a number
    and a next token; positions that match no longer drop out, so time is that of sorting the text about once for
    each length that is still found. Raises ValueError without samples, without training text, and for ids below 0.
    """
    require(len(samples) > 0, "there are 0 samples; give at least one")
    require(len(training) > 0, "there are 0 training stories; without text nothing can be copied")
    own, text = _joined(samples, -1), _joined(training, -2)
    require((own < 0).sum() == len(samples) and (text < 0).sum() == len(training), "token ids must be 0 or more")
    radix = int(max(own.max(), text.max(), 0)) + 3  # tokens and the two marks, counted from 0
    lengths = np.zeros(own.size, dtype=np.int64)
    own_at, own_id = np.arange(own.size), np.zeros(own.size, dtype=np.int64)
    text_at, text_id = np.arange(text.size), np.zeros(text.size, dtype=np.int64)
    n = 0
    while own_at.size and text_at.size:
        own_key = own_id * radix + own[own_at + n] + 2
        text_key = text_id * radix + text[text_at + n] + 2
        common = np.intersect1d(own_key, text_key)
        if not common.size:
            break
        n += 1
        own_at, own_id = _kept(own_at, own_key, common)
        text_at, text_id = _kept(text_at, text_key, common)
        lengths[own_at] = n
    ends = np.cumsum([len(sample) + 1 for sample in samples])
    return [part[:-1] for part in np.split(lengths, ends[:-1])]


def _kept(
    places: NDArray[np.int64], keys: NDArray[np.int64], common: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places whose key is one of `common` (sorted), and the number of that key."""
    number = np.minimum(np.searchsorted(common, keys), common.size - 1)
    same = common[number] == keys
    return places[same], number[same]


@dataclass(frozen=True)
class Novelty:
    """How much of some samples is new: `shares` n -> share of their n-grams that no training story holds (None where
    no sample has n tokens), and `longest`, the most tokens in a row that one of them copies."""

    shares: dict[int, float | None]
    longest: int


def novelty(samples: Stories, training: Stories, orders: Sequence[int] = NOVELTY_ORDERS) -> Novelty:
    """Share of the samples' n-grams that never occur in the training stories, for every n of `orders`.

    McCoy et al. 2023 (arXiv 2111.09509). Held-out text by people, cut like the samples, is the line to compare with:
    it copies short n-grams as well, since a language has only so many. All n-grams of all samples count alike. Raises
    ValueError for n below 1 and as `copied_lengths`.
    """
    require(min(orders, default=0) >= 1, f"orders are {list(orders)}; give at least one, each 1 or more")
    lengths = copied_lengths(samples, training)
    shares: dict[int, float | None] = {}
    for n in orders:
        starts = np.concatenate([own[: max(0, own.size - n + 1)] for own in lengths])
        shares[n] = float((starts < n).mean()) if starts.size else None
    return Novelty(shares, max((int(own.max(initial=0)) for own in lengths), default=0))
