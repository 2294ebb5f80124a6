"""What the verdicts on the slides rest on: arms that differ in one thing, each with a learning rate of its own.

All arms read the same windows in the same order, seed by seed, so a training loss is a loss on text not yet seen (a
run reads less than one pass) and is paired between arms down to the batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from picollm_core.arms import SHORT_RUNS, at_the_edge, best_rates, train_arms, tune_arms, values
from picollm_core.config import KGramConfig, LSTMConfig, ModelConfig, TransformerConfig, require
from picollm_core.lab import Lab
from picollm_core.norm_study import published_arms
from picollm_core.runs import Run

COUNTS_AND_LSTM, TRANSFORMERS = (0.03, 0.1, 0.3), (0.001, 0.003, 0.01)
"""Learning rates that are tried for k-grams and LSTMs, and for Transformers: one step about the best of wide grids."""
EARLY = 0.25
"""Share of the training at which an arm is early: the slope of the loss is still steep there."""


@dataclass(frozen=True)
class Trained:
    """The runs of some arms, one a seed, and what their learning rates were chosen by."""

    runs: Mapping[str, Sequence[Run]]
    tuned: pd.DataFrame
    """Loss (nats per token) by arm and rate; empty where one rate was given."""
    rates: Mapping[str, float]

    def losses(self, column: str = "nll") -> dict[str, list[float]]:
        """Arm -> one value of its runs' summaries a seed."""
        return {name: found.tolist() for name, found in values(self.runs, column).items()}

    def edges(self) -> list[str]:
        """The arms whose chosen rate stands at the end of what was tried."""
        return at_the_edge(self.tuned) if len(self.tuned.columns) > 1 else []

    def parts(self, *names: str) -> dict[str, Sequence[Run]]:
        """Some of the arms, all without names. ValueError for an arm that is not there."""
        missing = [name for name in names if name not in self.runs]
        require(not missing, f"no arm {', '.join(missing)}; there are {', '.join(self.runs)}")
        return {name: self.runs[name] for name in names or self.runs}


def settings(lab: Lab) -> dict[str, Any]:
    """How every run of the verdicts is trained and evaluated in the lab's profile."""
    if lab.profile.name == "quick":
        return SHORT_RUNS | {"block_size": 64, "batch_size": 8, "max_steps": 60, "eval_every": 60, "final_stories": 20}
    return SHORT_RUNS | {"block_size": 64, "batch_size": 16, "max_steps": 300}


def tuned_runs(lab: Lab, arms: Mapping[str, ModelConfig], rates: Sequence[float]) -> Trained:
    """Every arm trained once a seed of the profile, at the rate that was best for it with a seed of its own.

    The rates are tried for as many updates as the final runs have. The quick profile tries none and takes the second.
    """
    given = settings(lab)
    steps = given.pop("max_steps")
    if lab.profile.name == "quick":
        tuned, chosen = pd.DataFrame(), dict.fromkeys(arms, rates[min(1, len(rates) - 1)])
    else:
        tuned = tune_arms(lab, arms, rates, steps=steps, **given)
        chosen = best_rates(tuned)
    return Trained(train_arms(lab, arms, chosen, lab.profile.seeds, max_steps=steps, **given), tuned, chosen)


def lstm_sizes() -> dict[str, ModelConfig]:
    """LSTMs of the slides' two smaller sizes."""
    return {"pico": LSTMConfig(n_embd=32), "tiny": LSTMConfig(n_embd=64)}


def transformer_sizes() -> dict[str, ModelConfig]:
    """Transformers of the slides' two smaller sizes, pre-norm, learned positions."""
    return {
        "pico": TransformerConfig(n_embd=64, n_head=1, n_layer=1),
        "tiny": TransformerConfig(n_embd=128, n_head=2, n_layer=2),
    }


def kgram_sizes() -> dict[str, ModelConfig]:
    """k-grams, k = 3, of the slides' two smaller sizes: one-hot and scaled, at equal width and at equal weights.

    "one-hot, equal" and "scaled, equal" of a size have the same number of weights within 2% at 4,096 tokens.
    """
    found: dict[str, ModelConfig] = {}
    for size, width, depth, narrow, wide in (("pico", 32, 1, 16, 48), ("tiny", 64, 3, 34, 96)):
        widths = {"one-hot": width, "scaled": width, "one-hot, equal": narrow, "scaled, equal": wide}
        for name, own in widths.items():
            kind = name.partition(",")[0].replace("-", "")
            found[f"{size} {name}"] = KGramConfig(n_embd=own, n_layer=depth, k=3, embedding=kind)  # type: ignore[arg-type]
    return found


def kgram_family() -> dict[str, ModelConfig]:
    """The slides' best k-gram, k = 5 with one-hot input, and the same with one shared table."""
    return {
        "k-gram, one-hot": KGramConfig(n_embd=32, n_layer=1, k=5, embedding="onehot"),
        "k-gram, learned": KGramConfig(n_embd=32, n_layer=1, k=5, embedding="learned"),
    }


def shifted(arms: Mapping[str, ModelConfig]) -> dict[str, ModelConfig]:
    """The same k-grams with the course's window, which ends one token too early."""
    return {f"{name}, off by one": config.replace(offset=1) for name, config in arms.items()}


def position_arms() -> dict[str, ModelConfig]:
    """The slides' six pico Transformers: three ways of telling positions, pre- and post-norm."""
    return dict(published_arms())


def online_curve(run: Run) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Updates (N,) and the loss on text not yet seen (N,), nats per token: the training loss of a single pass.

    Each value is the mean over the updates since the one before it. Raises ValueError for a run of more than a pass.
    """
    history = run.history.dropna(subset=["loss"])
    passes = float(history["epoch"].max())
    require(
        passes < 1.01, f"run {run.fingerprint} read its text {passes:.2f} times; a second reading is not unseen text"
    )
    return history["step"].to_numpy(float), history["loss"].to_numpy(float)


def early_loss(run: Run, share: float = EARLY) -> float:
    """Mean loss on unseen text from the first tenth of the updates up to `share` of them, nats per token."""
    steps, losses = online_curve(run)
    part = losses[(steps > 0.1 * steps[-1]) & (steps <= share * steps[-1])]
    require(len(part) > 0, f"share is {share}; no logged update lies between a tenth of the training and that")
    return float(part.mean())


def smoothed(values: NDArray[np.float64], half: int) -> NDArray[np.float64]:
    """Mean over each point and the up to `half` points on either side of it (N,), fewer and as many at the ends."""
    return np.array([values[max(0, i - own) : i + own + 1].mean()
                     for i in range(len(values)) for own in [min(half, i, len(values) - 1 - i)]])  # fmt: skip


def updates_to(run: Run, loss: float, half: int = 3) -> float:
    """Updates until the smoothed loss on unseen text first reaches `loss`; inf where it never does."""
    steps, losses = online_curve(run)
    reached = np.flatnonzero(smoothed(losses, half) <= loss)
    return float(steps[reached[0]]) if len(reached) else float("inf")
