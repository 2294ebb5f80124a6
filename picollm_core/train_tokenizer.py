"""Train the tokenizer "stories-4k" on the training stories: `python -m picollm_core.train_tokenizer`.

Hugging Face's `tokenizers` learns the merges (byte-level BPE, GPT-2's word division); the result is written in
tiktoken's format: the 256 bytes first, in order, then one token per merge in the order in which it was learned.
Needs the package `tokenizers`, which nothing else here does.
"""

import argparse
import base64
import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from picollm_core.corpora import load_corpus
from picollm_core.tokenizers import STORIES_4K, byte_alphabet

if TYPE_CHECKING:
    import tokenizers

logger = logging.getLogger(__name__)


def train_bpe(texts: Iterable[str], vocab_size: int) -> "tokenizers.Tokenizer":
    """Byte-level BPE over `texts` with vocab_size - 1 tokens, which leaves one id for `<|endoftext|>`.

    Raises ValueError when vocab_size leaves no room for the 256 bytes and the special token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise ValueError(f"vocab_size is {vocab_size}; 256 bytes and one special token need at least 257")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def to_ranks(tokenizer: "tokenizers.Tokenizer") -> dict[bytes, int]:
    """tiktoken's mergeable ranks of a byte-level BPE: bytes first, then merged tokens in the order learned."""
    byte_of = byte_alphabet()
    ids = tokenizer.get_vocab()
    learned = sorted((token for token in ids if len(token) > 1), key=ids.__getitem__)
    tokens = [bytes([b]) for b in range(256)] + [bytes(byte_of[c] for c in token) for token in learned]
    return {token: rank for rank, token in enumerate(tokens)}


def write_ranks(ranks: dict[bytes, int], path: Path) -> str:
    """Write `ranks` in tiktoken's text format and return the file's sha256."""
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    content = "".join(lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    """Command line: --vocab-size and --out; PICOLLM_TINYSTORIES names the folder of stories."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--out", type=Path, default=STORIES_4K)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ranks = to_ranks(train_bpe(load_corpus("tinystories").texts("train"), arguments.vocab_size))
    sha256 = write_ranks(ranks, arguments.out)
    logger.info("%d tokens and <|endoftext|> in %s, sha256 %s", len(ranks), arguments.out, sha256)


if __name__ == "__main__":
    main()
