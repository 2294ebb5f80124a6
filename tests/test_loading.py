"""Trained models come back with their tokenizers, or one sentence says why not."""

import json

import pytest
import torch

from picollm_core import load_model, load_tokenizer, save_model, train
from picollm_core.loading import find_model, hub_name, list_models, newest_model
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


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Shipped models, runs (one finished, one not), and the finished run."""
    folder = tmp_path_factory.mktemp("places")
    settings = {"corpus": "storyworld", "n_stories": 100, "max_steps": 2, "eval_stories": 2, "tokenizer": "stories-4k"}
    run = train(
        "lstm-pico", runs_dir=folder / "runs", progress=False, n_embd=8, block_size=16, sample_tokens=2, **settings
    )
    save_model(run.load_model(), "stories-4k", folder / "shipped" / "lstm")
    half = folder / "runs" / "kgram-0123456789abcdef"
    half.mkdir()
    (half / "run.json").write_text((run.directory / "run.json").read_text())
    return {"runs_dir": folder / "runs", "shipped": folder / "shipped"}, run


def test_a_model_is_found_by_the_name_it_ships_under_its_runs_name_fingerprint_and_folder(places):
    where, run = places
    assert find_model("lstm", **where) == where["shipped"] / "lstm"
    for name in (run.directory.name, run.fingerprint, run.directory, str(run.directory), None):
        assert find_model(name, **where) == run.directory


def test_a_folder_here_comes_before_a_model_that_ships(places, tmp_path, monkeypatch):
    where, _ = places
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lstm").mkdir()
    assert find_model("lstm", **where).resolve() == tmp_path / "lstm"


def test_a_run_that_has_not_ended_is_no_model_yet(places):
    where, _ = places
    for name in ("kgram-0123456789abcdef", "0123456789abcdef", where["runs_dir"] / "kgram-0123456789abcdef"):
        with pytest.raises(ValueError, match=r"kgram-0123456789abcdef has not ended; train the same configuration"):
            find_model(name, **where)


def test_a_name_that_two_runs_share_is_refused_with_both(places, tmp_path):
    for family in ("kgram", "lstm"):
        (tmp_path / f"{family}-abc").mkdir()
        (tmp_path / f"{family}-abc" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="'abc' means kgram-abc and lstm-abc; name one of them in full"):
        find_model("abc", runs_dir=tmp_path, shipped=tmp_path)


def test_an_unknown_name_says_where_it_was_looked_for(places):
    where, _ = places
    with pytest.raises(ValueError, match=r"gpt5 is not a folder, nor a model in .*\(lstm\), nor a run in .*user/model"):
        find_model("gpt5", **where)
    with pytest.raises(ValueError, match="me/gpt5 is not a folder"):
        find_model("me/gpt5", **where, local=True)


def test_a_hub_name_without_network_is_one_sentence(places):
    where, _ = places
    with pytest.raises(ValueError, match="nobody/nothing-of-the-kind is neither a folder here nor a readable hub repo"):
        find_model("nobody/nothing-of-the-kind", **where)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("me/stories", True),
        ("me/stories-4.0_b", True),
        ("stories", False),
        ("a/b/c", False),
        ("./b", False),
        ("a/", False),
    ],
)
def test_names_of_the_hub_have_two_parts(name, is_one):
    assert hub_name(name) is is_one
