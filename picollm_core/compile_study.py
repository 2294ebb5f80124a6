"""Whether torch.compile pays: what compiling takes, what an update takes afterwards, and when the two are even."""

import math
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch

from picollm_core.config import RunConfig, require
from picollm_core.lab import Lab
from picollm_core.speed import made_up_trainer, one_child


def _updates(config: RunConfig, updates: int, threads: int) -> list[float]:
    """Seconds of every update in turn, the first one with the compiler and nothing of it kept from earlier."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # of the child that this runs in
        trainer, seconds = made_up_trainer(config), []
        for _ in range(updates):
            started = time.perf_counter()
            trainer.advance()
            seconds.append(time.perf_counter() - started)
    return seconds


def compile_costs(config: RunConfig, updates: int = 10) -> dict[str, float]:
    """Seconds of compiling, of a compiled update and of a plain one: compiling, compiled, plain.

    Each way in a process of its own with this process's number of threads; an update's time is the median after the
    first two. Compiling is what the first update takes beyond a later one. Raises ValueError for fewer than 3 updates.
    """
    require(updates >= 3, f"updates is {updates}; it must be at least 3")
    found: dict[str, list[float]] = {}
    for name, on in (("compiled", True), ("plain", False)):
        with one_child() as child:
            changed = config.replace(train=config.train.replace(compile=on))
            found[name] = child.submit(_updates, changed, updates, torch.get_num_threads()).result()
    medians = {name: statistics.median(times[2:]) for name, times in found.items()}
    return {"compiling": found["compiled"][0] - medians["compiled"]} | medians


def compile_table(lab: Lab, configs: Mapping[str, RunConfig], updates: int = 10) -> pd.DataFrame:
    """One row a configuration: model, plain and compiled (ms an update), gain, compiling (s), break_even (updates).

    `gain` is plain over compiled, and `break_even` the number of updates after which compiling has paid, infinite where
    it never does. Measured once and recorded. Raises ValueError for no configurations.
    """
    require(bool(configs), "configs is empty; give at least one")
    rows = []
    for name, config in configs.items():
        costs: dict[str, Any] = lab.measure(
            "compile", partial(compile_costs, config, updates), model=config.model.to_dict(),
            train=config.train.to_dict(), updates=updates,
        )  # fmt: skip
        saved = costs["plain"] - costs["compiled"]
        rows.append(
            {"model": name, "plain": 1e3 * costs["plain"], "compiled": 1e3 * costs["compiled"]}
            | {"gain": costs["plain"] / costs["compiled"], "compiling": costs["compiling"]}
            | {"break_even": math.ceil(costs["compiling"] / saved) if saved > 0 else math.inf}
        )
    return pd.DataFrame(rows)
