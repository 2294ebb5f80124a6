"""What stands around training: importing the package, loading batches, tokenising."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import tiktoken

from benchmarks.measuring import Row, Side, compare, in_turns, ratios
from benchmarks.training_steps import BATCH_SIZE, BLOCK_SIZE, new_trainer, zipf_store
from picollm_core.batches import PackedBatches
from picollm_core.corpora import load_corpus
from picollm_core.presets import preset
from picollm_core.token_store import encode_stories
from picollm_core.tokenizers import load_tokenizer

TOKENISED_STORIES = 3_000
TIMED_IMPORT = """
import time
started = time.perf_counter()
import torch
middle = time.perf_counter()
import picollm_core
print(middle - started, time.perf_counter() - middle)
"""


def measure_import(repetitions: int) -> list[Row]:
    """Seconds that importing the package takes after torch, in processes of their own, files already in memory."""
    measured = []
    for _ in range(repetitions + 1):
        done = subprocess.run([sys.executable, "-c", TIMED_IMPORT], check=True, capture_output=True, text=True)
        measured.append([float(part) for part in done.stdout.split()])
    torch_alone, extra = (list(times) for times in zip(*measured[1:], strict=True))  # the first one reads the disk
    return [
        compare(
            "import",
            torch_alone,
            extra,
            extra,
            unit="s",
            peer_is="import torch",
            ours_is="import picollm_core after it",
            notes="the target bounds the additional seconds",
        )
    ]


def measure_loader(repetitions: int) -> list[Row]:
    """Time of next_batch over that of the fastest training step there is, the pico Transformer's in bfloat16."""
    config = preset("transformer-pico")
    with tempfile.TemporaryDirectory() as folder:
        store = zipf_store(config.vocab_size, 2_000_000, Path(folder))
        trainer = new_trainer(config, "bfloat16", store)
        loader = PackedBatches(store, BLOCK_SIZE, BATCH_SIZE)
        sides = {"step": Side(trainer.advance, calls=3), "loader": Side(loader.next_batch, calls=50)}
        seconds = in_turns(sides, repetitions, warm_up=2)
    return [
        compare(
            "loader",
            [1e3 * s for s in seconds["step"]],
            [1e3 * s for s in seconds["loader"]],
            ratios(seconds["loader"], seconds["step"]),
            unit="ms",
            peer_is="whole training step, Transformer pico in bfloat16",
            ours_is="PackedBatches.next_batch from a memory map",
            notes=f"{BATCH_SIZE} x {BLOCK_SIZE} tokens",
        )
    ]


def _gpt2_or_own() -> tiktoken.Encoding:
    """GPT-2's encoding, or the bundled one where GPT-2's files cannot be had."""
    try:
        return load_tokenizer("gpt2")
    except (ValueError, OSError):
        return load_tokenizer("stories-4k")


def _one_thread(texts: list[str], tokenizer: tiktoken.Encoding) -> Iterator[np.ndarray]:
    for text in texts:
        yield np.array([*tokenizer.encode_ordinary(text), tokenizer.eot_token], dtype=np.uint32)


def measure_tokenising(repetitions: int) -> list[Row]:
    """MB a second of storyworld text, on two threads against tiktoken's calls in one."""
    tokenizer = _gpt2_or_own()
    texts = list(islice(load_corpus("storyworld", n_stories=TOKENISED_STORIES).texts("train"), TOKENISED_STORIES))
    size = sum(len(text.encode()) for text in texts) / 1e6
    one = np.concatenate(list(_one_thread(texts, tokenizer)))
    two = np.concatenate([ids for ids, _ in encode_stories(texts, tokenizer, threads=2)])
    if not np.array_equal(one, two):
        raise RuntimeError("the parallel tokeniser gives other tokens: its time says nothing")
    sides = {
        "one": Side(lambda: sum(ids.size for ids in _one_thread(texts, tokenizer)), units=size),
        "two": Side(lambda: sum(ids.size for ids, _ in encode_stories(texts, tokenizer, threads=2)), units=size),
    }
    seconds = in_turns(sides, repetitions)
    return [
        compare(
            "tokenising",
            [1 / s for s in seconds["one"]],
            [1 / s for s in seconds["two"]],
            ratios(seconds["one"], seconds["two"]),
            unit="MB/s",
            peer_is="tiktoken's encode_ordinary on every story, one thread",
            ours_is="token_store.encode_stories on two threads",
            notes=f"{tokenizer.name}, {len(texts):,} storyworld stories, {size:.1f} MB, the same tokens",
        )
    ]
