"""What there is to see of one feature: contexts where it fires, how strongly it does, and what it makes likelier.

T tokens a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tiktoken
import torch
from torch import Tensor

from picollm_core.next_token import token_text

BEFORE, AFTER = 18, 6
"""Tokens shown around the peak of a context."""
PROMOTED, BINS_PER_OCTAVE = 10, 2


@dataclass(frozen=True)
class Context:
    """Some tokens of one story with a feature's activation at each; `peak` is the index of the one it is shown for.

    `begins` and `ends` say whether the story does so here, within the tokens that were read.
    """

    story: int
    pieces: tuple[str, ...]
    activations: tuple[float, ...]
    peak: int
    begins: bool
    ends: bool


@dataclass(frozen=True)
class Evidence:
    """What there is to see of one feature; `facts` is its row of the index's table.

    `strongest` contexts come from different stories, as `weaker` ones do, which are drawn at random from the rest: one
    from each quarter of the stories where it fires, by strength. Stories that are the same word for word up to the
    peak are shown once. `negative` has the lowest values of a signed code.
    `histogram` are (least size, number of tokens) of bins, each sqrt(2) times as far up as the one before; tokens where
    the code is 0 are in none. `promoted` and `suppressed` are (token, change of its logit in nats where the feature is
    at its maximum), empty where `no_effect` says why.
    """

    feature: int
    facts: dict[str, Any]
    strongest: tuple[Context, ...]
    weaker: tuple[Context, ...]
    negative: tuple[Context, ...]
    histogram: tuple[tuple[float, int], ...]
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    no_effect: str = ""

    def peak_tokens(self, weaker: bool = False) -> set[str]:
        """The different tokens at the peaks of the strongest stories, and of the weaker ones where they are wanted."""
        return {story.pieces[story.peak] for story in self.strongest + (self.weaker if weaker else ())}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Evidence":
        """The Evidence that `dataclasses.asdict` and JSON were given."""
        groups = {name: tuple(map(_context, values[name])) for name in ("strongest", "weaker", "negative")}
        pairs = {name: tuple(map(tuple, values[name])) for name in ("histogram", "promoted", "suppressed")}
        return cls(**values | groups | pairs)


def _context(values: dict[str, Any]) -> Context:
    return Context(**values | {name: tuple(values[name]) for name in ("pieces", "activations")})


def short(value: float) -> float:
    """Four significant digits, which keep records small."""
    return float(f"{value:.4g}")


def context_around(story: int, ids: Sequence[int], values: Tensor, place: int, tokenizer: tiktoken.Encoding) -> Context:
    """The tokens of a story around `place`, given all its ids and the feature's activations (T,) there."""
    start, stop = max(0, place - BEFORE), min(len(ids), place + AFTER + 1)
    return Context(
        story,
        tuple(token_text(tokenizer, i) for i in ids[start:stop]),
        tuple(map(short, values[start:stop].tolist())),
        place - start,
        start == 0,
        stop == len(ids),
    )


def histogram(values: Tensor) -> tuple[tuple[float, int], ...]:
    """Least size and number of values of each bin, two bins an octave, from the first that is not empty to the last.

    `values` (n,) are codes other than 0, taken by their size.
    """
    if not len(values):
        return ()
    numbers = (values.abs().log2() * BINS_PER_OCTAVE).floor().long()
    first = int(numbers.min())
    counts = torch.bincount(numbers - first).tolist()
    return tuple((short(2.0 ** ((first + i) / BINS_PER_OCTAVE)), count) for i, count in enumerate(counts))


def extreme_tokens(
    effect: Tensor, tokenizer: tiktoken.Encoding, count: int = PROMOTED
) -> tuple[tuple[tuple[str, float], ...], tuple[tuple[str, float], ...]]:
    """The tokens whose logits `effect` (V,) raises most and lowers most, each with its change, the largest first."""
    groups = []
    for largest in (True, False):
        values, ids = torch.topk(effect, min(count, effect.numel()), largest=largest)
        pairs = zip(ids.tolist(), values.tolist(), strict=True)
        groups.append(tuple((token_text(tokenizer, i), short(value)) for i, value in pairs))
    return groups[0], groups[1]
