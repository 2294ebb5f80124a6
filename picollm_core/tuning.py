"""One grid of learning rates for every model of a comparison, each value tried briefly."""

from typing import Any

from picollm_core.config import require
from picollm_core.lab import Lab

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_WHOLE = (RATES[0], RATES[-1])
_SEARCHED: dict[str, tuple[int, dict[str, tuple[float, float]]]] = {
    "pico": (400, {"kgram": _WHOLE, "lstm": _WHOLE, "transformer": _WHOLE}),
    "tiny": (400, {"kgram": (0.03, 0.3), "lstm": (0.03, 0.3), "transformer": (0.001, 0.01)}),
    "small": (50, {"kgram": (0.003, 0.1), "lstm": (0.003, 0.1), "transformer": (0.001, 0.003)}),
}
"""Updates of a try, and the part of the grid that is searched: at pico all of it, above that around pico's best."""
_QUICK_RATES, _QUICK_STEPS = {"pico": (0.01, 0.1), "tiny": (0.01,)}, 20


def tried_rates(lab: Lab, family: str, size: str) -> tuple[tuple[float, ...], int]:
    """The learning rates that the lab's profile tries for a preset, and the updates of each try.

    The part of RATES that is searched depends on family and size, the values and the length of a try do not on the
    family. Raises ValueError for a family or size without an entry.
    """
    require(size in _SEARCHED, f"no learning rates are listed for size {size!r}; choose one of {', '.join(_SEARCHED)}")
    steps, spans = _SEARCHED[size]
    require(family in spans, f"no learning rates are listed for {family!r}; choose one of {', '.join(spans)}")
    if lab.profile.name == "quick":
        return _QUICK_RATES.get(size, (0.01,)), _QUICK_STEPS
    low, high = spans[family]
    return tuple(rate for rate in RATES if low <= rate <= high), steps


def tune(lab: Lab, family: str, size: str, span: tuple[float, float] = _WHOLE, **settings: Any) -> dict[float, float]:
    """Learning rate -> loss on held-out stories (nats per token) after a brief training of the preset `family`-`size`.

    Only rates within `span` are tried. `settings` are further settings of the run, such as position="rope". The best
    is `min(losses, key=losses.get)`. Raises ValueError when no rate lies within the span.
    """
    rates, steps = tried_rates(lab, family, size)
    rates = tuple(rate for rate in rates if span[0] <= rate <= span[1])
    require(bool(rates), f"no learning rate between {span[0]:g} and {span[1]:g} is on the grid of {family}-{size}")
    runs = {rate: lab.train(f"{family}-{size}", learning_rate=rate, max_steps=steps, **settings) for rate in rates}
    return {rate: run.summary["nll"] for rate, run in runs.items()}
