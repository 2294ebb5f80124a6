"""How long the two commands of a new user take after installation: `make workbook` and `make test`."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import Row, compare
from picollm_core.workbook import run_workbook

ROOT = Path(__file__).resolve().parent.parent


def timed_with_children(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, the seconds by the clock, and those of processor time, ended children included (0 where unknown)."""
    before, started = os.times(), time.perf_counter()
    result = work()
    after, seconds = os.times(), time.perf_counter() - started
    return result, seconds, sum(late - early for early, late in zip(before[:4], after[:4], strict=True))


def _run_quickly() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        out, page = Path(folder, "notebooks"), Path(folder, "report.html")
        return run_workbook(ROOT / "notebooks", profile="quick", out=out, page=page, progress=False)


def measure_workbook(repetitions: int) -> list[Row]:
    """Minutes of the whole workbook in the quick profile, once whatever `repetitions`, and its slowest notebook."""
    report, seconds, processor = timed_with_children(_run_quickly)
    if not report.ok:
        raise RuntimeError(f"the workbook fails, so its time says nothing: {'; '.join(report.failures)}")
    slowest = max(report.results, key=lambda result: result.seconds)
    whole = {"peer_is": "the limit", "ours_is": "every notebook, one after the other, profile quick"}
    one = {"peer_is": "the limit", "ours_is": "the slowest notebook"}
    count = f"{len(report.results)} notebooks; {processor / 60:.1f} minutes of processor time"
    return [
        compare("workbook", [15.0], [seconds / 60], [seconds / 60], unit="minutes", notes=count, **whole),
        compare("workbook-notebook", [60.0], [slowest.seconds], [slowest.seconds], unit="s", notes=slowest.name, **one),
    ]


def measure_tests(repetitions: int) -> list[Row]:
    """Minutes of the whole test suite, once whatever `repetitions`. RuntimeError when tests fail."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done, seconds, processor = timed_with_children(
        lambda: subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    )
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode != 0:
        raise RuntimeError(f"the tests do not pass, so their time says nothing: {last}")
    return [
        compare(
            "tests",
            [20.0],
            [seconds / 60],
            [seconds / 60],
            unit="minutes",
            peer_is="the limit",
            ours_is="python -m pytest -q",
            notes=f"{last.strip('= ')}; {processor / 60:.1f} minutes of processor time",
        )
    ]
