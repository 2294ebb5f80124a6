"""Committed results: small JSON files that figures are redrawn from, found by fingerprint and by nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picollm_core.config import RESULTS_VERSION, Config, RunConfig
from picollm_core.runs import Run, read_json, run_fingerprint, safe_name, write_json

RESULTS_DIR = Path("artefacts/results")


@dataclass(frozen=True)
class _Measurement(Config):
    """What determines a measured value: its name, and its parameters as sorted text."""

    name: str
    parameters: tuple[str, ...]


def measurement_fingerprint(name: str, parameters: dict[str, Any]) -> str:
    """16 hex digits over a measurement's name, its parameters and the version of the package's results."""
    return _Measurement(name, tuple(f"{key}={parameters[key]!r}" for key in sorted(parameters))).fingerprint()


@dataclass(frozen=True)
class ResultStore:
    """Records of runs and of other measurements under one folder, one file each."""

    folder: Path = RESULTS_DIR

    def _run_path(self, fingerprint: str) -> Path:
        return self.folder / "runs" / f"{safe_name(fingerprint)}.json"

    def save_run(self, run: Run) -> None:
        """Keep everything but the weights of a finished run."""
        write_json(self._run_path(run.fingerprint), run.to_record(), indent=None)

    def find_run(self, config: RunConfig, corpus_hashes: list[str]) -> Run | None:
        """The recorded run of this configuration on these texts, or None."""
        path = self._run_path(run_fingerprint(config, corpus_hashes))
        return Run.from_record(read_json(path)) if path.is_file() else None

    def find_run_elsewhere(self, config: RunConfig) -> Run | None:
        """A recorded run of this configuration on texts that are not at hand here, or None.

        The record's own fingerprint must follow from the configuration, the hashes it names and the present version.
        """
        for path in sorted(self.folder.glob("runs/*.json")):
            record = read_json(path)
            hashes = record["context"]["corpus_hashes"]
            if RunConfig.from_dict(record["config"]) == config and path.stem == run_fingerprint(config, hashes):
                return Run.from_record(record)
        return None

    def measure(
        self, name: str, parameters: dict[str, Any], compute: Callable[[], Any], refresh: bool = False
    ) -> tuple[Any, bool]:
        """The recorded value of a measurement, or a new one; also says whether it came from the record.

        `compute` returns JSON values. `parameters` must hold everything the value depends on.
        """
        path = self.folder / "measurements" / f"{safe_name(name)}-{measurement_fingerprint(name, parameters)}.json"
        if path.is_file() and not refresh:
            return read_json(path)["value"], True
        value = compute()
        write_json(path, {"name": name, "parameters": parameters, "version": RESULTS_VERSION, "value": value})
        return value, False
