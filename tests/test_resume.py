"""Training that the operating system kills, at any moment, and starts again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from picollm_core import runs, tokenizers
from picollm_core.train import train
from tests.test_train import MODELS, SHORT, same_run, write_stories
from tests.test_trainer import BYTES

STEPS = 300
TRAIN = """
import sys, torch
from picollm_core import tokenizers
from picollm_core.train import train
from tests.test_train import BYTES, MODELS, SHORT
torch.set_num_threads(int(sys.argv[3]))
tokenizers.TOKENIZERS["bytes"] = lambda: BYTES
train(MODELS["lstm"], corpus=sys.argv[1], runs_dir=sys.argv[2], **(SHORT | {"max_steps": int(sys.argv[4])}))
"""


def modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setitem(tokenizers.TOKENIZERS, "bytes", lambda: BYTES)
    monkeypatch.setenv("PICOLLM_CACHE", str(tmp_path / "cache"))
    settings = SHORT | {"corpus": write_stories(tmp_path / "stories.txt"), "max_steps": STEPS}
    whole = train(MODELS["lstm"], runs_dir=tmp_path / "whole", **settings)

    directory = runs.run_directory(whole.config, whole.fingerprint, tmp_path / "killed")
    checkpoint, moments, interrupted = directory / runs.CHECKPOINT_FILE, random.Random(0), 0
    arguments = [settings["corpus"], tmp_path / "killed", str(torch.get_num_threads()), str(STEPS)]
    for _ in range(3):
        before = modified(checkpoint)
        root = Path(__file__).parents[1]
        process = subprocess.Popen([sys.executable, "-c", TRAIN, *arguments], cwd=root)
        try:
            while modified(checkpoint) == before and process.poll() is None:  # until it has gone on for a while
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.1))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        interrupted += not runs.is_complete(directory)
    assert interrupted > 0

    assert same_run(whole, train(MODELS["lstm"], runs_dir=tmp_path / "killed", **settings))
    assert not list(directory.glob("*.tmp"))
