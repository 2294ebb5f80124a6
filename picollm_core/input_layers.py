"""The k-gram's one-hot input written out three ways, what nn.Embedding has to do with it, and what each way costs.

Shape legend: B rows, T positions, k places of the window, V vocabulary, C width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from picollm_core.config import KGramConfig, require
from picollm_core.models.kgram import EmbeddingInput, OneHotInput


def one_hot_product(layer: OneHotInput, window: Tensor) -> Tensor:
    """`layer` as the formula has it: one-hot vectors built, then the product, (B, T, k) ids -> (B, T, C)."""
    one_hot = F.one_hot(window, layer.vocab_size).flatten(-2).to(layer.weight.dtype)  # (B, T, k V)
    return one_hot @ layer.weight + layer.bias


def summed_tables(layer: OneHotInput, window: Tensor) -> Tensor:
    """`layer` as k embedding tables, one a place of the window, their rows summed: (B, T, k) -> (B, T, C)."""
    tables = layer.weight.view(window.size(-1), layer.vocab_size, -1)  # (k, V, C)
    rows = [F.embedding(window[..., place], table) for place, table in enumerate(tables)]  # k times (B, T, C)
    return torch.stack(rows).sum(dim=0) + layer.bias


def as_one_hot(learned: EmbeddingInput, config: KGramConfig) -> OneHotInput:
    """The one-hot layer that computes what a "learned" or "scaled" input layer computes.

    With table E (V, D) and mixing matrix M_j (D, C) of place j, its k tables are E M_1, ..., E M_k. `config` is the
    one that `learned` was built with. Raises ValueError for "conv" and "onehot", which mix in another way.
    """
    require(
        config.embedding in ("learned", "scaled"),
        f"embedding is {config.embedding!r}; only learned and scaled are a table and a matrix for each place",
    )
    layer = OneHotInput(config).to(learned.table.weight.dtype)
    mixes = learned.mix.weight.T.unflatten(0, (config.k, -1))  # (k, D, C)
    with torch.no_grad():
        layer.weight.copy_((learned.table.weight @ mixes).flatten(0, 1))  # (k V, C)
        layer.bias.copy_(learned.mix.bias)
    return layer


def input_layer_times(
    k: int, vocab_size: int, n_embd: int = 32, tokens: int = 512, repetitions: int = 10
) -> dict[str, float]:
    """Microseconds a token, forward and backward in float32 on one thread, of three input layers on the same windows.

    "one-hot vectors built" is `one_hot_product`, "one-hot rows gathered" the package's OneHotInput with the same
    weights, "learned embedding" the package's EmbeddingInput of the same width. The median over `repetitions`.
    Raises ValueError for tokens or repetitions below 1.
    """
    require(tokens >= 1, f"tokens is {tokens}; it must be at least 1")
    require(repetitions >= 1, f"repetitions is {repetitions}; it must be at least 1")
    config = KGramConfig(vocab_size=vocab_size, n_embd=n_embd, k=k, embedding="onehot")
    window = torch.randint(vocab_size, (1, tokens, k), generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gathered, learned = OneHotInput(config), EmbeddingInput(config.replace(embedding="learned"))
    ways = {
        "one-hot vectors built": lambda: one_hot_product(gathered, window),
        "one-hot rows gathered": lambda: gathered(window),
        "learned embedding": lambda: learned(window),
    }
    times = {}
    for name, way in ways.items():
        timer = Timer("way().sum().backward()", globals={"way": way}, num_threads=1)
        timer.timeit(1)  # the first pass allocates the gradients
        times[name] = sorted(timer.timeit(1).mean for _ in range(repetitions))[repetitions // 2] * 1e6 / tokens
    return times
