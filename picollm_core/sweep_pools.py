"""Where a sweep's runs are trained: this process, processes of this machine, or a Dask cluster, all through joblib."""

import asyncio
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError
from joblib.parallel import LokyBackend, get_active_backend

from picollm_core.config import require
from picollm_core.token_store import available_cores

ANSWER_SECONDS = 5
"""How long a Dask cluster may take to answer, and then to name a worker."""
NO_NEWS = (
    "A worker stopped while some jobs were given to the executor",  # it waited long, or grew large; another comes
    r"\d+ tasks (have been successfully executed|which were still being processed)",  # whoever read stopped reading
)
"""How joblib's warnings begin that tell a sweep's user nothing. A worker lost in the middle of a run is an error."""
WITH_DASK = "pip install 'picollm[cluster]'"

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class WorkerLost(RuntimeError):
    """A worker's process ended in the middle of a run: it was killed, or the machine had no memory left."""


@dataclass(frozen=True)
class Pool:
    """How many workers there are, and whether they are processes of this machine; one of those is this process."""

    jobs: int
    processes: bool

    def map(
        self, work: Callable[[Asked], Answer], items: Iterable[Asked], one_at_a_time: bool = False
    ) -> Iterator[Answer]:
        """work(item) for every item, in the order in which they end. Raises WorkerLost when a worker's process ends.

        Whoever stops reading, as Ctrl-C does, stops the work: nothing is left running on this machine.
        """
        if self.jobs == 1 and self.processes:
            yield from map(work, items)
            return
        backend, _ = get_active_backend()
        unordered = getattr(backend, "supports_return_generator", False)
        parallel = joblib.Parallel(
            n_jobs=max(2, self.jobs) if self.processes else self.jobs,
            batch_size=1,
            pre_dispatch=1 if one_at_a_time else "n_jobs",
            return_as="generator_unordered" if unordered else "list",
        )
        ended = False
        try:
            yield from parallel(joblib.delayed(work)(item) for item in items)
            ended = True
        except Exception as error:
            dasks = type(error).__name__ == "KilledWorker"
            if dasks or isinstance(error, TerminatedWorkerError):
                raise WorkerLost("a worker's process ended in the middle of it: killed, or out of memory") from error
            raise
        finally:
            if not ended and self.processes:
                get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _own_jobs(n_jobs: int | None, runs: int) -> int:
    """How many processes of this machine: as asked, -1 and None for its cores, and never more than there are runs."""
    whole = isinstance(n_jobs, int) and not isinstance(n_jobs, bool)
    require(
        n_jobs is None or (whole and (n_jobs == -1 or n_jobs >= 1)),
        f"n_jobs is {n_jobs!r}; give the number of processes, or leave it out for one a core",
    )
    cores = min(available_cores(), joblib.cpu_count())  # the second knows a container's share and LOKY_MAX_CPU_COUNT
    return min(cores if n_jobs in (None, -1) else n_jobs, runs)


async def _identity(address: str) -> None:
    from distributed.core import rpc

    async with rpc(address, timeout=ANSWER_SECONDS) as scheduler:
        await scheduler.identity()


def _require_answer(address: str) -> None:
    """Raise ValueError unless a Dask scheduler answers at `address`.

    distributed's own client waits without end for a port that is open and silent. The question has a thread of its own,
    as a notebook's has an event loop already.
    """
    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: asyncio.run(asyncio.wait_for(_identity(address), ANSWER_SECONDS))).result()
    except Exception as error:
        raise ValueError(
            f"no Dask scheduler answers at {address!r} ({type(error).__name__} within {ANSWER_SECONDS} s); start one "
            "with `dask scheduler` and give the address that it prints, such as tcp://192.168.0.7:8786"
        ) from error


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """A client of the Dask scheduler at `address`. Raises ValueError when dask is missing or nothing answers."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError(f"a sweep on a cluster needs dask and distributed: {WITH_DASK}") from error
    _require_answer(address)
    with Client(address, timeout=ANSWER_SECONDS, set_as_default=False) as client:
        yield client


@contextmanager
def open_pool(n_jobs: int | None, backend: str | None, cluster: str | None, runs: int) -> Iterator[Pool]:
    """The workers for a number of runs: `cluster`, else `backend`, else what a surrounding joblib context says.

    Without any of them, processes of this machine with one thread each. Raises ValueError for settings that cannot be,
    a backend that joblib does not know, a cluster that does not answer or has no worker.
    """
    require(cluster is None or backend in (None, "dask"), f"cluster={cluster!r} needs backend 'dask', not {backend!r}")
    jobs = _own_jobs(n_jobs, runs)
    with ExitStack() as stack:
        settings: dict[str, Any] = {}
        if cluster is not None:
            backend, settings["client"] = "dask", stack.enter_context(_client(cluster))
        if backend == "dask":
            settings["wait_for_workers_timeout"] = ANSWER_SECONDS
        if backend is not None and backend != "loky":
            stack.enter_context(_backend(backend, settings))
        active, around = get_active_backend()
        if isinstance(active, LokyBackend) or backend == "loky":
            jobs = min(around, runs) if n_jobs is None and around is not None and around > 0 else jobs
            stack.enter_context(joblib.parallel_config(backend="loky", inner_max_num_threads=1))
            stack.enter_context(warnings.catch_warnings())
            for beginning in NO_NEWS:
                warnings.filterwarnings("ignore", beginning, UserWarning)
            yield Pool(jobs, processes=True)
            return
        wanted = n_jobs if n_jobs is not None else around
        try:
            workers = active.effective_n_jobs(-1 if wanted is None else wanted)
        except TimeoutError as error:
            raise ValueError(
                f"the Dask cluster has no worker after {ANSWER_SECONDS} s; start some with `dask worker ADDRESS`"
            ) from error
        yield Pool(workers, processes=False)


@contextmanager
def _backend(name: str, settings: dict[str, Any]) -> Iterator[None]:
    """joblib's backend of this name, active inside. Raises ValueError when there is none, or no client for Dask."""
    try:
        context = joblib.parallel_config(backend=name, **settings)
    except ImportError as error:
        raise ValueError(f"backend {name!r} is not installed ({error}); for dask: {WITH_DASK}") from error
    except ValueError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"backend {name!r} cannot be used: {text}") from error
    with context:
        yield
