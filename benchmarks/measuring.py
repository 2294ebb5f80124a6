"""What every benchmark shares: timing in turns, the statistics of a ratio, a row of the result, the machine."""

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.targets import REASONS, TARGETS


@dataclass(frozen=True)
class Side:
    """One contender: `call` does `units` units of work; a measurement makes `calls` calls."""

    call: Callable[[], Any]
    units: float = 1.0
    calls: int = 1

    def measure(self) -> float:
        """Seconds per unit of work, once."""
        started = time.perf_counter()
        for _ in range(self.calls):
            self.call()
        return (time.perf_counter() - started) / (self.calls * self.units)


def in_turns(sides: Mapping[str, Side], repetitions: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds per unit of every side, measured A B A B ..., so that a busy moment hits neighbours alike.

    Each side is called `warm_up` times first, unmeasured.
    """
    for side in sides.values():
        for _ in range(warm_up):
            side.call()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, side in sides.items():
            seconds[name].append(side.measure())
    return seconds


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Quotients of measurements of the same repetition."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


@dataclass(frozen=True)
class Row:
    """A comparison. `ratio` is the median over repetitions of what the target bounds, `spread` its least and greatest.

    `peer` and `ours` are the medians of the two sides in `unit`.
    """

    name: str
    peer_is: str
    ours_is: str
    peer: float
    ours: float
    unit: str
    ratio: float
    spread: tuple[float, float]
    repetitions: int
    notes: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with the target, whether the median reached it, and the known reason where it did not."""
        target = TARGETS[self.name]
        reached = target.reached(self.ratio)
        reason = {} if reached or self.name not in REASONS else {"reason": REASONS[self.name]}
        return {
            "name": self.name,
            "peer": _rounded(self.peer),
            "ours": _rounded(self.ours),
            "unit": self.unit,
            "ratio": _rounded(self.ratio),
            "spread": [_rounded(value) for value in self.spread],
            "target": str(target),
            "reached": reached,
            "repetitions": self.repetitions,
            "peer_is": self.peer_is,
            "ours_is": self.ours_is,
            "notes": self.notes,
            **reason,
        }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def compare(
    name: str,
    peer: Sequence[float],
    ours: Sequence[float],
    figures: Sequence[float],
    *,
    unit: str,
    peer_is: str,
    ours_is: str,
    notes: str = "",
) -> Row:
    """A row from the measurements of both sides and the figure of each repetition. ValueError for no measurements."""
    if not figures:
        raise ValueError(f"{name} has no measurements; ask for at least 1 repetition")
    return Row(
        name=name,
        peer_is=peer_is,
        ours_is=ours_is,
        peer=statistics.median(peer),
        ours=statistics.median(ours),
        unit=unit,
        ratio=statistics.median(figures),
        spread=(min(figures), max(figures)),
        repetitions=len(figures),
        notes=notes,
    )


def processor_name() -> str:
    """The processor's product name, or its architecture where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores used, versions."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def versions() -> dict[str, str]:
    """Versions of the packages that the peers come from or that do part of our own work."""
    names = ("torch", "transformers", "tiktoken", "tokenizers", "numpy", "safetensors")
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@contextmanager
def two_threads() -> Iterator[None]:
    """Torch on at most two threads inside, which is what the targets are about, and as before outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)
