"""Five seeds of made-up losses around given means, and runs that were never trained but have a history."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from picollm_core.config import KGramConfig, RunConfig, TrainConfig
from picollm_core.runs import Run

NOISE = np.random.default_rng(0).normal(0, 0.004, (40, 5))


def five(**means: float) -> dict[str, list[float]]:
    """Arm -> five values near its mean; blanks and commas are written as _ and __."""
    names = [name.replace("__", ", ").replace("_", " ") for name in means]
    return {name: (mean + noise).tolist() for name, mean, noise in zip(names, means.values(), NOISE, strict=False)}


def near(means: Mapping[str, float]) -> dict[str, list[float]]:
    """The same for names that are no identifiers."""
    return {name: (mean + noise).tolist() for (name, mean), noise in zip(means.items(), NOISE, strict=False)}


def made_run(losses: Sequence[float], seed: int = 0, name: str = "", epoch: float = 0.5) -> Run:
    """A run whose loss on unseen text after update 5, 10, ... is `losses`, and which ends with the last of them."""
    steps = 5.0 * np.arange(1, len(losses) + 1)
    history = pd.DataFrame({"step": steps, "loss": losses, "epoch": np.linspace(0, epoch, len(losses))})
    config = RunConfig(model=KGramConfig(vocab_size=61, n_embd=16), train=TrainConfig(seed=seed, max_steps=100))
    return Run(config, {"fingerprint": f"{name}{seed}"}, {"nll": float(losses[-1])}, {}, history)


def falling(end: float, speed: float = 1.0, points: int = 60) -> np.ndarray:
    """A loss curve (points,) from 8 nats down to about `end`, quicker with more speed."""
    return end + (8 - end) * np.exp(-speed * np.arange(points) / 8)
