"""Sweeps: a list of configurations, trained in parallel, each run once however often the sweep is started.

A sweep keeps nothing of its own. A run that has ended is found in its folder, one that was interrupted goes on from its
checkpoint, and a run that another process is writing is looked at again later. So the same call goes on after a crash,
and two of them share the work.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from picollm_core.config import DataConfig, RunConfig, require
from picollm_core.corpora import Corpus
from picollm_core.presets import run_config
from picollm_core.runs import RUNS_DIR, Run, hyperparameters, is_complete, load_run, run_directory, run_fingerprint
from picollm_core.sweep_pools import Pool, WorkerLost, open_pool
from picollm_core.sweep_workers import Outcome, Place, Task, train_task
from picollm_core.token_store import token_store
from picollm_core.tokenizers import load_tokenizer
from picollm_core.train import load_data
from picollm_core.trainer import TrainingDiverged

if TYPE_CHECKING:
    import pandas as pd

PATIENCE = 1_800.0
"""Seconds for which a run that another process holds may show no sign of life."""
LOOK_AGAIN = 0.5  # seconds before runs that others hold are asked for again
DIVERGED = TrainingDiverged.__name__

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A run that ended without a result: its configuration, the error's text, and the error's class by name."""

    config: RunConfig
    error: str
    kind: str = "ValueError"

    @property
    def diverged(self) -> bool:
        """Whether training the same configuration again would end in the same way."""
        return self.kind == DIVERGED

    def describe(self) -> str:
        """One line: model, corpus, width, rate, seed, error."""
        corpora, train = "+".join(self.config.data.corpus), self.config.train
        rate = f"learning rate {train.learning_rate:g}, seed {train.seed}"
        model = f"{self.config.model.family} on {corpora}, width {self.config.model.n_embd}"
        return f"{model}, {rate}: {self.kind}: {self.error}"


def run_row(run: Run) -> dict[str, str | float | None]:
    """A run as one flat row: its fingerprint, hyperparameters, and every single number or word of its summary."""
    single = {name: value for name, value in run.summary.items() if isinstance(value, Number | str)}
    return {"fingerprint": run.fingerprint} | hyperparameters(run.config) | single


@dataclass(frozen=True, repr=False)
class Sweep:
    """What a sweep came to: the finished runs in the order asked for, and the runs that failed."""

    runs: tuple[Run, ...]
    failed: tuple[Failure, ...] = ()

    def __repr__(self) -> str:
        return f"{len(self.runs)} runs, {len(self.failed)} failed"

    def table(self) -> "pd.DataFrame":
        """One row a finished run: `fingerprint`, hyperparameters, and the single values of its summary."""
        import pandas as pd  # slow to import, and not needed to train

        return pd.DataFrame([run_row(run) for run in self.runs])

    def complete(self) -> tuple[Run, ...]:
        """The runs, when none failed. Raises TrainingDiverged or ValueError with the first failure."""
        if self.failed:
            first = self.failed[0]
            more = f" (and {len(self.failed) - 1} more)" if len(self.failed) > 1 else ""
            raise (TrainingDiverged if first.diverged else ValueError)(first.describe() + more)
        return self.runs


def check_configs(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """The configurations, settings that were left out filled in. Raises ValueError for no list of them, an empty one,
    and two that are one run, whose positions (from 0) it names."""
    require(
        isinstance(configs, Sequence) and not isinstance(configs, str),
        f"a sweep takes a list of RunConfig and got {type(configs).__name__}; run_config(model, ...) makes one",
    )
    require(len(configs) > 0, "the list of configurations is empty; a sweep needs at least one")
    for position, config in enumerate(configs):
        require(
            isinstance(config, RunConfig),
            f"configuration {position} is {config!r}; it must be a RunConfig, such as run_config(model, ...) makes",
        )
    filled = [run_config(config) for config in configs]
    first: dict[RunConfig, int] = {}
    for position, config in enumerate(filled):
        earlier = first.setdefault(config, position)
        require(earlier == position, f"configurations {earlier} and {position} are the same run; leave one out")
    return filled


@dataclass
class Texts:
    """The corpora of a sweep: each is opened once and tokenised once, before workers could do so side by side."""

    opened: dict[DataConfig, list[Corpus]] = field(default_factory=dict)
    tokenised: set[DataConfig] = field(default_factory=set)
    told: set[str] = field(default_factory=set)

    def open(self, data: DataConfig) -> list[Corpus]:
        """The corpora of a configuration. Raises ValueError or OSError when one cannot be read."""
        if data not in self.opened:
            self.opened[data] = load_data(data)
        return self.opened[data]

    def tell(self, data: DataConfig) -> None:
        """Log what a user should know of the corpora, once."""
        for note in {corpus.note for corpus in self.open(data) if corpus.note} - self.told:
            self.told.add(note)
            logger.warning(note)

    def tokenise(self, data: DataConfig) -> None:
        """Leave the tokens of every corpus that is drawn from in the cache, where workers find them."""
        if data not in self.tokenised:
            for corpus, weight in zip(self.open(data), data.weights, strict=True):
                if weight > 0:
                    token_store(corpus, "train", load_tokenizer(data.tokenizer))
            self.tokenised.add(data)


def _failure(config: RunConfig, error: Exception) -> Failure:
    return Failure(config, str(error), type(error).__name__)


def _prepared(
    configs: Sequence[RunConfig], texts: Texts, runs_dir: Path, refresh: bool
) -> Iterator[Run | Failure | Task]:
    """For each configuration its finished run, the reason why it cannot be trained, or the task of training it."""
    place = Place.here()
    for position, config in enumerate(configs):
        try:
            corpora = texts.open(config.data)
            fingerprint = run_fingerprint(config, [corpus.content_hash for corpus in corpora])
            directory = run_directory(config, fingerprint, runs_dir)
            if is_complete(directory) and not refresh:
                yield load_run(directory)
                continue
            texts.tell(config.data)
            texts.tokenise(config.data)
        except (ValueError, OSError) as error:
            yield _failure(config, error)
            continue
        yield Task(position, config, tuple(corpora), str(runs_dir.resolve()), refresh, place)


def _last_sign(task: Task) -> float:
    """When something was last written in the folder of a run that another process holds; 0 when nothing was."""
    hashes = [corpus.content_hash for corpus in task.corpora]
    directory = run_directory(task.config, run_fingerprint(task.config, hashes), task.runs_dir)
    files = [path for path in directory.glob("*") if path.name != ".lock"]  # asking for the lock touches its file
    return max((path.stat().st_mtime for path in files if path.exists()), default=0.0)


def _survivors(pool: Pool, tasks: Sequence[Task]) -> Iterator[Outcome]:
    """The outcomes of tasks, also when a worker's process ends in the middle of one.

    Those that were under way then go on alone, one after another; one that ends its worker again has failed.
    """
    waiting = {task.position: task for task in tasks}
    suspects: list[Task] = []
    while waiting:
        begun: list[Task] = []

        def asked_for(chosen: list[Task], begun: list[Task] = begun) -> Iterator[Task]:
            for task in chosen:
                begun.append(task)
                yield task

        try:
            for outcome in pool.map(train_task, asked_for(suspects or list(waiting.values())), bool(suspects)):
                del waiting[outcome.position]
                yield outcome
        except WorkerLost as error:
            if suspects:
                culprit = next(task.position for task in suspects if task.position in waiting)
                del waiting[culprit]
                yield Outcome(culprit, kind=type(error).__name__, error=str(error))
            suspects = [task for task in suspects or begun if task.position in waiting]
        else:
            suspects = []


def _outcomes(pool: Pool, tasks: Sequence[Task], patience: float) -> Iterator[Outcome]:
    """How every task ended. Runs that other processes hold are asked for again after all others, until they end, or
    show no sign of life for `patience` seconds."""
    waiting, since = {task.position: task for task in tasks}, time.time()
    while waiting:
        ended = 0
        for outcome in _survivors(pool, list(waiting.values())):
            if outcome.busy:
                if time.time() - max(since, _last_sign(waiting[outcome.position])) < patience:
                    continue
                text = f"{outcome.error} (nothing was written there for {patience:g} s; is that process stuck?)"
                outcome = Outcome(outcome.position, kind="RunIsBeingWritten", error=text)
            ended += 1
            del waiting[outcome.position]
            yield outcome
        if waiting and not ended:
            time.sleep(LOOK_AGAIN)


def _ended(task: Task, outcome: Outcome) -> Run | Failure:
    if outcome.kind:
        return Failure(task.config, outcome.error, outcome.kind)
    try:
        return load_run(outcome.directory)
    except ValueError as error:  # such as a cluster whose folders are not those of this machine
        return _failure(task.config, error)


def sweep(
    configs: Sequence[RunConfig],
    *,
    n_jobs: int | None = None,
    backend: str | None = None,
    cluster: str | None = None,
    runs_dir: str | Path = RUNS_DIR,
    progress: bool = True,
    refresh: bool = False,
    patience: float = PATIENCE,
    texts: Texts | None = None,
) -> Sweep:
    """Train every configuration, in parallel, and return the finished runs in the order asked for.

    A run that has ended is not trained again (unless `refresh`), an interrupted one goes on from its checkpoint; both
    make the same call go on after Ctrl-C or a crash. `n_jobs` processes (one a core when left out) train with one
    thread each; `n_jobs=1` trains in this process with the threads that it has. A surrounding `joblib.parallel_config`,
    `backend` (a name that joblib knows) or `cluster` (the address of a Dask scheduler whose machines share this folder)
    trains elsewhere. `texts` holds corpora that are open already.

    A run that fails is in `Sweep.failed` with its error, and the others go on. A run that another process is writing is
    waited for, up to `patience` seconds without a sign of life. KeyboardInterrupt stops the workers of this machine.
    Raises ValueError for an empty list, duplicates, anything but RunConfig, and workers that cannot be reached.
    """
    configs, runs_dir = check_configs(configs), Path(runs_dir)
    prepared = dict(enumerate(_prepared(configs, texts or Texts(), runs_dir, refresh)))
    tasks = {position: item for position, item in prepared.items() if isinstance(item, Task)}
    results = {position: item for position, item in prepared.items() if not isinstance(item, Task)}
    failed = sum(isinstance(result, Failure) for result in results.values())
    if tasks:
        shown = {"total": len(configs), "initial": len(results), "desc": "sweep", "unit": "run"}
        with open_pool(n_jobs, backend, cluster, len(tasks)) as pool, tqdm(**shown, disable=not progress) as bar:
            for outcome in _outcomes(pool, list(tasks.values()), patience):
                result = results[outcome.position] = _ended(tasks[outcome.position], outcome)
                failed += isinstance(result, Failure)
                bar.set_postfix({"failed": failed} if failed else {}, refresh=False)
                bar.update()
    ordered = [results[position] for position in range(len(configs))]
    runs = tuple(result for result in ordered if isinstance(result, Run))
    return Sweep(runs, tuple(result for result in ordered if isinstance(result, Failure)))
