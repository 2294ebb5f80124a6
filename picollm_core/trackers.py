"""Watching a run while it trains: its history goes to any of three trackers, and none of them can cost the run."""

import importlib.util
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from picollm_core.config import require
from picollm_core.tracker_backends import BACKENDS, Backend, Watched

logger = logging.getLogger(__name__)

TRACKERS = tuple(BACKENDS)


class _Place:
    """Which of a tracker's runs this one is, and the last step handed over; kept in the run's folder.

    The file is rewritten in place at every step, which costs microseconds and survives a killed process.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.identity, self.step, self.resumed = secrets.token_hex(4), 0, False
        if resume and path.is_file():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
                self.identity, self.step, self.resumed = str(stored["id"]), int(stored["step"]), True
            except (ValueError, KeyError, TypeError):
                logger.warning("%s is unreadable; the tracker begins a new run", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=0)
        self.advance(self.step)

    def advance(self, step: int) -> None:
        self.step = step
        self._file.seek(0)
        self._file.write(json.dumps({"id": self.identity, "step": step}).ljust(60).encode())

    def close(self) -> None:
        self._file.close()


class Tracker:
    """A run's trackers, none or several. A context manager: leaving it by an exception marks the run as failed.

    A tracker that raises is told once, by a warning of this module's logger, and left out from then on.
    """

    def __init__(self, backends: Mapping[str, tuple[Backend, _Place]]) -> None:
        self._backends = dict(backends)

    def log(self, row: Mapping[str, float | None], step: int) -> None:
        """Record one row of the history at update `step`. Absent values are left out.

        After a resumption, a step that a tracker has already is not recorded a second time.
        """
        values = {name: value for name, value in row.items() if value is not None and name != "step"}
        for kind, (backend, place) in list(self._backends.items()):
            if step <= place.step and not backend.rewinds:
                continue
            try:
                backend.log(values, step)
                place.advance(step)
            except Exception as error:  # noqa: BLE001  (whatever a tracker does, the training goes on)
                self._drop(kind, error)

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Record the final figures and close every tracker; a second call does nothing."""
        self._close(summary or {}, failed=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close({}, failed=kind is not None)

    def _drop(self, kind: str, error: Exception) -> None:
        reason = " ".join(str(error).split())[:200]
        logger.warning("tracker %r stopped (%s: %s); the run goes on without it", kind, type(error).__name__, reason)
        self._backends.pop(kind)[1].close()

    def _close(self, summary: Mapping[str, Any], failed: bool) -> None:
        for kind, (backend, place) in list(self._backends.items()):
            try:
                backend.close(summary, place.step, failed)
            except Exception as error:  # noqa: BLE001  (as in log)
                self._drop(kind, error)
            else:
                place.close()
        self._backends.clear()


def check_trackers(kinds: Sequence[str]) -> tuple[str, ...]:
    """The trackers named, each once, if all can be used. ValueError for a name unknown or a package not installed."""
    require(not isinstance(kinds, str), f"trackers are named in a tuple, such as ({kinds!r},)")
    for kind in kinds:
        require(kind in BACKENDS, f"no tracker is called {kind!r}; choose from {', '.join(TRACKERS)}")
        for package in BACKENDS[kind][1]:
            found = importlib.util.find_spec(package) is not None
            require(found, f"tracker {kind!r} is not installed; pip install 'picollm[track]'")
    return tuple(dict.fromkeys(kinds))


def open_tracker(
    kinds: Sequence[str], directory: Path, name: str, config: dict[str, Any], resume: bool = False
) -> Tracker:
    """Start the trackers named in `kinds`, any of TRACKERS, for the run in `directory`; none of them for `()`.

    `name` is what the run is called there, `config` its settings as JSON values. With `resume`, each goes on with the
    run it showed before. Nothing needs an account: Trackio keeps its local database, TensorBoard writes event files
    to `directory`/tensorboard, wandb writes offline to `directory`/wandb unless it is logged in. Raises ValueError
    when a tracker is unknown, not installed, or cannot start.
    """
    backends: dict[str, tuple[Backend, _Place]] = {}
    for kind in check_trackers(kinds):
        place = _Place(directory / "trackers" / f"{kind}.json", resume)
        watched = Watched(directory, name, config, place.identity, place.resumed)
        try:
            backends[kind] = (BACKENDS[kind][0](watched), place)
        except Exception as error:
            place.close()
            Tracker(backends).__exit__(type(error), error, None)
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(f"tracker {kind!r} could not start: {reason}") from error
    return Tracker(backends)
