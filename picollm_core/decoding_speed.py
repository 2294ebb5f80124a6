"""How long one more token takes: from the streaming state, and by computing the whole text again."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from picollm_core.config import require
from picollm_core.inference import evaluation_mode
from picollm_core.models import LanguageModel

WARM_UP = 2  # tokens before the first that counts: the cache makes room, the allocator gets its memory


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(step: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """The step's result and its milliseconds."""
    _synchronise(device)
    started = time.perf_counter()
    result = step()
    _synchronise(device)
    return result, 1e3 * (time.perf_counter() - started)


def _both_ways(model: LanguageModel, idx: Tensor, length: int) -> dict[str, list[float]]:
    """Milliseconds of tokens length, length + 1, ... of idx (1, T): all from the state, then each from the whole.

    One token after another, as generation does it: a whole text in between would leave the caches to the next token.
    """
    found: dict[str, list[float]] = {"from the state": [], "whole text again": []}
    _, state = model.hidden(idx[:, : length - 1 - WARM_UP])
    numbers = range(length - WARM_UP, idx.size(1) + 1)
    for n in numbers:

        def advance(token: Tensor = idx[:, n - 1 : n], carried: Any = state) -> Any:
            h, new_state = model.hidden(token, carried)
            model.head(h[:, -1])
            return new_state

        state, milliseconds = timed(advance, idx.device)
        found["from the state"].append(milliseconds)
    for n in numbers:

        def again(n: int = n) -> None:
            model.head(model.hidden(idx[:, :n])[0][:, -1])

        found["whole text again"].append(timed(again, idx.device)[1])
    return {way: times[WARM_UP:] for way, times in found.items()}


@torch.no_grad()
def decoding_times(model: LanguageModel, lengths: Sequence[int], repetitions: int = 15) -> list[dict[str, Any]]:
    """Milliseconds to compute the next-token logits of one text that is `length` tokens long, in two ways.

    "from the state" feeds one token to the state of the others, as generation does; "whole text again" computes every
    position anew and keeps the last. One row a length and way: length, way, milliseconds (the median over
    `repetitions` consecutive tokens), low and high (the quartiles). What the tokens are does not
    matter for the time. Raises ValueError when a length is below 4 or does not leave room in the model's window.
    """
    require(repetitions >= 2, f"repetitions is {repetitions}; quartiles need at least 2")
    require(bool(lengths), "lengths is empty; give at least one number of tokens")
    low, high = min(lengths), max(lengths) + repetitions - 1
    require(low >= 2 + WARM_UP, f"the shortest length is {low}; it must be at least {2 + WARM_UP}")
    limit = model.context_limit
    require(
        limit is None or high <= limit,
        f"length {max(lengths)} with {repetitions} repetitions ends at token {high}, but the window holds {limit}",
    )
    device = model.head.weight.device
    rows = []
    with evaluation_mode(model):
        for length in lengths:
            idx = torch.arange(length + repetitions - 1, device=device).unsqueeze(0) % model.config.vocab_size  # (1, T)
            for way, times in _both_ways(model, idx, length).items():
                quarter, middle, three_quarters = statistics.quantiles(times, n=4, method="inclusive")
                rows.append(
                    {"length": length, "way": way, "milliseconds": middle, "low": quarter, "high": three_quarters}
                )
    return rows
