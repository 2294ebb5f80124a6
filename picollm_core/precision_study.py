"""Whether matrix products in bfloat16 move the loss: every family trained in both number formats, seed by seed."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pandas as pd

from picollm_core.arms import SHORT_RUNS, values
from picollm_core.config import require
from picollm_core.contrasts import Contrast, equivalence, paired_contrast
from picollm_core.figure_style import FAMILY_LABELS
from picollm_core.lab import Lab
from picollm_core.runs import Run

TRAINING: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "kgram": {"learning_rate": 0.1},
        "lstm": {"learning_rate": 0.1},
        "transformer": {"learning_rate": 0.03, "optimizer": "muon", "position": "rope"},
    }
)
"""Settings that train each family well in a few hundred updates and steadily: at the edge of stability any rounding,
not only that of a number format, ends in another loss."""

FORMATS = ("float32", "bfloat16")
MARGIN = 0.01
"""Nats per token below which a difference does not matter here: a tenth of what separates the families."""


def precision_runs(lab: Lab, steps: int, seeds: Sequence[int], **settings: Any) -> dict[tuple[str, str], list[Run]]:
    """(family, number format) -> one run a seed at the profile's size; equal seeds start alike and read alike.

    `settings` are those of Lab.config. ValueError for no seeds; see Lab.sweep for runs that fail.
    """
    require(bool(seeds), "seeds is empty; give at least one")
    configs = {}
    for family, own in TRAINING.items():
        for precision in FORMATS:
            asked = {"max_steps": steps, "precision": precision, "device": "cpu"}
            chosen: dict[str, Any] = {**SHORT_RUNS, **own, **asked, **settings}
            configs[family, precision] = [
                lab.config(f"{family}-{lab.profile.size}", seed=seed, **chosen) for seed in seeds
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
