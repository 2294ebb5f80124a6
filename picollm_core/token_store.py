"""The tokens of one split of a corpus on disk, mapped into memory: written once, read by every run.

Every story ends in `<|endoftext|>`. A store is written under a temporary name in chunks, each of which is recorded
when it is safe, and gets its real name only when complete: a killed process leaves nothing that looks finished, and
the next one goes on after the last chunk. Memory does not grow with the corpus.
"""

import errno
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tiktoken
from filelock import FileLock

from picollm_core.tokenizers import END_OF_TEXT, has_long_gap, short_gaps_encoding, token_bytes, tokenizer_hash

if TYPE_CHECKING:
    from picollm_core.corpora import Corpus

CHUNK_STORIES = 256
CACHE_VARIABLE = "PICOLLM_CACHE"
STORE_FORMAT = 1
CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Token ids of consecutive stories: tokens (N,) uint16 or uint32; offsets (n_stories + 1,) int64, story starts.

    `n_bytes` counts the UTF-8 bytes of the texts; `<|endoftext|>` has none.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    n_bytes: int

    @property
    def n_tokens(self) -> int:
        return int(self.tokens.size)

    @property
    def n_stories(self) -> int:
        return int(self.offsets.size) - 1

    def story(self, i: int) -> np.ndarray:
        """Tokens of story i with the final `<|endoftext|>`: (length,). Raises IndexError outside 0..n_stories-1."""
        if not 0 <= i < self.n_stories:
            raise IndexError(f"story {i} of a store with {self.n_stories} stories")
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]


def default_cache_dir() -> Path:
    """Folder of PICOLLM_CACHE, else artefacts/runs/cache under the working directory."""
    return Path(os.environ.get(CACHE_VARIABLE) or "artefacts/runs/cache").expanduser()


def available_cores() -> int:
    """Cores that this process may use (fewer than the machine has, in a container)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def token_dtype(tokenizer: tiktoken.Encoding) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.dtype(np.uint16 if tokenizer.n_vocab <= 2**16 else np.uint32)


def _way(text: str) -> str:
    """How a text has to be encoded: see _encode_alike."""
    if END_OF_TEXT in text:
        return "alone"
    return "long gaps" if has_long_gap(text) else "short gaps"


def _encode_alike(tokenizer: tiktoken.Encoding, way: str, texts: list[str]) -> np.ndarray:
    """Ids (N,) uint32 of texts that are encoded the same way, each closed by `<|endoftext|>`.

    One call encodes all of them, joined by the special token: threads then spend their time outside the interpreter
    lock. A text that spells out the special token is an ordinary text and is encoded "alone".
    """
    if way == "alone":
        stories = [[*tokenizer.encode_ordinary(text), tokenizer.eot_token] for text in texts]
        return np.concatenate(stories).astype(np.uint32)
    encoding = short_gaps_encoding(tokenizer) if way == "short gaps" else tokenizer
    return encoding.encode_to_numpy(END_OF_TEXT.join([*texts, ""]), allowed_special={END_OF_TEXT})


def _encode_chunk(tokenizer: tiktoken.Encoding, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids (N,) uint32 of all texts, each closed by `<|endoftext|>`, and the end of each text in them (len(texts),)."""
    ids = np.concatenate([_encode_alike(tokenizer, way, list(group)) for way, group in groupby(texts, key=_way)])
    return ids, np.flatnonzero(ids == tokenizer.eot_token) + 1


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(islice(texts, CHUNK_STORIES)):
        yield chunk


def encode_stories(
    texts: Iterable[str], tokenizer: tiktoken.Encoding, threads: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids (N,) uint32, ends of the stories in them) for CHUNK_STORIES texts at a time, in order, by parallel threads.

    Only a few chunks a thread are under way at once, so memory is flat whatever the number of texts.
    """
    threads = threads or available_cores()
    pending: deque = deque()
    with ThreadPoolExecutor(threads) as pool:
        for chunk in _chunks(iter(texts)):
            pending.append(pool.submit(_encode_chunk, tokenizer, chunk))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _write_json(path: Path, content: dict) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _is_complete(folder: Path) -> bool:
    meta = _read_json(folder / "meta.json")
    expected = {
        "tokens.bin": meta.get("tokens", 0) * meta.get("itemsize", 0),
        "offsets.bin": meta.get("stories", 0) * 8 + 8,
    }
    return bool(meta) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in expected.items()
    )


def _open(folder: Path) -> TokenStore:
    meta = _read_json(folder / "meta.json")
    dtype = np.dtype(f"uint{8 * meta['itemsize']}")
    tokens = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r")
    return TokenStore(tokens, np.memmap(folder / "offsets.bin", dtype=np.int64, mode="r"), meta["bytes"])


def _resume_point(part: Path, itemsize: int) -> dict[str, int]:
    """What the progress file vouches for; both data files are cut back to it."""
    done = _read_json(part / "progress.json") or {"stories": 0, "tokens": 0, "bytes": 0}
    sizes = {"tokens.bin": done["tokens"] * itemsize, "offsets.bin": done["stories"] * 8}
    for name, size in sizes.items():
        path = part / name
        path.touch()
        if path.stat().st_size < size:
            logger.warning("%s is shorter than its progress file says; tokenising starts again", part)
            shutil.rmtree(part)
            part.mkdir()
            return _resume_point(part, itemsize)
        os.truncate(path, size)
    return done


def _tokenise(texts: Iterator[str], tokenizer: tiktoken.Encoding, part: Path, threads: int | None) -> dict[str, int]:
    """Append the stories that `part` does not hold yet; returns counts of stories, tokens and bytes of the whole."""
    part.mkdir(parents=True, exist_ok=True)
    dtype, lengths = token_dtype(tokenizer), token_bytes(tokenizer)
    done = _resume_point(part, dtype.itemsize)
    rest = islice(texts, done["stories"], None)
    with (part / "tokens.bin").open("ab") as tokens, (part / "offsets.bin").open("ab") as offsets:
        for ids, ends in encode_stories(rest, tokenizer, threads):
            tokens.write(ids.astype(dtype).tobytes())
            starts = np.concatenate([[0], ends[:-1]]) + done["tokens"]
            offsets.write(starts.astype(np.int64).tobytes())
            for file in (tokens, offsets):
                file.flush()
            done = {
                "stories": done["stories"] + len(ends),
                "tokens": done["tokens"] + len(ids),
                "bytes": done["bytes"] + int(lengths[ids].sum()),
            }
            _write_json(part / "progress.json", done)
        offsets.write(np.int64(done["tokens"]).tobytes())
        for file in (tokens, offsets):
            file.flush()
            os.fsync(file.fileno())
    return done


def _build(corpus: "Corpus", split: str, tokenizer: tiktoken.Encoding, folder: Path, threads: int | None) -> None:
    part = folder.with_name(folder.name + ".part")
    if folder.exists():
        logger.warning("%s is damaged and is written anew", folder)
        shutil.rmtree(folder)
    counts = _tokenise(corpus.texts(split), tokenizer, part, threads)
    if counts["stories"] == 0:
        shutil.rmtree(part)
        raise ValueError(
            f"split {split!r} of corpus {corpus.name!r} is empty; give more text, or a larger share of it "
            "to this split, such as splits=(80, 10, 10)"
        )
    itemsize = token_dtype(tokenizer).itemsize
    _write_json(part / "meta.json", counts | {"itemsize": itemsize, "corpus": corpus.name, "split": split})
    part.rename(folder)
    (folder / "progress.json").unlink()


def token_store(
    corpus: "Corpus",
    split: str,
    tokenizer: tiktoken.Encoding,
    cache_dir: str | Path | None = None,
    threads: int | None = None,
) -> TokenStore:
    """The tokens of a split, from the cache or tokenised now by `threads` threads (all cores by default).

    The cache (`cache_dir`, else PICOLLM_CACHE, else artefacts/runs/cache) is keyed by content, split and tokenizer,
    and locked: a second process waits for the first and reads its result.

    Raises ValueError for an empty split, OSError when the folder cannot be written or the disk is full.
    """
    cache = default_cache_dir() if cache_dir is None else Path(cache_dir)
    key = f"{corpus.content_hash}-{split}-{tokenizer.name}-{tokenizer_hash(tokenizer)}-{STORE_FORMAT}"
    folder = cache / "tokens" / key
    if not _is_complete(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(folder.name + ".lock")):
                if not _is_complete(folder):
                    _build(corpus, split, tokenizer, folder, threads)
        except OSError as error:
            if error.errno not in CANNOT_WRITE:
                raise
            message = (
                f"the tokens of corpus {corpus.name!r} cannot be written ({error.strerror}); chunks that were finished "
                f"are kept and continued next time. Make room there, or set {CACHE_VARIABLE} to another folder"
            )
            raise OSError(error.errno, message, str(folder)) from error
    return _open(folder)
