"""Where each head of a Transformer looks: its attention weights, and scores that name what they look like.

L layers, B rows, H heads, T positions.
"""

from collections.abc import Iterable
from typing import Any

import pandas as pd
import tiktoken
import torch
from torch import Tensor

from picollm_core.config import require
from picollm_core.inference import evaluation_mode, require_same_vocabulary
from picollm_core.models import LanguageModel, build_model
from picollm_core.models.positions import Place
from picollm_core.models.transformer import SequenceMixer, Transformer
from picollm_core.trainer import seeded

SCORES = ("previous_token", "first_token", "same_token", "entropy")


def attention_layers(model: LanguageModel) -> list[SequenceMixer]:
    """The sequence mixers from the input to the output. ValueError naming the family when the model has none."""
    if not isinstance(model, Transformer):
        raise ValueError(f"a {model.config.family} model has no attention to look at; choose a transformer")
    return [block.attention for block in model.blocks]


@torch.no_grad()
def layer_inputs(model: LanguageModel, idx: Tensor) -> list[tuple[SequenceMixer, Tensor, Any, Place]]:
    """Every sequence mixer with what it is given when the model reads ids `idx` (B, T): x (B, T, C), state, place.

    In evaluation mode. Raises ValueError for a model without attention.
    """
    layers = attention_layers(model)
    found: list[tuple[SequenceMixer, Tensor, Any, Place]] = []

    def record(layer: SequenceMixer, inputs: tuple) -> None:
        found.append((layer, *inputs))

    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        with evaluation_mode(model):
            model.hidden(idx)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@torch.no_grad()
def attention_patterns(model: LanguageModel, idx: Tensor) -> Tensor:
    """Weights (L, B, H, T, T) of every layer and head for token ids `idx` (B, T): [..., t, s] is t's on s.

    Softmax weights sum to 1 over s (less where a sink takes a part) and are exactly 0 for s > t; a linear mixer's are
    those of its implicit map, of any sign and sum. They come from what the layer itself computes (its `pattern`), in
    evaluation mode. Raises ValueError for a model without attention.
    """
    return torch.stack([layer.pattern(x, place) for layer, x, _, place in layer_inputs(model, idx)])


def uniform_patterns(patterns: Tensor) -> Tensor:
    """What heads without any preference would show: shaped as `patterns`, 1 / (t + 1) on each visible s <= t."""
    visible = torch.ones_like(patterns).tril()
    return visible / visible.sum(-1, keepdim=True)


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of values (L, B, H, T) over the rows and positions of where (B, T), (L, H); NaN when there are none."""
    chosen = where.unsqueeze(1).to(values.dtype)  # (B, 1, T)
    return (values * chosen).sum((1, 3)) / chosen.sum()


def head_scores(patterns: Tensor, idx: Tensor) -> pd.DataFrame:
    """One row a head (layer and head count from 1) that says where it looks, for patterns (L, B, H, T, T), ids (B, T).

    Means over all rows and all queries t >= 2, where the previous token and the first are different ones:
    previous_token is the weight on t - 1; first_token the weight on position 0; same_token the weight on earlier
    copies of the query's own token, over those queries that have one (NaN when none has); entropy, in bits, how widely
    it looks: 2**entropy is about a number of tokens. For comparison, score `uniform_patterns` with the same ids.
    Raises ValueError when the shapes do not go together or T < 3.
    """
    n_layer, _, n_head, length, _ = patterns.shape if patterns.ndim == 5 else (0,) * 5
    fits = patterns.ndim == 5 and (patterns.size(1), length, patterns.size(4)) == (*idx.shape, length)
    require(fits, f"patterns {tuple(patterns.shape)} do not go with ids {tuple(idx.shape)}; (L, B, H, T, T) and (B, T)")
    require(length >= 3, f"the ids hold {length} tokens a row; scores need at least 3")
    patterns = patterns.double()
    scored = torch.ones_like(idx, dtype=torch.bool)  # (B, T)
    scored[:, :2] = False
    copies = (idx.unsqueeze(2) == idx.unsqueeze(1)).tril(-1)  # (B, T, T), earlier copies of the query's token
    previous = torch.zeros_like(patterns[..., 0])  # (L, B, H, T)
    previous[..., 1:] = patterns.diagonal(-1, -2, -1)
    values = {
        "previous_token": _mean_where(previous, scored),
        "first_token": _mean_where(patterns[..., 0], scored),
        "same_token": _mean_where((patterns * copies.unsqueeze(1)).sum(-1), scored & copies.any(-1)),
        "entropy": _mean_where(-torch.special.xlogy(patterns, patterns).sum(-1) / torch.log(torch.tensor(2.0)), scored),
    }
    heads = [(layer, head) for layer in range(1, n_layer + 1) for head in range(1, n_head + 1)]
    table = pd.DataFrame(heads, columns=["layer", "head"])
    return table.assign(**{name: values[name].flatten().tolist() for name in SCORES})


def first_tokens(texts: Iterable[str], tokenizer: tiktoken.Encoding, length: int, most: int) -> Tensor:
    """Ids (B, length) of the starts of the first `most` texts that are long enough, each after an end-of-text token.

    Raises ValueError when no text is.
    """
    rows: list[list[int]] = []
    for text in texts:
        ids = [tokenizer.eot_token, *tokenizer.encode_ordinary(text)]
        if len(ids) >= length:
            rows.append(ids[:length])
        if len(rows) == most:
            break
    require(bool(rows), f"no text has {length - 1} tokens; choose a smaller length, or give longer texts")
    return torch.tensor(rows)


def attention_study(
    model: LanguageModel,
    tokenizer: tiktoken.Encoding,
    sentence: str,
    texts: Iterable[str],
    length: int = 64,
    most: int = 50,
) -> dict[str, Any]:
    """The maps of one sentence and the scores of every head over many texts with their controls, as JSON values.

    `patterns` [layer][head][t][s] are those of `sentence` after an end-of-text token, rounded to 3 digits, and
    `tokens` its pieces, that token called <start>. `scores` has a row a head as in `head_scores`, over the first
    `length` tokens of at most `most` texts, whose number is `stories`; `uniform` is the row of a head without
    preference, and `untrained` the highest of each score among the heads of the same architecture with fresh weights.
    Raises ValueError for a model without attention, another vocabulary, and texts that are all too short.
    """
    require_same_vocabulary(model, tokenizer)
    idx = first_tokens(texts, tokenizer, length, most)
    trained = attention_patterns(model, idx)
    with seeded(0):
        fresh = build_model(model.config)
    untrained = head_scores(attention_patterns(fresh, idx), idx)
    ids = tokenizer.encode_ordinary(sentence)
    shown = attention_patterns(model, torch.tensor([[tokenizer.eot_token, *ids]]))[:, 0]  # (L, H, T, T)
    return {
        "tokens": ["<start>", *(tokenizer.decode_single_token_bytes(i).decode(errors="replace") for i in ids)],
        "patterns": shown.double().round(decimals=3).tolist(),
        "scores": head_scores(trained, idx).to_dict("records"),
        "uniform": head_scores(uniform_patterns(trained[:1, :, :1]), idx)[list(SCORES)].iloc[0].to_dict(),
        "untrained": untrained[list(SCORES)].max().to_dict(),
        "stories": len(idx),
    }
