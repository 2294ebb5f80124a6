"""Lab.sweep: what is recorded is looked up, the rest trains, and a run that diverged is known as one."""

import dataclasses

import pytest

from picollm_core.arms import best_rates, train_arms, tune_arms
from picollm_core.config import DataConfig, KGramConfig, RunConfig, TrainConfig
from picollm_core.lab import Lab
from picollm_core.profiles import PROFILES
from picollm_core.results import RESULTS_DIR
from picollm_core.runs import RUNS_DIR
from picollm_core.trainer import TrainingDiverged

WILD = {"learning_rate": 1e38, "optimizer": "sgd", "precision": "float32"}


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # in this process, unless a test asks for more
    (tmp_path / "text.txt").write_text("\n".join(f"the {n} cats sat on mat {n}" for n in range(400)))
    train = TrainConfig(max_steps=4, eval_every=4, eval_stories=2, final_stories=2)
    data = DataConfig(corpus=("text.txt",))
    return Lab(dataclasses.replace(PROFILES["standard"], data=data, train=train, block_size=16))


def configs(lab: Lab) -> list[RunConfig]:
    return [lab.config("kgram-pico", n_embd=8, **settings) for settings in ({"seed": 1}, WILD, {"seed": 0})]


def test_what_train_recorded_is_found_and_the_rest_is_trained_and_recorded_in_order(lab):
    first = lab.train("kgram-pico", n_embd=8, seed=0)
    sweep = lab.sweep(configs(lab), n_jobs=1, progress=False)
    assert lab.redrawn == 1
    assert [run.config.train.seed for run in sweep.runs] == [1, 0]
    assert sweep.runs[1].summary == first.summary
    assert sweep.runs[0].load_model().config == configs(lab)[0].model
    assert [failure.config for failure in sweep.failed] == [configs(lab)[1]]
    assert len(list(RESULTS_DIR.glob("runs/*.json"))) == 2
    assert {f"runs/{run.fingerprint}.json" for run in sweep.runs} == set(lab.used)
    again = lab.train("kgram-pico", n_embd=8, seed=1)
    assert again.summary == sweep.runs[0].summary
    assert again.history.equals(sweep.runs[0].history)


def test_a_clone_redraws_runs_and_failures_without_weights_text_or_training(lab, tmp_path):
    sweep = lab.sweep(configs(lab), n_jobs=1, progress=False)
    RUNS_DIR.rename("elsewhere")
    clone = Lab(lab.profile)
    again = clone.sweep(configs(lab), progress=False)
    assert clone.redrawn == 3
    assert [run.summary for run in again.runs] == [run.summary for run in sweep.runs]
    assert again.failed == sweep.failed
    assert not list(RUNS_DIR.glob("kgram-*"))
    (tmp_path / "text.txt").unlink()
    redraw = Lab(lab.profile, redraw_into=tmp_path / "redrawn")
    drawn = redraw.sweep(configs(lab))
    assert [run.fingerprint for run in drawn.runs] == [run.fingerprint for run in sweep.runs]
    assert drawn.failed == sweep.failed
    with pytest.raises(ValueError, match=r"no record of a training run \(kgram, stories-4k, seed 9\)"):
        redraw.sweep([*configs(lab), lab.config("kgram-pico", n_embd=8, seed=9)])
    with pytest.raises(TrainingDiverged, match="the loss became"):
        redraw.train(configs(lab)[1].model, **WILD)


def test_a_run_that_diverged_raises_again_from_its_record_and_is_not_trained(lab):
    with pytest.raises(TrainingDiverged, match="the loss became") as first:
        lab.train("kgram-pico", n_embd=8, **WILD)
    assert len(list(RESULTS_DIR.glob("failures/*.json"))) == 1
    RUNS_DIR.rename("elsewhere")
    with pytest.raises(TrainingDiverged) as again:
        lab.train("kgram-pico", n_embd=8, **WILD)
    assert str(again.value) == str(first.value)
    assert not list(RUNS_DIR.glob("kgram-*"))
    lab.refresh = True
    with pytest.raises(TrainingDiverged):
        lab.train("kgram-pico", n_embd=8, **WILD)
    assert list(RUNS_DIR.glob("kgram-*"))


def test_other_failures_are_not_recorded_since_they_may_be_mended(lab):
    sweep = lab.sweep([lab.config("kgram-pico", n_embd=8, batch_size=9_999)], n_jobs=1, progress=False)
    assert sweep.failed[0].kind == "ValueError"
    assert not list(RESULTS_DIR.glob("failures/*.json"))


def test_duplicates_and_other_things_are_refused(lab):
    with pytest.raises(ValueError, match="configurations 0 and 1 are the same run"):
        lab.sweep([configs(lab)[0]] * 2)
    with pytest.raises(ValueError, match="configuration 0 is 'lstm-pico'"):
        lab.sweep(["lstm-pico"])


def test_tuning_redraws_what_diverged_as_infinite(lab, tmp_path):
    arms, wild = {"k-gram": KGramConfig(n_embd=8)}, {"optimizer": "sgd", "precision": "float32"}
    losses = tune_arms(lab, arms, (0.01, 1e38), steps=4, **wild)
    redraw = Lab(lab.profile, redraw_into=tmp_path / "redrawn")
    assert tune_arms(redraw, arms, (0.01, 1e38), steps=4, **wild).equals(losses)
    assert losses.loc["k-gram", 1e38] == float("inf")
    assert best_rates(losses) == {"k-gram": 0.01}
    with pytest.raises(ValueError, match="a batch needs 9999"):
        tune_arms(lab, arms, (0.01,), steps=4, batch_size=9_999)


def test_two_names_for_one_arm_share_its_runs(lab):
    arms = {"one": KGramConfig(n_embd=8), "other": KGramConfig(n_embd=8)}
    runs = train_arms(lab, arms, {"one": 0.01, "other": 0.01}, (0,))
    assert runs["one"][0] is runs["other"][0]
    with pytest.raises(TrainingDiverged, match="seed 0"):
        train_arms(lab, arms, {"one": 0.01, "other": 1e38}, (0,), optimizer="sgd", precision="float32")
