"""Quality per second: the shipped Transformer's recipe, and every part of it switched off in turn at equal time.

A part that helps an update but makes it slower is worth nothing if the time is what runs out. So each variant gets as
many updates as fit into the same seconds at its own measured pace, and what is compared is the loss after that time.
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pandas as pd
import torch

from picollm_core.config import RunConfig, require
from picollm_core.contrasts import holm, paired_contrast
from picollm_core.lab import Lab
from picollm_core.presets import run_config
from picollm_core.shipped import shipped_config
from picollm_core.speed import made_up_trainer
from picollm_core.train import train_on
from picollm_core.trainer import Trainer


@dataclass(frozen=True)
class Rung:
    """One variant of the recipe: a short name for the figure, what is changed, and whether stories are padded."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    padded: bool = False
    """One story a row, cut at the window, in place of a packed stream of stories."""


ADAMW = {"optimizer": "adamw", "learning_rate": 0.003}
GPT2_SIZE = {"tokenizer": "gpt2", "n_embd": 64, "n_head": 1}  # 50,257 embeddings leave room for no more width

RUNGS = (
    Rung("the recipe"),
    Rung("AdamW at 0.0008 for Muon", ADAMW | {"learning_rate": 0.0008}),
    Rung("AdamW at 0.0015 for Muon", ADAMW | {"learning_rate": 0.0015}),
    Rung("AdamW at 0.003 for Muon", ADAMW),
    Rung("twice the rate", {"learning_rate": 0.02}),
    Rung("cosine for linear decay", {"schedule": "cosine"}),
    Rung("no decay", {"schedule": "constant"}),
    Rung("learned positions for RoPE", {"position": "absolute"}),
    Rung("no QK-norm", {"qk_norm": False}),
    Rung("GELU for squared ReLU", {"activation": "gelu"}),
    Rung("GPT-2's tokens, width 64", GPT2_SIZE),
    Rung("4 blocks of width 192", {"n_embd": 192, "n_layer": 4, "n_head": 3}),
    Rung("2 blocks of width 320", {"n_embd": 320, "n_layer": 2, "n_head": 5}),
    Rung("half the batch", {"batch_size": 8}),
    Rung("twice the batch", {"batch_size": 32}),
    Rung("windows of 128 tokens", {"block_size": 128, "batch_size": 32}),
    Rung("a padded story a row", padded=True),
    Rung("float32 for bfloat16", {"precision": "float32"}),
    Rung(
        "none of it",
        ADAMW | {"schedule": "cosine", "position": "absolute", "qk_norm": False, "activation": "gelu"}
        | {"precision": "float32"} | GPT2_SIZE,
    ),
)  # fmt: skip
"""The recipe first; each other rung changes one thing, the last one everything that is not a size."""


def rung_config(lab: Lab, rung: Rung, seed: int = 0, updates: int = 1, eval_stories: int | None = None) -> RunConfig:
    """The whole configuration of a rung on the texts of the lab's profile."""
    data = lab.profile.data
    never = {"eval_every": 10_000, "checkpoint_every": 10_000}
    base = shipped_config("transformer", corpus=data.corpus, weights=data.weights, n_stories=data.n_stories, **never)
    settings: dict[str, Any] = {"device": "cpu", "precision": "bfloat16", "final_stories": eval_stories}
    return run_config(base, seed=seed, max_steps=updates, **(settings | dict(rung.changes)))


def _work(config: RunConfig) -> tuple[Any, ...]:
    """What decides how long an update takes: rungs that differ in rates or schedules alone share one measurement."""
    train = config.train
    return config.model, train.batch_size, train.grad_accumulation, train.optimizer, train.precision, train.compile


def update_seconds(configs: Mapping[str, RunConfig], repetitions: int = 9) -> dict[str, float]:
    """Median seconds of one update of every configuration, measured in turns on made-up tokens with torch's threads.

    Raises ValueError when repetitions is below 1.
    """
    require(repetitions >= 1, f"repetitions is {repetitions}; it must be at least 1")
    trainers: dict[tuple[Any, ...], Trainer] = {}
    for config in configs.values():
        if _work(config) not in trainers:
            trainers[_work(config)] = made_up_trainer(config)
    seconds: dict[tuple[Any, ...], list[float]] = {work: [] for work in trainers}
    for _ in range(repetitions + 1):  # the first one warms up
        for work, trainer in trainers.items():
            started = time.perf_counter()
            trainer.advance()
            seconds[work].append(time.perf_counter() - started)
    return {name: statistics.median(seconds[_work(config)][1:]) for name, config in configs.items()}


def recorded_pace(lab: Lab, rungs: Sequence[Rung], repetitions: int) -> dict[str, Any]:
    """`update_seconds` of the rungs under "seconds" and torch's "threads", measured once and recorded."""
    configs = {rung.name: rung_config(lab, rung) for rung in rungs}
    first = {_work(config): name for name, config in reversed(configs.items())}  # one rung that stands for each work

    def measured() -> dict[str, Any]:
        seconds = update_seconds(configs, repetitions)
        return {"threads": torch.get_num_threads(), "seconds": [seconds[name] for name in first.values()]}

    works = [[model.to_dict(), *rest] for model, *rest in first]
    found = lab.measure("ladder-pace", measured, works=works, repetitions=repetitions)
    paces = dict(zip(first, found["seconds"], strict=True))
    return {"threads": found["threads"], "seconds": {name: paces[_work(config)] for name, config in configs.items()}}


def _padded_run(lab: Lab, config: RunConfig) -> dict[str, Any]:
    """What `train_on` measures when each story is a row of its own; the same held-out stories."""
    corpora = [
        replace(corpus, style="lines", content_hash=f"lines-{corpus.content_hash}")
        for corpus in lab.texts.open(config.data)
    ]
    summary = train_on(corpora, config).summary
    return {"bits_per_byte": summary["bits_per_byte"], "parameters": summary["parameters"]}


def measure_ladder(
    lab: Lab,
    seconds: float = 40.0,
    seeds: Sequence[int] = (0, 1, 2),
    rungs: Sequence[Rung] = RUNGS,
    repetitions: int = 9,
    eval_stories: int | None = 400,
) -> pd.DataFrame:
    """One row a rung and seed: rung, seed, seconds_per_update, updates, tokens, parameters, bits_per_byte, threads.

    `seconds` is the time of training, without evaluation: the number of updates is `seconds` over the measured time of
    one, at least 2. Times are recorded once, so that a repeated call trains the same runs. The time of a padded row is
    taken as that of a full one. Raises ValueError for no seconds or no seeds.
    """
    require(seconds > 0, f"seconds is {seconds}; it must be positive")
    require(bool(seeds), "seeds is empty; give at least one")
    paces = recorded_pace(lab, rungs, repetitions)
    rows, packed = [], []
    for rung in rungs:
        pace = paces["seconds"][rung.name]
        updates = max(2, round(seconds / pace))
        for seed in seeds:
            config = rung_config(lab, rung, seed, updates, eval_stories)
            tokens = updates * config.train.batch_size * config.model.block_size
            rows.append({"rung": rung.name, "seed": seed, "seconds_per_update": pace, "updates": updates}
                        | {"tokens": tokens, "threads": paces["threads"]})  # fmt: skip
            packed.append((rung, config))
    sweep = lab.sweep([config for rung, config in packed if not rung.padded], n_jobs=1)
    require(
        not sweep.failed,
        f"{len(sweep.failed)} runs of the ladder failed; the first: {[f.error for f in sweep.failed][:1]}",
    )
    found = {run.config: run.summary for run in sweep.runs}
    for row, (rung, config) in zip(rows, packed, strict=True):
        summary = found.get(config) if not rung.padded else None
        if summary is None:
            summary = lab.measure("ladder-padded", partial(_padded_run, lab, config), run=config.to_dict())
        row |= {name: summary[name] for name in ("parameters", "bits_per_byte")}
    return pd.DataFrame(rows)


def ladder_table(measured: pd.DataFrame) -> pd.DataFrame:
    """One row a rung, best effect of the recipe first: what leaving it costs, with a 95% interval over paired seeds.

    Columns: rung, parameters, milliseconds (an update), updates, tokens, bits_per_byte (the mean over seeds), cost
    (bits per byte above the recipe's, seed by seed), low, high, p, p_holm (corrected for all rungs; NaN for one seed),
    seeds. The first rung of `measured` is the recipe; its own cost is 0. Raises ValueError when it is alone, or when
    the rungs' seeds differ.
    """
    names = list(dict.fromkeys(measured["rung"]))
    require(len(names) > 1, f"the ladder has {len(names)} rung; it takes the recipe and at least one more")
    by_rung = {name: rows.set_index("seed")["bits_per_byte"] for name, rows in measured.groupby("rung", sort=False)}
    recipe, rows = by_rung[names[0]], []
    for name in names:
        values = by_rung[name]
        require(
            set(values.index) == set(recipe.index),
            f"{name!r} has seeds {[*values.index]}, the recipe {[*recipe.index]}",
        )
        contrast = paired_contrast(values[recipe.index].tolist(), recipe.tolist())
        own = measured[measured["rung"] == name].iloc[0]
        interval = (contrast.low, contrast.high) if name != names[0] else (0.0, 0.0)
        rows.append(
            {
                "rung": name,
                "parameters": int(own["parameters"]),
                "milliseconds": 1e3 * own["seconds_per_update"],
                "updates": int(own["updates"]),
                "tokens": int(own["tokens"]),
                "bits_per_byte": float(values.mean()),
                "cost": contrast.mean,
                "low": interval[0],
                "high": interval[1],
                "p": contrast.p_value if name != names[0] else math.nan,
                "seeds": len(values),
            }
        )
    table = pd.DataFrame(rows)
    table.insert(len(table.columns) - 1, "p_holm", math.nan)
    tested = table.index[table["p"].notna()]
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].tolist())
    return pd.concat([table[:1], table[1:].sort_values("cost", ascending=False)], ignore_index=True)


def quality_table(
    lab: Lab,
    minutes: Sequence[float] = (8.0,),
    shipped: bool = True,
    eval_stories: int | None = None,
    rungs: Sequence[Rung] = RUNGS,
    repetitions: int = 9,
) -> pd.DataFrame:
    """The recipe after some minutes of training at its measured pace, and, with `shipped`, the model that ships.

    One row a run: minutes, updates, tokens, parameters, bits_per_byte, low, high (95% over stories, `eval_stories` of
    them, all by default). One seed each; evaluation is not in the time. The recipe is the first of `rungs`, whose paces
    were measured together. Raises ValueError for no minutes.
    """
    require(bool(minutes) and min(minutes) > 0, f"minutes are {[*minutes]}; give at least one, each positive")
    pace = recorded_pace(lab, rungs, repetitions)["seconds"][rungs[0].name]
    updates = [max(2, round(60 * time_given / pace)) for time_given in minutes]
    configs = [rung_config(lab, rungs[0], 0, count, eval_stories) for count in updates]
    runs = lab.sweep(configs + ([shipped_config("transformer")] if shipped else []), n_jobs=1).complete()
    rows = []
    for run in runs:
        low, high = run.summary["bits_per_byte_interval"]
        rows.append(
            {"minutes": run.summary["steps"] * pace / 60, "updates": run.summary["steps"]}
            | {"tokens": run.summary["tokens_seen"], "parameters": run.summary["parameters"]}
            | {"bits_per_byte": run.summary["bits_per_byte"], "low": low, "high": high}
        )
    return pd.DataFrame(rows)
