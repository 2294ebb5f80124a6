"""Runs are watched by real trackers without an account: every step once, no secret, and never at the run's cost."""

import json
import logging
import os
import sys
from pathlib import Path

import pytest

from picollm_core import tracker_backends, train
from picollm_core.tracker_backends import Backend, WandbBackend
from picollm_core.trackers import TRACKERS, Tracker, check_trackers, open_tracker
from tests.tracker_files import tensorboard_steps, trackio_rows, wandb_steps, watch

CONFIG = {"model": {"family": "lstm", "n_embd": 8}, "data": {"corpus": ["storyworld"]}, "train": {"seed": 0}}
SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY")
CANARY = "c0ffee" * 6 + "c0ff"  # as long as a real key, so that no tracker turns it down


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """No account, no settings of the person who runs the tests, every tracker's own folder below tmp_path."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "TRACKIO_"))] + list(SECRETS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


def test_no_tracker_does_nothing_and_writes_nothing(tmp_path):
    with open_tracker((), tmp_path / "run", "name", CONFIG) as tracker:
        tracker.log({"loss": 1.0}, 1)
        tracker.finish({"bits_per_byte": 1.0})
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_named_with_the_choice():
    with pytest.raises(ValueError, match="no tracker is called 'mlflow'; choose from trackio, wandb, tensorboard"):
        check_trackers(("tensorboard", "mlflow"))
    with pytest.raises(ValueError, match=r"named in a tuple, such as \('wandb',\)"):
        check_trackers("wandb")


@pytest.mark.parametrize("kind", TRACKERS)
def test_a_tracker_that_is_not_installed_says_what_to_install_before_anything_is_written(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(ValueError, match=rf"tracker '{kind}' is not installed; pip install 'picollm\[track\]'"):
        open_tracker((kind,), tmp_path / "run", "name", CONFIG)
    assert not (tmp_path / "run").exists()


def test_a_tracker_named_twice_is_used_once():
    assert check_trackers(["tensorboard", "tensorboard"]) == ("tensorboard",)


def test_all_trackers_go_on_with_a_run_that_crashed_and_hold_every_step_once(tmp_path):
    run = tmp_path / "runs" / "lstm-0"
    crashed = watch(run, *TRACKERS, attempts="1,25,0", end="crash")
    assert "the training crashed" in crashed.stderr
    kept = {kind: json.loads((run / "trackers" / f"{kind}.json").read_text()) for kind in TRACKERS}
    resumed = watch(run, *TRACKERS, attempts="21,40,1")  # from the checkpoint at step 20
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == crashed.stdout == ""
    for kind in TRACKERS:
        now = json.loads((run / "trackers" / f"{kind}.json").read_text())
        assert (kept[kind]["step"], now) == (25, {"id": kept[kind]["id"], "step": 40})

    assert tensorboard_steps(run, "loss") == list(range(1, 41))
    assert tensorboard_steps(run, "val_loss") == list(range(5, 41, 5))
    assert tensorboard_steps(run, "final/bits_per_byte") == [40]

    ((name, rows),) = trackio_rows(tmp_path / "trackio").items()
    assert name == f"lstm-0-{kept['trackio']['id']}"
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 41))
    assert [row["final/bits_per_byte"] for row in rows if "final/bits_per_byte" in row] == [1.25]

    assert wandb_steps(run, "loss") == list(range(1, 41))
    assert len(list(run.glob(f"wandb/offline-run-*-{kept['wandb']['id']}"))) == 2
    assert "wandb has no account here; it writes offline" in resumed.stderr
    assert resumed.stderr.count("\n") == 1


def test_a_run_that_begins_anew_is_another_run_of_the_tracker(tmp_path):
    assert watch(tmp_path, "tensorboard", "trackio", attempts="1,8,0+1,4,0").returncode == 0
    assert tensorboard_steps(tmp_path, "loss") == [1, 2, 3, 4]
    assert sorted(len(rows) for rows in trackio_rows(tmp_path / "trackio").values()) == [5, 9]  # with the final figures


def test_no_secret_of_the_environment_is_written_anywhere(tmp_path, monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = watch(tmp_path / "run", *TRACKERS, attempts="1,12,0")
    assert done.returncode == 0, done.stderr
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"picollm.db"} <= {file.name for file in files}
    assert any(file.suffix == ".wandb" for file in files)
    assert any("tfevents" in file.name for file in files)
    assert [file for file in files if CANARY.encode() in file.read_bytes()] == []
    assert CANARY not in done.stdout + done.stderr


def test_wandb_writes_offline_when_its_server_does_not_answer(tmp_path, monkeypatch, caplog):
    import wandb

    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setattr(tracker_backends, "START_TIMEOUT", 1.0)
    wandb.teardown()
    try:
        with caplog.at_level(logging.WARNING), open_tracker(("wandb",), tmp_path / "run", "name", CONFIG) as tracker:
            tracker.log({"loss": 1.0}, 1)
            tracker.finish()
    finally:
        wandb.teardown()
    assert "wandb cannot go online" in caplog.text
    assert "wandb sync" in caplog.text
    assert wandb_steps(tmp_path / "run", "loss") == [1]


def test_a_key_that_cannot_be_one_is_told_in_one_line_and_wandb_writes_offline(tmp_path, monkeypatch, caplog):
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "short")
    wandb.teardown()
    try:
        with caplog.at_level(logging.WARNING), open_tracker(("wandb",), tmp_path, "name", CONFIG) as tracker:
            tracker.finish()
    finally:
        wandb.teardown()
    assert [line.message.split(" (")[0] for line in caplog.records if line.levelno >= logging.WARNING] == [
        "wandb cannot log in"
    ]
    assert list(tmp_path.glob("wandb/offline-run-*"))


def test_wandb_respects_its_mode(tmp_path, monkeypatch, caplog):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb.teardown()
    with caplog.at_level(logging.WARNING), open_tracker(("wandb",), tmp_path, "name", CONFIG) as tracker:
        tracker.log({"loss": 1.0}, 1)
        tracker.finish({"bits_per_byte": 1.0})
    assert caplog.text == ""
    assert not list(tmp_path.glob("wandb/*run*"))


def test_a_tracked_run_computes_what_an_untracked_one_computes(tmp_path):
    settings = {"corpus": "storyworld", "n_stories": 100, "max_steps": 6, "eval_every": 3, "eval_stories": 2}
    settings |= {"tokenizer": "stories-4k", "n_embd": 8, "block_size": 16, "sample_tokens": 2, "progress": False}
    plain = train("lstm-pico", runs_dir=tmp_path / "plain", **settings)
    tracked = train("lstm-pico", runs_dir=tmp_path / "tracked", track=("tensorboard", "wandb"), **settings)
    assert plain.history["loss"].tolist() == tracked.history["loss"].tolist()
    assert plain.fingerprint == tracked.fingerprint
    assert tensorboard_steps(tracked.directory, "loss") == [1, 2, 3, 4, 5, 6]
    assert tensorboard_steps(tracked.directory, "val_loss") == [3, 6]
    assert tensorboard_steps(tracked.directory, "final/bits_per_byte") == [6]
    assert wandb_steps(tracked.directory, "val_loss") == [3, 6]


class Failing(Backend):
    """A tracker that breaks at one step, and counts what it was asked."""

    def __init__(self, watched):
        self.asked: list[int] = []

    def log(self, values, step):
        self.asked.append(step)
        if step == 3:
            raise OSError("the disk of the tracker\nis full")

    def close(self, final, step, failed):
        raise OSError("cannot close")


def failing_tracker(directory: Path, monkeypatch) -> tuple[Tracker, Failing]:
    made = []

    def make(watched):
        made.append(Failing(watched))
        return made[-1]

    monkeypatch.setitem(tracker_backends.BACKENDS, "wandb", (make, ("json",)))
    return open_tracker(("wandb", "tensorboard"), directory, "name", CONFIG), made[0]


def test_a_tracker_that_breaks_is_told_once_and_left_out_while_the_others_go_on(tmp_path, monkeypatch, caplog):
    tracker, broken = failing_tracker(tmp_path, monkeypatch)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 7):
            tracker.log({"loss": 1.0}, step)
        tracker.finish({"bits_per_byte": 1.0})
    assert broken.asked == [1, 2, 3]
    assert [record.message for record in caplog.records] == [
        "tracker 'wandb' stopped (OSError: the disk of the tracker is full); the run goes on without it"
    ]
    assert tensorboard_steps(tmp_path, "loss") == [1, 2, 3, 4, 5, 6]


def test_a_tracker_that_cannot_close_does_not_cost_the_run_either(tmp_path, monkeypatch, caplog):
    tracker, _ = failing_tracker(tmp_path, monkeypatch)
    with caplog.at_level(logging.WARNING):
        tracker.log({"loss": 1.0}, 1)
        tracker.finish({"bits_per_byte": 1.0})
        tracker.finish({"bits_per_byte": 1.0})
    assert caplog.text.count("cannot close") == 1
    assert tensorboard_steps(tmp_path, "final/bits_per_byte") == [1]


def test_a_tracker_that_cannot_start_is_a_sentence_before_training(tmp_path, monkeypatch):
    def refuse(watched):
        raise RuntimeError("no such account")

    monkeypatch.setitem(tracker_backends.BACKENDS, "wandb", (refuse, ("json",)))
    with pytest.raises(ValueError, match="tracker 'wandb' could not start: no such account"):
        open_tracker(("wandb",), tmp_path, "name", CONFIG)


def test_an_unreadable_record_of_the_trackers_run_begins_a_new_one(tmp_path, caplog):
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "tensorboard.json").write_text("{")
    with (
        caplog.at_level(logging.WARNING),
        open_tracker(("tensorboard",), tmp_path, "n", CONFIG, resume=True) as tracker,
    ):
        tracker.log({"loss": 1.0}, 1)
    assert "tensorboard.json is unreadable" in caplog.text
    assert tensorboard_steps(tmp_path, "loss") == [1]


def test_wandb_is_told_whether_the_run_failed(tmp_path):
    """The one place where a stand-in is needed: only wandb's server shows a run's exit code."""
    codes = []

    class Run:
        summary: dict = {}  # noqa: RUF012  (of a stand-in)

        def finish(self, exit_code):
            codes.append(exit_code)

    backend = WandbBackend.__new__(WandbBackend)
    backend._run = Run()
    backend.close({}, 3, failed=True)
    backend.close({"bits_per_byte": 1.0, "per_position": [1.0]}, 3, failed=False)
    assert (codes, Run.summary) == ([1, 0], {"bits_per_byte": 1.0})
