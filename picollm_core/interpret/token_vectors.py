"""Tokens, their vectors and how often they occur: what neighbours and similarities are made of.

V vocabulary, C width.
"""

import operator
from collections.abc import Iterable
from typing import Literal

import tiktoken
import torch
from torch import Tensor, nn

from picollm_core.config import require
from picollm_core.models import LanguageModel
from picollm_core.models.kgram import KGramMLP, OneHotInput
from picollm_core.next_token import token_text

Table = Literal["embedding", "unembedding"]


def token_vectors(model: LanguageModel, which: Table = "embedding") -> Tensor:
    """One vector a token, (V, C), in at least float32 on the CPU, without gradient.

    "unembedding" is the head's weight, whose product with the hidden state is the logits. "embedding" is the table that
    the model reads with; of a k-gram on one-hot vectors the rows of its input weight for the newest token, which is
    what that token adds to the first layer. Raises ValueError for another `which`.
    """
    require(which in ("embedding", "unembedding"), f"which is {which!r}; choose 'embedding' or 'unembedding'")
    if which == "unembedding":
        weight = model.head.weight
    elif not isinstance(model, KGramMLP):
        weight = model.get_submodule("embedding").get_parameter("weight")
    elif isinstance(model.input, OneHotInput):
        weight = model.input.weight[-model.config.vocab_size :]  # type: ignore[assignment]
    else:
        weight = model.input.table.weight
    return weight.detach().cpu().to(torch.promote_types(weight.dtype, torch.float32))


def unit_rows(vectors: Tensor) -> Tensor:
    """Vectors (..., C) at length 1, so that products are cosines; a vector of zeros stays one, of cosine 0 with all."""
    return nn.functional.normalize(vectors, dim=-1)


def single_token(text: str, tokenizer: tiktoken.Encoding) -> int | None:
    """The id of a text that is one token; None where it is several."""
    ids = tokenizer.encode_ordinary(text)
    return ids[0] if len(ids) == 1 else None


def token_id(word: str | int, tokenizer: tiktoken.Encoding) -> int:
    """The token of a word inside a sentence, with the space before it; else, if that is not one token, without.

    What does not begin with a letter, such as "." or " he", is taken as it is, and a number is an id already.
    Raises ValueError for an id outside the vocabulary and for text that is not one token, with its pieces.
    """
    if not isinstance(word, str):
        token = operator.index(word)
        require(0 <= token < tokenizer.n_vocab, f"token id {token} is outside the vocabulary of {tokenizer.n_vocab}")
        return token
    for spelling in (f" {word}", word) if word[:1].isalpha() else (word,):
        found = single_token(spelling, tokenizer)
        if found is not None:
            return found
    pieces = [token_text(tokenizer, token) for token in tokenizer.encode_ordinary(word)]
    raise ValueError(f"{word!r} is not one token of {tokenizer.name!r}, but {len(pieces)}: {pieces}; choose another")


def token_counts(texts: Iterable[str], tokenizer: tiktoken.Encoding) -> Tensor:
    """How often each token occurs in the texts: (V,) int64. ValueError when there is no token."""
    counts = torch.zeros(tokenizer.n_vocab, dtype=torch.long)
    for text in texts:
        ids = torch.tensor(tokenizer.encode_ordinary(text), dtype=torch.long)
        counts += torch.bincount(ids, minlength=tokenizer.n_vocab)
    require(bool(counts.any()), "the texts hold no token to count; give at least one that is not empty")
    return counts


def written_tokens(tokenizer: tiktoken.Encoding) -> list[int]:
    """Ids of the tokens that show something: no special ones, no white space, no piece of a character."""
    found = []
    for token in range(tokenizer.n_vocab):
        try:
            text = tokenizer.decode_single_token_bytes(token).decode()
        except (KeyError, UnicodeDecodeError):  # unused ids, and bytes of a longer character
            continue
        if text.strip() and text not in tokenizer.special_tokens_set:
            found.append(token)
    return found
