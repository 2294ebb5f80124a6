"""What each tracker needs: Trackio, Weights & Biases and TensorBoard behind one small interface, without an account."""

import contextlib
import io
import json
import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

PROJECT = "picollm"
START_TIMEOUT, END_TIMEOUT = 30.0, 60.0
"""Longest waits, in seconds, for an account's server when a run begins and when it ends."""


@dataclass(frozen=True)
class Watched:
    """The run that a tracker shows: where it lives, what it is called, what was asked.

    `identity` stays the same when the run is resumed; `resume` says that it is.
    """

    directory: Path
    name: str
    config: Mapping[str, Any]
    identity: str
    resume: bool


class Backend(ABC):
    """One tracker's side of a run. `rewinds` is True where rows that come a second time replace the earlier ones."""

    rewinds = False

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record the values of one update; steps increase."""

    @abstractmethod
    def close(self, final: Mapping[str, Any], step: int, failed: bool) -> None:
        """Record the final figures, if there are any, as of `step`, and let go of files, threads and processes."""


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are numbers, True and False left out."""
    return {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}


class TensorBoardBackend(Backend):
    """Event files in the run's own folder, which `tensorboard --logdir` shows."""

    rewinds = True

    def __init__(self, watched: Watched) -> None:
        import torch.utils.tensorboard  # fails here, before training, when a part of it is missing

        self._module = torch.utils.tensorboard
        self._watched = watched
        self._folder = watched.directory / "tensorboard"
        self._writer: Any = None
        if not watched.resume:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self._writer is None:  # what an interrupted attempt wrote from this step on is dropped by every reader
            self._writer = self._module.SummaryWriter(str(self._folder), purge_step=step)
            text = json.dumps(dict(self._watched.config), indent=1, default=str)
            self._writer.add_text("config", f"```json\n{text}\n```", step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, final: Mapping[str, Any], step: int, failed: bool) -> None:
        if self._writer is None:
            return
        for name, value in numbers(final).items():
            self._writer.add_scalar(f"final/{name}", value, step)
        self._writer.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what a package prints to itself: a notebook and a progress bar have no room for it."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


class TrackioBackend(Backend):
    """Trackio's local database, in TRACKIO_DIR or its own folder in the cache; `trackio show` draws it.

    Nothing is served or sent unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL asks for it.
    """

    def __init__(self, watched: Watched) -> None:
        import trackio

        self._trackio = trackio
        with _quiet():
            self._run = trackio.init(
                project=PROJECT,
                name=f"{watched.name}-{watched.identity}",  # Trackio finds a run to resume by its name
                config=dict(watched.config),
                resume="allow" if watched.resume else "never",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self, final: Mapping[str, Any], step: int, failed: bool) -> None:
        with _quiet():
            if figures := numbers(final):
                self._run.log({f"final/{name}": value for name, value in figures.items()}, step=step)
            self._run.finish()
            if self._trackio.context_vars.current_run.get() is self._run:
                self._trackio.finish()  # else the package closes it a second time at exit, and prints


def _one_line(error: BaseException) -> str:
    """An error as one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__).split(" Consider increasing")[0][:200]


class WandbBackend(Backend):
    """Weights & Biases; without an account, or when its server does not answer, offline in the run's own folder.

    Neither code, git remote, machine, console nor command line is recorded: they may hold what is nobody's business.
    """

    def __init__(self, watched: Watched) -> None:
        import wandb

        self._wandb, self._watched = wandb, watched
        mode = os.environ.get("WANDB_MODE") or self._default_mode()
        try:
            self._run = self._start(mode)
        except (wandb.Error, TimeoutError, OSError) as error:
            if mode == "offline":
                raise
            logger.warning("wandb cannot go online (%s); it writes offline, %s", _one_line(error), self._advice())
            wandb.teardown()  # its service holds on to the run that it could not start
            self._run = self._start("offline")

    def _advice(self) -> str:
        return f"`wandb sync {self._watched.directory / 'wandb' / 'offline-*'}` uploads it later"

    def _default_mode(self) -> str:
        """Online with an account; else offline, said in one line."""
        try:
            with _quiet():
                logged_in = self._wandb.login(prompt=False, verify=False)
            if logged_in:
                return "online"
            reason = "wandb has no account here"
        except self._wandb.Error as error:  # a key that cannot be one
            reason = f"wandb cannot log in ({_one_line(error)})"
        logger.warning("%s; it writes offline, %s", reason, self._advice())
        return "offline"

    def _start(self, mode: str) -> Any:
        watched = self._watched
        settings = self._wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            init_timeout=START_TIMEOUT,
            finish_timeout=END_TIMEOUT,
        )
        return self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            dir=str(watched.directory),
            id=watched.identity,
            name=watched.name,
            config=dict(watched.config),
            mode=mode,  # type: ignore[arg-type]  # WANDB_MODE may be wrong; wandb says so
            resume="allow" if watched.resume and mode == "online" else None,
            reinit="create_new",  # leaves a run that the user has open alone
            settings=settings,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step, commit=True)

    def close(self, final: Mapping[str, Any], step: int, failed: bool) -> None:
        for name, value in final.items():
            if isinstance(value, str | int | float | bool):
                self._run.summary[name] = value
        self._run.finish(exit_code=int(failed))


BACKENDS: dict[str, tuple[Callable[[Watched], Backend], tuple[str, ...]]] = {
    "trackio": (TrackioBackend, ("trackio",)),
    "wandb": (WandbBackend, ("wandb",)),
    "tensorboard": (TensorBoardBackend, ("tensorboard",)),
}
"""Each tracker with the packages that it needs."""
