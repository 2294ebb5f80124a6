"""Runs on disk: safe names, one writer, files that are whole, and what is read back."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm_core import runs
from picollm_core.config import DataConfig, LSTMConfig, RunConfig, TrainConfig
from picollm_core.runs import HISTORY_COLUMNS, Run, load_run, read_history, read_json, run_table, safe_name, write_json

CONFIG = RunConfig(
    model=LSTMConfig(vocab_size=257, n_embd=8),
    data=DataConfig(corpus=("custom", "storyworld"), weights=(1.0, 2.0), splits=(60, 20, 20), limit=(5, None)),
    train=TrainConfig(learning_rate=0.5),
)
CONTEXT = {"fingerprint": "0123456789abcdef", "corpora": ["custom", "storyworld"], "corpus_hashes": ["a", "b"]}
SUMMARY = {"nll": 1.5, "perplexity": math.exp(1.5), "bits_per_byte": 0.75, "parameters": 99, "device": "cpu"}
SAMPLES = {"greedy": "Once\nupon “é”"}


def history_rows(n: int, evaluated_every: int = 5) -> list[dict]:
    generator = np.random.default_rng(0)
    rows = []
    for step in range(1, n + 1):
        row = {name: float(generator.random()) * 1e-7 for name in HISTORY_COLUMNS if not name.startswith("val")}
        row |= {"step": step, "tokens": step * 123_457, "loss": 5 / step, "learning_rate": 0.5 / step}
        rows.append(row | ({"val_loss": 6 / step} if step % evaluated_every == 0 else {}))
    return rows


def finished_run(directory: Path, n: int = 10, config: RunConfig = CONFIG, **summary) -> Path:
    directory.mkdir(parents=True)
    write_json(directory / runs.CONFIG_FILE, {"config": config.to_dict(), "context": CONTEXT})
    lines = [json.dumps(row) + "\n" for row in history_rows(n)]
    (directory / runs.HISTORY_FILE).write_text("".join(lines))
    write_json(directory / runs.SUMMARY_FILE, {"summary": SUMMARY | summary, "samples": SAMPLES})
    return directory


@given(st.text(max_size=200))
def test_any_text_becomes_a_name_that_every_file_system_takes(text):
    name = safe_name(text)
    assert 1 <= len(name) <= 100
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert name[0] not in ".-"
    assert name[-1] not in ".-"
    assert safe_name(name) == name


def test_harmless_names_stay_and_dangerous_ones_lose_their_teeth():
    assert safe_name("lstm-0123456789abcdef") == "lstm-0123456789abcdef"
    assert safe_name("../../etc/passwd") == "etc-passwd"
    assert safe_name("a b/c\\d:e") == "a-b-c-d-e"
    assert safe_name("…") == safe_name("") == safe_name("..") == "run"


def test_run_directories_differ_with_the_fingerprint(tmp_path):
    assert runs.run_directory(CONFIG, "abc", tmp_path) == tmp_path / "lstm-abc"


def test_write_json_replaces_whole_files_and_makes_folders(tmp_path):
    path = tmp_path / "deep" / "er" / "x.json"
    write_json(path, {"a": [1, None, "é"]})
    write_json(path, {"b": 2.5})
    assert read_json(path) == {"b": 2.5}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("place", ["write", "replace", "encode"])
def test_a_failing_write_json_leaves_the_older_file_and_nothing_else(tmp_path, monkeypatch, place):
    path = tmp_path / "x.json"
    write_json(path, {"kept": True})

    def full_disk(*_, **__):
        raise OSError("No space left on device")

    if place == "write":
        monkeypatch.setattr(Path, "write_text", full_disk)
    if place == "replace":
        monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises((OSError, TypeError), match=r"No space left|not JSON serializable"):
        write_json(path, {"new": object() if place == "encode" else 1})
    monkeypatch.undo()
    assert read_json(path) == {"kept": True}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00", None], ids=["empty", "cut", "binary", "missing"])
def test_unreadable_json_is_named(tmp_path, content):
    path = tmp_path / "broken.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken.json cannot be read as JSON"):
        read_json(path)


HOLD = """
import sys
from pathlib import Path
from picollm_core.runs import writer_lock
with writer_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_at_once_and_gets_in_after_the_first(tmp_path):
    directory = tmp_path / "run"
    with runs.writer_lock(directory), pytest.raises(ValueError, match="another process is writing"):  # same process
        runs.writer_lock(directory).__enter__()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, directory], stdin=-1, stdout=-1, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=rf"another process is writing {directory}; wait for it to end"),
            runs.writer_lock(directory),
        ):
            pytest.fail("two writers at once")
    finally:
        holder.kill()  # even a killed writer leaves the directory free
        holder.wait()
    with runs.writer_lock(directory):
        assert directory.is_dir()


def test_an_error_inside_the_lock_frees_it(tmp_path):
    with pytest.raises(KeyError), runs.writer_lock(tmp_path):
        raise KeyError
    with runs.writer_lock(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_history_is_read_without_its_half_written_last_line(tmp_path):
    path = tmp_path / "history.jsonl"
    lines = [json.dumps(row) + "\n" for row in history_rows(4, evaluated_every=2)]
    whole = "".join(lines)
    path.write_text(whole)
    table = read_history(path)
    assert list(table.columns) == list(HISTORY_COLUMNS)
    assert table["step"].tolist() == [1, 2, 3, 4]
    assert table["val_loss"].isna().tolist() == [True, False, True, False]
    for cut in range(len(lines[-1]) - 1):
        path.write_text(whole[: len(whole) - len(lines[-1]) + cut])
        assert read_history(path)["step"].tolist() == [1, 2, 3]
    path.write_text(lines[0] + "{broken\n" + lines[2])  # what follows a damaged line is not a history without gaps
    assert read_history(path)["step"].tolist() == [1]


def test_history_stops_at_the_step_asked_for_and_may_be_missing(tmp_path):
    path = tmp_path / "history.jsonl"
    assert read_history(path).empty
    assert list(read_history(path, 3).columns) == list(HISTORY_COLUMNS)
    path.write_text("".join(json.dumps(row) + "\n" for row in history_rows(6)))
    assert read_history(path, 3)["step"].tolist() == [1, 2, 3]
    assert read_history(path, 0).empty


def test_history_keeps_every_bit_of_a_number(tmp_path):
    path = tmp_path / "history.jsonl"
    rows = history_rows(20)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_history(path)["grad_norm"].tolist() == [row["grad_norm"] for row in rows]


@pytest.mark.parametrize("rows", [1, 2, 3, 10])
def test_a_finished_run_is_read_with_its_settings_in_every_row(tmp_path, rows):
    run = load_run(finished_run(tmp_path / "a", rows))
    assert (run.config, run.context, run.summary, run.samples) == (CONFIG, CONTEXT, SUMMARY, SAMPLES)
    assert (run.family, run.fingerprint) == ("lstm", "0123456789abcdef")
    history = run.history
    assert len(history) == rows
    assert len(history.columns) >= 20
    assert history["learning_rate"].tolist() == [0.5 / step for step in range(1, rows + 1)]
    assert set(history["peak_learning_rate"]) == {0.5}
    assert set(history["splits"]) == {"60.0+20.0+20.0"}
    assert set(history["limit"]) == {"5+None"}
    assert set(history["corpus"]) == {"custom+storyworld"}


def test_folders_that_are_no_finished_run_are_named_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"is not a run: it has no run.json"):
        load_run(tmp_path)
    with pytest.raises(ValueError, match=r"missing is not a run: it has no run.json"):
        load_run(tmp_path / "missing")
    (finished_run(tmp_path / "a") / runs.SUMMARY_FILE).unlink()
    with pytest.raises(ValueError, match="has not ended; train the same configuration again to go on with it"):
        load_run(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (runs.CONFIG_FILE, {}),
        (runs.CONFIG_FILE, []),
        (runs.CONFIG_FILE, {"config": 3, "context": {}}),
        (runs.CONFIG_FILE, {"config": {"model": {"family": "gru"}}, "context": {}}),
        (runs.CONFIG_FILE, {"config": {"model": []}, "context": {}}),
        (runs.SUMMARY_FILE, {"summary": {}}),
        (runs.SUMMARY_FILE, 7),
    ],
)
def test_foreign_files_in_a_run_are_an_error_that_names_the_folder(tmp_path, name, content):
    directory = finished_run(tmp_path / "a")
    write_json(directory / name, content)
    with pytest.raises(ValueError, match=rf"{directory} was not written by this package, or by another version"):
        load_run(directory)


def test_the_table_has_one_row_for_each_finished_run(tmp_path):
    finished_run(tmp_path / "lstm-b", nll=2.5)
    finished_run(tmp_path / "lstm-a", config=CONFIG.replace(train=TrainConfig(seed=7, learning_rate=0.25)))
    (finished_run(tmp_path / "lstm-unfinished") / runs.SUMMARY_FILE).unlink()
    (tmp_path / "something else").mkdir()
    (tmp_path / "a file").write_text("x")
    table = run_table(tmp_path)
    assert table["run"].tolist() == ["lstm-a", "lstm-b"]
    assert table["nll"].tolist() == [1.5, 2.5]
    assert table["seed"].tolist() == [7, 0]
    assert table["learning_rate"].tolist() == [0.25, 0.5]
    assert set(table["family"]) == {"lstm"}


def test_the_table_without_runs_is_empty(tmp_path):
    assert run_table(tmp_path).empty
    assert run_table(tmp_path / "missing").empty


def test_a_record_holds_everything_but_the_weights(tmp_path):
    run = load_run(finished_run(tmp_path / "a", 300))
    record = json.loads(json.dumps(run.to_record(points=60)))
    again = Run.from_record(record)
    assert (again.config, again.context, again.summary, again.samples) == (CONFIG, CONTEXT, SUMMARY, SAMPLES)
    assert again.directory is None
    evaluated = run.history["val_loss"].notna()
    kept = run.history["step"].isin(again.history["step"])
    assert kept[evaluated].all()
    assert 60 <= len(again.history) <= 60 + evaluated.sum()
    assert set(again.history.columns) == set(run.history.columns)
    exact = [name for name in HISTORY_COLUMNS if name != "loss"]  # the loss is averaged over what was left out
    pd.testing.assert_frame_equal(
        again.history[exact], run.history.loc[kept, exact].reset_index(drop=True), rtol=1e-5, check_dtype=False
    )


def test_the_model_of_a_mere_record_is_refused_with_the_way_out(tmp_path):
    again = Run.from_record(load_run(finished_run(tmp_path / "a")).to_record())
    with pytest.raises(ValueError, match=r"known from its record alone, without weights; train it anew with"):
        again.load_model()
