"""What a model holds for the next token, and what is left of it after temperature and truncation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tiktoken
import torch
from torch import Tensor

from picollm_core.config import SamplingConfig
from picollm_core.inference import evaluation_mode
from picollm_core.models.base import LanguageModel
from picollm_core.sampling import apply_temperature, encode_prompt, repetition_penalty, truncate


@dataclass(frozen=True)
class Candidate:
    """One token that may come next. Its probabilities at three stages: the model's own (temperature 1, untouched),
    `shaped` by repetition penalty and temperature, and `chance`, with which it is drawn after truncation (0: cut)."""

    id: int
    text: str
    probability: float
    shaped: float
    chance: float


@dataclass(frozen=True)
class NextToken:
    """The likeliest `candidates`, first the likeliest; the first `kept` of all `vocab_size` tokens can be drawn.

    `mass` is the share of the shaped probability that the kept tokens hold.
    """

    candidates: tuple[Candidate, ...]
    kept: int
    mass: float
    vocab_size: int


@dataclass(frozen=True)
class PromptLogits:
    """What a model says after a prompt: logits (V,), and the prompt's ids (T,) that a repetition penalty acts on."""

    logits: Tensor
    previous: Tensor


def token_text(tokenizer: tiktoken.Encoding, token: int) -> str:
    """A token as text, bytes that make no character as U+FFFD, an end of text by name, an unused id by number."""
    try:
        return tokenizer.decode([token], errors="replace")
    except KeyError:  # vocabularies may have gaps
        return f"<{token}>"


@torch.no_grad()
def prompt_logits(model: LanguageModel, tokenizer: tiktoken.Encoding, prompt: str) -> PromptLogits:
    """One pass over the prompt, as generation begins: what every slider acts on without asking the model again.

    Raises ValueError for an empty prompt, one longer than the window, and a tokenizer that is not the model's.
    """
    ids = encode_prompt(model, tokenizer, prompt)
    idx = torch.tensor([ids], device=model.head.weight.device)  # (1, T), end-of-text first
    with evaluation_mode(model):
        h, _ = model.hidden(idx)  # (1, T, C)
        return PromptLogits(model.head(h[0, -1]), idx[0, 1:])


@torch.no_grad()
def next_token(
    logits: Tensor, tokenizer: tiktoken.Encoding, sampling: SamplingConfig, previous: Sequence[int] | Tensor, count: int
) -> NextToken:
    """The `count` likeliest next tokens under `sampling`, from a model's logits (V,) and the ids before them (T,).

    Without tokens before (T = 0) the repetition penalty changes nothing. Raises ValueError when the largest logit is
    not finite.
    """
    if not math.isfinite(float(logits.max())):
        raise ValueError(f"the model's largest logit is {float(logits.max())}; has training diverged?")
    seen = torch.as_tensor(previous, dtype=torch.long, device=logits.device)
    shaped = logits
    if sampling.repetition_penalty != 1 and len(seen):
        shaped = repetition_penalty(shaped, seen, sampling.repetition_penalty)
    if sampling.temperature not in (0, 1):
        shaped = apply_temperature(shaped, sampling.temperature)
    drawn = truncate(logits, sampling, seen if len(seen) else None)
    own = torch.softmax(logits, -1, dtype=torch.float64)  # (V,), as the next two
    before, after = torch.softmax(shaped, -1, dtype=torch.float64), torch.softmax(drawn, -1, dtype=torch.float64)
    least = shaped.topk(min(count, shaped.numel())).values[-1]
    ids = (shaped >= least).nonzero().squeeze(1)  # ascending, more than count where logits tie with the last one
    order = ids[shaped[ids].argsort(descending=True, stable=True)[:count]]  # equal logits by id, as truncate has them
    numbers = torch.stack([own[order], before[order], after[order]], dim=1).tolist()  # (count, 3)
    candidates = [Candidate(i, token_text(tokenizer, i), *row) for i, row in zip(order.tolist(), numbers, strict=True)]
    kept = drawn > -math.inf
    return NextToken(tuple(candidates), int(kept.sum()), float(before[kept].sum()), logits.numel())
