"""Speed and memory, side by side with what people would use instead: `picollm bench`, or this file as a script.

Prints a table and writes artefacts/results/bench.json. With `only`, the rows that were measured earlier on the same
machine stay in the file; those of LONG are measured only when they are asked for.
"""

import argparse
import datetime
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, this file would find no sibling

from benchmarks.durations import measure_tests, measure_workbook
from benchmarks.generation import FLAT, measure_flatness, measure_generation
from benchmarks.huggingface_step import measure_huggingface_steps
from benchmarks.linear_attention import measure_against_softmax, measure_forms
from benchmarks.measuring import Row, machine, two_threads, versions
from benchmarks.nucleus import measure_nucleus
from benchmarks.onehot import measure_against_learned, measure_layers
from benchmarks.pipeline import measure_import, measure_loader, measure_tokenising
from benchmarks.step_memory import measure_memory
from benchmarks.targets import TARGETS
from benchmarks.training_steps import measure_steps
from picollm_core.performance_curves import machine_peaks
from picollm_core.runs import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
RESULT_FILE = ROOT / "artefacts" / "results" / "bench.json"
BUSY = 0.5  # running processes besides this one

Measure = Callable[[int], list[Row]]
PRECISIONS = ("float32", "bfloat16")


def _step_names(preset: str) -> tuple[str, ...]:
    kinds = ("step", "peak") if preset.startswith("transformer") else ("step",)
    return tuple(f"{kind}-{preset}-{precision}" for kind in kinds for precision in PRECISIONS)


STEP_PRESETS = tuple(f"{family}-{size}" for size in ("pico", "small") for family in ("transformer", "lstm", "kgram"))

BENCHMARKS: dict[tuple[str, ...], Measure] = {
    **{_step_names(name): partial(measure_steps, name) for name in STEP_PRESETS},
    **{
        tuple(f"step-gpt2-{size}-{p}" for p in PRECISIONS): partial(measure_huggingface_steps, size)
        for size in ("pico", "small")
    },
    **{
        tuple(f"memory-transformer-{size}-{p}" for p in PRECISIONS): partial(measure_memory, f"transformer-{size}")
        for size in ("pico", "small")
    },
    ("onehot-tensors", "onehot-python-loop"): measure_layers,
    ("onehot-learned-step",): measure_against_learned,
    ("nucleus-peaked",): partial(measure_nucleus, "nucleus-peaked"),
    ("nucleus-flat",): partial(measure_nucleus, "nucleus-flat"),
    **{
        tuple(f"generate-{way}-{size}" for way in ("greedy", "top-p")): partial(measure_generation, size)
        for size in ("pico", "small")
    },
    **{(f"flat-{kind}",): partial(measure_flatness, kind) for kind in FLAT},
    ("chunked-gla",): partial(measure_forms, "gla"),
    ("chunked-delta",): partial(measure_forms, "delta"),
    tuple(f"softmax-{kind}" for kind in ("linear", "gla", "delta")): measure_against_softmax,
    ("import",): measure_import,
    ("loader",): measure_loader,
    ("tokenising",): measure_tokenising,
}
"""What measures which rows; rows of one entry come from the same measurements."""

LONG: dict[tuple[str, ...], Measure] = {
    ("workbook", "workbook-notebook"): measure_workbook,
    ("tests",): measure_tests,
}
"""Rows that take as long as what they measure: left out unless they are named."""


def select(only: Sequence[str]) -> dict[tuple[str, ...], Measure]:
    """The benchmarks with a row whose name begins with one of `only`; for none, all but those of LONG.

    ValueError for a strange name.
    """
    if not only:
        return dict(BENCHMARKS)
    known = BENCHMARKS | LONG
    names = [name for group in known for name in group]
    for beginning in only:
        if not any(name.startswith(beginning) for name in names):
            raise ValueError(f"no benchmark begins with {beginning!r}; there are {', '.join(names)}")
    return {group: run for group, run in known.items() if any(name.startswith(tuple(only)) for name in group)}


def table_line(row: dict[str, Any]) -> str:
    """One row of the printed table."""
    verdict = "reached" if row["reached"] else "missed"
    spread = f"[{row['spread'][0]:.3g}, {row['spread'][1]:.3g}]"
    sides = f"{row['peer']:>10.4g} {row['ours']:>10.4g} {row['unit']:<13}"
    return f"{row['name']:<34} {sides} {row['ratio']:>9.3g} {spread:<20} {row['target']:<8} {verdict}"


def summary_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What stands below the table: why rows are missed, as far as that is recorded, and how many are reached."""
    missed = [row for row in rows if not row["reached"]]
    lines = [f"{row['name']}: {row.get('reason', 'missed; no reason recorded')}" for row in missed]
    return [*lines, f"{len(rows) - len(missed)} of {len(rows)} reached"]


def report(rows: list[dict[str, Any]], output: Path, peaks: dict[str, float]) -> dict[str, Any]:
    """The content of the result file: these rows, and those of the same machine that were not measured again."""
    here = machine()
    earlier = read_json(output) if output.is_file() else {}
    kept = {row["name"]: row for row in earlier.get("rows", ())} if earlier.get("machine") == here else {}
    merged = kept | {row["name"]: row for row in rows}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    rows = [merged[name] for name in TARGETS if name in merged]
    return {"machine": here, "versions": versions(), "date": today, "machine_peaks": peaks, "rows": rows}


def main(only: tuple[str, ...] = (), repetitions: int = 5, output: Path = RESULT_FILE) -> int:
    """Measure, print and record; 0 whether or not the targets are reached. ValueError for bad arguments."""
    if repetitions < 1:
        raise ValueError(f"repetitions is {repetitions}; it must be at least 1")
    chosen = select(only)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > BUSY:
        print(f"This machine is busy (load {load:.1f}): even ratios are unsure until it is idle.")
    print(f"{'name':<34} {'peer':>10} {'ours':>10} {'':<13} {'ratio':>9} {'[min, max]':<20} {'target':<8} verdict")
    measured: list[dict[str, Any]] = []
    with two_threads():
        peaks = machine_peaks()
        for measure in chosen.values():
            rows = [row.to_dict() for row in measure(repetitions)]
            for row in rows:
                print(table_line(row), flush=True)
            measured += rows
            write_json(output, report(measured, output, peaks))  # a later benchmark that fails costs nothing
    print("machine: " + ", ".join(f"{name} {value:,.0f}" for name, value in peaks.items()))
    print(f"written to {output.relative_to(ROOT) if output.is_relative_to(ROOT) else output}")
    for line in summary_lines(measured):
        print(line)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="beginnings of row names; none for all")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULT_FILE)
    options = parser.parse_args()
    sys.exit(main(tuple(options.only), options.repetitions, options.output))
