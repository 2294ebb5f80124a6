"""Training runs on disk: one directory each, one writer at a time, a table over all of them."""

import json
import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tiktoken
from filelock import FileLock, Timeout

from picollm_core.config import RunConfig
from picollm_core.models import LanguageModel
from picollm_core.tokenizers import load_tokenizer, tokenizer_hash

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

RUNS_DIR = Path("artefacts/runs")
CHECKPOINT_FILE, HISTORY_FILE, CONFIG_FILE, SUMMARY_FILE = (
    "checkpoint.safetensors",
    "history.jsonl",
    "run.json",
    "summary.json",
)
MODEL_DIR = "model"


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write `value` as JSON, atomically: readers see the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=indent) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError naming it when it is unreadable."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error


def safe_name(name: str) -> str:
    """`name` with everything but letters, digits, dot, dash and underscore replaced, never hidden, never empty."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100].rstrip(".-") or "run"


def hyperparameters(config: RunConfig) -> dict[str, Any]:
    """The configuration as one flat row: family and all fields of model, data and training."""
    parts = config.to_dict()
    flat = parts["model"] | parts["data"] | parts["train"]
    return {name: "+".join(map(str, v)) if isinstance(v, list) else v for name, v in flat.items()}


def thin_history(history: "pd.DataFrame", points: int = 60) -> "pd.DataFrame":
    """About `points` rows of a history, and every row with an evaluation; thinning again changes nothing.

    A row that stays has the mean training loss of itself and the rows dropped before it, so the noise is thinned too.
    """
    if len(history) <= 3 * points:
        return history
    keep = history["val_loss"].notna()
    keep.iloc[:: max(1, len(history) // points)] = True
    keep.iloc[-1:] = True
    group = keep.shift(fill_value=False).cumsum()  # rows up to and including one that stays
    means = history.groupby(group)["loss"].mean()
    return history[keep].assign(loss=means.to_numpy())


@dataclass(frozen=True)
class Run:
    """A run that has ended: what was asked, what was measured, and, where they are on disk, the weights.

    `history` has one row an update with loss in nats per token, `summary` the final figures, `samples` the texts by
    sampler. `directory` is None for a run known only from its committed record.
    """

    config: RunConfig
    context: dict[str, Any]
    summary: dict[str, Any]
    samples: dict[str, str]
    history: "pd.DataFrame"
    directory: Path | None = None

    @property
    def family(self) -> str:
        return self.config.model.family

    @property
    def fingerprint(self) -> str:
        return self.context["fingerprint"]

    def load_model(self) -> LanguageModel:
        """The trained model in evaluation mode; ValueError when only the record of the run is at hand."""
        if self.directory is None:
            raise ValueError(
                f"run {self.fingerprint} is known from its record alone, without weights; "
                "train it anew with train(config, refresh=True)"
            )
        return LanguageModel.from_pretrained(self.directory / MODEL_DIR)

    def load_tokenizer(self) -> tiktoken.Encoding:
        """The tokenizer the run was trained with."""
        return load_tokenizer(self.config.data.tokenizer)

    def to_record(self, points: int = 60) -> dict[str, Any]:
        """JSON values of everything but the weights, the history thinned to about `points` rows plus evaluations."""
        rows = thin_history(self.history, points)
        columns = [c for c in rows.columns if c in HISTORY_COLUMNS]
        digits = {"step": 15, "tokens": 15}  # counts stay exact
        return {
            "config": self.config.to_dict(),
            "context": self.context,
            "summary": {k: [round(x, 4) for x in v] if k == "per_position" else v for k, v in self.summary.items()},
            "samples": self.samples,
            "history": {
                c: [None if math.isnan(v) else float(f"{v:.{digits.get(c, 6)}g}") for v in rows[c]] for c in columns
            },
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Run":
        """Inverse of to_record, up to the thinned history."""
        import pandas as pd

        config = RunConfig.from_dict(record["config"])
        history = _with_hyperparameters(pd.DataFrame(record["history"], dtype=float), config)
        return cls(config, record["context"], record["summary"], record["samples"], history)


HISTORY_COLUMNS = (
    "step", "epoch", "tokens", "seconds", "loss", "val_loss", "perplexity", "bits_per_byte", "token_accuracy",
    "learning_rate", "grad_norm", "grad_norm_clipped", "max_gradient", "weight_norm", "tokens_per_second", "memory_mb",
)  # fmt: skip


def _with_hyperparameters(history: "pd.DataFrame", config: RunConfig) -> "pd.DataFrame":
    """The history with the run's settings in every row; "learning_rate" stays what each update used."""
    flat = hyperparameters(config)
    settings = {name: value for name, value in flat.items() if name not in HISTORY_COLUMNS}
    return history.assign(peak_learning_rate=flat["learning_rate"], **settings)


def run_fingerprint(config: RunConfig, corpus_hashes: list[str]) -> str:
    """What names a run: its configuration, its texts, what its tokenizer does, and the version of the results."""
    tokenizer = tokenizer_hash(load_tokenizer(config.data.tokenizer))
    return config.fingerprint(corpora=corpus_hashes, tokenizer=tokenizer)


def run_directory(config: RunConfig, fingerprint: str, runs_dir: Path | str = RUNS_DIR) -> Path:
    """Where the run of this configuration lives."""
    return Path(runs_dir) / safe_name(f"{config.model.family}-{fingerprint}")


class RunIsBeingWritten(ValueError):
    """Another process holds the right to write this run."""


@contextmanager
def writer_lock(directory: Path) -> Iterator[None]:
    """Hold the right to write a run directory; RunIsBeingWritten, a ValueError, at once when another process does."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunIsBeingWritten(
            f"another process is writing {directory}; wait for it to end, or change the configuration"
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_complete(directory: Path) -> bool:
    """True when the directory holds a run that ended: the summary is the last file that training writes."""
    return (directory / SUMMARY_FILE).is_file()


def load_run(directory: Path | str) -> Run:
    """Read a finished run. ValueError when the folder is not one, or its run has not ended."""
    directory = Path(directory)
    if not (directory / CONFIG_FILE).is_file():
        raise ValueError(f"{directory} is not a run: it has no {CONFIG_FILE}")
    if not is_complete(directory):
        raise ValueError(f"the run in {directory} has not ended; train the same configuration again to go on with it")
    stored, ended = read_json(directory / CONFIG_FILE), read_json(directory / SUMMARY_FILE)
    try:
        config = RunConfig.from_dict(stored["config"])
        context, summary, samples = stored["context"], ended["summary"], ended["samples"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{directory} was not written by this package, or by another version: {error}") from error
    history = _with_hyperparameters(read_history(directory / HISTORY_FILE), config)
    return Run(config, context, summary, samples, history, directory)


def read_history(path: Path, last_step: int | None = None) -> "pd.DataFrame":
    """The history file as a table, up to `last_step`; a half-written last line is left out."""
    import pandas as pd  # slow to import, and not needed to train

    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    table = pd.DataFrame(rows, columns=list(HISTORY_COLUMNS), dtype=float)
    return table if last_step is None else table[table["step"] <= last_step]


def run_table(runs_dir: Path | str = RUNS_DIR) -> "pd.DataFrame":
    """One row a finished run under `runs_dir`: hyperparameters, final figures, directory. Empty without runs."""
    import pandas as pd  # slow to import, and needed only here

    rows = []
    for directory in sorted(Path(runs_dir).glob("*")):
        if (directory / CONFIG_FILE).is_file() and is_complete(directory):
            try:
                run = load_run(directory)
            except ValueError as error:  # a run of another version is no reason to hide the others
                logger.warning("left out: %s", error)
                continue
            rows.append({"run": directory.name} | hyperparameters(run.config) | run.summary)
    return pd.DataFrame(rows)
