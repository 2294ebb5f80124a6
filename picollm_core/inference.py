"""What generation and evaluation ask of a model before they use it."""

from collections.abc import Iterator
from contextlib import contextmanager

import tiktoken
from torch import nn

from picollm_core.models.base import LanguageModel


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode (no dropout), and each back in its own mode afterwards, whatever happens."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def require_same_vocabulary(model: LanguageModel, tokenizer: tiktoken.Encoding) -> None:
    """Raise ValueError, with both sizes, when `tokenizer` cannot be the one that `model` was trained with."""
    vocab_size = model.config.vocab_size
    if tokenizer.n_vocab != vocab_size:
        raise ValueError(
            f"tokenizer {tokenizer.name!r} has {tokenizer.n_vocab} tokens but the model has {vocab_size}; "
            "use the tokenizer that the model was trained with"
        )
