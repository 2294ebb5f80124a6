"""Which story belongs to which split: decided by a hash of its own text, before anything is cut into windows.

Stories that differ only in case, spacing or punctuation share a key and therefore a split, so no such copy of a
training story can be scored as unseen. Looser copies are counted by `near_duplicates` (5-word shingles).
"""

import hashlib
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

SPLITS = ("train", "validation", "test")
DEFAULT_SHARES = (98.0, 1.0, 1.0)
KEY_SPACE = 2**64
_IGNORED = (string.punctuation + string.whitespace).encode()


def check_shares(shares: Sequence[float]) -> tuple[float, ...]:
    """`shares` as floats. Raises ValueError unless they are three numbers >= 0 that sum to more than 0."""
    values = tuple(float(share) for share in shares)
    if len(values) != 3 or not min(values) >= 0 or not 0 < sum(values) < float("inf"):
        raise ValueError(f"splits are {shares}; give three shares (train, validation, test) such as (98, 1, 1)")
    return values


def normalise(text: str) -> bytes:
    """The letters and digits of `text`, lower case; the whole text where it has none."""
    if text.isascii():
        kept = text.lower().encode().translate(None, _IGNORED)
    else:
        folded = unicodedata.normalize("NFKC", text).casefold()
        kept = "".join(filter(str.isalnum, folded)).encode()
    return kept or text.encode()


def story_key(text: str) -> int:
    """64-bit hash of the normalised text."""
    return int.from_bytes(hashlib.blake2b(normalise(text), digest_size=8).digest())


def split_bounds(shares: Sequence[float], keys: np.ndarray | None = None) -> tuple[int, int]:
    """Upper key bounds (exclusive) of train and of validation, so that each split gets its share of the key space.

    With `keys`, the uint64 keys of a whole corpus: where chance would leave a wanted split empty (a small corpus),
    the bounds move to the quantiles of the keys that give every wanted split at least one story.
    """
    wanted = np.asarray(check_shares(shares))
    cumulative = np.cumsum(wanted) / wanted.sum()
    bounds = (int(cumulative[0] * KEY_SPACE), int(cumulative[1] * KEY_SPACE))
    if keys is None:
        return bounds
    unique = np.unique(keys)
    sizes = np.bincount(assign_splits(unique, bounds), minlength=3)
    if np.all(sizes[wanted > 0] > 0) or unique.size < np.count_nonzero(wanted):
        return bounds
    sizes = np.maximum((wanted / wanted.sum() * unique.size).astype(int), wanted > 0)
    sizes[np.argmax(sizes)] += unique.size - sizes.sum()
    limits = [*unique.tolist(), KEY_SPACE]
    return limits[sizes[0]], limits[sizes[0] + sizes[1]]


def split_of(key: int, bounds: tuple[int, int]) -> int:
    """Index into SPLITS of the story with this key."""
    return (key >= bounds[0]) + (key >= bounds[1])


def assign_splits(keys: np.ndarray, bounds: tuple[int, int]) -> np.ndarray:
    """split_of for an array of uint64 keys (N,): int64 (N,) indices into SPLITS."""
    above = [keys >= np.uint64(bound) if bound < KEY_SPACE else np.zeros(keys.shape, bool) for bound in bounds]
    return above[0].astype(np.int64) + above[1]


def assert_disjoint(keys: np.ndarray, assigned: np.ndarray) -> None:
    """Check the invariant that no key (N,) is found in two splits (N,)."""
    groups = [np.unique(keys[assigned == split]) for split in range(len(SPLITS))]
    total = sum(group.size for group in groups)
    assert np.unique(np.concatenate(groups)).size == total, "a story is in two splits"


def _shingles(text: str, width: int) -> set[tuple[str, ...]]:
    """Every run of `width` words, the words stripped of punctuation and case; all words where the text is shorter."""
    words = [word for word in (w.strip(string.punctuation) for w in text.casefold().split()) if word]
    runs = set(zip(*(words[i:] for i in range(width)), strict=False))
    return runs or ({tuple(words)} if words else set())


def near_duplicates(
    first: Iterable[str], second: Iterable[str], threshold: float = 0.5, width: int = 5
) -> list[tuple[int, int, float]]:
    """Pairs (i, j, Jaccard similarity) of a story of `first` and one of `second` that share their `width`-word runs.

    Exact: two sets with similarity >= threshold share an element among the rarest |A| - ceil(threshold |A|) + 1 of
    each (prefix filter, Bayardo et al. 2007), so only those are looked up and common openings cost nothing. "Rare"
    counts `second`, which alone is held in memory: let it be the smaller one.
    Raises ValueError for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must lie in (0, 1]")
    right = [_shingles(text, width) for text in second]
    frequency = Counter(chain.from_iterable(right))

    def rarest(shingles: set[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """The prefix, without the elements that `second` does not have at all: those come first and match nothing."""
        present = [shingle for shingle in shingles if shingle in frequency]
        # The small allowance keeps a similarity that equals the threshold from being lost to rounding.
        kept = len(shingles) - int(np.ceil(threshold * len(shingles) - 1e-9)) + 1
        kept -= len(shingles) - len(present)
        return sorted(present, key=lambda shingle: (frequency[shingle], shingle))[:kept] if kept > 0 else []

    index: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for j, shingles in enumerate(right):
        for shingle in rarest(shingles):
            index[shingle].append(j)
    pairs = []
    for i, text in enumerate(first):
        shingles = _shingles(text, width)
        for j in sorted({j for shingle in rarest(shingles) for j in index.get(shingle, ())}):
            similarity = len(shingles & right[j]) / len(shingles | right[j])
            if similarity >= threshold:
                pairs.append((i, j, similarity))
    return pairs


def overlap_report(texts: Callable[[str], Iterator[str]], threshold: float = 0.5) -> list[dict[str, str | int]]:
    """Exact and near duplicates between each pair of splits; `texts` gives the stories of a split (Corpus.texts).

    Returns one row a pair: {"splits", "exact", "near"}. "exact" counts stories of the second split named whose
    normalised text is in the other too (0 by construction), "near" those with a similarity >= threshold to one there.
    """
    rows: list[dict[str, str | int]] = []
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        keys = {story_key(text) for text in texts(b)}
        rows.append(
            {
                "splits": f"{a}/{b}",
                "exact": len(keys.intersection(map(story_key, texts(a)))),
                "near": len({j for _, j, _ in near_duplicates(texts(a), texts(b), threshold)}),
            }
        )
    return rows
