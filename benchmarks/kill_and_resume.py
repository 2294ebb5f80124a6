"""Kill training with SIGKILL again and again, resume it each time, and compare with a run that nobody disturbed.

`python benchmarks/kill_and_resume.py` prints one line a kill and the verdict; it exits with 0 when final weights are
equal bit for bit and history, samples and final figures are equal too, apart from clocks and memory; with 1 otherwise.

The child process is this file too: it trains through picollm_core.train.train and says on its standard output what it
is about to do, so that a kill can be aimed at a phase of its life and lands at a random moment inside it.
"""

import argparse
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMING_COLUMNS = ("seconds", "tokens_per_second", "memory_mb")
TIMING_FIGURES = ("train_seconds", "tokens_per_second", "peak_memory_mb")
SETTINGS: dict[str, Any] = {
    "corpus": "three_sequences",
    "tokenizer": "stories-4k",
    "n_embd": 32,
    "block_size": 128,
    "dropout": 0.1,  # so that the generators have to be restored as well
    "batch_size": 8,
    "max_steps": 300,
    "eval_every": 40,
    "eval_stories": 8,
    "checkpoint_every": 7,
    "learning_rate": 2e-3,
    "prompt": "0 1 2 3 4",
    "sample_tokens": 24,
}
AIMS = ("import", "step", "step", "save", "step", "data", "step", "save", "step", "evaluation")
"""What kills are aimed at, in turn."""
LAST_KILLS = 3
"""So many are aimed at what comes after the last step: final evaluation, samples, weights."""


def child(preset: str, folder: Path) -> None:
    """Train to the end, saying "phase number" on standard output at each turn."""

    def say(*words: object) -> None:
        print(*words, flush=True)

    say("import")
    from picollm_core import train as package_function  # noqa: F401 - the whole package, as a user imports it
    from picollm_core import trainer as trainer_module

    loop: Any = sys.modules["picollm_core.train"]
    Trainer: Any = trainer_module.Trainer
    advance, save, evaluate, finish = Trainer.advance, loop.save_checkpoint, loop.evaluate, loop._finish

    def told_advance(trainer: Any) -> dict[str, float]:
        row = advance(trainer)
        say("step", trainer.step)
        return row

    def told_save(path: Path, model: Any, optimizers: Any, progress: dict[str, Any]) -> None:
        say("save", progress["step"])
        save(path, model, optimizers, progress)
        say("saved", progress["step"])

    def told(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def telling(*arguments: Any, **options: Any) -> Any:
            say(phase)
            return function(*arguments, **options)

        return telling

    def told_finish(*arguments: Any) -> None:
        loop.evaluate = told(evaluate, "finish")
        finish(*arguments)

    Trainer.advance = told_advance
    loop.save_checkpoint, loop.evaluate, loop._finish = told_save, told(evaluate, "evaluation"), told_finish
    loop.generate, loop.save_model = told(loop.generate, "sampling"), told(loop.save_model, "weights")
    say("data")
    run = loop.train(preset, progress=False, runs_dir=folder / "runs", **SETTINGS)
    say("end", run.directory)


def start(preset: str, folder: Path) -> subprocess.Popen:
    """The child in a process of its own, with caches of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", preset, str(folder)]
    environment = os.environ | {"PICOLLM_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@dataclass(frozen=True)
class Undisturbed:
    """The reference: its directory and how long its phases took, in seconds, so that kills know where to aim."""

    directory: Path
    lengths: dict[str, float]


def run_undisturbed(preset: str, folder: Path) -> Undisturbed:
    """Train once without a kill. RuntimeError when even that fails."""
    process, moments = start(preset, folder), []
    assert process.stdout is not None
    for line in process.stdout:
        moments.append((line.strip(), time.perf_counter()))
    if process.wait() != 0 or not moments[-1][0].startswith("end"):
        raise RuntimeError(f"undisturbed training ended with {process.returncode} after {moments[-1:]}")
    spans: dict[str, list[float]] = {}
    for (said, begin), (_, end) in itertools.pairwise(moments):
        spans.setdefault(said.split()[0], []).append(end - begin)
    lengths = {phase: sum(times) / len(times) for phase, times in spans.items()}
    lengths["finish"] += sum(sum(spans[phase]) for phase in ("sampling", "weights"))
    return Undisturbed(Path(moments[-1][0].removeprefix("end ")), lengths)


def kill_at(process: subprocess.Popen, phase: str, occurrence: int, delay: float) -> tuple[str, bool]:
    """SIGKILL `delay` seconds after the child has said `phase` for the n-th time.

    Returns the last thing it said, pipe drained, and whether it was the kill that ended it.
    """
    assert process.stdout is not None
    last = "start"
    for line in process.stdout:
        last = line.strip()
        occurrence -= last.split()[0] == phase
        if occurrence <= 0:
            time.sleep(delay)
            break
    process.kill()
    last = [last, *process.stdout.read().split("\n")[:-1]][-1]
    return last, process.wait() < 0


def describe(last: str, folder: Path) -> str:
    """Where the child was when it died."""
    phase, _, number = last.partition(" ")
    halves = " (half a file left)" if list(folder.glob("runs/*/*.tmp")) else ""
    where = {
        "start": "before its first line",
        "import": "while importing",
        "data": "while loading and tokenising, before its first step",
        "step": f"after step {number}",
        "save": f"while writing the checkpoint of step {number}",
        "saved": f"after the checkpoint of step {number}",
        "evaluation": "in an evaluation",
        "finish": "in the final evaluation",
        "sampling": "while drawing the samples",
        "weights": "while writing the final weights or the summary",
        "end": "after the end",
    }
    return where[phase] + halves


def kill_repeatedly(preset: str, folder: Path, kills: int, lengths: dict[str, float], rng: random.Random) -> None:
    """Start, kill and start again, `kills` times; then let the last process come to its end. Prints a line a kill."""
    step, count = 0, 0
    while count < kills:
        remaining = SETTINGS["max_steps"] - step
        aim = "finish" if count >= kills - LAST_KILLS else AIMS[count % len(AIMS)]
        if aim != "finish" and remaining < 2 * SETTINGS["checkpoint_every"]:
            aim = "data"  # else it could come to its end too early
        occurrence = rng.randint(1, max(1, remaining // (kills - count))) if aim == "step" else 1
        last, killed = kill_at(start(preset, folder), aim, occurrence, rng.uniform(0, lengths[aim]))
        if not killed:
            raise RuntimeError(f"the child ended by itself before kill {count + 1}, after {last!r}")
        _, _, number = last.partition(" ")
        step = int(number) if number else step
        count += 1
        print(f"kill {count:>2}: aimed at {aim:<10} died {describe(last, folder)}", flush=True)
    process = start(preset, folder)
    said, _ = process.communicate()
    if process.returncode != 0 or "end" not in said:
        raise RuntimeError(f"the last child ended with {process.returncode} without finishing the run")


def differences(left: Path, right: Path) -> list[str]:
    """What two finished runs of one configuration do not have in common, clocks and memory apart."""
    import pandas as pd
    from safetensors import safe_open

    from picollm_core.runs import MODEL_DIR, load_run

    found = []
    weights = []
    for directory in (left, right):
        with safe_open(directory / MODEL_DIR / "model.safetensors", "pt") as file:
            weights.append({name: file.get_tensor(name).numpy().tobytes() for name in file.keys()})  # noqa: SIM118
    found += [f"weights {name}" for name in sorted(weights[0].keys() | weights[1].keys())
              if weights[0].get(name) != weights[1].get(name)]  # fmt: skip
    one, two = load_run(left), load_run(right)
    histories = [run.history.drop(columns=list(TIMING_COLUMNS)).reset_index(drop=True) for run in (one, two)]
    try:
        pd.testing.assert_frame_equal(*histories, check_exact=True)
    except AssertionError as error:
        found.append(f"history: {' '.join(str(error).split())[:200]}")
    found += [f"summary {name}" for name in one.summary
              if name not in TIMING_FIGURES and one.summary[name] != two.summary.get(name)]  # fmt: skip
    if one.samples != two.samples:
        found.append("samples")
    return found


def main(preset: str, kills: int, seed: int) -> int:
    """Run the whole comparison; 0 when nothing differs, else 1."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        calm, disturbed = Path(scratch, "calm"), Path(scratch, "disturbed")
        reference = run_undisturbed(preset, calm)
        print(f"{preset}: {SETTINGS['max_steps']} steps without a disturbance; now {kills} kills with seed {seed}")
        kill_repeatedly(preset, disturbed, kills, reference.lengths, random.Random(seed))
        found = differences(reference.directory, disturbed / reference.directory.relative_to(calm))
    verdict = "differs in " + "; ".join(found) if found else "equal to the bit: weights, history, figures, samples"
    print(f"after {kills} kills the run is {verdict} ({time.perf_counter() - began:.0f} s)")
    return 1 if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="transformer-pico", help="any preset; the settings above shrink it")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--child", nargs=2, metavar=("PRESET", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], Path(options.child[1]))
        sys.exit(0)
    sys.exit(main(options.preset, options.kills, options.seed))
