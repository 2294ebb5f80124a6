"""Measurements of speed that figures draw: training, one more token, the sampler, the tokeniser, the loader.

Each returns a list of rows of JSON values. Seconds belong to the machine that they were measured on, and to its load.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import tiktoken
import torch
from torch import Tensor

from picollm_core.batches import PackedBatches
from picollm_core.config import ModelConfig, RunConfig, TrainConfig, require
from picollm_core.corpora import load_corpus
from picollm_core.cost import training_flops
from picollm_core.decoding_speed import decoding_times
from picollm_core.models import build_model
from picollm_core.nucleus import top_p_filter, top_p_filter_by_sorting
from picollm_core.presets import preset
from picollm_core.sampling import draw
from picollm_core.speed import training_speed
from picollm_core.token_store import TokenStore, encode_stories
from picollm_core.trainer import seeded

PEAK_SIZE, PEAK_NUMBERS = 2_048, 32_000_000
PRECISIONS = ("float32", "bfloat16")
NUCLEUS = 0.95
CALLS = 5
BATCH_SIZE = 16
STORED_BATCHES = 256  # of the store that the loader reads


def best_seconds(call: Callable[[], Any], attempts: int = 5) -> float:
    """The least time of a call in seconds, after one that does not count."""
    call()
    found = []
    for _ in range(attempts):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)


def matrix_peak(dtype: torch.dtype, size: int = PEAK_SIZE, attempts: int = 5) -> float:
    """Operations per second of a square matrix product of this type, the best of `attempts`."""
    a, b, out = (torch.randn(size, size).to(dtype) for _ in range(3))
    return 2 * size**3 / best_seconds(lambda: torch.mm(a, b, out=out), attempts)


def bandwidths(numbers: int = PEAK_NUMBERS, attempts: int = 5) -> dict[str, float]:
    """Bytes per second to and from memory, best of `attempts`: "copy" a = b and "triad" a = b + s c, as in STREAM.

    Arrays of `numbers` float32, far larger than any cache; what is read and what is written both count, the line that
    a write fetches first does not (McCalpin 1995).
    """
    a, b, c = (torch.ones(numbers) for _ in range(3))
    return {
        "copy": 2 * 4 * numbers / best_seconds(lambda: a.copy_(b), attempts),
        "triad": 3 * 4 * numbers / best_seconds(lambda: torch.add(b, c, alpha=0.5, out=a), attempts),
    }


def machine_peaks(attempts: int = 5, size: int = PEAK_SIZE, numbers: int = PEAK_NUMBERS) -> dict[str, float]:
    """What this machine can do at best with torch's present threads: products in GFLOP/s, memory in GB/s."""
    products = {name: matrix_peak(getattr(torch, name), size, attempts) / 1e9 for name in PRECISIONS}
    memory = {name: rate / 1e9 for name, rate in bandwidths(numbers, attempts).items()}
    return {
        **{f"matrix product {name} (GFLOP/s)": round(rate, 1) for name, rate in products.items()},
        **{f"memory {name} (GB/s)": round(rate, 2) for name, rate in memory.items()},
    }


def training_curve(
    names: Sequence[str],
    precisions: Sequence[str] = PRECISIONS,
    updates: int = 3,
    batch_size: int = BATCH_SIZE,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Tokens per second and peak memory of whole training steps, and the share of the machine's matrix-product peak.

    A row a preset and precision: model, family, size, precision, tokens_per_second, memory_mb (the process's peak,
    torch included), gflops (cost.training_flops a second), share (of the peak of this type, measured beside the steps),
    threads. `settings` replace fields of the model's configuration. Every row is measured in a process of its own.
    ValueError for unknown names and precisions.
    """
    for precision in precisions:
        require(precision in PRECISIONS, f"precision is {precision!r}; choose from {', '.join(PRECISIONS)}")
    rows = []
    for name in names:
        config = preset(name, **settings)
        operations = training_flops(config)
        for precision in precisions:
            train = TrainConfig(batch_size=batch_size, precision=precision, max_steps=10**6, learning_rate=1e-3)  # type: ignore[arg-type]
            peak = matrix_peak(getattr(torch, precision))
            speed = training_speed(RunConfig(model=config, train=train), updates)
            done = operations * speed["tokens_per_second"]
            family, _, size = name.partition("-")
            rows.append(
                {
                    "model": name,
                    "family": family,
                    "size": size,
                    "precision": precision,
                    "tokens_per_second": speed["tokens_per_second"],
                    "memory_mb": speed["peak_memory_mb"],
                    "gflops": done / 1e9,
                    "share": done / peak,
                    "threads": torch.get_num_threads(),
                }
            )
    return rows


def decoding_curve(
    models: Mapping[str, ModelConfig], lengths: Sequence[int], repetitions: int = 15
) -> list[dict[str, Any]]:
    """Milliseconds of one more token against the tokens before it: columns model, and those of decoding_times."""
    rows = []
    for name, config in models.items():
        with seeded(0):
            model = build_model(config)
        rows += [{"model": name, **row} for row in decoding_times(model, lengths, repetitions)]
    return rows


def logits_with_nucleus(inside: int, vocab_size: int, generator: torch.Generator) -> Tensor:
    """Logits (1, V) of a Zipf distribution, shuffled, whose nucleus at NUCLEUS holds `inside` tokens or hardly fewer.

    p(r) ~ r^-s with s by bisection. ValueError when `inside` is below 1 or more than a uniform distribution's nucleus.
    """
    most = math.ceil(NUCLEUS * vocab_size)
    require(1 <= inside <= most, f"inside is {inside}; of {vocab_size} tokens it must lie in 1..{most}")
    log_rank = torch.arange(1, vocab_size + 1, dtype=torch.float64).log()
    flat, steep = 0.0, 40.0
    for _ in range(50):
        middle = (flat + steep) / 2
        mass = torch.softmax(-middle * log_rank, 0).cumsum(0)
        if int((mass < NUCLEUS).sum()) + 1 > inside:
            flat = middle
        else:
            steep = middle
    return (-steep * log_rank).float()[torch.randperm(vocab_size, generator=generator)].unsqueeze(0)


def sampler_curve(sizes: Sequence[int], vocab_size: int, repetitions: int = 9) -> list[dict[str, Any]]:
    """Milliseconds of nucleus filter and draw for one vector of logits, by the size of its nucleus.

    A row a size and way, "no full sort" (top_p_filter) or "full sort" (top_p_filter_by_sorting), which agree
    exactly: nucleus (tokens inside), way, milliseconds (the median, CALLS of each in turn), low and high (the
    quartiles).
    RuntimeError when they differ, ValueError for sizes that no vocabulary of this size has.
    """
    require(repetitions >= 2, f"repetitions is {repetitions}; quartiles need at least 2")
    ways = {"no full sort": top_p_filter, "full sort": top_p_filter_by_sorting}
    generator, rows = torch.Generator().manual_seed(0), []
    for size in sizes:
        logits = logits_with_nucleus(size, vocab_size, generator)
        kept = [way(logits, NUCLEUS) for way in ways.values()]
        if not torch.equal(*kept):
            raise RuntimeError(f"the two samplers differ on a nucleus of about {size} tokens: their times say nothing")
        times: dict[str, list[float]] = {way: [] for way in ways}
        for repetition in range(repetitions + 1):
            for way, truncate in ways.items():
                started = time.perf_counter()
                for _ in range(CALLS):
                    draw(truncate(logits, NUCLEUS), [generator])
                if repetition:  # the first one warms up
                    times[way].append(1e3 * (time.perf_counter() - started) / CALLS)
        for way, own in times.items():
            low, middle, high = statistics.quantiles(own, n=4, method="inclusive")
            inside = int(kept[0].isfinite().sum())
            rows.append({"nucleus": inside, "way": way, "milliseconds": middle, "low": low, "high": high})
    return rows


def tokeniser_curve(
    tokenizer: tiktoken.Encoding, threads: Sequence[int], n_stories: int = 2_000, repetitions: int = 5
) -> list[dict[str, Any]]:
    """Megabytes of storyworld text tokenised in a second: tiktoken story by story, then this package's threads.

    A row a way: way, threads, megabytes_per_second (the best of `repetitions`, all ways in turn), speedup over
    tiktoken. RuntimeError when the tokens differ.
    """
    require(bool(threads) and min(threads) >= 1, f"threads are {tuple(threads)}; give at least one, each at least 1")
    texts = list(islice(load_corpus("storyworld", n_stories=n_stories).texts("train"), n_stories))
    megabytes = sum(len(text.encode()) for text in texts) / 1e6

    def alone() -> list[int]:
        return [token for text in texts for token in (*tokenizer.encode_ordinary(text), tokenizer.eot_token)]

    def parallel(count: int) -> list[np.ndarray]:
        return [ids for ids, _ in encode_stories(texts, tokenizer, threads=count)]

    if np.concatenate(parallel(max(threads))).tolist() != alone():
        raise RuntimeError("the parallel tokeniser gives other tokens: its time says nothing")
    ways: dict[tuple[str, int], Callable[[], Any]] = {("tiktoken, story by story", 1): alone}
    ways |= {("picollm", count): lambda count=count: parallel(count) for count in threads}  # type: ignore[misc]
    times: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    for _ in range(repetitions):
        for way, call in ways.items():
            started = time.perf_counter()
            call()
            times[way].append(time.perf_counter() - started)
    slowest = min(times["tiktoken, story by story", 1])
    return [
        {
            "way": way,
            "threads": count,
            "megabytes_per_second": megabytes / min(own),
            "speedup": slowest / min(own),
        }
        for (way, count), own in times.items()
    ]


def loader_milliseconds(vocab_size: int, block_size: int, batch_size: int = BATCH_SIZE, calls: int = 50) -> float:
    """Milliseconds that PackedBatches.next_batch takes for one batch, the best of five means over `calls`."""
    weights = 1 / np.arange(1, vocab_size + 1)
    n_tokens = STORED_BATCHES * batch_size * block_size + 1
    ids = np.random.default_rng(0).choice(vocab_size, n_tokens, p=weights / weights.sum()).astype(np.uint32)
    batches = PackedBatches(TokenStore(ids, np.array([0, n_tokens]), n_bytes=n_tokens), block_size, batch_size)

    def fetch() -> None:
        for _ in range(calls):
            batches.next_batch()

    return 1e3 * best_seconds(fetch) / calls
