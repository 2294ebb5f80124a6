"""Where sweeps run: this machine's processes, which may die, and a Dask cluster, which may not answer."""

import os
import socket
import sys
import time

import joblib
import psutil
import pytest
from joblib.externals.loky import get_reusable_executor

from picollm_core import sweep_pools
from picollm_core.sweep import sweep
from picollm_core.sweep_pools import Pool, WorkerLost, open_pool
from tests.test_sweep import config, folder  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def cluster():
    """Two workers, each a process with one thread."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:
        yield cluster


def test_a_dask_cluster_of_two_workers_trains_the_same_runs(folder, cluster):  # noqa: F811
    configs = [config(seed=seed) for seed in (0, 1, 2)] + [config(batch_size=10_000)]
    result = sweep(configs, cluster=cluster.scheduler_address, runs_dir="dask", progress=False)
    assert [run.config.train.seed for run in result.runs] == [0, 1, 2]
    assert [failure.kind for failure in result.failed] == ["ValueError"]
    here = sweep(configs[:3], n_jobs=1, runs_dir="here", progress=False)
    for run, other in zip(result.runs, here.runs, strict=True):
        assert run.history["loss"].tolist() == other.history["loss"].tolist()
        assert (run.directory / "model/model.safetensors").read_bytes() == (
            other.directory / "model/model.safetensors"
        ).read_bytes()


def test_joblibs_own_way_of_naming_a_dask_cluster_works_too(folder, cluster):  # noqa: F811
    from distributed import Client

    with Client(cluster), joblib.parallel_config(backend="dask"), open_pool(None, None, None, 4) as pool:
        assert pool == Pool(2, processes=False)
        workers = set(pool.map(_process, range(8)))
    assert len(workers) == 2
    assert os.getpid() not in workers
    with Client(cluster), open_pool(None, "dask", None, 4) as pool:
        assert pool == Pool(2, processes=False)


def _process(_: int) -> int:
    return os.getpid()


def test_a_scheduler_that_is_not_there_or_does_not_answer_is_named_soon(folder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(sweep_pools, "ANSWER_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for address in ("tcp://127.0.0.1:9", f"tcp://127.0.0.1:{silent.getsockname()[1]}", "nowhere", "tcp://"):
            with pytest.raises(ValueError, match=f"no Dask scheduler answers at '{address}'"):
                sweep([config()], cluster=address, progress=False)


def test_a_cluster_without_workers_is_named_soon(folder, monkeypatch):  # noqa: F811
    from distributed import LocalCluster

    monkeypatch.setattr(sweep_pools, "ANSWER_SECONDS", 1)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty,
        pytest.raises(ValueError, match="the Dask cluster has no worker after 1 s"),
    ):
        sweep([config()], cluster=empty.scheduler_address, progress=False)


def test_without_dask_the_way_to_install_it_is_said(folder, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"pip install 'picollm\[cluster\]'"):
        sweep([config()], cluster="tcp://127.0.0.1:9", progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_jobs": 0}, "n_jobs is 0; give the number of processes"),
        ({"n_jobs": 1.5}, "n_jobs is 1.5"),
        ({"n_jobs": True}, "n_jobs is True"),
        ({"backend": "abacus"}, "backend 'abacus' cannot be used"),
        ({"backend": "dask"}, "backend 'dask' cannot be used: .*first create a Dask Client"),
        ({"backend": "loky", "cluster": "tcp://127.0.0.1:9"}, "needs backend 'dask', not 'loky'"),
    ],
)
def test_workers_that_cannot_be_are_refused(settings, message, folder):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        sweep([config()], progress=False, **settings)


def test_there_are_never_more_processes_than_runs_and_one_a_core_unless_told(monkeypatch):
    monkeypatch.setattr(sweep_pools, "available_cores", lambda: 3)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    for n_jobs, runs, expected in ((None, 9, 3), (-1, 9, 3), (None, 2, 2), (5, 9, 5), (5, 1, 1)):
        with open_pool(n_jobs, None, None, runs) as pool:
            assert pool == Pool(expected, processes=True)
    with joblib.parallel_config(n_jobs=4), open_pool(None, None, None, 9) as pool:
        assert pool == Pool(4, processes=True)


def test_a_worker_whose_process_ends_is_told_from_work_that_raises():
    pool = Pool(2, processes=True)
    with pytest.raises(WorkerLost, match="killed, or out of memory"):
        list(pool.map(os._exit, [1, 1]))
    with pytest.raises(ValueError, match="invalid literal"):
        list(pool.map(int, ["1", "x"]))
    assert sorted(pool.map(int, ["3", "1", "2"])) == [1, 2, 3]


def test_one_at_a_time_begins_nothing_before_the_last_has_ended(tmp_path):
    def alone(mark) -> bool:  # inside, so that workers need not import this module
        mark.touch()
        time.sleep(0.1)
        alone = len(list(mark.parent.iterdir())) == 1
        mark.unlink()
        return alone

    marks = [tmp_path / str(place) for place in range(3)]
    assert list(Pool(2, processes=True).map(alone, marks, one_at_a_time=True)) == [True] * 3


KEPT: list[bytes] = []


def _grow(megabytes: int) -> int:
    """Work whose process keeps its memory; joblib sends a worker that has grown by 300 MB away after its task."""
    time.sleep(1.1)
    KEPT.append(b"x" * (megabytes << 20))
    return os.getpid()


def test_a_worker_that_is_replaced_between_two_runs_is_no_news(recwarn):
    with open_pool(2, None, None, 8) as pool:
        assert len(set(pool.map(_grow, [1, 1, 400, 400, 1, 1]))) > 2
    assert [str(warning.message) for warning in recwarn] == []
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _wait(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_whoever_stops_reading_stops_the_work_without_a_warning(recwarn):
    with open_pool(2, None, None, 3) as pool:
        answers = pool.map(_wait, [0.1, 0.2, 600.0])
        worker = next(answers)
        time.sleep(0.5)  # one more has ended, and one is under way
        answers.close()
    assert not psutil.pid_exists(worker)
    assert [str(warning.message) for warning in recwarn] == []
