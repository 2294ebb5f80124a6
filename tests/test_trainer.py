"""One update of training: what it computes, what it reports, and when it refuses to go on."""

import math
import shutil
import sys

import pytest
import tiktoken
import torch

from picollm_core.config import TrainConfig
from picollm_core.losses import IGNORE, next_token_loss
from picollm_core.models import build_model
from picollm_core.optim import learning_rate
from picollm_core.presets import default_learning_rate
from picollm_core.trainer import Trainer, TrainingDiverged, seeded
from tests.conftest import TINY, VOCAB

BYTES = tiktoken.Encoding(
    "bytes",
    pat_str=r"[\s\S]",
    mergeable_ranks={bytes([i]): i for i in range(256)},
    special_tokens={"<|endoftext|>": 256},
)
"""A tokenizer of 257 tokens, so that training needs no vocabulary file."""


class CycledBatches:
    """The rows of one tensor of ids, `batch_size` at a time, over and over; some rows padded."""

    def __init__(self, batch_size: int, padded: bool = False, rows: int = 24) -> None:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(VOCAB, (rows, 11), generator=generator)
        self.idx, self.targets = tokens[:, :-1], tokens[:, 1:].clone()
        if padded:
            lengths = torch.randint(1, 11, (rows, 1), generator=generator)
            self.targets[torch.arange(10) >= lengths] = IGNORE
        self.batch_size, self.position = batch_size, 0

    def next_batch(self):
        rows = [(self.position + i) % len(self.idx) for i in range(self.batch_size)]
        self.position += self.batch_size
        return self.idx[rows], self.targets[rows]

    @property
    def epoch(self) -> float:
        return self.position / len(self.idx)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.idx) // self.batch_size

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def trainer(kind="kgram-learned", batch_size=8, padded=False, dtype=torch.float32, **settings) -> Trainer:
    torch.manual_seed(0)
    config = TrainConfig(
        **({"max_steps": 10, "learning_rate": 3e-3, "device": "cpu", "precision": "float32"} | settings)
    )
    return Trainer(build_model(TINY[kind]).to(dtype), CycledBatches(batch_size, padded), config)


def weights(t: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in t.model.parameters()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("kind", ["kgram-learned", "lstm", "transformer"])
def test_accumulating_parts_of_a_batch_equals_the_whole_batch(kind, padded):
    """Padded parts have different numbers of scored tokens, so the mean of their means would be another loss."""
    whole = trainer(kind, 8, padded, torch.float64, grad_clip=0.05)
    parts = trainer(kind, 2, padded, torch.float64, grad_clip=0.05, grad_accumulation=4)
    for _ in range(5):
        a, b = whole.advance(), parts.advance()
        for name in ("loss", "grad_norm", "grad_norm_clipped", "max_gradient", "weight_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-9), name
        assert a["tokens"] == b["tokens"]
        assert a["epoch"] == b["epoch"]
    for x, y in zip(weights(whole), weights(parts), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)


def test_a_row_reports_what_the_update_did():
    t, reference = trainer(grad_clip=0.01), trainer(grad_clip=0.01)
    idx, targets = reference.batches.next_batch()
    loss = next_token_loss(reference.model, idx, targets)
    gradients = torch.autograd.grad(loss, list(reference.model.parameters()))
    row = t.advance()
    assert row["step"] == 1
    assert row["loss"] == pytest.approx(loss.item())
    assert row["grad_norm"] == pytest.approx(torch.cat([g.flatten() for g in gradients]).norm().item(), rel=1e-5)
    assert row["grad_norm"] > row["grad_norm_clipped"] == 0.01
    assert row["max_gradient"] == pytest.approx(max(g.abs().max().item() for g in gradients), rel=1e-5)
    assert row["weight_norm"] == pytest.approx(torch.cat([w.flatten() for w in weights(t)]).norm().item(), rel=1e-5)
    assert row["learning_rate"] == learning_rate(0, 10, t.config)
    assert (row["tokens"], row["epoch"]) == (80, 8 / 24)
    assert row["seconds"] > 0
    assert row["tokens_per_second"] == pytest.approx(80 / row["seconds"])
    assert row["memory_mb"] > 1


def test_padding_is_not_counted_among_the_tokens_seen():
    t = trainer(padded=True)
    assert t.advance()["tokens"] == int((t.batches.targets[:8] != IGNORE).sum()) < 80


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"max_steps": None}, 3),
        ({"max_steps": None, "epochs": 2.5}, 8),
        ({"max_steps": None, "epochs": 0.01}, 1),
        ({"max_steps": None, "epochs": 2.0, "grad_accumulation": 3}, 2),
    ],
    ids=str,
)
def test_the_number_of_updates_follows_from_the_epochs_unless_it_is_given(settings, steps):
    assert trainer(**settings).total_steps == steps


def test_the_learning_rate_follows_the_schedule_in_every_group():
    t = trainer("transformer", optimizer="muon", warmup_ratio=0.5)
    for step in range(10):
        assert t.advance()["learning_rate"] == learning_rate(step, 10, t.config)
        assert {g["lr"] for o in t.optimizers for g in o.param_groups} == {learning_rate(step, 10, t.config)}


def test_a_learning_rate_left_out_is_the_family_s():
    t = trainer("lstm", learning_rate=None, warmup_ratio=0)
    assert t.advance()["learning_rate"] == t.config.learning_rate == default_learning_rate(t.model.config)


def test_progress_brings_another_trainer_to_the_same_place():
    t, other = trainer(), trainer()
    for _ in range(3):
        t.advance()
    other.restore(t.progress())
    assert (other.step, other.tokens, other.seconds) == (3, 240, t.seconds)
    assert all(torch.equal(a, b) for a, b in zip(t.batches.next_batch(), other.batches.next_batch(), strict=True))


def test_going_on_in_another_number_format_is_said_once(caplog):
    progress = trainer().progress()
    trainer().restore(progress)
    trainer().restore({name: value for name, value in progress.items() if name != "precision"})  # of an older version
    assert caplog.messages == []
    trainer(precision="bfloat16").restore(progress)
    assert caplog.messages == ["the run was trained with float32 matrix products up to here and goes on with bfloat16"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_training_before_the_weights_change(monkeypatch, value):
    t = trainer(learning_rate=0.25, warmup_ratio=0)
    t.advance()
    before, rate = weights(t), learning_rate(1, 10, t.config)

    def spoilt(model, idx, targets):
        return next_token_loss(model, idx, targets) * value

    monkeypatch.setattr("picollm_core.trainer.next_token_loss", spoilt)
    with pytest.raises(TrainingDiverged, match=rf"the loss became {value} at step 2 with learning rate {rate:.2e}; "):
        t.advance()
    assert same(weights(t), before)


def test_a_gradient_that_is_no_number_stops_training_before_the_weights_change():
    t = trainer()
    before = weights(t)
    next(t.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(
        TrainingDiverged, match=r"the gradient norm became (nan|inf) at step 1 with learning rate 3.00e"
    ):
        t.advance()
    assert same(weights(t), before)


def test_bfloat16_keeps_weights_and_optimizer_state_in_float32():
    t = trainer("transformer", precision="bfloat16")
    exact = trainer("transformer")
    for _ in range(3):
        lowered, row = t.advance(), exact.advance()
    assert t.precision == torch.bfloat16
    assert {p.dtype for p in t.model.parameters()} == {torch.float32}
    assert {v.dtype for o in t.optimizers for s in o.state.values() for v in s.values()} == {torch.float32}
    assert lowered["loss"] == pytest.approx(row["loss"], rel=0.02)
    assert lowered["loss"] != row["loss"]


def test_the_model_trains_in_training_mode_on_the_device_asked_for():
    t = trainer()
    assert t.model.training
    assert t.device == t.model.head.weight.device == torch.device("cpu")
    with pytest.raises(ValueError, match="device 'cuda:99' was asked for, but"):
        trainer(device="cuda:99")


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.skipif(sys.platform == "win32", reason="torch.compile on Windows needs a developer shell")
def test_compiled_training_gives_the_same_losses():
    compiled, plain = trainer("kgram-k1", compile=True), trainer("kgram-k1")
    for _ in range(3):
        assert compiled.advance()["loss"] == pytest.approx(plain.advance()["loss"], rel=1e-5)
    for x, y in zip(weights(compiled), weights(plain), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_seeded_draws_are_fixed_inside_and_leave_no_trace_outside():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with seeded(1):
        first = torch.rand(3)
    with pytest.raises(ZeroDivisionError), seeded(2):
        int(torch.rand(3).sum()) / 0
    assert torch.equal(torch.rand(2), expected)
    with seeded(1):
        assert torch.equal(torch.rand(3), first)
