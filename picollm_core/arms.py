"""Arms of an experiment: configurations that differ in one thing, each with its own learning rate and several seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from picollm_core.analysis_table import ANY_TOKENIZER
from picollm_core.config import ModelConfig, RunConfig, require
from picollm_core.lab import Lab
from picollm_core.runs import Run
from picollm_core.sweep import Sweep

TUNING_SEED = 100  # none of the seeds that arms are compared with
SHORT_RUNS = {"eval_every": 100, "eval_stories": 40, "final_stories": 200}
"""How runs of a few hundred updates are evaluated: all by the same held-out stories, fewer than there are."""


def _swept(lab: Lab, configs: Iterable[RunConfig]) -> Sweep:
    """The runs of configurations of which some may be the same run."""
    return lab.sweep(list(dict.fromkeys(configs)))


def tune_arms(
    lab: Lab, arms: Mapping[str, ModelConfig], rates: Sequence[float], *, steps: int, **settings: Any
) -> pd.DataFrame:
    """Loss on held-out stories (nats per token) of every arm (row) after `steps` updates at every rate (column).

    The runs use a seed of their own and train in parallel (see Lab.sweep); one that diverges counts as infinite.
    `settings` are those of Lab.train. Raises ValueError without arms or rates, and for a run that cannot be trained.
    """
    require(bool(arms) and bool(rates), f"{len(arms)} arms and {len(rates)} rates; at least one of each is needed")
    configs = {
        (name, rate): lab.config(config, learning_rate=rate, max_steps=steps, seed=TUNING_SEED, **settings)
        for name, config in arms.items()
        for rate in rates
    }
    sweep = _swept(lab, configs.values())
    Sweep((), tuple(failure for failure in sweep.failed if not failure.diverged)).complete()
    losses = {run.config: run.summary["nll"] for run in sweep.runs}
    rows = {name: {rate: losses.get(configs[name, rate], math.inf) for rate in rates} for name in arms}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="arm", columns="learning rate")


def best_rates(losses: pd.DataFrame) -> dict[str, float]:
    """Arm -> the learning rate with the least loss in a table of `tune_arms`. ValueError when an arm never trained."""
    failed = [name for name, row in losses.iterrows() if not any(map(math.isfinite, row))]
    require(not failed, f"no learning rate trained {', '.join(map(str, failed))}; add smaller ones")
    return {str(name): float(rate) for name, rate in losses.idxmin(axis=1).items()}


def at_the_edge(losses: pd.DataFrame) -> list[str]:
    """The arms whose best rate is the lowest or the highest that was tried, so a better one may lie outside."""
    rates = sorted(losses.columns)
    return [name for name, rate in best_rates(losses).items() if len(rates) > 1 and rate in (rates[0], rates[-1])]


def train_arms(
    lab: Lab, arms: Mapping[str, ModelConfig], rates: Mapping[str, float], seeds: Sequence[int], **settings: Any
) -> dict[str, list[Run]]:
    """The runs of every arm at its own learning rate, one a seed; equal seeds have equal data order in all arms.

    They train in parallel (see Lab.sweep). Raises TrainingDiverged, when all have ended, for one that diverged.
    """
    configs = {
        name: [lab.config(config, learning_rate=rates[name], seed=seed, **settings) for seed in seeds]
        for name, config in arms.items()
    }
    runs = {run.config: run for run in _swept(lab, (c for own in configs.values() for c in own)).complete()}
    return {name: [runs[config] for config in own] for name, own in configs.items()}


def _require_one_text(arms: Mapping[str, Sequence[Run]], column: str) -> None:
    """ValueError, with both values, where two runs were trained or scored on different texts, or, unless `column` is
    comparable across tokenizers, cut them differently."""
    first: dict[str, tuple[Any, str]] = {}
    for name, run in ((name, run) for name, runs in arms.items() for run in runs):
        tokenizer = None if column in ANY_TOKENIZER else run.config.data.tokenizer
        told = {"corpus hashes": run.context.get("corpus_hashes"), "tokenizer": tokenizer,
                "held-out bytes": run.summary.get("n_bytes")}  # fmt: skip
        for what, value in told.items():
            known, other = first.setdefault(what, (value, name))
            require(
                value == known,
                f"{column} of arms {other!r} and {name!r} cannot be compared: {what} {known} and {value}; "
                "train and evaluate all arms on the same text",
            )


def values(arms: Mapping[str, Sequence[Run]], column: str = "bits_per_byte") -> pd.DataFrame:
    """One number of every run's summary: a row a seed, a column an arm.

    Raises ValueError for arms that were trained or evaluated on different texts; analysis.require_comparable checks
    whole tables, and more.
    """
    _require_one_text(arms, column)
    columns = {name: {run.config.train.seed: run.summary[column] for run in runs} for name, runs in arms.items()}
    return pd.DataFrame(columns).rename_axis(index="seed")


def early_losses(arms: Mapping[str, Sequence[Run]], places: int) -> pd.DataFrame:
    """Loss (nats per token) over the first `places` tokens of the held-out stories: a row a seed, a column an arm.

    Every place counts alike. All models have read the same there, also those that read on past the trained length
    beside others that are cut to it. Raises ValueError when a run was not scored so far.
    """
    shortest = min(len(run.summary["per_position"]) for runs in arms.values() for run in runs)
    require(places <= shortest, f"places is {places}, but the longest held-out story has {shortest} tokens")
    columns = {
        name: {run.config.train.seed: sum(run.summary["per_position"][:places]) / places for run in runs}
        for name, runs in arms.items()
    }
    return pd.DataFrame(columns).rename_axis(index="seed")
