"""Saving and loading models: every bit comes back, nothing is unpickled, bad files are named, failures lose nothing."""

import json
import os
import pickle
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from picollm_core.config import LSTMConfig
from picollm_core.models import LanguageModel, build_model
from picollm_core.models.kgram import KGramMLP
from picollm_core.models.lstm import LSTM
from tests.conftest import TINY, VOCAB

FILES = {"config.json", "model.safetensors", "README.md"}


def tokens():
    return torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))


def same_logits(a: LanguageModel, b: LanguageModel) -> bool:
    return torch.equal(a(tokens()), b(tokens()))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def lstm() -> LSTM:
    torch.manual_seed(0)
    return build_model(TINY["lstm"]).eval()


@pytest.fixture
def folder(lstm, tmp_path) -> Path:
    """A saved model."""
    lstm.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_model_gives_the_same_logits_bit_for_bit(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "m")
    again = LanguageModel.from_pretrained(tmp_path / "m")
    assert again.config == tiny_model.config
    assert type(again) is type(tiny_model)
    assert not again.training
    assert same_logits(again, tiny_model)
    assert again.num_parameters() == tiny_model.num_parameters()
    assert {path.name for path in (tmp_path / "m").iterdir()} == FILES


@pytest.mark.parametrize("kind", ["lstm-tied", "transformer"])
def test_tied_weights_are_tied_again_after_loading(kind, tmp_path):
    model = build_model(TINY[kind])
    model.save_pretrained(tmp_path)
    again = LanguageModel.from_pretrained(tmp_path)
    tables = [m for name, m in again.named_modules() if name == "embedding"]
    assert again.head.weight is tables[0].weight
    stored = sum(t.numel() for t in safetensors.torch.load_file(tmp_path / "model.safetensors").values())
    assert stored == model.num_parameters()


def test_loading_through_the_family_s_own_class_works_and_through_another_is_refused(folder):
    assert isinstance(LSTM.from_pretrained(str(folder)), LSTM)
    with pytest.raises(ValueError, match=r"saved holds a LSTM, not a KGramMLP"):
        KGramMLP.from_pretrained(folder)


def test_pushing_uploads_what_was_saved_and_a_local_folder_can_stand_in(lstm, tmp_path, monkeypatch):
    """The hub's own client is replaced where it would go online; all else is the mixin's path."""
    uploaded = tmp_path / "hub"

    class LocalHub:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})()

        def upload_folder(self, folder_path, **_):
            shutil.copytree(folder_path, uploaded)
            return "commit"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", LocalHub)
    assert lstm.push_to_hub("someone/lstm") == "commit"
    assert {path.name for path in uploaded.iterdir()} == FILES
    assert same_logits(LanguageModel.from_pretrained(uploaded), lstm)


def test_saving_twice_replaces_the_files_and_keeps_a_written_model_card(lstm, folder):
    (folder / "README.md").write_text("my own card")
    other = build_model(TINY["lstm"]).eval()
    other.save_pretrained(folder)
    assert same_logits(LanguageModel.from_pretrained(folder), other)
    assert not same_logits(other, lstm)
    assert (folder / "README.md").read_text() == "my own card"


def full_disk(_model, filename, *_, **__):
    Path(filename).write_bytes(b"half")
    raise SafetensorError("I/O error: No space left on device")


def refused(*_, **__):
    raise OSError("No space left on device")


@pytest.mark.parametrize(
    ("owner", "function", "failure"),
    [(safetensors.torch, "save_model", full_disk), (Path, "write_text", refused), (os, "replace", refused)],
    ids=["weights", "config", "renaming"],
)
def test_a_failing_save_leaves_the_older_files_and_nothing_else(lstm, folder, monkeypatch, owner, function, failure):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(owner, function, failure)
    with pytest.raises(OSError, match="No space left on device"):
        build_model(TINY["lstm"]).save_pretrained(folder)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert same_logits(LanguageModel.from_pretrained(folder), lstm)


def test_what_a_killed_save_left_behind_is_cleared_by_the_next(lstm, folder):
    (folder / ".saving").mkdir()
    (folder / ".saving" / "half.safetensors").write_bytes(b"half")
    lstm.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == FILES


def rewrite_config(folder: Path, **changes) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


BAD_CONFIGS = {
    "unknown family": (lambda f: rewrite_config(f, family="gru"), "unknown family 'gru'; choose one of kgram, lstm"),
    "no family": (lambda f: rewrite_config(f, family=...), "unknown family None"),
    "unknown key": (lambda f: rewrite_config(f, n_heads=2), "LSTMConfig has no n_heads; known keys"),
    "bad value": (lambda f: rewrite_config(f, n_embd=0), "n_embd is 0; it must be at least 1"),
    "bad type": (lambda f: rewrite_config(f, n_embd="16"), "n_embd is '16'; it must be of type int"),
    "null": (lambda f: rewrite_config(f, vocab_size=None), "vocab_size is None"),
    "too large to build": (lambda f: rewrite_config(f, vocab_size=10**15), "not a model configuration"),
    "a list": (lambda f: (f / "config.json").write_text("[1, 2]"), "not a model configuration"),
    "a word": (lambda f: (f / "config.json").write_text('"lstm"'), "not a model configuration"),
    "broken json": (lambda f: (f / "config.json").write_text('{"family": "lst'), "Unterminated string"),
    "empty": (lambda f: (f / "config.json").write_text(""), "Expecting value"),
    "binary": (lambda f: (f / "config.json").write_bytes(b"\xff\x00\xfe"), "can't decode byte 0xff"),
}


@pytest.mark.parametrize(("spoil", "reason"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_a_tampered_config_is_named_with_the_reason(folder, spoil, reason):
    spoil(folder)
    with pytest.raises(ValueError, match=r"config.json is not a model configuration of this package: .*") as error:
        LanguageModel.from_pretrained(folder)
    assert reason in str(error.value)


def foreign(path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)


def one_tensor_missing(path: Path) -> None:
    tensors = safetensors.torch.load_file(path)
    del tensors["head.weight"]
    safetensors.torch.save_file(tensors, path)


def other_vocabulary(path: Path) -> None:
    other = build_model(LSTMConfig(vocab_size=99, n_embd=16, n_layer=2))
    safetensors.torch.save_model(other, str(path))


BAD_WEIGHTS = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), ""),
    "header cut": (lambda path: path.write_bytes(path.read_bytes()[:20]), ""),
    "empty": (lambda path: path.write_bytes(b""), ""),
    "garbage": (lambda path: path.write_bytes(bytes(range(256)) * 9), ""),
    "a pickle": (lambda path: torch.save({"head.weight": torch.zeros(3)}, path), ""),
    "foreign": (foreign, "head.weight"),
    "one missing": (one_tensor_missing, "head.weight"),
    "other vocabulary": (other_vocabulary, "torch.Size([99, 16])"),
}


@pytest.mark.parametrize(("spoil", "reason"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_unusable_weights_are_named_with_the_reason(folder, spoil, reason):
    spoil(folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors cannot be loaded as the weights of this model") as error:
        LanguageModel.from_pretrained(folder)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_one_of_the_files_is_named_with_what_it_lacks(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"saved is not a saved model: it has no {name}"):
        LanguageModel.from_pretrained(folder)


class Trap:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_beside_or_in_place_of_safetensors_is_never_opened(folder, lstm, tmp_path):
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    for name in ("pytorch_model.bin", "model.bin", "model.pt", "config.pkl"):
        (folder / name).write_bytes(trap)
    assert same_logits(LanguageModel.from_pretrained(folder), lstm)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"it has no model.safetensors"):
        LanguageModel.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(trap)
    with pytest.raises(ValueError, match="cannot be loaded as the weights"):
        LanguageModel.from_pretrained(folder)
    assert not sprung.exists()
    pickle.loads(trap)
    assert sprung.exists()  # the trap was real


@pytest.mark.parametrize("name", ["missing", "someone/missing", "./missing/folder", "../x"])
def test_a_missing_folder_is_an_error_without_network(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"{name} is neither a folder here nor a readable hub repository"):
        LanguageModel.from_pretrained(name, cache_dir=tmp_path / "hub")


def test_every_parameter_has_a_finite_start_and_is_trained(tiny_model):
    assert tiny_model.num_parameters() == sum(p.numel() for p in tiny_model.parameters())
    assert all(p.requires_grad and p.isfinite().all() for p in tiny_model.parameters())


def test_building_is_silent_and_refuses_what_does_not_fit(capfd):
    build_model("lstm-pico", vocab_size=100)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match="n_head=3 does not divide n_embd=64"):
        build_model("transformer-pico", n_head=3)
