"""Trained models come back with their tokenizers, or one sentence says why not."""

import json

import pytest
import torch

from picollm_core import load_model, load_tokenizer, save_model, train
from picollm_core.loading import list_models, newest_model
from picollm_core.models import build_model


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = build_model("lstm-pico", vocab_size=4096, n_embd=8).eval()
    save_model(model, "stories-4k", tmp_path / "model")
    return model, tmp_path / "model"


def test_a_saved_model_comes_back_with_equal_logits_and_its_tokenizer(saved):
    model, folder = saved
    loaded, tokenizer = load_model(folder)
    assert tokenizer is load_tokenizer("stories-4k")
    idx = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(idx), model(idx))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing is not a folder.*picollm train"):
        load_model(tmp_path / "nothing")


def test_a_model_without_its_tokenizer_is_refused(saved):
    _, folder = saved
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        load_model(folder)


def test_a_tokenizer_of_another_size_is_refused_with_both_numbers(saved):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    model = build_model("lstm-pico", vocab_size=300, n_embd=8)
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"vocab_size=300.*'stories-4k' has 4096 tokens"):
        load_model(folder)
    assert config["vocab_size"] == 4096


def test_an_unknown_tokenizer_is_named(saved):
    _, folder = saved
    (folder / "tokenizer.json").write_text('{"tokenizer": "nobody-knows"}')
    with pytest.raises(ValueError, match="nobody-knows"):
        load_model(folder)


def test_without_a_finished_run_there_is_no_newest_model(tmp_path):
    (tmp_path / "half").mkdir()
    with pytest.raises(ValueError, match=r"no finished run.*no model in.*picollm train"):
        newest_model(tmp_path, tmp_path / "shipped")


def test_before_the_first_run_the_newest_model_is_the_shipped_transformer(tmp_path):
    shipped = tmp_path / "shipped" / "transformer"
    shipped.mkdir(parents=True)
    assert newest_model(tmp_path / "runs", tmp_path / "shipped") == shipped


def test_models_on_disk_are_listed_with_what_their_files_say(saved, tmp_path):
    _, folder = saved
    (folder / "README.md").write_text("| bits per byte | 0.812 |\n")
    listed = list_models(tmp_path, tmp_path / "no runs")
    assert [one.path for one in listed] == [folder]
    assert listed[0].label == "model: LSTM, 0.1M weights, 0.812 bits per byte"


def test_a_run_is_listed_with_its_measured_quality(tmp_path):
    settings = {"corpus": "storyworld", "n_stories": 100, "max_steps": 2, "eval_stories": 2, "tokenizer": "stories-4k"}
    run = train("lstm-pico", runs_dir=tmp_path, n_embd=8, block_size=16, sample_tokens=2, **settings)
    (listed,) = list_models(tmp_path / "nothing shipped", tmp_path)
    assert listed.path == run.directory
    assert listed.label.endswith(f"{run.summary['bits_per_byte']:.3f} bits per byte on storyworld")


def test_an_unreadable_model_is_listed_by_its_name(saved, tmp_path):
    _, folder = saved
    (folder / "config.json").write_text("{")
    assert [one.label for one in list_models(tmp_path, tmp_path / "no runs")] == ["model: unreadable"]
