"""Where each head of a Transformer looks: its attention weights, and scores that name what they look like.

L layers, B rows, H heads, T positions.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd
import tiktoken
import torch
from torch import Tensor

from picollm_core.config import require
from picollm_core.inference import evaluation_mode, require_same_vocabulary
from picollm_core.interpret.untrained import untrained_model
from picollm_core.losses import token_nll
from picollm_core.models import LanguageModel
from picollm_core.models.positions import Place
from picollm_core.models.transformer import SequenceMixer, Transformer

SCORES = ("previous_token", "first_token", "same_token", "entropy")
REPETITION_SCORES = ("previous_token", "duplicate_token", "induction", "first_token", "entropy")


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


def _entropy(patterns: Tensor) -> Tensor:
    """Entropy in bits (L, B, H, T) of every query's weights; NaN for all of a head whose weights are no shares."""
    bits = -torch.special.xlogy(patterns, patterns).sum(-1) / torch.log(torch.tensor(2.0))
    shares = (patterns >= 0).all(-1) & (patterns.sum(-1) <= 1.01)  # (L, B, H, T); a sink takes a part
    return bits.where(shares.all(-1).all(1)[:, None, :, None], torch.nan)


def _by_head(values: dict[str, Tensor]) -> pd.DataFrame:
    """One row a head, layer and head counted from 1, with a column for each of `values` (L, H)."""
    n_layer, n_head = next(iter(values.values())).shape
    heads = [(layer, head) for layer in range(1, n_layer + 1) for head in range(1, n_head + 1)]
    table = pd.DataFrame(heads, columns=["layer", "head"])
    return table.assign(**{name: scores.flatten().tolist() for name, scores in values.items()})


def head_scores(patterns: Tensor, idx: Tensor) -> pd.DataFrame:
    """One row a head (layer and head count from 1) that says where it looks, for patterns (L, B, H, T, T), ids (B, T).

    Means over all rows and all queries t >= 2, where the previous token and the first are different ones:
    previous_token is the weight on t - 1; first_token the weight on position 0; same_token the weight on earlier
    copies of the query's own token, over those queries that have one (NaN when none has); entropy, in bits, how widely
    it looks: 2**entropy is about a number of tokens, and NaN for a linear mixer's map, whose weights are no shares.
    For comparison, score `uniform_patterns` with the same ids.
    Raises ValueError when the shapes do not go together or T < 3.
    """
    length = patterns.size(3) if patterns.ndim == 5 else 0
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
        "entropy": _mean_where(_entropy(patterns), scored),
    }
    return _by_head({name: values[name] for name in SCORES})


def repeated_tokens(
    tokens_to_draw_from: Tensor | Sequence[int],
    n_rows: int,
    length: int,
    start_token: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Ids (B, 1 + 2 length): `start_token`, then a random sequence, then the same sequence again, for B = `n_rows`.

    A sequence is drawn from the distinct `tokens_to_draw_from` (n,) but the start token, none twice, so each token of
    the second half has exactly one earlier copy. What follows cannot be guessed from what tokens mean, only from the
    first half (Elhage et al. 2021; Olsson et al. 2022, arXiv 2209.11895, section 4).
    Raises ValueError for too few tokens, no rows, and a length below 3, where scores could not be told apart.
    """
    require(n_rows >= 1, f"n_rows is {n_rows}; it must be at least 1")
    require(length >= 3, f"length is {length}; a sequence to repeat needs at least 3 tokens")
    pool = torch.as_tensor(tokens_to_draw_from).unique().cpu()
    pool = pool[pool != start_token]
    require(len(pool) >= length, f"{len(pool)} different tokens are too few for sequences of {length} without a copy")
    order = torch.rand(n_rows, len(pool), generator=generator).argsort(dim=-1)
    once = pool[order[:, :length]]  # (B, length)
    return torch.cat([torch.full((n_rows, 1), start_token), once, once], dim=1)


def repetition_scores(patterns: Tensor, length: int) -> pd.DataFrame:
    """Where every head looks in the second half of `repeated_tokens`: one row a head, layer and head from 1.

    Means over all rows and all queries t > length of patterns (L, B, H, T, T), T = 1 + 2 length: previous_token is the
    weight on t - 1; duplicate_token on t - length, the earlier copy of the query's own token; induction on
    t - length + 1, the token that followed that copy (Elhage et al. 2021; Olsson et al. 2022, arXiv 2209.11895);
    first_token on the start token; entropy as in `head_scores`. A linear mixer's weights are no shares: there a score
    may be negative or above 1, and entropy is NaN. Raises ValueError for a shape that does not go with `length`.
    """
    time = 1 + 2 * length
    fits = patterns.ndim == 5 and patterns.shape[-2:] == (time, time) and length >= 3
    require(fits, f"patterns {tuple(patterns.shape)} with length {length}; give (L, B, H, T, T), T = 1 + 2 length >= 7")
    second = patterns[..., length + 1 :, :].cpu().double()  # (L, B, H, length, T), queries of the second half
    values = {
        "previous_token": second.diagonal(length, -2, -1),
        "duplicate_token": second.diagonal(1, -2, -1),
        "induction": second.diagonal(2, -2, -1),
        "first_token": second[..., 0],
        "entropy": _entropy(second),
    }
    return _by_head({name: values[name].mean((1, 3)) for name in REPETITION_SCORES})


@torch.no_grad()
def repetition_loss(model: LanguageModel, idx: Tensor, length: int) -> tuple[float, float]:
    """Mean loss in nats a token in the first and in the second half of ids `idx` (B, 1 + 2 length), for any family.

    The ids are those of `repeated_tokens`. The first token of the second half is in neither: nothing tells that the
    repetition begins. Raises ValueError for a shape that does not go with `length`.
    """
    require(
        idx.ndim == 2 and idx.size(1) == 1 + 2 * length and length >= 3,
        f"ids {tuple(idx.shape)} with length {length}; give (B, 1 + 2 length) and a length of at least 3",
    )
    with evaluation_mode(model):
        hidden = model.hidden(idx)[0][:, :-1]  # (B, 2 length, C)
    nll, _ = token_nll(hidden.flatten(0, 1), model.head.weight, idx[:, 1:].flatten())
    nll = nll.view(len(idx), -1)  # (B, 2 length)
    return nll[:, :length].mean().item(), nll[:, length + 1 :].mean().item()


def untrained_highest(
    model: LanguageModel, idx: Tensor, score: Callable[[Tensor], pd.DataFrame], seed: int = 0
) -> dict[str, float]:
    """The highest of every score among the heads of a fresh model with `model`'s configuration that reads `idx`.

    What a head shows by its architecture alone, to be compared with what training made. `score` takes patterns
    (L, B, H, T, T), such as `partial(repetition_scores, length=50)`. Torch's global generator stays as it was.
    Raises ValueError for a model without attention.
    """
    attention_layers(model)
    table = score(attention_patterns(untrained_model(model, seed), idx))
    return table.drop(columns=["layer", "head"]).max().to_dict()


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
    ids = tokenizer.encode_ordinary(sentence)
    shown = attention_patterns(model, torch.tensor([[tokenizer.eot_token, *ids]]))[:, 0]  # (L, H, T, T)
    return {
        "tokens": ["<start>", *(tokenizer.decode_single_token_bytes(i).decode(errors="replace") for i in ids)],
        "patterns": shown.double().round(decimals=3).tolist(),
        "scores": head_scores(trained, idx).to_dict("records"),
        "uniform": head_scores(uniform_patterns(trained[:1, :, :1]), idx)[list(SCORES)].iloc[0].to_dict(),
        "untrained": untrained_highest(model, idx, lambda patterns: head_scores(patterns, idx)),
        "stories": len(idx),
    }
