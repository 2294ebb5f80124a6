"""A notebook's tools: settings from the profile, results computed once, and quick leaves committed results alone."""

import dataclasses

import pandas as pd
import pytest

from picollm_core.config import DataConfig, TrainConfig
from picollm_core.figure_index import read_index
from picollm_core.lab import Lab, environment_table, history_table, token_pieces
from picollm_core.plots import plot_loss_curves
from picollm_core.profiles import PROFILES
from picollm_core.results import RESULTS_DIR
from picollm_core.runs import RUNS_DIR
from picollm_core.tokenizers import load_tokenizer


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(f"the {n} cats sat on mat {n}" for n in range(400)))
    profile = dataclasses.replace(
        PROFILES["quick"],
        data=DataConfig(corpus=("text.txt",)),
        train=TrainConfig(max_steps=6, eval_every=3, eval_stories=4),
        block_size=16,
    )
    return Lab(profile)


def test_the_profile_sets_data_training_and_window_and_settings_win(lab):
    config = lab.config("lstm-pico", seed=3, block_size=24, n_embd=8)
    assert config.data == lab.profile.data
    assert (config.train.max_steps, config.train.seed) == (6, 3)
    assert (config.model.block_size, config.model.n_embd, config.model.vocab_size) == (24, 8, 4096)


def test_a_run_is_trained_once_and_redrawn_after(lab):
    first = lab.train("lstm-pico", n_embd=8)
    assert lab.redrawn == 0
    again = lab.train("lstm-pico", n_embd=8)
    assert lab.redrawn == 1
    assert again.summary == first.summary
    assert again.load_model().config == first.config.model


def test_quick_writes_nothing_where_committed_results_are(lab):
    run = lab.train("kgram-pico", n_embd=8)
    lab.floors(run, orders=(1, 2))
    lab.figure(plot_loss_curves(history_table({"k-gram": run}), title="t"), "curves")
    assert not RESULTS_DIR.exists()
    assert not RESULTS_DIR.with_name("figures").exists()
    assert (RUNS_DIR / "figures" / "curves.png").is_file()


def test_standard_records_what_it_measures_and_a_clone_redraws_it_without_weights(lab):
    standard = Lab(dataclasses.replace(lab.profile, name="standard"))
    run = standard.train("lstm-pico", n_embd=8)
    assert len(list(RESULTS_DIR.glob("runs/*.json"))) == 1
    RUNS_DIR.rename("elsewhere")  # a fresh clone has the records and no runs
    clone = Lab(dataclasses.replace(lab.profile, name="standard"))
    redrawn = clone.train("lstm-pico", n_embd=8)
    assert clone.redrawn == 1
    assert redrawn.summary == run.summary
    assert redrawn.directory is None


def test_refresh_measures_anew(lab):
    values = iter([1, 2])
    assert lab.measure("m", lambda: next(values), k=1) == 1
    assert lab.measure("m", lambda: next(values), k=1) == 1
    lab.refresh = True
    assert lab.measure("m", lambda: next(values), k=1) == 2


def test_floors_fall_with_the_order_and_have_every_unit(lab):
    floors = lab.floors(lab.train("kgram-pico", n_embd=8), orders=(1, 2, 3))
    assert list(floors["order"]) == [1, 2, 3]
    assert floors["nll"].is_monotonic_decreasing
    assert {"perplexity", "bits_per_byte"} < set(floors.columns)


def test_the_environment_and_token_tables_say_what_a_reader_needs():
    assert {"python", "torch", "device", "matrix products in"} < set(environment_table().index)
    assert token_pieces("Once upon", load_tokenizer("stories-4k")) == ["Once", "␣upon"]


def test_a_record_made_with_real_stories_is_redrawn_where_they_are_not_and_says_so(lab, tmp_path, monkeypatch, caplog):
    stories = tmp_path / "stories"
    stories.mkdir()
    texts = [f"Once there was a cat called Tom{n} who had {n} hats and lost them all one day." for n in range(330)]
    pd.DataFrame({"text": texts[:300]}).to_parquet(stories / "train.parquet")
    pd.DataFrame({"text": texts[300:]}).to_parquet(stories / "validation.parquet")
    profile = dataclasses.replace(lab.profile, name="standard", data=DataConfig(n_stories=200))
    monkeypatch.setenv("PICOLLM_TINYSTORIES", str(stories))
    run = Lab(profile).train("lstm-pico", n_embd=8)
    assert run.context["corpora"] == ["tinystories"]
    monkeypatch.delenv("PICOLLM_TINYSTORIES")
    RUNS_DIR.rename("elsewhere")
    clone = Lab(profile)
    again = clone.train("lstm-pico", n_embd=8)
    assert again.fingerprint == run.fingerprint
    assert again.history.equals(run.history)
    assert "redrawn from the committed record on tinystories" in caplog.text


def test_redrawing_looks_for_no_text_and_no_weights_and_says_what_is_not_recorded(lab, tmp_path):
    profile = dataclasses.replace(lab.profile, name="standard")
    run = Lab(profile).train("lstm-pico", n_embd=8)
    (tmp_path / "text.txt").unlink()
    redraw = Lab(profile, redraw_into=tmp_path / "redrawn")
    again = redraw.train("lstm-pico", n_embd=8)
    assert (again.fingerprint, again.summary, again.directory) == (run.fingerprint, run.summary, None)
    with pytest.raises(ValueError, match=r"no record of a training run \(lstm, stories-4k, seed 3\).*--write"):
        redraw.train("lstm-pico", n_embd=8, seed=3)
    with pytest.raises(ValueError, match=r"no record of the measurement 'm'.*--write"):
        redraw.measure("m", lambda: 1, k=1)
    with pytest.raises(ValueError, match="no record of the measurement 'kneser-ney'"):
        redraw.floors(again, orders=(1,))


def test_a_figure_enters_the_index_with_everything_looked_up_before_it(lab, tmp_path):
    run = lab.train("kgram-pico", n_embd=8)
    lab.measure("m", lambda: 1, k=1)
    lab.redraw_into = tmp_path / "redrawn"
    lab.figure(plot_loss_curves(history_table({"k-gram": run}), title="It falls"), "curves")
    entry = read_index(tmp_path / "redrawn")["curves"]
    assert entry.title == "It falls"
    assert len(entry.results) == 2
    assert f"runs/{run.fingerprint}.json" in entry.results
    assert all((RUNS_DIR / "results" / name).is_file() for name in entry.results)


def test_floors_are_those_of_the_stories_that_the_run_was_judged_by(lab):
    whole, few = lab.train("kgram-pico", n_embd=8), lab.train("kgram-pico", n_embd=8, final_stories=2)
    assert lab.floors(whole, orders=(2,)).nll[0] != lab.floors(few, orders=(2,)).nll[0]
