"""What one worker of a sweep does: it works where it was asked, and tells how its run ended without raising."""

import os
from pathlib import Path

import pytest

from picollm_core.runs import is_complete, run_directory, run_fingerprint, writer_lock
from picollm_core.sweep_workers import VARIABLES, Place, Task, train_task
from picollm_core.train import load_data
from tests.test_sweep import config, folder  # noqa: F401  (a fixture)

VARIABLES_HERE = ["PICOLLM_OLD", "PICOLLM_PROFILE", *(name for name in os.environ if name.startswith(VARIABLES))]


def task(folder: Path, place: Place | None = None, **settings) -> Task:  # noqa: F811
    asked = config(**settings)
    return Task(7, asked, tuple(load_data(asked.data)), str(folder / "runs"), False, place or Place.here())


def test_a_run_that_ends_is_named_by_its_folder(folder):  # noqa: F811
    outcome = train_task(task(folder))
    assert (outcome.position, outcome.kind, outcome.busy) == (7, "", False)
    assert is_complete(Path(outcome.directory))


def test_an_error_is_told_and_not_raised(folder):  # noqa: F811
    outcome = train_task(task(folder, batch_size=999))
    assert (outcome.kind, outcome.directory, outcome.busy) == ("ValueError", "", False)
    assert "a batch needs 999" in outcome.error


def test_a_run_that_is_being_written_is_busy_and_no_failure(folder):  # noqa: F811
    asked = task(folder)
    hashes = [corpus.content_hash for corpus in asked.corpora]
    with writer_lock(run_directory(asked.config, run_fingerprint(asked.config, hashes), folder / "runs")):
        outcome = train_task(asked)
    assert outcome.busy
    assert outcome.kind == ""


def test_a_worker_takes_over_the_folder_and_the_variables_of_the_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES_HERE:  # given back when the test ends
        monkeypatch.setenv(name, os.environ.get(name, "left from an earlier sweep"))
    (tmp_path / "asked").mkdir()
    Place(os.getpid() + 1, str(tmp_path / "asked"), (("PICOLLM_PROFILE", "quick"),)).enter()
    assert os.environ["PICOLLM_PROFILE"] == "quick"
    assert Path.cwd() == tmp_path / "asked"
    assert "PICOLLM_OLD" not in os.environ


def test_a_folder_that_the_worker_has_not_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot work in .*elsewhere.*must share the sweep's folder"):
        Place(os.getpid() + 1, str(tmp_path / "elsewhere"), ()).enter()
