"""Where TinyStories is found: the folder of PICOLLM_TINYSTORIES, the cache of `datasets`, the Hugging Face hub.

Eldan and Li 2023 (arXiv:2305.07759), dataset `roneneldan/TinyStories`. Each finder gives readers of the published
splits, which stream; nothing is downloaded unless `from_hub` is called or the variable says "stream".

A download (1 GB) is the way by default: a corpus is read once to be named by its content and once to be tokenised, and
later runs need no network. PICOLLM_TINYSTORIES=stream fetches it each time instead and leaves nothing on the disk.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from picollm_core.text_readers import arrow_texts, parquet_texts, streamed_texts

TINYSTORIES_VARIABLE = "PICOLLM_TINYSTORIES"
TINYSTORIES_HUB = "roneneldan/TinyStories"
STREAM = "stream"
PUBLISHED_SPLITS = ("train", "validation")

Reader = Callable[[], Iterator[str]]


def from_folder() -> Mapping[str, Reader]:
    """Readers of the folder that the environment variable names, or of the hub's stream when it says "stream".

    Raises LookupError with the reason if there is no such folder.
    """
    value = os.environ.get(TINYSTORIES_VARIABLE, "")
    if not value:
        raise LookupError(f"{TINYSTORIES_VARIABLE} is not set")
    root = Path(value).expanduser()
    if value == STREAM and not root.exists():
        return {split: partial(streamed_texts, TINYSTORIES_HUB, split) for split in PUBLISHED_SPLITS}
    if not root.is_dir():
        raise LookupError(f"{TINYSTORIES_VARIABLE} names {value!r}, which is not a folder")
    for folder in (root, root / "data"):
        files = {split: sorted(folder.glob(f"{split}*.parquet")) for split in PUBLISHED_SPLITS}
        if all(files.values()):
            return {split: partial(parquet_texts, paths) for split, paths in files.items()}
    raise LookupError(f"{TINYSTORIES_VARIABLE} names {value!r}, which has no train*.parquet and validation*.parquet")


def _datasets_cache() -> Path:
    """Where `datasets` keeps what it has loaded; found without importing it, which takes a second."""
    home = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    hugging_face = os.environ.get("HF_HOME", Path(home) / "huggingface")
    return Path(os.environ.get("HF_DATASETS_CACHE", Path(hugging_face) / "datasets")).expanduser()


def from_datasets_cache() -> Mapping[str, Reader] | None:
    """Readers of what an earlier load_dataset left on this computer, or None."""
    for info in sorted(_datasets_cache().glob("roneneldan___[Tt]iny*/**/dataset_info.json")):
        files = {split: sorted(info.parent.glob(f"*-{split}*.arrow")) for split in PUBLISHED_SPLITS}
        if all(files.values()):
            return {split: partial(arrow_texts, paths) for split, paths in files.items()}
    return None


def _hub_is_reachable() -> bool:
    """One short request, because `datasets` retries for half a minute before it gives up."""
    import requests

    try:
        requests.head(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=5)
    except OSError:
        return False
    return True


def from_hub(reason: str) -> Mapping[str, Reader]:
    """Let `datasets` download TinyStories (1 GB) into its cache and read it there; `reason` says why it has to."""
    ways_out = (
        f"TinyStories is not at hand: {reason}, and the hub's {TINYSTORIES_HUB} cannot be loaded (%s). Ways out: set "
        f"{TINYSTORIES_VARIABLE} to a folder with train*.parquet and validation*.parquet (one column 'text'), connect "
        "to the network, or use corpus 'storyworld', which needs neither"
    )
    if not _hub_is_reachable():
        raise ValueError(ways_out % "no network")
    try:
        from datasets import load_dataset

        loaded = load_dataset(TINYSTORIES_HUB)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(ways_out % f"{type(error).__name__}: {error}") from error
    files = {split: [Path(f["filename"]) for f in loaded[split].cache_files] for split in PUBLISHED_SPLITS}
    return {split: partial(arrow_texts, paths) for split, paths in files.items()}
