"""The one evaluator: how well a model predicts whole held-out stories.

Every story is scored by itself, from a fresh state: <|endoftext|> and the story's tokens go in, the story's tokens and
a closing <|endoftext|> are predicted, each exactly once. Shape legend: S stories, N scored tokens of all stories one
after another, B batch, T time, C width.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import tiktoken
import torch
from numpy.typing import NDArray

from picollm_core.bootstrap import ratio_interval
from picollm_core.config import require
from picollm_core.inference import evaluation_mode, require_same_vocabulary
from picollm_core.losses import token_nll
from picollm_core.models.base import LanguageModel

if TYPE_CHECKING:
    from picollm_core.corpora import Corpus


@dataclass(frozen=True)
class StoryTotals:
    """Sums over each story, (S,) arrays: all that a paired comparison or a bootstrap over stories needs."""

    nats: NDArray[np.float64]  # the closing end-of-text token included
    text_nats: NDArray[np.float64]  # without it
    tokens: NDArray[np.int64]  # with it
    bytes: NDArray[np.int64]  # of the text in UTF-8, which has no special tokens


@dataclass(frozen=True)
class Evaluation:
    """What a model scored. Intervals are 95% bootstrap intervals over stories.

    nll: nats a token, the closing end-of-text tokens included; perplexity = exp(nll).
    text_nll, eot_nll: the same over the tokens of the text alone, and over the end-of-text tokens alone.
    bits_per_byte: nats of the text's tokens / ln 2 / UTF-8 bytes of the text; comparable between tokenizers.
    accuracy, eot_accuracy: share of tokens that the model thought the likeliest; None where that was not computed.
    per_position: mean nats of the tokens at place 0, 1, 2, ... of their story.
    n_tokens: scored tokens, one end-of-text a story included.
    """

    nll: float
    perplexity: float
    bits_per_byte: float
    accuracy: float | None
    text_nll: float
    eot_nll: float
    eot_accuracy: float | None
    perplexity_interval: tuple[float, float]
    bits_per_byte_interval: tuple[float, float]
    n_tokens: int
    n_bytes: int
    n_stories: int
    per_position: list[float]
    per_story: StoryTotals = dataclasses.field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; everything but `per_story`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "per_story"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True)
class EncodedStories:
    """Stories as one row of targets: each story's tokens and a closing end-of-text token."""

    targets: NDArray[np.int64]  # (N,)
    lengths: NDArray[np.int64]  # (S,), end-of-text included
    n_bytes: NDArray[np.int64]  # (S,)

    @property
    def inputs(self) -> NDArray[np.int64]:
        """The token before each target, (N,): a story's first target follows an end-of-text token."""
        return np.roll(self.targets, 1)


def encode_stories(texts: Iterable[str], tokenizer: tiktoken.Encoding) -> EncodedStories:
    """Encode every text as plain text ("<|endoftext|>" in it too). Raises ValueError without any text or byte."""
    require(not isinstance(texts, str), "texts is one string; give a list of stories or a corpus")
    stories = list(texts)
    n_bytes = np.array([len(story.encode("utf-8", "replace")) for story in stories], np.int64)
    require(bool(n_bytes.sum() > 0), f"{len(stories)} stories with {n_bytes.sum()} bytes; there is nothing to score")
    encoded = tokenizer.encode_ordinary_batch(stories, num_threads=2)
    targets = np.concatenate([[*ids, tokenizer.eot_token] for ids in encoded]).astype(np.int64)
    return EncodedStories(targets, np.array([len(ids) + 1 for ids in encoded]), n_bytes)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def _optional_mean(correct: NDArray[np.bool_] | None) -> float | None:
    return None if correct is None else float(correct.mean())


def summarise(
    stories: EncodedStories,
    nats: NDArray[np.float64],
    correct: NDArray[np.bool_] | None = None,
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """The Evaluation of any predictor, from the nats (N,) it paid for each target and whether it was right (N,)."""
    ends = stories.lengths.cumsum()  # (S,)
    starts, last = ends - stories.lengths, ends - 1
    per_story = np.add.reduceat(nats, starts)  # (S,)
    text = np.add.reduceat(np.where(np.isin(np.arange(nats.size), last), 0.0, nats), starts)
    n_tokens, n_stories, n_bytes = nats.size, ends.size, int(stories.n_bytes.sum())
    nll, text_sum = math.fsum(per_story) / n_tokens, math.fsum(text)  # fsum: the order of the stories changes nothing
    place = np.arange(n_tokens) - np.repeat(starts, stories.lengths)  # (N,)
    nll_interval = ratio_interval(per_story, stories.lengths, n_bootstrap, seed)
    byte_interval = ratio_interval(text, stories.n_bytes, n_bootstrap, seed)
    return Evaluation(
        nll=nll,
        perplexity=_exp(nll),
        bits_per_byte=text_sum / math.log(2) / n_bytes,
        accuracy=_optional_mean(correct),
        text_nll=text_sum / max(1, n_tokens - n_stories),
        eot_nll=math.fsum(nats[last]) / n_stories,
        eot_accuracy=_optional_mean(None if correct is None else correct[last]),
        perplexity_interval=(_exp(nll_interval[0]), _exp(nll_interval[1])),
        bits_per_byte_interval=(byte_interval[0] / math.log(2), byte_interval[1] / math.log(2)),
        n_tokens=n_tokens,
        n_bytes=n_bytes,
        n_stories=n_stories,
        per_position=(np.bincount(place, nats) / np.bincount(place)).tolist(),
        per_story=StoryTotals(per_story, text, stories.lengths, stories.n_bytes),
    )


def _windows(lengths: NDArray[np.int64], limit: int | None) -> Iterator[tuple[int, int, int]]:
    """(begin, end, first scored) places in (N,), so that every target is scored once and no window exceeds `limit`.

    A story that fits is one window. A longer one is cut into windows that advance by limit // 2, each scoring only
    what the one before it did not reach, so a token is never predicted from less than about half a window.
    """
    start = 0
    for length in lengths.tolist():
        size = length if limit is None else min(limit, length)
        ends = [*range(size, length, max(1, size // 2)), length]
        for scored, end in zip([0, *ends], ends, strict=False):
            yield start + end - size, start + end, start + scored
        start += length


@torch.no_grad()
def _score(
    model: LanguageModel, stories: EncodedStories, batch_size: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Nats (N,) of every target and whether it was the likeliest token (N,): windows of like length share a batch."""
    inputs, device = stories.inputs, model.head.weight.device
    nats, correct = np.empty(inputs.size, np.float64), np.empty(inputs.size, np.bool_)
    windows = np.array(sorted(_windows(stories.lengths, model.context_limit), key=lambda w: w[1] - w[0]))
    for first in range(0, len(windows), batch_size):
        begin, end, scored_from = (column[:, None] for column in windows[first : first + batch_size].T)  # (B, 1)
        place = begin + np.arange((end - begin).max())  # (B, T)
        idx = inputs[np.minimum(place, end - 1)]  # what stands right of the end is not scored and seen by nobody
        scored = torch.from_numpy((place >= scored_from) & (place < end))  # (B, T)
        places = place[scored.numpy()]  # (scored,)
        h, _ = model.hidden(torch.from_numpy(idx).to(device), model.init_state(len(idx)))  # (B, T, C)
        targets = torch.from_numpy(stories.targets[places]).to(device)
        loss, right = token_nll(h[scored.to(device)], model.head.weight, targets)
        nats[places], correct[places] = loss.cpu().double().numpy(), right.cpu().numpy()
    return nats, correct


def evaluate(
    model: LanguageModel,
    tokenizer: tiktoken.Encoding,
    texts: "Iterable[str] | Corpus",
    *,
    split: str = "validation",
    max_stories: int | None = None,
    batch_size: int = 32,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score `model` on whole stories: a corpus's `split`, or any texts; only the first `max_stories` where given.

    Models without a context limit read a story whole. For the others, longer stories are read in windows of the limit
    that overlap by half, and each token is scored in one of them. The result does not depend on batch_size or on the
    order of the stories; `n_bootstrap` and `seed` are those of the intervals. The model's mode is left as it was.
    Raises ValueError for a tokenizer of another size than the model's vocabulary, no text, and numbers below 1.
    """
    require_same_vocabulary(model, tokenizer)
    require(batch_size >= 1, f"batch_size is {batch_size}; it must be at least 1")
    require(max_stories is None or max_stories >= 1, f"max_stories is {max_stories}; it must be at least 1")
    require(not isinstance(texts, str), "texts is one string; give a list of stories or a corpus")
    chosen = texts if isinstance(texts, Iterable) else texts.texts(split)
    stories = encode_stories(islice(chosen, max_stories), tokenizer)
    with evaluation_mode(model):
        nats, correct = _score(model, stories, batch_size)
    return summarise(stories, nats, correct, n_bootstrap=n_bootstrap, seed=seed)
