"""Corpora by name: TinyStories, storyworld, number sequences, the hand-written collection, or your own files.

A corpus is read as a stream of stories (or lines) as often as needed, so its size is not limited by memory; of a
published split, the keys of the validation stories are held. Its content hash names exactly these texts in exactly
these splits.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np

from picollm_core import tinystories
from picollm_core.splits import (
    DEFAULT_SHARES,
    SPLITS,
    assign_splits,
    check_shares,
    split_bounds,
    split_of,
    story_key,
)
from picollm_core.text_readers import file_texts, has_separators, parquet_texts, text_files
from picollm_core.tinystories import TINYSTORIES_HUB, Reader

CORPORA = ("auto", "tinystories", "storyworld", "three_sequences", "custom")
DATA = Path(__file__).parent.parent / "data"
SMALL_WORLD = 2_000
"""Up to this many storyworld stories are looked at when the corpus is opened, so that no split is empty by chance."""

KEYS_AT_ONCE = 65_536
"""So many story keys (8 bytes each) are looked at together while a corpus is opened; none is kept."""

Style = Literal["stories", "lines"]


@dataclass(frozen=True)
class Corpus:
    """Texts in three splits. `style` "stories" is packed into windows, "lines" is one padded row a line.

    `content_hash` (16 hex digits) covers texts, order, style and splits; `note` is a line that the user should see;
    `dropped` counts training stories left out because their normalised text is also in validation.
    """

    name: str
    style: Style
    content_hash: str
    note: str = ""
    dropped: int = 0
    readers: Mapping[str, Reader] = field(default_factory=dict, repr=False, compare=False)
    counts: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    def texts(self, split: str) -> Iterator[str]:
        """The stories of `split` in their fixed order, anew on every call. Raises ValueError for another name."""
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; choose one of {', '.join(map(repr, SPLITS))}")
        return self.readers[split]()

    def count(self, split: str) -> int:
        """Number of stories in `split`; read once where it is not known from opening the corpus."""
        if split not in self.counts:
            self.counts[split] = sum(1 for _ in self.texts(split))
        return self.counts[split]


def _nothing() -> Iterator[str]:
    return iter(())


def _of_split(read: Reader, bounds: tuple[int, int], index: int) -> Iterator[str]:
    return (text for text in read() if split_of(story_key(text), bounds) == index)


def _unless_held_out(read: Reader, held_out: frozenset[int]) -> Iterator[str]:
    return (text for text in read() if story_key(text) not in held_out)


def _scan(read: Reader, digest: "hashlib._Hash | None" = None) -> Iterator[np.ndarray]:
    """Story keys, uint64, in order and KEYS_AT_ONCE at a time; the exact texts go into `digest`."""

    def keys() -> Iterator[int]:
        for text in read():
            if digest is not None:
                content = text.encode()
                digest.update(len(content).to_bytes(8) + content)
            yield story_key(text)

    every = keys()
    while (part := np.fromiter(islice(every, KEYS_AT_ONCE), dtype=np.uint64)).size:
        yield part


def _sizes(parts: Iterable[np.ndarray], bounds: tuple[int, int]) -> np.ndarray:
    """Number of keys in each of SPLITS, (3,)."""
    sizes = np.zeros(len(SPLITS), np.int64)
    for keys in parts:
        sizes += np.bincount(assign_splits(keys, bounds), minlength=len(SPLITS))
    return sizes


def _pooled(name: str, style: Style, read: Reader, shares: Sequence[float] | None) -> Corpus:
    """All texts of `read`, split by their hash: a function of the key, so no key can be in two splits."""
    shares = check_shares(DEFAULT_SHARES if shares is None else shares)
    digest = hashlib.sha256(repr((style, shares)).encode())
    bounds = split_bounds(shares)
    sizes = _sizes(_scan(read, digest), bounds)
    if sizes.sum() == 0:
        raise ValueError(f"corpus {name!r} holds no text; give at least one line that is not blank")
    if np.any(sizes[np.asarray(shares) > 0] == 0):  # a small corpus: only now are all its keys needed at once
        bounds = split_bounds(shares, np.concatenate(list(_scan(read))))
        sizes = _sizes(_scan(read), bounds)
    readers = {split: partial(_of_split, read, bounds, i) for i, split in enumerate(SPLITS)}
    counts = dict(zip(SPLITS, sizes.tolist(), strict=True))
    return Corpus(name, style, digest.hexdigest()[:16], readers=readers, counts=counts)


def _published(name: str, train: Reader, validation: Reader) -> Corpus:
    """Splits as published, but a training story that validation holds too is dropped."""
    digest = hashlib.sha256(b"published")
    validation_keys = np.concatenate([np.empty(0, np.uint64), *_scan(validation, digest)])
    n_train = dropped = 0
    for keys in _scan(train, digest):
        n_train += keys.size
        dropped += int(np.isin(keys, validation_keys).sum())
    readers: dict[str, Reader] = {
        "train": partial(_unless_held_out, train, frozenset(validation_keys.tolist())),
        "validation": validation,
        "test": _nothing,
    }
    counts = {"train": n_train - dropped, "validation": validation_keys.size, "test": 0}
    return Corpus(name, "stories", digest.hexdigest()[:16], dropped=dropped, readers=readers, counts=counts)


def _first(read: Reader, limit: int | None) -> Iterator[str]:
    return islice(read(), limit)


def _tinystories(found: Mapping[str, Reader], shares: Sequence[float] | None, limit: int | None) -> Corpus:
    if shares is None:
        return _published("tinystories", partial(_first, found["train"], limit), found["validation"])
    both = partial(_chained, (found["train"], found["validation"]))
    return _pooled("tinystories", "stories", partial(_first, both, limit), shares)


def _chained(readers: Sequence[Reader]) -> Iterator[str]:
    return chain.from_iterable(read() for read in readers)


def _storyworld(n_stories: int, seed: int, shares: Sequence[float] | None) -> Corpus:
    """Small worlds are scanned; larger ones are named by grammar, size and seed, which costs nothing."""
    from picollm_core.storyworld import content_hash, generate_stories

    read = partial(generate_stories, n_stories, seed=seed)
    if n_stories <= SMALL_WORLD:
        return _pooled("storyworld", "stories", read, shares)
    shares = check_shares(DEFAULT_SHARES if shares is None else shares)
    content = repr((content_hash(), n_stories, seed, shares))
    bounds = split_bounds(shares)
    readers = {split: partial(_of_split, read, bounds, i) for i, split in enumerate(SPLITS)}
    return Corpus("storyworld", "stories", hashlib.sha256(content.encode()).hexdigest()[:16], readers=readers)


def _from_path(name: str, path: Path, shares: Sequence[float] | None, limit: int | None) -> Corpus:
    if not path.exists():
        raise ValueError(
            f"no corpus or path {name!r} ({path} does not exist); name one of {', '.join(CORPORA)}, or a file or folder"
        )
    if path.suffix == ".parquet":
        return _pooled(path.name, "stories", partial(_first, partial(parquet_texts, [path]), limit), shares)
    files = text_files(path)
    style: Style = "stories" if any(map(has_separators, files)) else "lines"
    corpus_name = name if name in CORPORA else path.resolve().name
    return _pooled(corpus_name, style, partial(_first, partial(file_texts, files), limit), shares)


def _three_sequences(seed: int, shares: Sequence[float] | None, limit: int | None) -> Corpus:
    path = DATA / "3seqs.txt"
    if path.is_file():
        return _from_path("three_sequences", path, shares, limit)
    from picollm_core.three_sequences import three_sequences

    return _pooled("three_sequences", "lines", partial(_first, partial(three_sequences, seed=seed), limit), shares)


def load_corpus(
    name: str = "auto",
    *,
    splits: Sequence[float] | None = None,
    limit: int | None = None,
    n_stories: int = 6_000,
    seed: int = 0,
) -> Corpus:
    """The corpus called `name` (one of CORPORA), or the text file, parquet file or folder of *.txt at that path.

    "auto" is TinyStories where it is on this computer (the folder of PICOLLM_TINYSTORIES, or the cache of `datasets`)
    and otherwise storyworld; `note` says so. A text file has one example a line, or stories between `<|endoftext|>`.
    `splits` are shares of train, validation and test, assigned by a hash of the text: (98, 1, 1) unless the corpus is
    TinyStories, whose published split is kept when `splits` is None. `limit` caps the examples read (with a published
    split: of training only). `n_stories` and `seed` choose the storyworld.

    Raises ValueError for an unknown name or missing path, and for text that is empty, binary or not UTF-8.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1")
    if n_stories < 1:
        raise ValueError(f"n_stories is {n_stories}; it must be at least 1")
    n_stories = n_stories if limit is None else min(n_stories, limit)
    if name == "storyworld":
        return _storyworld(n_stories, seed, splits)
    if name == "three_sequences":
        return _three_sequences(seed, splits, limit)
    if name not in ("auto", "tinystories"):
        return _from_path(name, DATA / "custom_corpus" if name == "custom" else Path(name).expanduser(), splits, limit)
    try:
        return _tinystories(tinystories.from_folder(), splits, limit)
    except LookupError as error:
        reason = str(error)
    found = tinystories.from_datasets_cache()
    if found is None and name == "tinystories":
        found = tinystories.from_hub(reason)
    if found is not None:
        return _tinystories(found, splits, limit)
    note = f"corpus: storyworld, because {reason} and {TINYSTORIES_HUB} is not in the cache of `datasets`"
    return replace(_storyworld(n_stories, seed, splits), note=note)
