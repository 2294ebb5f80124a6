"""Committed results are found by fingerprint and by nothing else."""

import dataclasses
from itertools import pairwise

import pandas as pd
import pytest

from picollm_core.config import RunConfig, TrainConfig
from picollm_core.results import ResultStore, measurement_fingerprint
from picollm_core.runs import HISTORY_COLUMNS, Run, hyperparameters, run_fingerprint, thin_history


@pytest.fixture
def run() -> Run:
    config = RunConfig(train=TrainConfig(max_steps=200, learning_rate=0.003))
    rows = {name: [float(step) for step in range(1, 201)] for name in HISTORY_COLUMNS}
    history = pd.DataFrame(rows).assign(**hyperparameters(config))
    history.loc[history["step"] % 50 != 0, "val_loss"] = float("nan")
    context = {"corpora": ["text"], "corpus_hashes": ["abc"], "fingerprint": run_fingerprint(config, ["abc"])}
    return Run(config, context, {"nll": 1.5}, {"greedy": "Once"}, history)


def test_a_recorded_run_comes_back_with_its_figures_and_a_thinned_history(tmp_path, run):
    store = ResultStore(tmp_path)
    store.save_run(run)
    found = store.find_run(run.config, ["abc"])
    assert (found.config, found.summary, found.samples) == (run.config, run.summary, run.samples)
    assert set(found.history["val_loss"].dropna()) == {50.0, 100.0, 150.0, 200.0}
    assert 50 < len(found.history) < 100
    with pytest.raises(ValueError, match="without weights"):
        found.load_model()


def test_another_text_or_configuration_finds_nothing(tmp_path, run):
    store = ResultStore(tmp_path)
    store.save_run(run)
    assert store.find_run(run.config, ["other"]) is None
    assert store.find_run(run.config.replace(prompt="Hello"), ["abc"]) is None


def test_a_text_that_is_not_here_is_found_by_configuration_if_its_fingerprint_holds(tmp_path, run):
    store = ResultStore(tmp_path)
    store.save_run(run)
    assert store.find_run_elsewhere(run.config).context == run.context
    assert store.find_run_elsewhere(run.config.replace(prompt="Hello")) is None


def test_a_record_whose_fingerprint_does_not_follow_from_its_content_is_not_used(tmp_path, run):
    store = ResultStore(tmp_path)
    forged = dataclasses.replace(run, context=run.context | {"fingerprint": "0" * 16})
    store.save_run(forged)
    assert store.find_run_elsewhere(run.config) is None


def test_a_measurement_is_made_once_for_each_set_of_parameters(tmp_path):
    store, calls = ResultStore(tmp_path), []

    def compute() -> dict[str, int]:
        calls.append(1)
        return {"value": len(calls)}

    assert store.measure("m", {"k": 1}, compute) == ({"value": 1}, False)
    assert store.measure("m", {"k": 1}, compute) == ({"value": 1}, True)
    assert store.measure("m", {"k": 2}, compute) == ({"value": 2}, False)
    assert store.measure("m", {"k": 1}, compute, refresh=True) == ({"value": 3}, False)


def test_measurement_fingerprints_depend_on_name_and_parameters_not_on_their_order():
    one = measurement_fingerprint("m", {"a": 1, "b": [2]})
    assert one == measurement_fingerprint("m", {"b": [2], "a": 1})
    assert len({one, measurement_fingerprint("n", {"a": 1, "b": [2]}), measurement_fingerprint("m", {"a": 2})}) == 3


def test_a_broken_record_is_named(tmp_path, run):
    store = ResultStore(tmp_path)
    store.save_run(run)
    (path,) = tmp_path.glob("runs/*.json")
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=path.name):
        store.find_run(run.config, ["abc"])


def test_thinning_keeps_every_evaluation_averages_the_rest_and_changes_nothing_when_repeated(run):
    thin = thin_history(run.history)
    assert list(thin["val_loss"].dropna()) == [50.0, 100.0, 150.0, 200.0]
    assert 50 < len(thin) < 100
    steps = [0.0, *thin["step"]]
    means = [(low + 1 + high) / 2 for low, high in pairwise(steps)]  # the loss at step n is n
    assert list(thin["loss"]) == pytest.approx(means)
    assert thin_history(thin).equals(thin)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"config": {"colour": 3}, "context": {"corpus_hashes": []}}'])
def test_a_record_of_another_format_says_what_to_do(tmp_path, run, content):
    store = ResultStore(tmp_path)
    store.save_run(run)
    store.measure("m", {"k": 1}, lambda: 2)
    for path in tmp_path.glob("*/*.json"):
        path.write_text(content)
    with pytest.raises(ValueError, match=r"delete it, then run `picollm workbook --profile standard --write`"):
        store.find_run(run.config, ["abc"])
    with pytest.raises(ValueError, match=r"is not a record of this version .*delete it"):
        store.load_run(run.fingerprint)
    with pytest.raises(ValueError, match=r"is not a record of this version .*delete it"):
        store.measure("m", {"k": 1}, lambda: 2)


def test_a_run_is_loaded_by_its_fingerprint_or_named_as_missing(tmp_path, run):
    store = ResultStore(tmp_path)
    store.save_run(run)
    assert store.load_run(run.fingerprint).summary == run.summary
    with pytest.raises(ValueError, match=r"no record .*0000\.json; run `picollm workbook"):
        store.load_run("0000")
