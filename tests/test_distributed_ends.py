"""How training in several processes ends: with one line where it cannot go on, and with nothing lost where one dies."""

import itertools
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from picollm_core import runs, tokenizers
from picollm_core.distributed import ALONE, Ranks
from picollm_core.distributed_meetings import Meetings
from picollm_core.trainer import Trainer
from tests.rank_processes import LIMIT, ROOT, ends, environment, start
from tests.test_distributed_training import assert_same_up_to_rounding, run_one
from tests.test_train import write_stories
from tests.test_trainer import BYTES

SLOW = {"model": "kgram", "max_steps": 60, "checkpoint_every": 2}
PROGRAM = """
import pathlib, sys, time
from picollm_core import tokenizers
from picollm_core.distributed import open_ranks
from picollm_core.trainer import Trainer
from tests.test_distributed_ends import BYTES, SLOW, be_impatient
from tests.test_distributed_training import run_one
tokenizers.TOKENIZERS["bytes"] = lambda: BYTES
advance = Trainer.advance
Trainer.advance = lambda trainer: time.sleep(0.1) or advance(trainer)
with open_ranks("cpu") as ranks:
    if sys.argv[2:]:
        be_impatient(ranks, int(sys.argv[2]))
    run_one(SLOW, pathlib.Path(sys.argv[1]), ranks, "runs")
"""
STOPPED = """
import os, signal, sys
from torch import nn
from picollm_core.distributed import open_ranks
from picollm_core.distributed_meetings import Meetings
from tests.test_distributed_ends import be_impatient
place, victim = sys.argv[1], int(sys.argv[2])
def stop():
    if ranks.rank == victim:
        os.kill(os.getpid(), signal.SIGSTOP)
with open_ranks("cpu") as ranks:
    be_impatient(ranks, 10)
    ranks.agree("number", 1)
    if place == "before a meeting":
        stop()
    if place == "after a meeting":  # rank 0 has something to tell, and the other ranks wait for it
        gather = Meetings.gather
        Meetings.gather = lambda meetings, value: [gather(meetings, value), stop()][0]
    if place == "before the gradients":
        stop()
        ranks.sum_gradients([nn.Parameter(nn.Linear(3, 3).weight)], 1.0)
    ranks.from_leader(lambda: "answer")
"""
FLAGS = ["--corpus", "storyworld", "--n-stories", "150", "--embed-size", "8", "--block-size", "16", "--max-steps", "3"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setitem(tokenizers.TOKENIZERS, "bytes", lambda: BYTES)
    monkeypatch.setenv("PICOLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PICOLLM_TINYSTORIES", raising=False)
    write_stories(tmp_path / "stories.txt")
    return tmp_path


def be_impatient(ranks: Ranks, limit: int) -> None:
    """Shorten the limits after the start, which may take long beside other load."""
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=limit), dist.group.WORLD)
    ranks._meetings.leave(last=False)
    store = dist.PrefixStore("impatient", dist.distributed_c10d._get_default_store())
    ranks._meetings = Meetings(ranks.launch, store, limit)


def wait_for_a_checkpoint(folder: Path, processes: list[subprocess.Popen]) -> None:
    until = time.monotonic() + LIMIT
    while not list(folder.glob(f"runs/*/{runs.CHECKPOINT_FILE}")):
        assert time.monotonic() < until
        assert [p.poll() for p in processes] == [None] * len(processes)
        time.sleep(0.01)


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize(("victim", "how"), [(0, signal.SIGKILL), (1, signal.SIGSTOP)], ids=str)
def test_when_a_rank_dies_or_hangs_the_others_end_and_the_run_goes_on_later(folder, victim, how):
    processes = start(2, "-c", PROGRAM, str(folder), *(["15"] if how == signal.SIGSTOP else []))
    wait_for_a_checkpoint(folder, processes)
    processes[victim].send_signal(how)
    survivor = processes[1 - victim]
    try:
        _, said = survivor.communicate(timeout=LIMIT)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert survivor.returncode == 1
    reason = said.strip().splitlines()[-1]
    assert f"RankLost: rank {1 - victim} of 2 lost the others: one of them has ended or does not answer (" in reason
    assert "the same command goes on from the last checkpoint" in reason
    assert list(folder.glob(f"runs/*/{runs.CHECKPOINT_FILE}"))

    updates, advance = [], Trainer.advance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "advance", lambda trainer: updates.append(trainer.step) or advance(trainer))
        resumed = run_one(SLOW, folder, ALONE, "runs")
    assert 2 <= updates[0] < 60
    assert_same_up_to_rounding(resumed, run_one(SLOW, folder, ALONE, "undisturbed"))


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("place", ["before a meeting", "after a meeting", "before the gradients"])
def test_wherever_a_rank_is_stopped_the_other_ends_with_one_line(place):
    runs_by_victim = [start(2, "-c", STOPPED, place, str(victim)) for victim in (0, 1)]
    try:
        for victim, processes in enumerate(runs_by_victim):
            _, said = processes[1 - victim].communicate(timeout=LIMIT)
            assert processes[victim].poll() is None
            assert processes[1 - victim].returncode == 1
            assert f"RankLost: rank {1 - victim} of 2 lost the others: " in said.strip().splitlines()[-1]
    finally:
        for process in itertools.chain(*runs_by_victim):
            process.kill()
            process.communicate()


def torchrun(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Status, output and errors of two processes started by torchrun itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = subprocess.Popen(
        [*command, "-m", "picollm_core.train", *arguments],
        cwd=folder,
        env={k: v for k, v in environment(0, 2, 1).items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return ends([process])[0]


def test_torchrun_trains_one_model_and_only_rank_0_speaks(folder):
    status, out, err = torchrun(folder, "kgram-pico", *FLAGS, "--precision", "float32", "--device", "cpu")
    assert status == 0, err
    assert out.count("kgram, ") == out.count("held out") == out.count("greedy") == 1
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.strip() and "step" not in line]
    assert lines == ["device: cpu, float32 matrix products, 2 processes"]
    (run,) = (runs.load_run(path.parent) for path in folder.glob("artefacts/runs/*/summary.json"))
    assert run.summary["processes"] == 2
    assert run.config.model.n_embd == 8


def test_torchrun_ends_with_rank_0_s_line_when_the_settings_cannot_be(folder):
    status, out, err = torchrun(folder, "kgram-pico", *FLAGS, "--batch-size", "1")
    assert status == 1
    assert out == ""
    said = [line for line in err.splitlines() if line.startswith("picollm: ")]
    assert said == [
        "picollm: 2 processes share a batch of batch_size=1 rows, so some would have none; start at most 1, or choose "
        "a larger batch_size"
    ]
    assert "exitcode  : 2" in err
    assert "picollm_core/" not in err.replace("picollm_core.train", "")  # no traceback through the package


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-such-flag"], "picollm: Unrecognized options: --no-such-flag"),
        ([*FLAGS, "--optimizer", "sgd", "--learning-rate", "1e12", "--max-steps", "50"], "picollm: the loss became"),
    ],
    ids=["flag", "divergence"],
)
def test_two_processes_give_one_line_and_status_2_on_rank_0(folder, arguments, message):
    leader, other = ends(start(2, "-m", "picollm_core.train", "kgram-pico", *arguments, folder=folder))
    said = [line for line in leader[2].replace("\r", "\n").splitlines() if "step" not in line or "picollm" in line]
    said = [line for line in said if line.strip() and not line.startswith("device: ")]
    assert len(said) == 1
    assert said[0].startswith(message)
    assert leader[:2] == (2, "")
    assert other == (0, "", "")


def test_without_torchrun_the_module_is_the_train_command(folder):
    command = [sys.executable, "-m", "picollm_core.train", "kgram-pico", "lstm-pico", *FLAGS]
    variables = {k: v for k, v in os.environ.items() if k != "RANK"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held out") == 2
    assert "Warning" not in done.stderr
    assert "processes" not in done.stderr
