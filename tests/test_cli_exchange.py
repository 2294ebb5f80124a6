"""`picollm export` and `picollm import`: what they print, what they write and how they exit."""

import json

import pytest
import torch

from picollm_core import cli, load_model, save_model
from picollm_core.exchange import to_transformers
from tests.exchange_models import EXPORTABLE, random_ids, random_model


def picollm(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.fixture
def saved(tmp_path):
    model = random_model(EXPORTABLE["llama3"].replace(vocab_size=4096))
    save_model(model, "stories-4k", tmp_path / "model")
    return model, tmp_path / "model"


def test_a_model_travels_there_and_back_with_its_tokenizer(saved, tmp_path, capsys):
    model, folder = saved
    status, out, _ = picollm(capsys, "export", folder, tmp_path / "there")
    assert (status, out) == (0, f"{tmp_path / 'there'}: LlamaForCausalLM, {model.num_parameters():,} parameters\n")
    status, out, _ = picollm(capsys, "import", tmp_path / "there", tmp_path / "back")
    assert status == 0
    assert out == f"{tmp_path / 'back'}: {model.num_parameters():,} parameters, tokenizer stories-4k\n"
    back, tokenizer = load_model(tmp_path / "back")
    assert tokenizer.name == "stories-4k"
    with torch.no_grad():
        assert torch.equal(back(random_ids()), model(random_ids()))


def test_a_folder_that_names_no_tokenizer_is_imported_without_or_with_the_one_asked_for(saved, tmp_path, capsys):
    _, folder = saved
    there = tmp_path / "there"
    picollm(capsys, "export", folder, there)
    config = json.loads((there / "config.json").read_text())
    (there / "config.json").write_text(json.dumps(config | {"picollm": None}))
    status, out, _ = picollm(capsys, "import", there, tmp_path / "silent")
    assert status == 0
    assert "its tokenizer is unknown, so it cannot write text" in out
    assert not (tmp_path / "silent" / "tokenizer.json").exists()
    status, out, _ = picollm(capsys, "import", there, tmp_path / "told", "--tokenizer", "stories-4k")
    assert status == 0
    assert load_model(tmp_path / "told")[1].name == "stories-4k"


def refused(capsys, *arguments) -> str:
    status, out, err = picollm(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    return err


def test_a_wrong_tokenizer_is_refused_before_anything_is_written(tmp_path, capsys):
    to_transformers(random_model(EXPORTABLE["gpt2"]), tmp_path / "there")
    err = refused(capsys, "import", tmp_path / "there", tmp_path / "back", "--tokenizer", "stories-4k")
    assert "vocab_size=61, but the tokenizer 'stories-4k' has 4096 tokens" in err
    assert not (tmp_path / "back").exists()


def test_a_folder_of_transformers_is_not_overwritten_by_an_import(saved, tmp_path, capsys):
    _, folder = saved
    there = tmp_path / "there"
    picollm(capsys, "export", folder, there)
    assert "layout of transformers, which would be overwritten" in refused(capsys, "import", there, there)


def test_models_that_cannot_travel_are_one_line_and_status_two(tmp_path, capsys):
    model = random_model(EXPORTABLE["gpt2"].replace(vocab_size=4096, position="none"))
    save_model(model, "stories-4k", tmp_path / "model")
    err = refused(capsys, "export", tmp_path / "model", tmp_path / "there")
    assert "no class of transformers computes position='none'" in err
    assert not (tmp_path / "there").exists()


def test_folders_that_are_not_of_transformers_are_one_line_and_status_two(tmp_path, saved, capsys):
    _, folder = saved
    assert "has no config.json" in refused(capsys, "import", tmp_path / "nothing", tmp_path / "back")
    assert "model_type is None" in refused(capsys, "import", folder, tmp_path / "back")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"pickled")
    assert "only pytorch_model.bin, which is pickled" in refused(capsys, "import", tmp_path / "old", tmp_path / "back")


def test_a_folder_of_transformers_given_as_a_model_is_answered_with_the_command_that_converts_it(
    saved, tmp_path, capsys
):
    to_transformers(saved[0], tmp_path / "theirs", "stories-4k")
    status, _, err = picollm(capsys, "generate", "Once", "--model", tmp_path / "theirs")
    assert status == 2
    assert "convert it with picollm import" in err
    assert len(err.splitlines()) == 1
