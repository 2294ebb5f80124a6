"""`picollm sweep FILE.py`: every configuration of a Python file, trained in parallel, as one table."""

import os
import runpy
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from picollm_core.config import MODEL_CONFIGS, DataConfig, ModelConfig, RunConfig, TrainConfig, require

if TYPE_CHECKING:
    import pandas as pd

RESULTS = ("parameters", "steps", "nll", "perplexity", "bits_per_byte", "accuracy", "train_seconds")
"""What the printed table shows of every run, beside the settings in which the runs differ."""


def _executed(path: Path) -> dict[str, Any]:
    """The names that a Python file defines. Raises ValueError with the line on which it is wrong."""
    require(path.is_file(), f"there is no file {path}; a sweep is a Python file that defines the list `configs`")
    sys.path.insert(0, str(path.resolve().parent))  # as when Python itself runs it
    try:
        return runpy.run_path(str(path))
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f", line {frames[-1].lineno}" if frames else ""
        raise ValueError(f"{path}{line}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)


def _config(entry: Any, position: int) -> RunConfig:
    """One entry of `configs`: a RunConfig, or a model with a dictionary of settings."""
    from picollm_core.presets import run_config

    if isinstance(entry, RunConfig):
        return entry
    model, settings = entry if isinstance(entry, tuple | list) and len(entry) == 2 else (None, None)
    if not (isinstance(model, str | ModelConfig | RunConfig) and isinstance(settings, Mapping)):
        raise ValueError(
            f'configuration {position} is {entry!r}; give a RunConfig, or a pair such as ("lstm-pico", {{"seed": 1}})'
        )
    try:
        return run_config(model, **settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"configuration {position}: {error}") from error


def read_configs(path: Path) -> list[RunConfig]:
    """The list `configs` of a Python file: RunConfig, or (model, settings) as run_config takes them.

    Raises ValueError for a missing file, the line of what is wrong in it, a file without `configs`, and the position
    (from 0) of an entry that is no configuration.
    """
    found = _executed(path)
    require("configs" in found, f"{path} defines no `configs`; it must be a list of RunConfig or (model, settings)")
    entries = found["configs"]
    require(
        isinstance(entries, Iterable) and not isinstance(entries, str | Mapping),
        f"`configs` of {path} is a {type(entries).__name__}; it must be a list of RunConfig or (model, settings)",
    )
    return [_config(entry, position) for position, entry in enumerate(entries)]


def short_table(table: "pd.DataFrame") -> "pd.DataFrame":
    """What to print of a sweep's table: family, the settings in which the runs differ, RESULTS."""
    settings = {field.name for part in (DataConfig, TrainConfig, *MODEL_CONFIGS.values()) for field in fields(part)}
    told = [name for name in table.columns if name in settings and table[name].astype(str).nunique() > 1]
    return table[["family", *told, *(name for name in RESULTS if name in table)]]


def write_table(table: "pd.DataFrame", path: Path) -> None:
    """Write all columns as .csv, or as .json, one object a row; readers see the old file or the new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_json(temporary, orient="records", indent=1)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class SweepCommand:
    """Train every configuration of a Python file in parallel; finished runs are kept, so the same command goes on."""

    file: tyro.conf.Positional[Path]
    """A Python file that defines `configs`: a list of RunConfig, or of pairs such as ("lstm-pico", {"seed": 1})."""
    n_jobs: int | None = None
    """Processes, each with one thread; left out, one a core. 1 trains in this process."""
    backend: str | None = None
    """Another backend of joblib, such as threading; left out, processes of this machine."""
    cluster: str | None = None
    """Address of a Dask scheduler, such as tcp://192.168.0.7:8786, whose machines share this folder."""
    out: Path | None = None
    """Also write the whole table here, as .csv or .json."""
    refresh: bool = False
    """Train finished runs again."""

    def run(self) -> int:
        from picollm_core.sweep import sweep

        if self.out is not None:
            require(self.out.suffix in (".csv", ".json"), f"--out is {self.out}; its name must end in .csv or .json")
            require(self.out.parent.is_dir(), f"there is no folder {self.out.parent} to write {self.out.name} into")
        configs = read_configs(self.file)
        try:
            result = sweep(
                configs, n_jobs=self.n_jobs, backend=self.backend, cluster=self.cluster, refresh=self.refresh
            )
        except KeyboardInterrupt:
            print("picollm: interrupted; finished runs are kept, and the same command goes on", file=sys.stderr)
            return 130
        table = result.table()
        if result.runs:
            print(short_table(table).to_string(index=False))
            if self.out is not None:
                write_table(table, self.out)
        for failure in result.failed:
            print(f"failed: {' '.join(failure.describe().split())}")
        return 1 if result.failed else 0
