"""Softmax attention beside linear mixers: arms of equal size, what their memories keep of a text, how large they are.

Symbols: B batch, L layers, H heads, T tokens, Dk key width.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import tiktoken
import torch
from torch import Tensor

from picollm_core.config import TransformerConfig, require
from picollm_core.decoding_speed import decoding_times
from picollm_core.inference import evaluation_mode, require_same_vocabulary
from picollm_core.interpret.attention_maps import attention_patterns, first_tokens, layer_inputs
from picollm_core.interpret.untrained import untrained_model
from picollm_core.lab import Lab
from picollm_core.models import LanguageModel, build_model
from picollm_core.models.kv_cache import KVCache
from picollm_core.models.linear_mixers import GatedDeltaNet, LinearMixer, LinearState
from picollm_core.runs import Run

GATES = {
    "no gate": "GLA, no gate",
    "fixed gate": "GLA, fixed gate",
    "scalar gate": "GLA, scalar gate",
    "vector gate": "GLA",
}
"""Arms that differ in the gate of gated linear attention alone, from the simplest gate to the richest."""
LEAST_DECAY = 1e-6
"""A weaker decay, in nats a token, counts as this one: half of a memory is left after 693,147 tokens."""
LEAST_LIFE = 0.01
"""A shorter half-life, in tokens, counts as this one: after one token nothing is left of a memory."""


def mixer_arms() -> dict[str, TransformerConfig]:
    """Nine mixers in 2 layers of 4 heads, with as many parameters as softmax attention, within 1% of those in blocks.

    All heads have queries, keys and values of width 16, so that all fixed memories are 16 x 16 numbers a head (elu + 1
    adds its normaliser). What gates, readouts and convolutions need is taken from the MLP's hidden width, 256 in the
    softmax model. Recurrences know the order of tokens by themselves; softmax layers have RoPE. The four gates of GLA
    differ in nothing else, and "GLA" is the name of the one with a gate for every channel. Hybrids have a linear layer
    first and a softmax layer above it.
    """
    base = TransformerConfig(vocab_size=4_096, block_size=128, n_embd=64, n_layer=2, n_head=4, expand_k=1.0)
    linear, mixed = base.replace(position="none"), base.replace(position="rope")
    return {
        "softmax": mixed.replace(mlp_width=256),
        "linear": linear.replace(mixers=("linear",), mlp_width=256),
        "GLA, no gate": linear.replace(mixers=("gla",), gate="none", mlp_width=224),
        "GLA, fixed gate": linear.replace(mixers=("gla",), gate="fixed", mlp_width=224),
        "GLA, scalar gate": linear.replace(mixers=("gla",), gate="scalar", mlp_width=216),
        "GLA": linear.replace(mixers=("gla",), gate="vector", mlp_width=208),
        "DeltaNet": linear.replace(mixers=("delta",), mlp_width=216),
        "GLA + softmax": mixed.replace(mixers=("gla", "softmax"), mlp_width=232),
        "DeltaNet + softmax": mixed.replace(mixers=("delta", "softmax"), mlp_width=232),
    }


def recall_arms() -> dict[str, TransformerConfig]:
    """Four mixers for associative recall, each in one of 2 layers; 4 heads with keys and values of width 16.

    The other layer is the same for all: attention over a token and the one before. It brings a key together with its
    value, the task of the short convolutions that models for recall have (Arora et al. 2024, arXiv 2402.18668); without
    it softmax attention needs far longer until it finds any pair. It lies below the mixer, but for DeltaNet above it:
    DeltaNet has convolutions of its own, and above a mixed input they learn nothing in as many steps.
    """
    base = TransformerConfig(n_embd=64, n_layer=2, n_head=4, expand_k=1.0, position="rope", window=2)
    return {
        "softmax": base.replace(mixers=("window", "softmax")),
        "linear": base.replace(mixers=("window", "linear")),
        "GLA": base.replace(mixers=("window", "gla")),
        "DeltaNet": base.replace(mixers=("delta", "window")),
    }


def parity_arms() -> dict[str, TransformerConfig]:
    """Five mixers for parity in 2 layers of 4 heads; all heads have keys and values of width 16.

    "DeltaNet, β < 2" may write twice as strongly as "DeltaNet", so that its transitions have eigenvalues in
    (-1, 1) and not only in (0, 1) (Grazzi et al. 2024, arXiv 2411.12537).
    """
    base = TransformerConfig(n_embd=64, n_layer=2, n_head=4, expand_k=1.0, position="none")
    return {
        "softmax": base.replace(position="rope"),
        "linear": base.replace(mixers=("linear",)),
        "GLA": base.replace(mixers=("gla",)),
        "DeltaNet": base.replace(mixers=("delta",)),
        "DeltaNet, β < 2": base.replace(mixers=("delta",), negative_eigenvalues=True),
    }


def shares(patterns: Tensor) -> Tensor:
    """Patterns (..., T, T) with every row divided by the sum of its absolute values; empty rows stay empty.

    A head's output is normalised after its map, so the size of a row means nothing, and shares of mixers compare.
    """
    total = patterns.abs().sum(-1, keepdim=True)
    return patterns / total.where(total > 0, torch.ones_like(total))


def head_memory(patterns: Tensor) -> pd.DataFrame:
    """What every head's map takes from where, for patterns (L, B, H, T, T): one row a head, both counted from 1.

    Means over rows and queries of the second half of the text, whose past is long: `reach`, the mean distance in tokens
    by share of absolute weight; `own`, the share on the token itself; `negative`, the share of negative weights. A head
    that takes the same from all has the reach that is given as `even` in every row. Raises ValueError for T < 2.
    """
    length = patterns.size(-1)
    require(length >= 2, f"the text has {length} token; at least 2 are needed, or there is nothing to remember")
    rows = shares(patterns)[..., length // 2 :, :]  # (L, B, H, R, T)
    queries, keys = torch.arange(length // 2, length).unsqueeze(-1), torch.arange(length)
    distance = (queries - keys).clamp(min=0).to(rows)  # (R, T)
    found = {
        "reach": (rows.abs() * distance).sum(-1).mean((1, 3)),  # each (L, H)
        "own": (rows.abs() * (distance == 0) * (keys <= queries)).sum(-1).mean((1, 3)),
        "negative": rows.clamp(max=0).abs().sum(-1).mean((1, 3)),
    }
    even = float(queries.double().mean() / 2)
    return pd.DataFrame(
        {"layer": layer + 1, "head": head + 1}
        | {name: float(value[layer, head]) for name, value in found.items()}
        | {"even": even}
        for layer in range(patterns.size(0))
        for head in range(patterns.size(2))
    )


@torch.no_grad()
def log_decays(model: LanguageModel, idx: Tensor) -> list[Tensor | None]:
    """Every layer's log decays for token ids idx (B, T): (B, H, T, Dk), or (B, H, T, 1) where a head has one.

    None for layers whose memory does not decay. Raises ValueError for a model without attention.
    """
    found: list[Tensor | None] = []
    for layer, x, state, place in layer_inputs(model, idx):
        gates = layer.inputs(x, state.tail, place.resets)[0][3:] if isinstance(layer, LinearMixer) else ()
        decay = gates[0] if gates else None
        found.append(decay.unsqueeze(-1) if isinstance(layer, GatedDeltaNet) and decay is not None else decay)
    return found


def half_lives(model: LanguageModel, idx: Tensor) -> pd.DataFrame:
    """After how many tokens half of a memory is left, ln 2 / -g, for every head whose memory decays.

    One row a head (layer and head count from 1): `low`, `median` and `high`, the 10th, 50th and 90th percentile over
    the tokens of idx (B, T) and over channels. Raises ValueError for a model without attention.
    """
    rows = []
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    for layer, decays in enumerate(log_decays(model, idx), 1):
        for head, own in enumerate(() if decays is None else decays.unbind(1), 1):
            life = (math.log(2) / own.float().flatten().neg().clamp(min=LEAST_DECAY)).clamp(min=LEAST_LIFE)
            rows.append((layer, head, *life.quantile(quantiles).tolist()))
    return pd.DataFrame(rows, columns=["layer", "head", "low", "median", "high"])


def memory_study(
    model: LanguageModel,
    tokenizer: tiktoken.Encoding,
    sentence: str,
    texts: Iterable[str],
    length: int = 64,
    most: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """The maps of one sentence, and over many texts what every head remembers and how its gates forget, as JSON values.

    `maps` [layer][head][t][s] are the `shares` of `sentence` after an end-of-text token, rounded to 3 digits, and
    `tokens` its pieces, that token called <start>. `heads` has the rows of `head_memory` over the first `length` tokens
    of at most `most` texts, `lives` those of `half_lives` with `start`, the median with the weights that training with
    `seed` starts from (empty for models that do not forget). Raises ValueError for a model without attention, another
    vocabulary, and too short texts.
    """
    require_same_vocabulary(model, tokenizer)
    idx = first_tokens(texts, tokenizer, length, most)
    fresh = untrained_model(model, seed)
    lives = half_lives(model, idx).assign(start=half_lives(fresh, idx)["median"])
    ids = tokenizer.encode_ordinary(sentence)
    shown = shares(attention_patterns(model, torch.tensor([[tokenizer.eot_token, *ids]]))[:, 0])  # (L, H, T, T)
    return {
        "tokens": ["<start>", *(tokenizer.decode_single_token_bytes(i).decode(errors="replace") for i in ids)],
        "maps": shown.double().round(decimals=3).tolist(),
        "heads": head_memory(attention_patterns(model, idx)).round(4).to_dict("records"),
        "lives": lives.round(2).to_dict("records"),
        "stories": len(idx),
    }


def recorded_memory(lab: Lab, run: Run, sentence: str, *, length: int, most: int) -> dict[str, Any]:
    """`memory_study` of a run on held-out stories of the lab's corpus, recorded by the lab."""

    def compute() -> dict[str, Any]:
        texts = lab.corpus().texts("validation")
        seed = run.config.train.seed
        return memory_study(run.load_model(), run.load_tokenizer(), sentence, texts, length, most, seed)

    given = {"sentence": sentence, "length": length, "most": most}
    return lab.measure("memory of a mixer", compute, run=run.fingerprint, **given)


def _held(state: Any) -> Iterator[Tensor]:
    """The tensors of a model's state that later tokens read."""
    if isinstance(state, KVCache):
        yield from (state.keys_seen, state.values_seen)
    elif isinstance(state, LinearState):
        yield from (part for part in state if part is not None)
    elif isinstance(state, tuple):
        for part in state:
            yield from _held(part)


@torch.no_grad()
def state_bytes(model: LanguageModel, length: int) -> int:
    """Bytes that a model keeps of one text of `length` tokens to go on with, counted on the state itself.

    Raises ValueError for a length below 1 or past learned positions.
    """
    require(length >= 1, f"length is {length}; it must be at least 1")
    device = next(model.parameters()).device
    with evaluation_mode(model):
        _, state = model.hidden(torch.zeros(1, length, dtype=torch.long, device=device))
    return sum(part.numel() * part.element_size() for part in _held(state))


def decoding_costs(
    arms: Mapping[str, TransformerConfig], lengths: Sequence[int], repetitions: int = 15
) -> list[dict[str, Any]]:
    """What one more token costs after a text of each length: one row an arm and length.

    Columns mixer (the arm), length, milliseconds (median over `repetitions` tokens, from the streaming state), low and
    high (quartiles), bytes (`state_bytes`). Random weights and few symbols: neither matters for the cost. Raises
    ValueError without arms, and as `decoding_speed.decoding_times`.
    """
    require(bool(arms), "there are 0 arms; give at least one")
    rows = []
    for name, config in arms.items():
        room = max((*lengths, 0)) + repetitions
        model = build_model(config.replace(vocab_size=64, block_size=max(room, config.block_size))).eval()
        for row in decoding_times(model, lengths, repetitions):
            if row.pop("way") == "from the state":
                rows.append({"mixer": name} | row | {"bytes": state_bytes(model, row["length"])})
    return rows
