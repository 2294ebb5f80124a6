"""Processes are joined where there are several, leave nothing behind, and the cluster scripts parse."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch.distributed as dist

from picollm_core.distributed import ALONE, RankLost, open_ranks
from tests.rank_processes import ROOT, ends, environment, free_port, start

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
STARTED = """
import os, pathlib
from picollm_core.distributed import open_ranks
threads = lambda: [p.read_text().strip() for p in pathlib.Path("/proc/self/task").glob("*/comm")]
try:
    with open_ranks("cpu") as ranks:
        inside = threads()
        with ranks.meeting():
            if ranks.leads:
                raise ValueError("no")
except Exception as error:
    kept = error  # and with it every frame of this function
print(type(kept).__name__, sum("gloo" in name for name in inside) > 0, sum("gloo" in name for name in threads()))
"""
"""A run that ends by an error, and what threads of gloo there are inside and afterwards."""


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with open_ranks("cpu") as ranks:
        assert ranks is ALONE
    for name, value in environment(0, 1, 29500).items():
        monkeypatch.setenv(name, value)
    with open_ranks("cpu") as ranks:  # one process needs nobody to talk to
        assert ranks is ALONE
        assert not dist.is_initialized()


def test_processes_that_never_come_end_the_wait(monkeypatch):
    for name, value in environment(0, 2, free_port(), PICOLLM_TIMEOUT="1").items():
        monkeypatch.setenv(name, value)
    expected = r"rank 0 of 2 did not find the others at 127.0.0.1:\d+ within 1 s"
    with pytest.raises(RankLost, match=expected), open_ranks("cpu"):
        pass
    assert not dist.is_initialized()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads Linux's list of threads")
def test_no_thread_of_a_process_group_outlives_the_ranks_although_an_error_holds_their_frames():
    said = ends(start(2, "-c", STARTED))  # one that did could abort the process while Python ends
    assert said == [(0, "ValueError True 0\n", ""), (0, "EndedByAnother True 0\n", "")]


@pytest.mark.parametrize("script", ["slurm_ddp.sh", "slurm_sweep.sh"])
def test_the_cluster_scripts_parse_and_name_commands_that_exist(script):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    path = ROOT / "examples" / script
    subprocess.run([bash, "-n", str(path)], check=True)
    text = path.read_text()
    assert "#SBATCH --nodes" in text
    assert ("-m picollm_core.train" in text) == (script == "slurm_ddp.sh")
    assert ("picollm sweep" in text) == (script == "slurm_sweep.sh")
