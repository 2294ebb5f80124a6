"""Sampling: pure filters over logits, an exact draw, and text generation on a model's streaming state.

The order in which a SamplingConfig acts: repetition penalty, temperature, top-k, top-p, min-p, draw. Every filter
takes logits (..., V) and returns new logits (..., V) of the same type, -inf where a token is ruled out. What a filter
has to compare, it compares in float64; of equal logits the lower id counts as the larger one.
"""

import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import tiktoken
import torch
from torch import Tensor

from picollm_core.config import SamplingConfig, require
from picollm_core.inference import evaluation_mode, require_same_vocabulary
from picollm_core.models.base import LanguageModel
from picollm_core.nucleus import keep_largest, top_p_filter

_MANY = 8  # above a share of 1 / _MANY of the vocabulary, tokens are drawn from without being picked out first


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits (..., V) divided by `temperature` > 0, shifted so that the largest is 0 and nothing overflows.

    Raises ValueError when temperature is not positive: greedy choice (temperature 0) is an argmax, not a division.
    """
    require(temperature > 0, f"temperature is {temperature}; it must be positive here, and 0 (greedy) is an argmax")
    return (logits - logits.amax(-1, keepdim=True)) / max(temperature, torch.finfo(logits.dtype).tiny)


def repetition_penalty(logits: Tensor, previous: Tensor, penalty: float) -> Tensor:
    """Make tokens that occurred before less likely: logits (..., V), ids `previous` (..., T) -> (..., V).

    Positive logits are divided by `penalty` and the others multiplied, so that both go down for penalty > 1
    (Keskar et al. 2019, arXiv 1909.05858, completed for negative logits). A token that occurred twice is
    penalised once. Raises ValueError when penalty is not positive.
    """
    require(penalty > 0, f"repetition_penalty is {penalty}; it must be positive, where 1 changes nothing")
    seen = logits.gather(-1, previous)  # (..., T)
    return logits.scatter(-1, previous, torch.where(seen > 0, seen / penalty, seen * penalty))


def top_k_filter(logits: Tensor, k: int) -> Tensor:
    """Exactly the k largest logits of (..., V), or all when k >= V. Raises ValueError when k < 1."""
    require(k >= 1, f"top_k is {k}; it must be at least 1")
    if k >= logits.size(-1):
        return logits
    return keep_largest(logits, logits.topk(k, dim=-1).values[..., -1:], k)


def min_p_filter(logits: Tensor, min_p: float) -> Tensor:
    """Tokens at least `min_p` times as probable as the likeliest (Nguyen et al. 2024, arXiv 2407.01082).

    Raises ValueError when min_p is outside [0, 1]; 0 changes nothing, 1 keeps only what ties with the likeliest.
    """
    require(0 <= min_p <= 1, f"min_p is {min_p}; it must lie in [0, 1], where 0 keeps every token")
    if min_p == 0:
        return logits
    below_largest = logits.double() - logits.amax(-1, keepdim=True).double()
    return torch.where(below_largest >= math.log(min_p), logits, -math.inf)


def truncate(logits: Tensor, sampling: SamplingConfig, previous: Tensor | None = None) -> Tensor:
    """The logits (..., V) from which `sampling` draws the next token: -inf outside, softmax gives the probabilities.

    `previous` (..., T) are the ids that the repetition penalty acts on; without them there is none.
    """
    if previous is not None and sampling.repetition_penalty != 1:
        logits = repetition_penalty(logits, previous, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return top_k_filter(logits, 1)
    if sampling.temperature != 1:
        logits = apply_temperature(logits, sampling.temperature)
    if sampling.top_k is not None:
        logits = top_k_filter(logits, sampling.top_k)
    return min_p_filter(top_p_filter(logits, sampling.top_p), sampling.min_p)


def _require_finite(largest: Tensor) -> None:
    if not bool(largest.isfinite().all()):
        raise ValueError(f"cannot draw from logits whose largest is {largest.tolist()}; has training diverged?")


def _draw(logits: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """`draw`, and the number of tokens that each row was drawn from: (B,) and (B,)."""
    largest = logits.amax(-1, keepdim=True)  # (B, 1)
    _require_finite(largest)
    uniform = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators]).to(logits.device)
    left_out = logits.isneginf()
    counts = logits.size(-1) - left_out.count_nonzero(-1)  # (B,)
    if int(counts.sum()) * _MANY > logits.numel():
        cumulative = logits.softmax(-1, dtype=torch.float64).cumsum(-1)  # (B, V); tokens left out add nothing
        place = torch.searchsorted(cumulative, uniform.unsqueeze(-1) * cumulative[:, -1:], right=True)
        return place.squeeze(-1), counts
    rows, ids = (~left_out).nonzero(as_tuple=True)  # (N,) each, N tokens kept in all rows together
    first = counts.cumsum(0) - counts
    weights = (logits[rows, ids].double() - largest.double()[rows, 0]).exp()
    table = weights.new_zeros(logits.size(0), int(counts.max()))
    table[rows, torch.arange(rows.numel(), device=rows.device) - first[rows]] = weights
    cumulative = table.cumsum(-1)  # (B, most tokens kept in a row)
    place = torch.searchsorted(cumulative, (uniform * cumulative[:, -1]).unsqueeze(-1), right=True)
    return ids[first + place.squeeze(-1)], counts


def draw(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One token id a row, (B, V) -> (B,), with probability softmax(logits): row r draws from generators[r] alone.

    Inverse of the cumulative distribution in float64 over the tokens that are not -inf, in the order of their ids,
    so a row's draw does not depend on the rest of the batch. Each draw takes one number from a CPU generator.
    Raises ValueError when the largest logit of a row is not finite, and when rows and generators differ in number.
    """
    require(len(generators) == len(logits), f"{len(logits)} rows but {len(generators)} generators; one for each row")
    return _draw(logits, generators)[0]


def _choose(
    logits: Tensor, sampling: SamplingConfig, previous: Tensor, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Next ids (B,) and how many tokens each was chosen from (B,), greedy without filter and draw: an argmax."""
    if sampling.temperature > 0:
        return _draw(truncate(logits, sampling, previous), generators)
    if sampling.repetition_penalty != 1:
        logits = repetition_penalty(logits, previous, sampling.repetition_penalty)
    largest, ids = logits.max(-1)
    _require_finite(largest)
    return ids, torch.ones_like(ids)


@dataclass(frozen=True)
class Token:
    """One generated token. `text` is "" until the bytes so far make a whole character, and "" for the end of a text.

    `probability` and `rank` (1 is the likeliest) are the model's own, at temperature 1 before any truncation;
    `nucleus_size` is the number of tokens that were left to draw from, `logits` (V,) the model's, untouched.
    """

    id: int
    text: str
    probability: float
    rank: int
    nucleus_size: int
    logits: Tensor = field(repr=False, compare=False)


class _Continuation:
    """A batch of equally long sequences that grows by one token a step, on the model's streaming state."""

    def __init__(self, model: LanguageModel, tokens: Tensor, sampling: SamplingConfig, seeds: Sequence[int]) -> None:
        self.model, self.sampling = model, sampling
        self.device = model.head.weight.device
        self.chooser = torch.device("cpu") if self.device.type == "mps" else self.device  # MPS has no float64
        self.tokens = tokens.to(self.chooser)  # (B, T), the leading end-of-text token included
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.state, self.fed, self.waiting = model.init_state(tokens.size(0)), 0, self.tokens

    def _next_logits(self) -> Tensor:
        """Feed what the state has not seen yet; logits (B, V) of the next token."""
        limit = self.model.context_limit
        if limit is not None and self.fed + self.waiting.size(1) > limit:  # slide: start again from the newest half
            self.waiting = self.tokens[:, -max(1, limit // 2) :]
            self.state, self.fed = self.model.init_state(self.tokens.size(0)), 0
        h, self.state = self.model.hidden(self.waiting.to(self.device), self.state)  # (B, T, C)
        self.fed += self.waiting.size(1)
        return self.model.head(h[:, -1]).to(self.chooser)

    @torch.no_grad()
    def step(self) -> tuple[Tensor, Tensor, Tensor]:
        """Append a token to every row. Its ids (B,), the model's logits (B, V), the sizes (B,) of the nuclei."""
        logits = self._next_logits()
        ids, nucleus_sizes = _choose(logits, self.sampling, self.tokens[:, 1:], self.generators)
        self.waiting = ids.unsqueeze(1)
        self.tokens = torch.cat([self.tokens, self.waiting], dim=1)
        return ids, logits, nucleus_sizes


def encode_prompt(model: LanguageModel, tokenizer: tiktoken.Encoding, prompt: str) -> list[int]:
    """End-of-text, which every story follows in training, then the prompt. ValueError when it cannot be continued."""
    require_same_vocabulary(model, tokenizer)
    require(prompt != "", "the prompt is empty; give at least one character to continue from")
    ids = [tokenizer.eot_token, *tokenizer.encode_ordinary(prompt)]
    limit = model.context_limit
    if limit is not None and len(ids) > limit:
        raise ValueError(
            f"the prompt has {len(ids)} tokens (one is the <|endoftext|> before it) but the window holds {limit}; "
            "shorten the prompt, use a model with a larger block_size, or one without a limit (LSTM, k-gram)"
        )
    return ids


def _prepare(sampling: SamplingConfig | None, max_new_tokens: int, overrides: dict[str, Any]) -> SamplingConfig:
    require(max_new_tokens >= 1, f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    return (sampling or SamplingConfig()).replace(**overrides)


def continue_batch(
    model: LanguageModel,
    tokenizer: tiktoken.Encoding,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 200,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    stop_at_eot: bool = True,
    **overrides: Any,
) -> list[list[int]]:
    """The ids of each prompt's continuation alone, of which `generate_batch` makes text; it says the rest."""
    require(not isinstance(prompts, str), "prompts is one string; give a list of strings, or call generate")
    sampling = _prepare(sampling, max_new_tokens, overrides)
    encoded = [encode_prompt(model, tokenizer, prompt) for prompt in prompts]
    continued: list[list[int]] = [[] for _ in prompts]
    with evaluation_mode(model):
        for length in sorted({len(ids) for ids in encoded}):
            rows = [row for row, ids in enumerate(encoded) if len(ids) == length]
            batch = _Continuation(model, torch.tensor([encoded[r] for r in rows]), sampling, [seed + r for r in rows])
            running = torch.ones(len(rows), dtype=torch.bool, device=batch.tokens.device)
            for _ in range(max_new_tokens):
                ids, _, _ = batch.step()
                running &= ids != tokenizer.eot_token
                if stop_at_eot and not bool(running.any()):
                    break
            for row, ids in zip(rows, batch.tokens[:, length:].tolist(), strict=True):
                end = ids.index(tokenizer.eot_token) if stop_at_eot and tokenizer.eot_token in ids else len(ids)
                continued[row] = ids[:end]
    return continued


def generate_batch(
    model: LanguageModel,
    tokenizer: tiktoken.Encoding,
    prompts: Sequence[str],
    **options: Any,
) -> list[str]:
    """Each prompt with its continuation of at most `max_new_tokens` tokens, in the order of `prompts`.

    `options` are those of `generate`. Row r draws from its own generator, seeded with seed + r: `generate` with that
    seed gives the same text. A prompt is plain text ("<|endoftext|>" in it too) and is put after one end-of-text token,
    as a story begins in training. The prefix is never computed again, except that a model with a context limit starts
    afresh from its newest limit // 2 tokens whenever its state is full. With stop_at_eot a text ends before its first
    end-of-text token. Fields of SamplingConfig among the options replace those of `sampling`. Raises ValueError for
    an empty prompt, one longer than the window, max_new_tokens < 1, unknown or invalid sampling fields, and a tokenizer
    of another size than the model's vocabulary.
    """
    continued = continue_batch(model, tokenizer, prompts, **options)
    return [prompt + tokenizer.decode(ids) for prompt, ids in zip(prompts, continued, strict=True)]


def generate(
    model: LanguageModel,
    tokenizer: tiktoken.Encoding,
    prompt: str,
    *,
    max_new_tokens: int = 200,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    stop_at_eot: bool = True,
    **overrides: Any,
) -> str:
    """The prompt and its continuation; the same as the only row of `generate_batch`, which says the rest."""
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed, "stop_at_eot": stop_at_eot, **overrides}
    return generate_batch(model, tokenizer, [prompt], sampling=sampling, **options)[0]


def stream(
    model: LanguageModel,
    tokenizer: tiktoken.Encoding,
    prompt: str,
    *,
    max_new_tokens: int = 200,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    stop_at_eot: bool = True,
    **overrides: Any,
) -> Iterator[Token]:
    """The tokens of `generate`, one by one as they are drawn; prompt + all their texts is what `generate` returns.

    With stop_at_eot the end-of-text token is the last one yielded, without its text. Arguments are checked at the call,
    not at the first token, with the errors of `generate_batch`. The model is in evaluation mode only while it computes,
    so several streams of one model may be read in turn.
    """
    sampling = _prepare(sampling, max_new_tokens, overrides)
    ids = encode_prompt(model, tokenizer, prompt)
    continuation = _Continuation(model, torch.tensor([ids]), sampling, [seed])
    return _stream_tokens(continuation, tokenizer, max_new_tokens, tokenizer.eot_token if stop_at_eot else None)


def _stream_tokens(
    continuation: _Continuation, tokenizer: tiktoken.Encoding, max_new_tokens: int, stop: int | None
) -> Iterator[Token]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for remaining in reversed(range(max_new_tokens)):
        with evaluation_mode(continuation.model):
            ids, (logits,), nucleus_size = continuation.step()
        chosen = int(ids)
        ended = chosen == stop
        new_bytes = b"" if ended else tokenizer.decode_single_token_bytes(chosen)
        yield Token(
            id=chosen,
            text=decoder.decode(new_bytes, final=ended or remaining == 0),
            probability=float(torch.softmax(logits, -1, dtype=torch.float64)[chosen]),
            rank=int((logits > logits[chosen]).sum()) + 1,
            nucleus_size=int(nucleus_size),
            logits=logits,
        )
        if ended:
            return
