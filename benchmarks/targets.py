"""Every row that is measured, and the figure it has to reach."""

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
    """Training steps: (float32, bfloat16) factors by size; the pico Transformer's are a little higher."""
    factors = {
        "transformer-pico": (2.2, 5.0),
        "transformer-small": (1.5, 3.5),
        **{f"{family}-pico": (2.0, 4.0) for family in ("lstm", "kgram")},
        **{f"{family}-small": (1.5, 3.0) for family in ("lstm", "kgram")},
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
    **{f"memory-transformer-pico-{precision}": Target("<=", 0.25) for precision in ("float32", "bfloat16")},
    "onehot-tensors": Target(">=", 50),
    "onehot-python-loop": Target(">=", 1_000),
    "onehot-learned-step": Target("<=", 1.1),
    "nucleus-peaked": Target(">=", 10),
    "nucleus-flat": Target(">=", 10),
    **{f"chunked-{kind}": Target(">=", 20) for kind in ("gla", "delta")},
    **{f"softmax-{kind}": Target(">=", 1) for kind in ("linear", "gla", "delta")},
    "import": Target("<=", 1.0),
    "loader": Target("<=", 0.02),
    "tokenising": Target(">=", 1.8),
}
