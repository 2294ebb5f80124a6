"""Committed results: small JSON files that figures are redrawn from, found by fingerprint and by nothing else."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from picollm_core.config import RESULTS_VERSION, Config, RunConfig
from picollm_core.corpora import Corpus
from picollm_core.runs import Run, read_json, run_fingerprint, safe_name, write_json

RESULTS_DIR = Path("artefacts/results")
REMEASURE = "run `picollm workbook --profile standard --write` to measure it"


@contextmanager
def _format_of(path: Path) -> Iterator[None]:
    """Turn whatever reading a record of another format raises into a ValueError that says what to do."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a record of this version ({error}); delete it, then {REMEASURE}") from error


def _read_run(path: Path) -> Run:
    with _format_of(path):
        return Run.from_record(read_json(path))


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
        self.__dict__.pop("_texts", None)
        write_json(self._run_path(run.fingerprint), run.to_record(), indent=None)

    def load_run(self, fingerprint: str) -> Run:
        """The recorded run of this fingerprint. Raises ValueError, with the way out, when there is no such record."""
        path = self._run_path(fingerprint)
        if not path.is_file():
            raise ValueError(f"there is no record {path}; {REMEASURE}")
        return _read_run(path)

    def find_run(self, config: RunConfig, corpus_hashes: list[str]) -> Run | None:
        """The recorded run of this configuration on these texts, or None."""
        path = self._run_path(run_fingerprint(config, corpus_hashes))
        return _read_run(path) if path.is_file() else None

    def _failure_path(self, fingerprint: str) -> Path:
        return self.folder / "failures" / f"{safe_name(fingerprint)}.json"

    def save_failure(self, config: RunConfig, corpora: Sequence[Corpus], error: str) -> None:
        """Keep that training this configuration on these texts always ends in this error, such as a divergence."""
        self.__dict__.pop("_texts", None)
        hashes = [corpus.content_hash for corpus in corpora]
        fingerprint = run_fingerprint(config, hashes)
        names = [corpus.name for corpus in corpora]
        context = {"corpora": names, "corpus_hashes": hashes, "fingerprint": fingerprint}
        record = {"config": config.to_dict(), "context": context, "error": error}
        write_json(self._failure_path(fingerprint), record, indent=None)

    def find_failure(self, config: RunConfig, corpus_hashes: list[str]) -> str | None:
        """The recorded error of this configuration on these texts, or None."""
        path = self._failure_path(run_fingerprint(config, corpus_hashes))
        if not path.is_file():
            return None
        with _format_of(path):
            return str(read_json(path)["error"])

    def find_failure_elsewhere(self, config: RunConfig) -> str | None:
        """The recorded error of this configuration on texts that are not at hand here, or None."""
        errors = (self.find_failure(config, list(hashes)) for hashes in self._texts)
        return next((error for error in errors if error is not None), None)

    def find_run_elsewhere(self, config: RunConfig) -> Run | None:
        """A recorded run of this configuration on texts that are not at hand here, or None.

        The record's own fingerprint must follow from the configuration, the hashes it names and the present version.
        """
        for hashes in self._texts:
            path = self._run_path(run_fingerprint(config, list(hashes)))
            if path.is_file() and (run := _read_run(path)).config == config:
                return run
        return None

    @cached_property
    def _texts(self) -> tuple[tuple[str, ...], ...]:
        """The corpus hashes that the records name: many records, few texts, and read once."""
        found = set()
        for path in sorted([*self.folder.glob("runs/*.json"), *self.folder.glob("failures/*.json")]):
            with _format_of(path):
                found.add(tuple(read_json(path)["context"]["corpus_hashes"]))
        return tuple(sorted(found))

    def measurement_path(self, name: str, parameters: dict[str, Any]) -> Path:
        """The file of a measurement, there or not."""
        return self.folder / "measurements" / f"{safe_name(name)}-{measurement_fingerprint(name, parameters)}.json"

    def measure(
        self, name: str, parameters: dict[str, Any], compute: Callable[[], Any], refresh: bool = False
    ) -> tuple[Any, bool]:
        """The recorded value of a measurement, or a new one; also says whether it came from the record.

        `compute` returns JSON values. `parameters` must hold everything the value depends on.
        """
        path = self.measurement_path(name, parameters)
        if path.is_file() and not refresh:
            with _format_of(path):
                return read_json(path)["value"], True
        value = compute()
        write_json(path, {"name": name, "parameters": parameters, "version": RESULTS_VERSION, "value": value})
        return value, False
