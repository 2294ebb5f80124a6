"""Flags of `picollm train` become configurations."""

import re
import sys

import pytest

from picollm_core import cli


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_own_text_is_mixed_limited_and_weighted(folder):
    (folder / "more").mkdir()
    (folder / "more" / "a.txt").write_text("one two three\n" * 3)
    flags = ["--input-files", "numbers.txt", "--input-dir", "more", "--tinystories-weight", "0.25"]
    flags += ["--splits", "60", "40", "0"]
    command = cli._parse(["train", *flags, "--limit-custom-examples", "60", "--models", "lstm-pico"])
    (config,) = command.configs()
    assert config.data.corpus == ("auto", "numbers.txt", "more")
    assert config.data.weights == (0.25, 0.375, 0.375)
    assert config.data.limit == (None, 60, 60)
    assert config.data.splits == (60.0, 40.0, 0.0)


def test_model_settings_reach_the_families_that_have_them():
    command = cli._parse(["train", "--set", "position=rope", "k=2", "tied=false", "--num-inner-mlp-layers", "2"])
    kgram, lstm, transformer = (config.model for config in command.configs())
    assert (kgram.k, kgram.n_layer) == (2, 2)
    assert lstm.tied is False
    assert (transformer.position, transformer.tied, transformer.n_layer) == ("rope", False, 1)


def test_a_choice_named_none_is_the_choice_and_elsewhere_none_is_absence():
    settings = ["position=none", "gate=none", "softcap=none", "n_layer=3", "mixers=window,window,softmax"]
    command = cli._parse(["train", "--models", "gpt-oss-pico", "--set", *settings])
    model = command.configs()[0].model
    assert (model.position, model.gate, model.softcap) == ("none", "none", None)
    assert model.mixers == ("window", "window", "softmax")
    single = cli._parse(["train", "--models", "llama3-pico", "--set", "mixers=gla"]).configs()[0].model
    assert single.mixers == ("gla",)


def test_the_courses_monosemantic_flag_prints_each_models_sample_with_nearest_neighbours(folder, capsys):
    size = ["--block-size", "16", "--embed-size", "32", "--max-steps", "2", "--n-stories", "150"]
    flags = ["train", "--models", "kgram-pico", "lstm-pico", "--corpus", "storyworld", *size]
    assert cli._parse(flags).run() == 0
    without = capsys.readouterr().out
    assert cli._parse([*flags, "--monosemantic_enabled"]).run() == 0
    with_it = capsys.readouterr().out.splitlines()
    added = [line for line in with_it if line not in without.splitlines()]
    assert [line for line in with_it if line not in added] == without.splitlines()
    assert len(added) == 2  # one a model, at the end of its block
    for line in added:
        assert re.match(r"  nearest neighbours     ['\"]Once upon a time", line)
        assert re.search(r"\[\S+, \S+, \S+\]", line)  # three a token
    assert with_it[-1] == added[-1]


def test_the_help_says_what_the_flag_prints_and_where_the_autoencoder_is(capsys):
    with pytest.raises(SystemExit):
        cli._parse(["train", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--monosemantic-enabled" in said
    assert "nearest neighbours" in said
    assert "12_monosemanticity" in said


def test_trackers_are_named_behind_one_flag():
    assert cli._parse(["train", "--track", "wandb", "tensorboard"]).track == ("wandb", "tensorboard")


def test_a_tracker_that_is_not_installed_is_one_line_before_any_training(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--corpus", "storyworld", "--track", "wandb"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "picollm: tracker 'wandb' is not installed; pip install 'picollm[track]'\n"
    assert not (folder / "artefacts").exists()
