"""Processes that log to real trackers, and what they left in the trackers' files."""

import json
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

WATCH = """
import sys
from pathlib import Path
from picollm_core.trackers import open_tracker

kinds, directory, attempts, end = sys.argv[1].split("+"), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
for attempt in attempts.split("+"):
    first, last, resume = map(int, attempt.split(","))
    with open_tracker(kinds, directory, "lstm-0", {"model": {"n_embd": 8}}, resume=bool(resume)) as tracker:
        for step in range(first, last + 1):
            tracker.log({"step": step, "loss": 8.0 / step, "val_loss": 3.0 if step % 5 == 0 else None}, step)
        if end == "crash":
            raise RuntimeError("the training crashed")
        tracker.finish({"bits_per_byte": 1.25, "device": "cpu", "steps": last, "bits_per_byte_interval": [1.2, 1.3]})
"""


def watch(directory: Path, *kinds: str, attempts: str, end: str = "") -> subprocess.CompletedProcess:
    """A process that logs as training runs would, each attempt "first,last,resume" after the other.

    A process of its own, because the trackers' packages keep settings and folders for as long as theirs lives.
    """
    arguments = ["+".join(kinds), str(directory), attempts, end]
    return subprocess.run([sys.executable, "-c", WATCH, *arguments], capture_output=True, text=True, timeout=600)


def tensorboard_steps(directory: Path, name: str) -> list[int]:
    """The steps that TensorBoard shows for a value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars(name)]


def trackio_rows(folder: Path) -> dict[str, list[dict]]:
    """What stands in Trackio's database, run by run, in the order of arrival."""
    runs: dict[str, list[dict]] = {}
    with sqlite3.connect(folder / "picollm.db") as database:
        for name, step, metrics in database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id"):
            runs.setdefault(name, []).append({"step": step} | json.loads(metrics))
    return runs


def wandb_steps(directory: Path, name: str) -> list[int]:
    """The steps at which a value stands in wandb's offline files: records in blocks of 32 KiB, as in LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted(directory.glob("wandb/offline-run-*/*.wandb")):
        data, place, parts = file.read_bytes(), 7, b""
        while place + 7 <= len(data):
            if (left := 32_768 - place % 32_768) < 7:  # no room for a header: the block is filled up
                place += left
                continue
            length, kind = struct.unpack_from("<4xHB", data, place)
            parts += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # a whole record, or the last part of one
                history, parts = Record.FromString(parts).history, b""
                keys = [item.key or item.nested_key[0] for item in history.item]
                found += [history.step.num] * (name in keys)
    return found
