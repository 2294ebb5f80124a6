"""A vocabulary of the tiny models' size that holds whole words, for tests of what a model makes of words."""

import tiktoken

from picollm_core.tokenizers import build_encoding

WORDS = ("he", "she", "him", "her", "boy", "girl", "was", "were", "cat", "Cat", "dog", "red", "blue", *"abcdef")


def words_tokenizer() -> tiktoken.Encoding:
    """61 tokens: space, a byte that is no whole character, a to z, A to M, words with a space before, end of text."""
    pieces = [b" ", b"\xc3", *(bytes([97 + i]) for i in range(26)), *(bytes([65 + i]) for i in range(13))]
    pieces += [f" {word}".encode() for word in WORDS]
    return build_encoding("words", {piece: i for i, piece in enumerate(pieces)})
