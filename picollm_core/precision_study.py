"""Whether matrix products in bfloat16 move the loss: every family trained in both number formats, seed by seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from picollm_core.arms import SHORT_RUNS, values
from picollm_core.config import require
from picollm_core.contrasts import Contrast, equivalence, paired_contrast
from picollm_core.figure_style import FAMILY_LABELS
from picollm_core.lab import Lab
from picollm_core.runs import Run

RATES: Mapping[str, float] = {"kgram": 0.1, "lstm": 0.3, "transformer": 0.01}
"""The best AdamW rates at pico in a few hundred updates, the Transformer's with RoPE."""

FORMATS = ("float32", "bfloat16")
MARGIN = 0.01
"""Nats per token below which a difference does not matter here: a tenth of what separates the families."""


def precision_runs(lab: Lab, steps: int, seeds: Sequence[int], **settings: Any) -> dict[tuple[str, str], list[Run]]:
    """(family, number format) -> one run a seed at the profile's size; equal seeds start alike and read alike.

    `settings` are those of Lab.config. ValueError for no seeds; see Lab.sweep for runs that fail.
    """
    require(bool(seeds), "seeds is empty; give at least one")
    configs = {}
    for family, rate in RATES.items():
        extra = {"position": "rope"} if family == "transformer" else {}
        for precision in FORMATS:
            shared = {"max_steps": steps, "precision": precision, "device": "cpu", "learning_rate": rate} | SHORT_RUNS
            configs[family, precision] = [
                lab.config(f"{family}-{lab.profile.size}", seed=seed, **(shared | extra | settings)) for seed in seeds
            ]
    found = {run.config: run for run in lab.sweep([c for own in configs.values() for c in own]).complete()}
    return {key: [found[config] for config in own] for key, own in configs.items()}


def precision_table(runs: Mapping[tuple[str, str], Sequence[Run]], margin: float = MARGIN) -> pd.DataFrame:
    """One row a family: float32, bfloat16 (mean nats per token on held-out stories), difference, low, high, same.

    The difference is bfloat16 less float32 over paired seeds with its 95% interval; `same` is "holds" where the
    interval lies within `margin` of 0, "fails" where it lies outside, else "open", as it is with one seed.
    """
    rows = []
    for family in dict.fromkeys(family for family, _ in runs):
        nll = values({precision: runs[family, precision] for precision in FORMATS}, "nll")
        contrast: Contrast = paired_contrast(nll["bfloat16"].tolist(), nll["float32"].tolist())
        same = "open" if contrast.pairs == 1 else equivalence(contrast, margin=margin)
        rows.append(
            {"family": FAMILY_LABELS[family], "float32": nll["float32"].mean(), "bfloat16": nll["bfloat16"].mean()}
            | {"difference": contrast.mean, "low": contrast.low, "high": contrast.high, "seeds": contrast.pairs}
            | {"same": same}
        )
    return pd.DataFrame(rows)


def precision_curves(runs: Mapping[tuple[str, str], Sequence[Run]]) -> pd.DataFrame:
    """Tidy rows arm ("LSTM, bfloat16"), seed, step, loss: held-out loss in nats per token along training."""
    parts = [
        run.history.dropna(subset=["val_loss"])[["step", "val_loss"]]
        .rename(columns={"val_loss": "loss"})
        .assign(arm=f"{FAMILY_LABELS[family]}, {precision}", seed=run.config.train.seed)
        for (family, precision), own in runs.items()
        for run in own
    ]
    return pd.concat(parts, ignore_index=True)
