"""How fast a configuration trains and how much memory it takes, measured in a process of its own."""

import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch

from picollm_core.batches import PackedBatches
from picollm_core.config import RunConfig, require
from picollm_core.models import build_model
from picollm_core.token_store import TokenStore
from picollm_core.trainer import Trainer, seeded


def peak_memory_mb() -> float:
    """The most memory this process has held so far, in MB; where the system does not tell, what it holds now."""
    status = Path("/proc/self/status")  # not getrusage, whose peak survives exec and so can be the parent's
    if status.is_file():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024 / 1e6
    return psutil.Process().memory_info().rss / 1e6


def made_up_batches(config: RunConfig) -> PackedBatches:
    """Batches of a run's size whose ids have frequencies that fall like 1 / rank: speed does not depend on the text."""
    model, train = config.model, config.train
    weights = 1 / np.arange(1, model.vocab_size + 1)
    n_tokens = train.batch_size * model.block_size * 4 + 1
    ids = np.random.default_rng(0).choice(model.vocab_size, n_tokens, p=weights / weights.sum()).astype(np.uint32)
    store = TokenStore(ids, np.array([0, n_tokens]), n_bytes=n_tokens)
    return PackedBatches(store, model.block_size, train.batch_size)


def one_child() -> ProcessPoolExecutor:
    """A new process to measure in, with none of this one's memory."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def made_up_trainer(config: RunConfig) -> Trainer:
    """The run's model and settings on made-up batches."""
    with seeded(0):
        return Trainer(build_model(config.model), made_up_batches(config), config.train)


def _tokens_per_second(config: RunConfig, updates: int, clock: Callable[[], float]) -> float:
    """By the median of `updates` updates after a warm-up of two, in seconds of `clock`."""
    trainer, seconds = made_up_trainer(config), []
    for _ in range(updates + 2):
        started = clock()
        trainer.advance()
        seconds.append(clock() - started)
    tokens = config.train.batch_size * config.model.block_size * config.train.grad_accumulation
    return tokens / statistics.median(seconds[2:])


def _measure(config: RunConfig, updates: int) -> dict[str, float]:
    """The child's part of training_speed."""
    speed = _tokens_per_second(config, updates, time.perf_counter)
    return {"tokens_per_second": speed, "peak_memory_mb": peak_memory_mb()}


def _measure_core(config: RunConfig, updates: int) -> float:
    """The child's part of core_speed."""
    torch.set_num_threads(1)
    return _tokens_per_second(config, updates, time.process_time)


def training_speed(config: RunConfig, updates: int = 12) -> dict[str, float]:
    """Tokens a second over whole updates (their median, two left out as warm-up) and the process's peak memory in MB.

    The run's model, batch and precision with made-up tokens, since speed does not depend on what they say. A new
    process keeps other work's memory out of the figure; torch itself is in it. Raises ValueError when updates < 1.
    """
    require(updates >= 1, f"updates is {updates}; it must be at least 1")
    with one_child() as pool:
        return pool.submit(_measure, config, updates).result()


def core_speed(config: RunConfig, updates: int = 4) -> float:
    """Tokens a core-second: like training_speed, on one thread of a CPU, in processor time instead of the clock's.

    Waiting for a core that another program uses does not count, so a busy machine changes it less. ValueError when
    updates < 1.
    """
    require(updates >= 1, f"updates is {updates}; it must be at least 1")
    with one_child() as pool:
        return pool.submit(_measure_core, config.replace(train=config.train.replace(device="cpu")), updates).result()
