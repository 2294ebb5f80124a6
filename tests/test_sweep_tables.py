"""A study's table: tidy, the same bytes each time, in the committed results and nowhere else."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest

from picollm_core.config import DataConfig, TrainConfig
from picollm_core.lab import Lab
from picollm_core.profiles import PROFILES
from picollm_core.results import RESULTS_DIR
from picollm_core.sweep_tables import load_table, save_table

ROWS = [{"k": 1, "loss": 2.0, "corpus": "a"}, {"k": 2, "loss": math.inf, "corpus": None}]


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(f"the {n} cats sat on mat {n}" for n in range(400)))
    train = TrainConfig(max_steps=4, eval_every=4, eval_stories=2, final_stories=2)
    data = DataConfig(corpus=("text.txt",))
    return Lab(dataclasses.replace(PROFILES["standard"], data=data, train=train, block_size=16))


def test_a_sweeps_table_names_the_texts_of_its_runs_and_is_the_same_bytes_when_written_again(lab):
    sweep = lab.sweep([lab.config("kgram-pico", n_embd=8, seed=seed) for seed in (0, 1)], n_jobs=1, progress=False)
    path = save_table(lab, "hparam_sweep", sweep.table(), note="one row a run")
    assert path == RESULTS_DIR / "hparam_sweep.json"
    content = json.loads(path.read_text())
    assert content["corpora"] == [{"name": "text.txt", "content_hash": sweep.runs[0].context["corpus_hashes"][0]}]
    assert (content["note"], content["profile"], len(content["rows"])) == ("one row a run", "standard", 2)
    table = load_table(path)
    assert table["nll"].tolist() == pytest.approx(sweep.table()["nll"].tolist(), rel=1e-9)
    assert table["seed"].tolist() == [0, 1]
    assert table.attrs["table"] == "hparam_sweep"
    before = path.read_bytes()
    again = Lab(lab.profile)
    found = again.sweep([run.config for run in sweep.runs])
    save_table(again, "hparam_sweep", found.table(), note="one row a run")
    assert path.read_bytes() == before


def test_missing_and_infinite_values_survive_as_json_that_every_reader_takes(lab):
    path = save_table(lab, "t", pd.DataFrame([*ROWS, {"k": np.int64(3), "loss": np.nan, "corpus": "b"}]))
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    table = load_table(path)
    assert table["loss"][:2].tolist() == [2.0, math.inf]
    assert math.isnan(table["loss"][2])
    assert table["k"].tolist() == [1, 2, 3]


def test_a_named_index_becomes_a_column(lab):
    losses = pd.DataFrame({0.1: [2.0], 0.2: [1.0]}, index=["arm"]).rename_axis(index="arm")
    assert load_table(save_table(lab, "t", losses)).to_dict("records") == [{"arm": "arm", "0.1": 2.0, "0.2": 1.0}]


def test_quick_and_redrawn_notebooks_write_nothing(lab, tmp_path):
    assert save_table(Lab(dataclasses.replace(lab.profile, name="quick")), "t", ROWS) is None
    assert save_table(Lab(lab.profile, redraw_into=tmp_path / "redrawn"), "t", ROWS) is None
    assert not RESULTS_DIR.exists()


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("t", [], "the table is empty"),
        ("a/b", ROWS, "the table's name is 'a/b'"),
        ("t.json", ROWS, "without .json"),
        ("t", [{"run": object()}], "a cell holds <object"),
        ("t", pd.DataFrame([[1, 2]], columns=["k", "k"]), "several columns k"),
    ],
)
def test_tables_that_cannot_be_are_refused(name, rows, message, lab):
    with pytest.raises(ValueError, match=message):
        save_table(lab, name, rows)


@pytest.mark.parametrize("text", ["[]", "{}", '{"rows": []}', '{"rows": [1]}', "no json"])
def test_a_file_that_is_no_table_is_named(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x.json (is not a table of results|cannot be read as JSON)"):
        load_table(tmp_path / "x.json")
