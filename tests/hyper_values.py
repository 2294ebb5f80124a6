"""Runs of notebook 15's arms and design that were never trained, with losses that a test chooses."""

import numpy as np
import pandas as pd

from picollm_core.analysis import comparison_table
from picollm_core.config import RunConfig
from picollm_core.hyper_design import BASE, Change, whole_design
from picollm_core.hyper_study import Arm
from picollm_core.presets import run_config
from picollm_core.runs import Run

NOISE = np.random.default_rng(0).normal(0, 0.002, 5)


def run(family: str, name: str, seed: int, nll: float, accuracy: float = 0.3, **settings) -> Run:
    config = run_config(RunConfig(model=BASE[family]), seed=seed, learning_rate=0.1 + seed / 1e4, **settings)
    summary = {"nll": nll, "perplexity": np.exp(nll), "accuracy": accuracy, "train_loss": 4.0, "steps": 40,
               "tokens_seen": 1_000, "n_stories": 3, "n_bytes": 9}  # fmt: skip
    context = {"fingerprint": f"{family} {name} {seed}", "corpora": ["x"], "corpus_hashes": ["y"]}
    return Run(config, context, summary, {}, pd.DataFrame())


def arm(family: str, label: str, nll: float, seeds: int = 5, accuracy: float = 0.3, **settings) -> Arm:
    runs = [
        run(family, label, s, nll + NOISE[s] * (1 + len(label) % 3), accuracy + s / 1e4, **settings)
        for s in range(seeds)
    ]
    return Arm(family, None if label == "base" else Change("x", label), 0.1, {}, tuple(runs))


def made_design() -> tuple[pd.DataFrame, list[Run]]:
    """Runs of the real design whose loss follows width and family; accuracy is the loss seen with noise."""
    generator = np.random.default_rng(1)
    runs = []
    for number, row in enumerate(whole_design(16).to_dict("records")):
        given = {
            k: v if isinstance(v, str) else int(v)
            for k, v in row.items()
            if v == v and k not in ("rate_factor", "seed")
        }
        family = given.pop("family")
        nll = 5 - 0.2 * np.log2(given["n_embd"]) + {"kgram": 0, "lstm": 0.5, "transformer": 0.1}[family]
        nll += generator.normal(0, 0.05)
        made = run(family, "design", number, nll, 0.9 - 0.13 * nll + generator.normal(0, 0.002), **given)
        made.summary["train_loss"] = nll + generator.normal(0, 0.5)
        runs.append(made)
    table = comparison_table(runs)
    return table.assign(relative_rate=whole_design(16)["rate_factor"].to_numpy()), runs
