"""Every row that is measured, the figure it has to reach, and why a row that misses it does."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Target:
    """A bound on a row's ratio."""

    direction: Literal[">=", "<="]
    value: float

    def reached(self, ratio: float) -> bool:
        """Whether the measured ratio keeps the bound."""
        return ratio >= self.value if self.direction == ">=" else ratio <= self.value

    def __str__(self) -> str:
        return f"{self.direction} {self.value:g}"


def _step_targets() -> dict[str, Target]:
    """Training steps: (float32, bfloat16) factors by size; the pico Transformer's are a little higher.

    transformers' own step is held to the factors of the plain one.
    """
    factors = {
        "transformer-pico": (2.2, 5.0),
        "transformer-small": (1.5, 3.5),
        **{f"{family}-pico": (2.0, 4.0) for family in ("lstm", "kgram")},
        **{f"{family}-small": (1.5, 3.0) for family in ("lstm", "kgram")},
        "gpt2-pico": (2.2, 5.0),
        "gpt2-small": (1.5, 3.5),
    }
    return {
        f"step-{preset}-{precision}": Target(">=", factor)
        for preset, pair in factors.items()
        for precision, factor in zip(("float32", "bfloat16"), pair, strict=True)
    }


TARGETS: dict[str, Target] = {
    **_step_targets(),
    **{f"peak-transformer-pico-{precision}": Target(">=", 0.45) for precision in ("float32", "bfloat16")},
    **{f"peak-transformer-small-{precision}": Target(">=", 0.60) for precision in ("float32", "bfloat16")},
    **{
        f"memory-transformer-{size}-{precision}": Target("<=", 0.25)
        for size in ("pico", "small")
        for precision in ("float32", "bfloat16")
    },
    "onehot-tensors": Target(">=", 50),
    "onehot-python-loop": Target(">=", 1_000),
    "onehot-learned-step": Target("<=", 1.1),
    "nucleus-peaked": Target(">=", 10),
    "nucleus-flat": Target(">=", 10),
    **{f"generate-{way}-pico": Target(">=", 8) for way in ("greedy", "top-p")},
    **{f"generate-{way}-small": Target(">=", 2) for way in ("greedy", "top-p")},
    "flat-transformer": Target("<=", 1.3),
    **{f"flat-{kind}": Target("<=", 1.05) for kind in ("lstm", "kgram", "linear", "gla", "delta")},
    **{f"chunked-{kind}": Target(">=", 20) for kind in ("gla", "delta")},
    **{f"softmax-{kind}": Target(">=", 1) for kind in ("linear", "gla", "delta")},
    "import": Target("<=", 1.0),
    "loader": Target("<=", 0.02),
    "tokenising": Target(">=", 1.8),
    "workbook": Target("<=", 15),
    "workbook-notebook": Target("<=", 60),
    "tests": Target("<=", 20),
}

REASONS: dict[str, str] = {}
"""Why a row misses its target and what was tried, by its name; printed below the table and kept with a missed row."""
