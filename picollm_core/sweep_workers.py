"""What one worker of a sweep does: train one configuration as if in the sweep's own process, and say how it ended."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from picollm_core.config import RunConfig
from picollm_core.corpora import Corpus
from picollm_core.runs import RunIsBeingWritten
from picollm_core.train import train_on

VARIABLES = ("PICOLLM_", "TIKTOKEN_")
"""Beginnings of the environment variables that decide which texts and vocabularies a run finds."""
LOOK_EVERY = 0.5  # seconds between a worker's looks at whether its sweep still lives
_GENERATOR = threading.Lock()  # torch's random generator belongs to the process, so threads train in turn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """The process that a sweep was asked in: its number, its folder, and the variables that runs depend on."""

    process: int
    folder: str
    variables: tuple[tuple[str, str], ...]

    @classmethod
    def here(cls) -> "Place":
        """Of this process, now."""
        chosen = sorted((name, value) for name, value in os.environ.items() if name.startswith(VARIABLES))
        return cls(os.getpid(), os.getcwd(), tuple(chosen))

    def enter(self) -> None:
        """Make a worker, which may be older than the sweep, work where it was asked. ValueError without the folder."""
        if os.getpid() == self.process:
            return
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise ValueError(
                f"the worker cannot work in {self.folder} ({error.strerror}); "
                "the machines of a cluster must share the sweep's folder under the same path"
            ) from error
        for name in [name for name in os.environ if name.startswith(VARIABLES)]:
            del os.environ[name]
        os.environ.update(self.variables)


@dataclass(frozen=True)
class Task:
    """One run to train: its place in the sweep's list, and everything that a worker needs."""

    position: int
    config: RunConfig
    corpora: tuple[Corpus, ...]
    runs_dir: str
    refresh: bool
    place: Place


@dataclass(frozen=True)
class Outcome:
    """How a task ended: with a run in `directory`, with an error of a `kind` (its class), or not, as another process
    is `busy` with the same run."""

    position: int
    directory: str = ""
    kind: str = ""
    error: str = ""
    busy: bool = False


@contextmanager
def _ending_with(process: int) -> Iterator[None]:
    """End this process when its parent, the sweep's process, is gone: nobody would look at what it makes.

    The checkpoint and the run's folder are as good as after any other stop, so the same sweep goes on from there.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_EVERY):
            if os.getppid() != process:
                os._exit(1)

    threading.Thread(target=watch, name="ends-with-the-sweep", daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextmanager
def _settled(place: Place) -> Iterator[None]:
    """Inside, this process is a good worker: one thread of arithmetic, deaf to Ctrl-C, which its parent hears."""
    place.enter()
    if os.getppid() != place.process:  # the sweep's own process, or a worker that somebody else looks after
        yield
        return
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own would be a semaphore, left behind by a killed worker
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _ending_with(place.process):
        yield


def train_task(task: Task) -> Outcome:
    """Train one run of a sweep. Never raises an Exception: what goes wrong is in the outcome."""
    try:
        with _GENERATOR, _settled(task.place):
            run = train_on(
                task.corpora, task.config, refresh=task.refresh, progress=False, runs_dir=Path(task.runs_dir)
            )
    except RunIsBeingWritten as error:
        return Outcome(task.position, error=str(error), busy=True)
    except Exception as error:  # the sweep reports it with its configuration; the other runs go on
        logger.debug("run %d of the sweep failed", task.position, exc_info=True)
        return Outcome(task.position, kind=type(error).__name__, error=str(error))
    return Outcome(task.position, directory=str(run.directory))
