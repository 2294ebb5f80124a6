"""Sweeps: everything asked for ends once, in order, whatever stops, fails or runs beside it."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from picollm_core import run_config
from picollm_core.config import RunConfig
from picollm_core.runs import run_directory, run_fingerprint, writer_lock
from picollm_core.sweep import Failure, Sweep, Texts, _survivors, check_configs, sweep
from picollm_core.sweep_pools import Pool, WorkerLost
from picollm_core.sweep_workers import Outcome, Place, Task
from picollm_core.trainer import TrainingDiverged

SETTINGS = {
    **{"corpus": "text.txt", "splits": (80, 20, 0), "block_size": 16, "n_embd": 8, "batch_size": 4, "max_steps": 6},
    **{"eval_every": 100, "eval_stories": 2, "final_stories": 3, "checkpoint_every": 5, "sample_tokens": 2},
}
SCRIPT = """
import sys
from picollm_core.sweep import sweep
from sweep_configs import configs
done = sweep(configs, n_jobs=int(sys.argv[1]), progress=False)
print(*(run.fingerprint for run in done.runs))
"""


def config(model: str = "kgram-pico", **settings) -> RunConfig:
    return run_config(model, **(SETTINGS | settings))


def write_text(folder: Path) -> None:
    (folder / "text.txt").write_text("\n".join(f"the {n} cats sat on mat {n}" for n in range(120)))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    return tmp_path


def started(folder: Path, configs: str, n_jobs: int) -> subprocess.Popen:
    """A sweep of its own process; `configs` is Python."""
    (folder / "sweep_configs.py").write_text(
        f"from picollm_core import run_config\nSETTINGS = {SETTINGS!r}\nconfigs = {configs}\n"
    )
    (folder / "script.py").write_text(SCRIPT)
    command, options = [sys.executable, "script.py", str(n_jobs)], {"text": True, "cwd": folder}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **options)


def wait_for(condition, seconds: float = 240) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "the sweep did not come so far"
        time.sleep(0.01)


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def fingerprint(asked: RunConfig) -> str:
    return run_fingerprint(asked, [corpus.content_hash for corpus in Texts().open(asked.data)])


MIXED = [
    config(seed=1),
    config(seed=2, optimizer="sgd", learning_rate=1e38),
    config("lstm-pico", seed=0),
    config(seed=0, batch_size=10_000),
    config(seed=0),
]


@pytest.fixture(scope="module")
def parallel(tmp_path_factory) -> tuple[Path, Sweep]:
    """Five runs on two processes; the second diverges and the fourth has too little text."""
    folder, before = tmp_path_factory.mktemp("parallel"), os.getcwd()
    write_text(folder)
    os.chdir(folder)
    try:
        yield folder, sweep(MIXED, n_jobs=2, progress=False)
    finally:
        os.chdir(before)


def test_runs_come_in_the_order_asked_for_and_failures_with_their_configuration(parallel):
    _, result = parallel
    assert [run.config for run in result.runs] == [MIXED[0], MIXED[2], MIXED[4]]
    diverged, refused = result.failed
    assert (diverged.config, diverged.diverged) == (MIXED[1], True)
    assert "the loss became" in diverged.error
    assert (refused.config, refused.kind, refused.diverged) == (MIXED[3], "ValueError", False)
    assert "a batch needs 10000" in refused.error
    assert repr(result) == "3 runs, 2 failed"


def test_processes_give_the_same_weights_and_losses_as_this_process_to_the_bit(parallel):
    folder, result = parallel
    here = sweep([MIXED[0], MIXED[2]], n_jobs=1, runs_dir=folder / "here", progress=False)
    for one, other in zip(here.runs, (result.runs[0], result.runs[1]), strict=True):
        assert one.directory.parent != other.directory.parent
        weights = [(run.directory / "model" / "model.safetensors").read_bytes() for run in (one, other)]
        assert weights[0] == weights[1]
        assert one.history["loss"].tolist() == other.history["loss"].tolist()
        assert one.samples == other.samples


def test_the_table_has_a_row_a_run_with_settings_and_results(parallel):
    _, result = parallel
    table = result.table()
    assert table["seed"].tolist() == [1, 0, 0]
    assert table["family"].tolist() == ["kgram", "lstm", "kgram"]
    assert table["nll"].tolist() == [run.summary["nll"] for run in result.runs]
    assert {"n_embd", "learning_rate", "parameters", "bits_per_byte", "fingerprint"} <= set(table)
    assert "per_position" not in table


def test_finished_runs_are_not_trained_again_unless_refreshed(parallel):
    _, result = parallel
    files = [run.directory / "summary.json" for run in result.runs]
    before = [file.stat().st_mtime_ns for file in files]
    again = sweep([MIXED[4], MIXED[0]], n_jobs=1, progress=False)
    assert [run.fingerprint for run in again.runs] == [result.runs[2].fingerprint, result.runs[0].fingerprint]
    assert [file.stat().st_mtime_ns for file in files] == before
    sweep([MIXED[4]], n_jobs=1, progress=False, refresh=True)
    assert [file.stat().st_mtime_ns == old for file, old in zip(files, before, strict=True)] == [True, True, False]


def test_a_killed_sweep_goes_on_without_repeating_anything_and_leaves_no_worker(folder):
    configs = [config(seed=0), *(config(seed=seed, max_steps=800) for seed in (1, 2))]
    done = sweep(configs[:1], n_jobs=1, progress=False).runs[0].directory
    asked = (
        "[run_config('kgram-pico', **SETTINGS | dict(seed=s, max_steps=n)) for s, n in ((0, 6), (1, 800), (2, 800))]"
    )
    process = started(folder, asked, n_jobs=2)
    wait_for(lambda: list(folder.glob("artefacts/runs/*/checkpoint.safetensors")))
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    stopped = next(folder.glob("artefacts/runs/*/checkpoint.safetensors")).parent
    assert not (stopped / "summary.json").exists()
    before = {path: (path.stat().st_mtime_ns, path.read_text()) for path in done.glob("*.json*")}
    logged = (stopped / "history.jsonl").read_text().splitlines()[:5]  # up to the first checkpoint, with its clock
    result = sweep(configs, n_jobs=1, progress=False)
    assert (len(result.runs), result.failed) == (3, ())
    assert {path: (path.stat().st_mtime_ns, path.read_text()) for path in done.glob("*.json*")} == before
    kept = (stopped / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept[:5]] == [json.loads(line) for line in logged]
    assert steps(stopped / "history.jsonl") == list(range(1, 801))


def test_two_sweeps_on_one_folder_share_the_work_and_both_have_every_run(folder):
    process = started(
        folder, "[run_config('kgram-pico', **SETTINGS | dict(seed=s, max_steps=300)) for s in range(4)]", 1
    )
    wait_for(lambda: list(folder.glob("artefacts/runs/kgram-*/run.json")))
    here = sweep([config(seed=seed, max_steps=300) for seed in range(4)], n_jobs=1, progress=False)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.split() == [run.fingerprint for run in here.runs]
    assert len(here.runs) == 4
    for run in here.runs:
        assert steps(run.directory / "history.jsonl") == list(range(1, 301))


def test_a_run_that_another_process_holds_is_waited_for_and_others_go_first(folder):
    held, free = config(seed=0), config(seed=1)
    directory = run_directory(held, fingerprint(held))
    with writer_lock(directory):
        result = sweep([held, free], n_jobs=1, progress=False, patience=0.3)
    assert [run.config for run in result.runs] == [free]
    assert "another process is writing" in result.failed[0].error
    assert "nothing was written there for 0.3 s" in result.failed[0].error
    holding = threading.Event()

    def hold() -> None:
        with writer_lock(directory):
            holding.set()
            time.sleep(0.8)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait()
    assert [run.config for run in sweep([held], n_jobs=1, progress=False).runs] == [held]
    thread.join()


class PoolWithAKiller:
    """Stands in for a pool in which one run ends its worker every time, as one that is too large for the machine."""

    def __init__(self, killer: int) -> None:
        self.killer, self.calls = killer, []

    def map(self, work, items, one_at_a_time=False):
        begun = []
        for item in items:
            begun.append(item.position)
            if item.position == self.killer and (one_at_a_time or len(begun) == 2):
                self.calls.append((begun, one_at_a_time))
                raise WorkerLost("killed")
            if one_at_a_time or item.position != self.killer:
                yield Outcome(item.position, directory="d")
        self.calls.append((begun, one_at_a_time))


def test_a_run_that_ends_its_worker_again_has_failed_and_the_others_go_on():
    pool = PoolWithAKiller(killer=1)
    tasks = [Task(position, config(seed=position), (), "", False, Place.here()) for position in range(4)]
    outcomes = {outcome.position: outcome.kind for outcome in _survivors(pool, tasks)}
    assert outcomes == {0: "", 1: "WorkerLost", 2: "", 3: ""}
    assert pool.calls == [([0, 1], False), ([1], True), ([2, 3], False)]


def test_threads_take_turns_so_that_seeds_hold(folder):
    configs = [config(seed=seed) for seed in (0, 1)]
    threads = sweep(configs, backend="threading", n_jobs=2, runs_dir="threads", progress=False)
    alone = sweep(configs, n_jobs=1, progress=False)
    losses = [[run.history["loss"].tolist() for run in result.runs] for result in (threads, alone)]
    assert losses[0] == losses[1]


def test_a_text_that_is_missing_fails_its_own_runs_alone(folder):
    result = sweep([config(corpus="nope.txt"), config(corpus="nope.txt", seed=1), config()], n_jobs=1, progress=False)
    assert [run.config.data.corpus for run in result.runs] == [("text.txt",)]
    assert [failure.kind for failure in result.failed] == ["ValueError"] * 2
    assert all("nope.txt" in failure.describe() for failure in result.failed)


def test_duplicates_are_named_by_position_also_when_one_leaves_out_what_the_other_says():
    one = config()
    silent = one.replace(train=one.train.replace(learning_rate=None))
    with pytest.raises(ValueError, match="configurations 0 and 2 are the same run; leave one out"):
        check_configs([one, config(seed=1), silent])


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ([], "the list of configurations is empty"),
        (config(), "takes a list of RunConfig and got RunConfig"),
        ([config(), "lstm-pico"], "configuration 1 is 'lstm-pico'; it must be a RunConfig"),
    ],
)
def test_anything_but_a_list_of_configurations_is_refused(configs, message):
    with pytest.raises(ValueError, match=message):
        sweep(configs)


def test_complete_raises_the_first_failure_and_counts_the_rest():
    failures = (Failure(config(), "the loss became nan", "TrainingDiverged"), Failure(config(seed=1), "no"))
    with pytest.raises(TrainingDiverged, match=r"kgram on text.txt, width 8, learning rate .*nan \(and 1 more\)"):
        Sweep((), failures).complete()
    with pytest.raises(ValueError, match="seed 1: ValueError: no"):
        Sweep((), failures[1:]).complete()
    assert Sweep(()).complete() == ()


def test_one_process_needs_no_pool():
    assert list(Pool(1, processes=True).map(str, [1, 2])) == ["1", "2"]
