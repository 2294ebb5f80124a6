"""Well-known mistakes of measuring, made on purpose: padding that counts, metrics of one batch, leaks, wrong nuclei.

No other module of the package uses them but defect_study.py. B batch, T time, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from picollm_core.batches import Batches, PackedBatches
from picollm_core.config import KGramConfig, require
from picollm_core.diversity import Samples
from picollm_core.evaluate import EncodedStories
from picollm_core.inference import evaluation_mode
from picollm_core.losses import IGNORE, token_nll
from picollm_core.models import LanguageModel, build_model
from picollm_core.nucleus import top_p_filter, top_p_filter_by_sorting

DRAWN_STREAM = 3  # beside the streams of batches.py and interpret/induction.py, which draw from the same seed


class DrawnRows(PackedBatches):
    """Windows drawn with replacement, as by a dataset that ignores the index it is asked for: an epoch repeats some."""

    def _order(self, epoch: int) -> np.ndarray:
        if self._shuffled[0] != epoch:
            generator = np.random.default_rng([self.seed, DRAWN_STREAM, epoch])
            self._shuffled = (epoch, generator.integers(self.n_rows, size=self.n_rows))
        return self._shuffled[1]


def unseen_share(n_rows: int, epochs: float = 1.0) -> float:
    """Expected share of `n_rows` rows that drawing as many rows as `epochs` hold never draws: (1 - 1/n)^(n epochs).

    It tends to exp(-epochs). Visiting every row once an epoch leaves out none. Raises ValueError for no rows, and for
    epochs that are not positive.
    """
    require(n_rows >= 1 and epochs > 0, f"n_rows is {n_rows} and epochs {epochs}; both must be positive")
    return (1 - 1 / n_rows) ** (n_rows * epochs)


def drawn_unseen_share(n_rows: int, epochs: int, seed: int) -> float:
    """The same, counted in one simulation."""
    require(n_rows >= 1 and epochs >= 1, f"n_rows is {n_rows} and epochs {epochs}; both must be at least 1")
    drawn = np.random.default_rng(seed).integers(n_rows, size=n_rows * epochs)
    return 1 - len(np.unique(drawn)) / n_rows


def accuracies(share: float, digits: int, most: int) -> list[tuple[int, int]]:
    """All (right, tokens) with at most `most` tokens whose accuracy, rounded to `digits`, is `share`."""
    return [
        (right, tokens)
        for tokens in range(1, most + 1)
        for right in {math.floor(share * tokens), math.ceil(share * tokens)}
        if round(right / tokens, digits) == round(share, digits)
    ]


def share_interval(right: int, tokens: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper & Pearson's (1934) exact interval of a share of which `right` of `tokens` were counted.

    Tokens of one text depend on each other, so it is too narrow if anything. ValueError unless 0 <= right <= tokens.
    """
    from scipy import stats  # slow to import and needed nowhere else

    require(0 <= right <= tokens >= 1, f"{right} of {tokens} is no share; give 0 <= right <= tokens, tokens at least 1")
    tail = (1 - confidence) / 2
    low = 0.0 if right == 0 else float(stats.beta.ppf(tail, right, tokens - right + 1))
    high = 1.0 if right == tokens else float(stats.beta.ppf(1 - tail, right + 1, tokens - right))
    return low, high


@torch.no_grad()
def batch_scores(model: LanguageModel, batches: Batches, count: int) -> list[dict[str, float]]:
    """Loss (nats per token) and accuracy of each of `count` batches by itself: what "the last batch" may have been."""
    require(count >= 1, f"count is {count}; it must be at least 1 batch")
    rows, weight = [], model.head.weight
    with evaluation_mode(model):
        for _ in range(count):
            idx, targets = (t.to(weight.device) for t in batches.next_batch())
            scored = targets != IGNORE
            nats, right = token_nll(model.hidden(idx)[0][scored], weight, targets[scored])
            rows.append({"loss": nats.double().mean().item(), "accuracy": right.double().mean().item()})
    return rows


def pooled_distinct(samples: Samples, n: int) -> float:
    """Different n-grams / all n-grams of all samples together, however long they are: falls with the amount of text.

    Raises ValueError when no sample holds n tokens, and for n < 1.
    """
    require(n >= 1, f"n is {n}; it must be at least 1")
    grams = [tuple(s[i : i + n]) for s in samples for i in range(len(s) - n + 1)]
    require(len(grams) > 0, f"no sample holds {n} tokens; there is no {n}-gram to count")
    return len(set(grams)) / len(grams)


def nucleus_without_crossing(logits: Tensor, p: float) -> Tensor:
    """The filter (..., V) -> (..., V) that keeps tokens while their mass is at most p: the crossing token is dropped.

    The likeliest token is kept, or nothing would be left. Raises ValueError as `top_p_filter`.
    """
    kept = torch.isfinite(top_p_filter_by_sorting(logits, p))
    if p == 1:
        return logits
    last = torch.where(kept, logits, math.inf).amin(-1, keepdim=True)
    crossing = kept & (logits == last)
    several = kept.sum(-1, keepdim=True) > 1
    first = crossing & (crossing.flip(-1).cumsum(-1).flip(-1) == 1)  # of equal ones the highest id came last
    return torch.where(kept & ~(first & several), logits, -math.inf)


def nucleus_one_too_many(logits: Tensor, p: float) -> Tensor:
    """The filter (..., V) -> (..., V) that keeps the token after the crossing one too. ValueError as `top_p_filter`."""
    kept = torch.isfinite(top_p_filter_by_sorting(logits, p))
    outside = torch.where(kept, -math.inf, logits)
    extra = torch.zeros_like(kept).scatter(-1, outside.argmax(-1, keepdim=True), True) & ~kept
    return torch.where(kept | extra, logits, -math.inf)


@torch.no_grad()
def nucleus_errors(model: LanguageModel, stories: EncodedStories, p: float, places: int) -> dict[str, dict[str, float]]:
    """What two wrong nuclei do to the next token over up to `places` places of each story, by the kind of mistake.

    "affected" is the mean total variation between the right distribution and the wrong one: the share of draws that
    come out differently when both use the same luck. "changed" is the share of places where the sets differ; "greedy"
    that of places at which one token alone is left. Raises ValueError for places below 1.
    """
    require(places >= 1, f"places is {places}; it must be at least 1")
    wrong = {"crossing token dropped": nucleus_without_crossing, "one token too many": nucleus_one_too_many}
    sums = {name: np.zeros(3) for name in wrong}
    ends, total = stories.lengths.cumsum(), 0
    with evaluation_mode(model):
        for start, length in zip((ends - stories.lengths).tolist(), stories.lengths.tolist(), strict=True):
            ids = torch.from_numpy(stories.inputs[start : start + min(length, places)])
            logits = model(ids.to(model.head.weight.device)[None])[0].double().cpu()  # (T, V)
            right = top_p_filter(logits, p).softmax(-1)
            total += len(logits)
            for name, rule in wrong.items():
                own = rule(logits, p).softmax(-1)
                apart = 0.5 * (right - own).abs().sum(-1)
                alone = (own > 0).sum(-1) == 1
                sums[name] += [apart.sum().item(), ((own > 0) != (right > 0)).any(-1).sum().item(), alone.sum().item()]
    return {
        name: dict(zip(("affected", "changed", "greedy"), (found / total).tolist(), strict=True))
        for name, found in sums.items()
    }


def kgram_parameters(contexts: Sequence[int], n_embd: int, n_layer: int, vocab_size: int) -> list[dict[str, Any]]:
    """Exact parameters of k-grams by k and input layer: rows of k, embedding, input (those of that layer), total.

    The models are built without memory for their weights.
    """
    rows = []
    for k in contexts:
        for embedding in ("onehot", "learned", "scaled", "conv"):
            config = KGramConfig(vocab_size=vocab_size, n_embd=n_embd, n_layer=n_layer, k=k, embedding=embedding)
            with torch.device("meta"):
                model = build_model(config)
            own = sum(p.numel() for name, p in model.named_parameters() if name.startswith("input"))
            rows.append({"k": k, "embedding": embedding, "input": own, "total": model.num_parameters()})
    return rows


def rank_flips(values: Mapping[str, Mapping[int, float]]) -> list[tuple[str, int, str, int]]:
    """(first, its length, second, its length) where `second` ranks above at equal lengths, always, and below here.

    `values[name][length]` is a score that depends on the length of the text; lengths are those that all have.
    """
    lengths = sorted(set.intersection(*(set(own) for own in values.values())))
    return [
        (first, i, second, j)
        for first in values
        for second in values
        if all(values[first][n] < values[second][n] for n in lengths)
        for i in lengths
        for j in lengths
        if values[first][i] > values[second][j]
    ]
