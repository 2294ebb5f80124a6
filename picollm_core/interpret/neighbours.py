"""Nearest neighbours of token vectors, and whether words that belong together lie together.

A model has one vector a token where it reads (embedding) and one where it predicts (unembedding, the head's rows).
Their neighbours say which tokens the model treats alike. That is not monosemanticity, which asks whether one direction
inside the model stands for one thing: `interpret.sae` is for that. V vocabulary, C width, K pairs of a kind.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import tiktoken
import torch
from torch import Tensor

from picollm_core.config import SamplingConfig, require
from picollm_core.contrasts import paired_contrast
from picollm_core.inference import require_same_vocabulary
from picollm_core.interpret.token_vectors import (
    Table,
    single_token,
    token_counts,
    token_id,
    token_vectors,
    unit_rows,
    written_tokens,
)
from picollm_core.models import LanguageModel
from picollm_core.next_token import token_text
from picollm_core.sampling import stream

__all__ = [
    "PcaView",
    "anisotropy",
    "annotated_generation",
    "nearest",
    "pca_view",
    "similarity_statistics",
    "token_counts",
    "token_id",
    "token_vectors",
    "written_tokens",
]

MATCHED_AMONG = 50  # words as frequent as a given one: so many that are nearest to it in the order of frequency
SHUFFLED, MATCHED = "shuffled", "matched"


class _Neighbours:
    """Cosine neighbours among `candidates` (all tokens if None), without spellings of a word met before if asked."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: tiktoken.Encoding,
        which: Table,
        candidates: Iterable[int] | None,
        distinct_words: bool,
    ) -> None:
        require_same_vocabulary(model, tokenizer)
        everything = range(tokenizer.n_vocab)
        among = everything if candidates is None else [token_id(int(token), tokenizer) for token in candidates]
        self.tokenizer, self.distinct_words = tokenizer, distinct_words
        self.unit = unit_rows(token_vectors(model, which))  # (V, C)
        self.ids = torch.tensor(sorted(set(among)), dtype=torch.long)  # (N,)

    def _spelling(self, token: int) -> str:
        return token_text(self.tokenizer, token).strip().lower() if self.distinct_words else str(token)

    def of(self, token: int, count: int) -> list[tuple[int, float]]:
        """The `count` nearest other tokens and their cosines, the nearest first. ValueError when there are fewer."""
        cosines = self.unit[self.ids] @ self.unit[token]  # (N,)
        met = {self._spelling(token)}
        found: list[tuple[int, float]] = []
        for place in cosines.argsort(descending=True, stable=True).tolist():
            other = int(self.ids[place])
            if len(found) == count:
                break
            if other != token and self._spelling(other) not in met:
                met.add(self._spelling(other))
                found.append((other, float(cosines[place])))
        require(len(found) == count, f"count is {count}, but there are {len(found)} other tokens to choose among")
        return found


def nearest(
    model: LanguageModel,
    tokenizer: tiktoken.Encoding,
    words: str | int | Sequence[str | int],
    which: Table = "embedding",
    count: int = 5,
    candidates: Iterable[int] | None = None,
    distinct_words: bool = False,
) -> pd.DataFrame:
    """The tokens whose vectors have the largest cosine with that of each word: columns word, rank, neighbour, cosine.

    `words` are texts of one token (see `token_id`) or ids. Vectors of rare tokens are close to what they were drawn as,
    so neighbours are best chosen among `candidates`, such as (token_counts(texts, tokenizer) >= 20).nonzero(). With
    `distinct_words` a token that differs from the word, or from a nearer neighbour, in case or space alone is passed
    over. Also columns word_id and neighbour_id. Raises ValueError as `token_id`, without a word, for another
    vocabulary, and when count is below 1 or larger than the choice.
    """
    listed = [words] if isinstance(words, str | int) else list(words)
    require(bool(listed), "there are 0 words; give at least one")
    require(count >= 1, f"count is {count}; it must be at least 1")
    ids = [token_id(word, tokenizer) for word in listed]
    index = _Neighbours(model, tokenizer, which, candidates, distinct_words)
    rows = [
        (token_text(tokenizer, token), rank, token_text(tokenizer, other), cosine, token, other)
        for token in ids
        for rank, (other, cosine) in enumerate(index.of(token, count), start=1)
    ]
    return pd.DataFrame(rows, columns=["word", "rank", "neighbour", "cosine", "word_id", "neighbour_id"])


def annotated_generation(
    model: LanguageModel,
    tokenizer: tiktoken.Encoding,
    prompt: str = "Once upon a time",
    sampling: SamplingConfig | None = None,
    length: int = 40,
    seed: int = 0,
    count: int = 3,
    which: Table = "embedding",
    candidates: Iterable[int] | None = None,
) -> str:
    """Generated text in which every token is followed by its nearest neighbours: " dog[cat, puppy, bear]".

    This is what the course's starter code prints under `--monosemantic_enabled`. Other spellings of a word are passed
    over, and so are tokens that show nothing, which get no list either. The text is that of `generate` with the same
    prompt, sampling, seed and max_new_tokens=length. Raises ValueError as `nearest` and `generate`.
    """
    require(count >= 1, f"count is {count}; it must be at least 1")
    index = _Neighbours(model, tokenizer, which, written_tokens(tokenizer) if candidates is None else candidates, True)
    parts = [prompt]
    for token in stream(model, tokenizer, prompt, max_new_tokens=length, sampling=sampling, seed=seed):
        near = index.of(token.id, count) if token.text.strip() else []
        names = ", ".join(token_text(tokenizer, other).strip() for other, _ in near)
        parts.append(f"{token.text}[{names}]" if near else token.text)
    return "".join(parts)


class PcaView(NamedTuple):
    """Points of a map: columns label, group, x, y; and the shares of the variance that x and y explain."""

    points: pd.DataFrame
    shares: tuple[float, float]


def pca_view(vectors: Tensor, labels: Sequence[str], groups: Sequence[str] | None = None) -> PcaView:
    """The two directions of largest variance among vectors (N, C), and where each vector lies along them.

    Principal components by singular values of the centred vectors, in float64. The sign of a direction, which the
    variance leaves open, is such that the point farthest out is on the positive side. Raises ValueError for fewer than
    3 vectors or 2 dimensions, labels or groups of another number, and vectors that are all the same.
    """
    n = len(vectors)
    require(vectors.ndim == 2 and n >= 3 and vectors.size(1) >= 2,
            f"vectors are {tuple(vectors.shape)}; a map needs at least 3 of at least 2 dimensions")  # fmt: skip
    groups = [""] * n if groups is None else groups
    require(len(labels) == len(groups) == n, f"{n} vectors, {len(labels)} labels, {len(groups)} groups; give one each")
    centred = vectors.double() - vectors.double().mean(0)
    u, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    require(float(sizes[0]) > 0, f"the {n} vectors are all the same, so there is no direction to draw them along")
    places = u[:, :2] * sizes[:2]  # (N, 2)
    farthest = places.gather(0, places.abs().argmax(0, keepdim=True))  # (1, 2)
    places = places * torch.where(farthest < 0, -1.0, 1.0)
    shares = (sizes**2 / (sizes**2).sum()).tolist()
    x, y = places.T.tolist()
    return PcaView(pd.DataFrame({"label": labels, "group": groups, "x": x, "y": y}), (shares[0], shares[1]))


def anisotropy(model: LanguageModel, which: Table = "embedding", candidates: Iterable[int] | None = None) -> dict:
    """Mean cosine of all pairs of different tokens, "mean_cosine", and the same once the mean vector is taken off.

    That one is "centred". A mean cosine far from 0 says that the vectors share a direction (Mu & Viswanath 2018, arXiv
    1702.01417; Ethayarajh 2019, arXiv 1909.00512), so that a cosine alone says little. `candidates` are the ids that
    count, all by default. Raises ValueError for fewer than 2.
    """
    vectors = token_vectors(model, which).double()
    vectors = vectors if candidates is None else vectors[torch.tensor([int(token) for token in candidates])]
    n = len(vectors)
    require(n >= 2, f"there are {n} tokens; a pair needs 2")
    found = {}
    for name, shift in (("mean_cosine", 0.0), ("centred", vectors.mean(0))):
        unit = unit_rows(vectors - shift)
        total = unit.sum(0).square().sum() - unit.square().sum()  # all ordered pairs, without those of one token
        found[name] = float(total / (n * (n - 1)))
    return found


def _shuffled(unit: Tensor, sides: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Mean cosines (n,) of `sides` (2, K), the right-hand words in random order; a word beside itself is left out."""
    left, right = sides
    cosines = (unit[left] @ unit[right].T).masked_fill(left[:, None] == right, torch.nan)  # (K, K)
    order = torch.rand(n, len(right), generator=generator).argsort(-1)  # (n, K)
    return cosines[torch.arange(len(left)), order].nanmean(-1)


class _Frequencies:
    """The words that occur, tokens of a space and letters, in the order of how often; for words about as frequent."""

    def __init__(self, tokenizer: tiktoken.Encoding, counts: Tensor) -> None:
        require(counts.shape == (tokenizer.n_vocab,), f"counts are {tuple(counts.shape)}, not ({tokenizer.n_vocab},)")
        texts = {token: token_text(tokenizer, token) for token in written_tokens(tokenizer) if counts[token] > 0}
        words = torch.tensor([token for token, text in texts.items() if text[0] == " " and text[1:].isalpha()])
        require(len(words) > MATCHED_AMONG, f"the counts hold {len(words)} words; over {MATCHED_AMONG} are needed")
        self.words = words[counts[words].argsort(stable=True)]  # (W,), the rarest first
        self.place = torch.searchsorted(counts[self.words], counts)  # (V,), how many of them are rarer

    def matched(self, unit: Tensor, sides: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Mean cosines (n,) with random words, each about as frequent, in place of those of `sides` (2, K)."""
        first = (self.place[sides] - MATCHED_AMONG // 2).clamp(0, len(self.words) - MATCHED_AMONG)  # (2, K)
        means = []
        for _ in range(n):
            left, right = self.words[first + torch.randint(MATCHED_AMONG, sides.shape, generator=generator)]
            cosines = (unit[left] * unit[right]).sum(-1)
            means.append(cosines.masked_fill(left == right, torch.nan).nanmean())
        return torch.stack(means)


def _against(name: str, observed: float, means: Tensor) -> dict[str, float]:
    """Mean, 2.5% and 97.5% of a control's mean cosines (n,), and the one-sided p-value of the observed one."""
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    at_least = int((means >= observed - 1e-12).sum())  # the order as it was is among the shuffled ones
    p = torch.nan if bool(means.isnan().any()) else (1 + at_least) / (1 + len(means))
    return {name: float(means.mean()), f"{name}_low": low, f"{name}_high": high, f"p_{name}": p}


def _partner_ranks(unit: Tensor, sides: Tensor) -> Tensor:
    """Ranks (2 K,) of each word's partner among all its neighbours, 1 the nearest, in both directions."""
    words, partners = torch.cat([sides, sides.flip(0)], dim=1)
    cosines = unit[words] @ unit.T  # (2 K, V)
    own = cosines.gather(1, partners[:, None])
    return (cosines.scatter(1, words[:, None], -torch.inf) > own).sum(-1) + 1


def _ids_of(kind: str, pairs: Sequence[tuple[str, str]], tokenizer: tiktoken.Encoding) -> Tensor:
    """Ids (2, K) of the pairs whose words are one token each, with a space before. ValueError for fewer than 2."""
    ids = [tuple(single_token(f" {word}", tokenizer) for word in pair) for pair in pairs]
    found = [(left, right) for left, right in ids if left is not None and right is not None]
    same = [pair for pair in pairs if pair[0] == pair[1]]
    require(not same, f"kind {kind!r} pairs {same[0][0] if same else None!r} with itself; give two words")
    require(
        len(found) >= 2,
        f"{len(found)} of the {len(pairs)} pairs of kind {kind!r} are single tokens of {tokenizer.name!r}; "
        "shuffling needs at least 2",
    )
    return torch.tensor(found).T


def similarity_statistics(
    model: LanguageModel,
    pairs: Mapping[str, Sequence[tuple[str, str]]],
    tokenizer: tiktoken.Encoding,
    which: Table = "embedding",
    *,
    generator: torch.Generator,
    n_shuffles: int = 1000,
    counts: Tensor | None = None,
    centred: bool = False,
) -> pd.DataFrame:
    """Whether the words of pairs such as `WORD_PAIRS` lie closer together than words paired at random.

    One row a kind and, for several, a last one "all". `cosine` is the mean over the kind's `pairs`, low and high its
    95% interval over them (Student); `left_out` pairs have a word that is not one token. Two controls, each with its
    mean over `n_shuffles` draws, the range of their middle 95% (_low, _high) and a one-sided p-value, (1 + draws at
    least as large as observed) / (1 + draws) (Phipson & Smyth 2010): "shuffled" pairs the left words of a kind with
    its right words in random order, so that p of K pairs is about 1 / K! at least; "matched" takes random words about
    as frequent by `counts` (V,), and is NaN without. `rank` is the median place of a word's partner among all its
    neighbours, `top_10` the share in the first ten. With `centred` the mean vector is taken off first. Cosines in
    float64. Raises ValueError without a kind, for a kind with fewer than 2 usable pairs, n_shuffles < 1, and counts of
    another size or with too few words.
    """
    require_same_vocabulary(model, tokenizer)
    require(len(pairs) > 0, "there are 0 kinds of pairs; give at least one, as WORD_PAIRS does")
    require(n_shuffles >= 1, f"n_shuffles is {n_shuffles}; it must be at least 1")
    ids = {kind: _ids_of(kind, own, tokenizer) for kind, own in pairs.items()}  # (2, K) each
    vectors = token_vectors(model, which).double()
    unit = unit_rows(vectors - vectors.mean(0) if centred else vectors)  # (V, C)
    frequencies = None if counts is None else _Frequencies(tokenizer, counts)
    controls: dict[str, dict[str, Tensor]] = {SHUFFLED: {}, MATCHED: {}}
    for kind, sides in ids.items():
        controls[SHUFFLED][kind] = _shuffled(unit, sides, n_shuffles, generator)
        nothing = torch.full((n_shuffles,), torch.nan, dtype=unit.dtype)
        drawn = None if frequencies is None else frequencies.matched(unit, sides, n_shuffles, generator)
        controls[MATCHED][kind] = nothing if drawn is None else drawn
    rows = []
    for kind, members in {**{kind: [kind] for kind in ids}, **({"all": list(ids)} if len(ids) > 1 else {})}.items():
        sides = torch.cat([ids[member] for member in members], dim=1)
        cosines, ranks = (unit[sides[0]] * unit[sides[1]]).sum(-1), _partner_ranks(unit, sides).double()
        found = paired_contrast(cosines.tolist(), [0.0] * len(cosines))
        sizes = torch.tensor([ids[member].size(1) for member in members], dtype=unit.dtype)
        row = {"kind": kind, "pairs": len(cosines), "left_out": sum(len(pairs[m]) for m in members) - len(cosines)}
        row |= {"cosine": found.mean, "low": found.low, "high": found.high}
        for name, means in controls.items():
            row |= _against(name, found.mean, sizes @ torch.stack([means[member] for member in members]) / sizes.sum())
        rows.append(row | {"rank": float(ranks.quantile(0.5)), "top_10": float((ranks <= 10).double().mean())})
    return pd.DataFrame(rows)
