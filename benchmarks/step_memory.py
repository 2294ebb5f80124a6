"""Peak memory of a training step, each side in a process of its own.

As a script, `python benchmarks/step_memory.py PRESET SIDE` prints how many bytes two steps of one side need beyond what
the process held when model and data were ready.
"""

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from benchmarks.measuring import Row, compare, ratios, two_threads
from benchmarks.training_steps import new_plain_step, new_trainer, zipf_store
from picollm_core.presets import preset
from picollm_core.speed import peak_memory_mb

SIDES = ("plain", "float32", "bfloat16")
RESET = Path("/proc/self/clear_refs")


def _reset_peak() -> None:
    """Start the kernel's record of this process's peak anew, where that is possible."""
    try:
        RESET.write_text("5")
    except OSError:
        return  # the record then reaches back to the start of the process, whose imports need less than a step


def step_memory(name: str, side: str) -> int:
    """Bytes that gradients, optimizer state and everything passing need in the first two steps."""
    config = preset(name)
    store = zipf_store(config.vocab_size)
    step = new_plain_step(config, store) if side == "plain" else new_trainer(config, side, store)
    before = psutil.Process().memory_info().rss
    _reset_peak()
    for _ in range(2):
        step.advance()
    return round(1e6 * peak_memory_mb()) - before


def _in_own_process(name: str, side: str) -> float:
    command = [sys.executable, str(Path(__file__).resolve()), name, side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(name: str, repetitions: int) -> list[Row]:
    """Rows of one preset in both precisions. Memory hardly varies, so two repetitions are the most that are made, and
    one at small, whose steps take long."""
    measured: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(min(1 if name.endswith("-small") else 2, repetitions)):
        for side in SIDES:
            measured[side].append(_in_own_process(name, side) / 1e6)
    return [
        compare(
            f"memory-{name}-{side}",
            measured["plain"],
            measured[side],
            ratios(measured[side], measured["plain"]),
            unit="MB",
            peer_is="plain PyTorch float32 step",
            ours_is=f"Trainer.advance in {side}",
            notes="peak of two steps beyond what the process held before, optimizer state included",
        )
        for side in SIDES[1:]
    ]


def main() -> None:
    """Print the bytes for one side."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("preset")
    parser.add_argument("side", choices=SIDES)
    options = parser.parse_args()
    with two_threads():
        print(step_memory(options.preset, options.side))


if __name__ == "__main__":
    main()
