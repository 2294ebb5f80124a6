"""Memory and time against the number of stories: open, tokenise, train. `python -m benchmarks.streaming --stories N`.

Writes synthetic parquet files of storyworld stories, each cut at the end of a sentence so that the mean size is that of
TinyStories, in the layout that is hardest on a reader: one row group a file. Then a sixteenth, a quarter and all of
them are read through PICOLLM_TINYSTORIES, tokenised and trained on, each time in a process of its own whose memory is
watched. Prints a table, the extrapolation to a million stories, and writes artefacts/results/streaming.json.

Anonymous memory (RssAnon) is what a process holds; file pages (RssFile) are the mapped token file and shared libraries,
which the system takes back when it needs the room.
"""

import argparse
import datetime
import importlib.metadata
import multiprocessing
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, this file would find no sibling

import numpy as np
import psutil
import pyarrow
from pyarrow import parquet

from benchmarks.measuring import machine
from picollm_core.corpora import load_corpus
from picollm_core.presets import run_config
from picollm_core.runs import write_json
from picollm_core.storyworld import generate_stories
from picollm_core.token_store import token_store
from picollm_core.tokenizers import load_tokenizer
from picollm_core.train import train_on

ROOT = Path(__file__).resolve().parent.parent
RESULT_FILE = ROOT / "artefacts" / "results" / "streaming.json"
LONGEST, STORIES_A_FILE, VALIDATION_STORIES = 850, 50_000, 800
EXTRAPOLATED = 1_000_000
BATCH_SIZE = 4  # windows of 256 tokens; what training holds depends on this and not on the corpus
PHASES = ("open", "tokenise", "train")
PAUSE = 0.01  # seconds between two looks at the memory


def _cut(story: str) -> str:
    """The sentences of a story that end within LONGEST characters: about the mean size of TinyStories, 820 bytes."""
    return story[: story.rfind(".", 0, LONGEST) + 1]


def _write(path: Path, stories: Iterator[str]) -> None:
    texts = [_cut(story) for story in stories]
    parquet.write_table(pyarrow.table({"text": texts}), path, compression="zstd", row_group_size=len(texts))


def write_stories(folder: Path, n_stories: int) -> None:
    """Training files of n_stories and one file of VALIDATION_STORIES others, as PICOLLM_TINYSTORIES wants them."""
    for number, first in enumerate(range(0, n_stories, STORIES_A_FILE)):
        count = min(STORIES_A_FILE, n_stories - first)
        _write(folder / f"train-{number:05d}.parquet", generate_stories(count, seed=1 + number))
    _write(folder / "validation.parquet", generate_stories(VALIDATION_STORIES, seed=0))


def resident_mb() -> tuple[float, float]:
    """Anonymous and file-backed resident memory of this process in MB; all of it as the first where /proc is not."""
    status = Path("/proc/self/status")
    found = dict(re.findall(r"Rss(Anon|File):\s+(\d+) kB", status.read_text())) if status.is_file() else {}
    if len(found) < 2:
        return psutil.Process().memory_info().rss / 1e6, 0.0
    return int(found["Anon"]) * 1024 / 1e6, int(found["File"]) * 1024 / 1e6


class Watch:
    """The most memory of each phase and the seconds it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.anon: dict[str, float] = {}
        self.file: dict[str, float] = {}

    def _look(self, phase: str) -> None:
        anon, file = resident_mb()
        self.anon[phase] = max(self.anon.get(phase, 0.0), anon)
        self.file[phase] = max(self.file.get(phase, 0.0), file)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Look at the memory every PAUSE seconds while the block runs."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(PAUSE):
                self._look(name)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - started
            ended.set()
            watcher.join()
            self._look(name)


def measure(folder: str, n_stories: int, tokenizer: str, steps: int) -> dict[str, Any]:
    """Open, tokenise and train on the first n_stories of a folder that write_stories has filled; a row of the result.

    To be called in a process of its own: it sets environment variables and reports the process's memory.
    """
    watch = Watch()
    anon_before, _ = resident_mb()
    with tempfile.TemporaryDirectory() as work:
        os.environ |= {"PICOLLM_TINYSTORIES": folder, "PICOLLM_CACHE": work}
        encoding = load_tokenizer(tokenizer)
        with watch.phase("open"):
            corpus = load_corpus("tinystories", limit=n_stories)
        with watch.phase("tokenise"):
            store = token_store(corpus, "train", encoding)
        n_bytes, n_tokens, itemsize = store.n_bytes, store.n_tokens, store.tokens.itemsize
        del store
        config = run_config(
            "kgram-pico",
            corpus="tinystories",
            limit=n_stories,
            tokenizer=tokenizer,
            max_steps=steps,
            batch_size=BATCH_SIZE,
            eval_every=steps,
            eval_stories=50,
            final_stories=200,
            checkpoint_every=max(1, steps // 2),
            device="cpu",
        )
        with watch.phase("train"):
            run = train_on([corpus], config, runs_dir=Path(work) / "runs", progress=False)
    return {
        "stories": n_stories,
        "text_mb": round(n_bytes / 1e6, 1),
        "bytes_a_story": round(n_bytes / n_stories, 1),
        "tokens": n_tokens,
        "token_file_mb": round(n_tokens * itemsize / 1e6, 1),
        "anon_before_mb": round(anon_before, 1),
        "tokens_per_second": round(run.summary["tokens_per_second"]),
        **{f"{phase}_seconds": round(watch.seconds[phase], 2) for phase in PHASES},
        **{f"{phase}_anon_mb": round(watch.anon[phase], 1) for phase in PHASES},
        **{f"{phase}_file_mb": round(watch.file[phase], 1) for phase in PHASES},
    }


def extrapolate(rows: list[dict[str, Any]], n_stories: int = EXTRAPOLATED) -> dict[str, Any]:
    """A row for n_stories on the straight line through the rows (least squares): computed, not measured.

    `train_seconds` is left out: the number of updates is the same in all rows. ValueError for fewer than 2 rows.
    """
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} row of measurements; a line needs at least 2 sizes")
    counts = np.array([row["stories"] for row in rows], float)
    names = [f"{phase}_anon_mb" for phase in PHASES] + ["open_seconds", "tokenise_seconds", "token_file_mb", "text_mb"]
    extended: dict[str, Any] = {"stories": n_stories, "extrapolated": True}
    for name in names:
        slope, start = np.polyfit(counts, [row[name] for row in rows], 1)
        extended[name] = round(float(start + slope * n_stories), 1)
        if name.endswith("anon_mb"):
            extended[name.replace("_mb", "_bytes_a_story")] = round(float(slope) * 1e6, 1)
    return extended


def table_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The printed table: text, token file, seconds and peak anonymous memory of each phase; `~` is extrapolated."""
    heads = (
        "stories",
        "text MB",
        "tokens MB",
        "open s",
        "tokenise s",
        "open MB",
        "tokenise MB",
        "train MB",
    )
    names = ("text_mb", "token_file_mb", "open_seconds", "tokenise_seconds", *(f"{phase}_anon_mb" for phase in PHASES))
    lines = ["  ".join(f"{head:>11}" for head in heads)]
    for row in rows:
        values = [row.get(name) for name in names]
        mark = "~" if row.get("extrapolated") else ""
        cells = [f"{mark}{row['stories']:,}", *("" if value is None else f"{mark}{value:,.1f}" for value in values)]
        lines.append("  ".join(f"{cell:>11}" for cell in cells))
    return lines


def _tokenizer_at_hand() -> str:
    """GPT-2's, or the bundled one where GPT-2's files cannot be had."""
    try:
        return load_tokenizer("gpt2").name
    except (ValueError, OSError):
        return "stories-4k"


def _measure_apart(folder: Path, sizes: list[int], tokenizer: str, steps: int) -> list[dict[str, Any]]:
    """A row a size, each measured in a process of its own."""
    rows = []
    for size in sizes:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows.append(pool.submit(measure, str(folder), size, tokenizer, steps).result())
        print("\n".join(table_lines(rows[-1:])[len(rows) > 1 :]), flush=True)
    return rows


def main(n_stories: int = 200_000, steps: int = 200, output: Path = RESULT_FILE, folder: Path | None = None) -> int:
    """Measure three sizes, print and record. ValueError for too few stories or steps.

    `folder` holds the n_stories stories that write_stories has written there; without it they are written and removed.
    """
    if n_stories < 1_600 or steps < 1:
        raise ValueError(f"stories is {n_stories} and steps is {steps}; give at least 1,600 stories and 1 step")
    sizes = [n_stories // 16, n_stories // 4, n_stories]
    tokenizer = _tokenizer_at_hand()
    with tempfile.TemporaryDirectory() as fresh:
        if folder is None:
            started = time.perf_counter()
            write_stories(Path(fresh), n_stories)
            print(f"{n_stories:,} storyworld stories written in {time.perf_counter() - started:.0f} s", flush=True)
        rows = _measure_apart(folder or Path(fresh), sizes, tokenizer, steps)
    rows.append(extrapolate(rows))
    print(table_lines(rows)[-1])
    print("MB of phases: peak anonymous memory, torch's own included; ~ is extrapolated.")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    versions = {name: importlib.metadata.version(name) for name in ("tiktoken", "pyarrow", "numpy")}
    content = {"machine": machine() | versions, "date": today, "tokenizer": tokenizer, "steps": steps, "rows": rows}
    write_json(output, content)
    print(f"written to {output.relative_to(ROOT) if output.is_relative_to(ROOT) else output}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stories", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path, default=RESULT_FILE)
    parser.add_argument("--folder", type=Path, help="stories that an earlier write_stories has left; else new ones")
    options = parser.parse_args()
    sys.exit(main(options.stories, options.steps, options.output, options.folder))
