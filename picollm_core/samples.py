"""How varied a model's own stories are: many continuations of one prompt, measured at a fixed number of tokens."""

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

import tiktoken

from picollm_core.config import SamplingConfig, require
from picollm_core.diversity import Samples, distinct_table, repetition_rate
from picollm_core.models.base import LanguageModel
from picollm_core.sampling import continue_batch

REPETITION_LENGTH = 50  # tokens; repetition grows with length, so every sample is cut to this one


def sample_tokens(
    model: LanguageModel,
    tokenizer: tiktoken.Encoding,
    *,
    prompt: str,
    budget: int,
    sampling: SamplingConfig | None = None,
    max_new_tokens: int = 200,
    seed: int = 0,
    batch_size: int = 32,
    **overrides: Any,
) -> list[list[int]]:
    """Continuations of `prompt` that hold at least `budget` token ids together, each up to its end-of-text token.

    The prompt and the end-of-text token are left out, so a continuation may be empty. They are drawn in batches of
    at most `batch_size`, fewer where longest texts would meet the budget; whole batches are returned, and continuation
    number i draws with seed + i. Greedy sampling gives the same text every time. `overrides` replace fields of
    `sampling`. Raises ValueError for a budget or batch_size below 1, when a continuation holds less than one token on
    average (the model ends nearly every story at once), and as `generate_batch`.
    """
    require(budget >= 1, f"budget is {budget}; it must be at least 1 token")
    require(batch_size >= 1, f"batch_size is {batch_size}; it must be at least 1")
    batch_size = min(batch_size, math.ceil(budget / max(1, max_new_tokens)))
    samples: list[list[int]] = []
    written = 0
    while written < budget:
        if len(samples) >= budget:
            raise ValueError(
                f"{len(samples)} continuations of {prompt!r} hold {written} tokens together, the budget is {budget}: "
                "the model ends nearly every story at once; train it longer, or give another prompt"
            )
        batch = continue_batch(
            model,
            tokenizer,
            [prompt] * batch_size,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed + len(samples),
            **overrides,
        )
        samples += batch
        written += sum(map(len, batch))
    return samples


def _measures(samples: Samples, budget: int) -> dict[str, float | None]:
    """distinct_1 to distinct_5 of the first `budget` tokens, and repetition_4 of the samples that are long enough."""
    long = [sample for sample in samples if len(sample) >= REPETITION_LENGTH]
    repetition = repetition_rate(long, 4, REPETITION_LENGTH) if long else None
    return {f"distinct_{n}": value for n, value in distinct_table(samples, budget).items()} | {
        "repetition_4": repetition
    }


def diversity(
    model: LanguageModel,
    tokenizer: tiktoken.Encoding,
    *,
    prompt: str,
    budget: int,
    sampling: SamplingConfig | None = None,
    max_new_tokens: int = 200,
    seed: int = 0,
    **overrides: Any,
) -> dict[str, float | None]:
    """How varied the model's continuations of `prompt` are: "distinct_1" to "distinct_5" and "repetition_4".

    distinct_n is the share of different n-grams in the first `budget` tokens (see `diversity.distinct_n`), so values of
    models are comparable at one budget. repetition_4 is the share of 4-grams that occurred earlier in the same text,
    over the texts of at least 50 tokens, cut to 50 (see `diversity.repetition_rate`); None when there is no such text.
    The other arguments, and the ValueErrors, are those of `sample_tokens`.
    """
    samples = sample_tokens(
        model,
        tokenizer,
        prompt=prompt,
        budget=budget,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        seed=seed,
        **overrides,
    )
    return _measures(samples, budget)


def human_diversity(
    texts: Iterable[str],
    tokenizer: tiktoken.Encoding,
    budget: int,
    *,
    skip: int = 0,
    max_tokens: int = 200,
) -> dict[str, float | None]:
    """The measures of `diversity` on given stories, such as held-out ones: the reference for a model's.

    A story's first `skip` tokens are left out, as the prompt is left out of a model's texts, and at most `max_tokens`
    of the rest are used. Stories are read until they hold `budget` tokens. Raises ValueError when they hold fewer,
    for max_tokens < 1 and for skip < 0.
    """
    require(skip >= 0, f"skip is {skip}; it must be 0 or more tokens")
    require(max_tokens >= 1, f"max_tokens is {max_tokens}; it must be at least 1")
    samples: list[list[int]] = []
    written = 0
    for text in texts:
        ids = list(islice(tokenizer.encode_ordinary(text), skip, skip + max_tokens))
        samples.append(ids)
        written += len(ids)
        if written >= budget:
            break
    return _measures(samples, budget)
