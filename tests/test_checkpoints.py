"""Checkpoints: everything comes back, a failing save loses nothing, a bad file is named."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from picollm_core import checkpoints
from picollm_core.checkpoints import load_checkpoint, save_checkpoint
from picollm_core.config import TrainConfig
from picollm_core.losses import next_token_loss
from picollm_core.models import build_model
from picollm_core.optim import build_optimizers, set_learning_rate
from tests.conftest import TINY, VOCAB

PROGRESS = {"step": 3, "tokens": 96, "seconds": 0.1 + 0.2, "batches": {"position": 12, "seed": 0, "sources": [1, 2]}}
IDX = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))


def training(kind="lstm", **settings):
    """A model whose dropout draws random numbers, and its optimizers."""
    model = build_model(TINY[kind].replace(dropout=0.3))
    optimizers = build_optimizers(model, TrainConfig(**settings))
    set_learning_rate(optimizers, 0.01)
    return model, optimizers


def advance(model, optimizers, steps=3):
    for _ in range(steps):
        next_token_loss(model, IDX[:, :-1], IDX[:, 1:]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def weights(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def saved(tmp_path):
    """A path with a good checkpoint, and the model and optimizers it was made from."""
    torch.manual_seed(0)
    model, optimizers = training()
    advance(model, optimizers)
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, model, optimizers, PROGRESS)
    return path, model, optimizers


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("settings", [
    {"optimizer": "adamw"}, {"optimizer": "adam"}, {"optimizer": "sgd"}, {"optimizer": "sgd", "beta1": 0.0},
    {"optimizer": "muon"},
], ids=lambda s: "-".join(map(str, s.values())))  # fmt: skip
def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path, kind, settings):
    torch.manual_seed(0)
    model, optimizers = training(kind, **settings)
    advance(model, optimizers)
    save_checkpoint(tmp_path / "c", model, optimizers, PROGRESS)
    advance(model, optimizers)
    torch.manual_seed(99)  # another model, another state of the generator
    again, again_optimizers = training(kind, **settings)
    assert load_checkpoint(tmp_path / "c", again, again_optimizers) == PROGRESS
    advance(again, again_optimizers)
    assert same(weights(model), weights(again))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    model, optimizers = training("transformer")
    save_checkpoint(tmp_path / "tied", model, optimizers, {})
    other, other_optimizers = training("transformer")
    load_checkpoint(tmp_path / "tied", other, other_optimizers)
    assert other.head.weight is other.embedding.weight
    size = sum(p.numel() * 4 for p in model.parameters())
    assert size < (tmp_path / "tied").stat().st_size < size + 12_000  # the generator's 5,056 bytes and names


def half_written(error):
    """Stands in for safetensors' save_file: writes a part, then fails."""

    def write(_tensors, path, _metadata):
        Path(path).write_bytes(b"half a che")
        raise error

    return write


def refused(_source, _target):
    raise OSError("No space left on device")


FAILURES = {
    "full disk": (checkpoints, "save_file", half_written(OSError("No space left on device"))),
    "full disk in Rust": (checkpoints, "save_file", half_written(SafetensorError("No space left on device"))),
    "ctrl-c": (checkpoints, "save_file", half_written(KeyboardInterrupt("No space left on device"))),
    "renaming": (os, "replace", refused),
}


@pytest.mark.parametrize(("module", "function", "failure"), FAILURES.values(), ids=FAILURES)
def test_a_failing_save_leaves_the_older_file_and_nothing_else(saved, monkeypatch, module, function, failure):
    path, model, optimizers = saved
    before = path.read_bytes()
    advance(model, optimizers)
    monkeypatch.setattr(module, function, failure)
    with pytest.raises((OSError, KeyboardInterrupt), match="No space left on device"):
        save_checkpoint(path, model, optimizers, PROGRESS)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert load_checkpoint(path, *training()) == PROGRESS
    assert list(path.parent.iterdir()) == [path]


def other_model_s_checkpoint(path: Path) -> None:
    model, optimizers = training("kgram-conv")
    save_checkpoint(path, model, optimizers, PROGRESS)


def other_vocabulary(path: Path) -> None:
    model = build_model(TINY["lstm"].replace(vocab_size=VOCAB + 1))
    save_checkpoint(path, model, build_optimizers(model, TrainConfig()), PROGRESS)


def other_optimizer(path: Path) -> None:
    model, optimizers = training(optimizer="muon")
    save_checkpoint(path, model, optimizers, PROGRESS)


def other_number_format(path: Path) -> None:
    model = build_model(TINY["lstm"]).to(torch.bfloat16)
    save_checkpoint(path, model, build_optimizers(model, TrainConfig()), PROGRESS)


def without_generator(path: Path) -> None:
    model, optimizers = training()
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    groups = [optimizer.state_dict()["param_groups"] for optimizer in optimizers]
    save_file(tensors, path, {"progress": "{}", "groups": json.dumps(groups)})


BAD_FILES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "header only": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "pickle": lambda path: torch.save({"model": {}}, path),
    "foreign safetensors": lambda path: save_file({"x": torch.zeros(3)}, path),
    "weights alone": lambda path: save_file({"model.head.weight": torch.zeros(3)}, path, {"progress": "{"}),
    "no generator": without_generator,
    "other model": other_model_s_checkpoint,
    "other vocabulary": other_vocabulary,
    "other optimizer": other_optimizer,
    "other number format": other_number_format,
    "missing": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("spoil", BAD_FILES.values(), ids=BAD_FILES)
def test_an_unusable_file_is_named_with_the_way_out(saved, spoil):
    path, model, optimizers = saved
    spoil(path)
    with pytest.raises(
        ValueError, match=r"checkpoint.safetensors is not a usable checkpoint of this run .*; delete it"
    ):
        load_checkpoint(path, model, optimizers)


def test_a_misfitting_tensor_is_named_with_both_shapes(saved):
    path, model, optimizers = saved
    other_vocabulary(path)
    with pytest.raises(ValueError, match=rf"embedding.weight has shape \({VOCAB + 1}, 16\), expected \({VOCAB}, 16\)"):
        load_checkpoint(path, model, optimizers)


SAVE_FOREVER = """
import sys, torch
from pathlib import Path
from picollm_core.checkpoints import save_checkpoint
from picollm_core.config import LSTMConfig, TrainConfig
from picollm_core.models import build_model
from picollm_core.optim import build_optimizers
model = build_model(LSTMConfig(vocab_size=5_000, n_embd=256))
optimizers = build_optimizers(model, TrainConfig())
step = 0
while True:
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(step)
    save_checkpoint(Path(sys.argv[1]), model, optimizers, {"step": step})
    step += 1
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
def test_a_kill_during_a_save_leaves_a_complete_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER, str(path)], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        deadline = time.monotonic() + 120
        while not (path.exists() and list(tmp_path.glob("*.tmp"))):  # a later save is under way
            assert process.poll() is None
            assert time.monotonic() < deadline
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    model = build_model(TINY["lstm"].replace(vocab_size=5_000, n_embd=256, n_layer=1))
    progress = load_checkpoint(path, model, build_optimizers(model, TrainConfig()))
    assert all((p == progress["step"]).all() for p in model.parameters())
