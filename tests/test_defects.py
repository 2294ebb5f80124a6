"""Each defect on purpose does what the defective scripts do, only inside its block."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from picollm_core.batches import LineBatches, PackedBatches
from picollm_core.config import DataConfig, TrainConfig
from picollm_core.defects import (
    LogitsTrainer,
    ScoredPadding,
    activated_logits,
    batch_axis_attention,
    logits_loss,
    padding_experiment,
    recorded_defect,
    reported_scores,
    train_with,
)
from picollm_core.evaluate import encode_stories, evaluate
from picollm_core.lab import Lab
from picollm_core.losses import IGNORE, next_token_loss
from picollm_core.models import build_model
from picollm_core.profiles import PROFILES
from picollm_core.token_store import TokenStore
from picollm_core.trainer import Trainer, seeded
from tests.conftest import TINY, VOCAB
from tests.test_evaluate import BYTES, STORIES, tiny

EOT = 9


def lines() -> LineBatches:
    stories = [[1, 2, EOT], [3, 4, 5, 6, EOT]]
    offsets = np.cumsum([0, *map(len, stories)])
    store = TokenStore(np.concatenate(stories).astype(np.uint16), offsets.astype(np.int64), n_bytes=6)
    return LineBatches(store, block_size=8, batch_size=2)


def test_padding_becomes_token_zero_in_input_and_target_and_real_tokens_stay():
    right_idx, right_targets = lines().next_batch()
    idx, targets = ScoredPadding(lines(), block_size=8).next_batch()
    assert idx.shape == targets.shape == (2, 8)
    scored = right_targets != IGNORE
    width = right_targets.size(1)
    assert torch.equal(targets[:, :width][scored], right_targets[scored])
    assert torch.equal(idx[:, :width][scored], right_idx[scored])
    assert (targets[:, :width][~scored] == 0).all()
    assert (targets[:, width:] == 0).all()
    # 8 places less the first end of text, the text, and, in the shorter row, the end of text that follows it
    assert sorted((idx == 0).sum(1).tolist()) == [3, 4]


def test_state_passes_through_to_the_wrapped_batches():
    one, other = ScoredPadding(lines(), 8), ScoredPadding(lines(), 8)
    one.next_batch()
    other.load_state_dict(one.state_dict())
    assert all(map(torch.equal, one.next_batch(), other.next_batch()))
    assert one.epoch == other.epoch
    assert one.steps_per_epoch == 1


def test_scored_padding_reports_a_lower_loss_than_the_true_one():
    found = padding_experiment(steps=12, block_size=64)
    assert found["padding_share"] > 0.2
    reported = {arm: found[arm]["reported_loss"] for arm in ("right", "defect")}
    assert reported["defect"] < reported["right"]
    assert found["defect"]["true_loss"] > found["defect"]["reported_loss"]
    assert all(found[arm]["after_the_end"] for arm in ("right", "defect"))


ROWS, LENGTH = 3, 7
ATTENTION = ["transformer", "transformer-rope-gqa", "transformer-nope-post", "transformer-gpt-oss"]


def model_of(name: str):
    with seeded(0):
        return build_model(TINY[name]).eval()


def ids(rows: int = ROWS, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def changed(model, idx: torch.Tensor, row: int, place: int) -> set[tuple[int, int]]:
    """(row, place) of the logits that another token at one place changes."""
    other = idx.clone()
    other[row, place] = (idx[row, place] + 1) % VOCAB
    differ = (model(idx) - model(other)).abs().amax(-1) > 1e-7
    return {(int(b), int(t)) for b, t in differ.nonzero()}


@pytest.mark.parametrize("name", ATTENTION)
def test_over_the_batch_axis_a_token_reaches_the_same_place_of_later_rows_and_nothing_of_its_own(name):
    model, idx = model_of(name), ids()
    with batch_axis_attention(model):
        assert changed(model, idx, 1, 2) == {(1, 2), (2, 2)}
    assert changed(model, idx, 1, 2) == {(1, t) for t in range(2, LENGTH)}


@pytest.mark.parametrize("name", ["transformer", "transformer-rope-gqa", "transformer-nope-post"])
@torch.no_grad()
def test_a_row_alone_under_the_defect_is_a_model_whose_attention_sees_one_token(name):
    model, idx = model_of(name), ids(rows=1)
    one = build_model(TINY[name].replace(mixers=("window",), window=1)).eval()
    one.load_state_dict(model.state_dict())
    with batch_axis_attention(model):
        torch.testing.assert_close(model(idx), one(idx))


def test_after_the_block_the_model_is_as_it_was_also_when_the_block_fails():
    model, idx = model_of("transformer-rope-gqa"), ids()
    before = model(idx)
    with batch_axis_attention(model):
        assert not torch.equal(model(idx), before)
    with pytest.raises(ValueError, match="shape"), batch_axis_attention(model):
        model(idx[0])
    assert torch.equal(model(idx), before)
    assert all("forward" not in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("name", ["lstm", "kgram-k1", "transformer-gla"])
def test_models_without_attention_in_every_layer_have_no_batch_axis_to_take(name):
    with pytest.raises(ValueError, match="mixers softmax or window"), batch_axis_attention(model_of(name)):
        pass


@torch.no_grad()
def test_activated_logits_are_the_activation_of_the_logits_inside_the_block_alone():
    model, idx = model_of("lstm"), ids()
    right = model(idx)
    with activated_logits(model, "relu"):
        assert torch.equal(model(idx), right.clamp(min=0))
    with activated_logits(model, "gelu"):
        assert torch.equal(model(idx), F.gelu(right))
    assert torch.equal(model(idx), right)
    with pytest.raises(ValueError, match="unknown activation 'tanh'"), activated_logits(model, "tanh"):
        pass


def test_the_loss_of_logits_is_the_evaluators_for_a_model_without_a_defect():
    model, tokenizer = tiny("lstm"), BYTES
    found = logits_loss(model, encode_stories(STORIES, tokenizer))
    assert found == pytest.approx(evaluate(model, tokenizer, STORIES, n_bootstrap=1).nll, abs=1e-5)


def windows() -> PackedBatches:
    tokens = np.random.default_rng(0).integers(VOCAB, size=400).astype(np.uint16)
    return PackedBatches(TokenStore(tokens, np.array([0, 400]), n_bytes=400), block_size=8, batch_size=4)


def test_the_reported_loss_is_the_mean_over_batches_of_windows():
    model = model_of("transformer")
    same, by_hand = windows(), []
    with torch.no_grad():
        for _ in range(3):
            by_hand.append(next_token_loss(model, *same.next_batch()).item())
    assert reported_scores(model, windows(), 3)[0] == pytest.approx(sum(by_hand) / 3, abs=1e-5)
    with pytest.raises(ValueError, match="count is 0"):
        reported_scores(model, windows(), 0)


def test_the_trainer_of_logits_makes_the_updates_of_the_trainer_when_logits_are_right():
    config = TrainConfig(max_steps=3, batch_size=4, precision="float32", learning_rate=0.01)
    ends = []
    for kind in (Trainer, LogitsTrainer):
        trainer = kind(model_of("lstm"), windows(), config)
        ends.append([trainer.advance()["loss"] for _ in range(3)])
    assert ends[0] == pytest.approx(ends[1], abs=1e-4)


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(f"the {n} cats sat on mat {n}" for n in range(400)))
    data, train = DataConfig(corpus=("text.txt",), splits=(80, 20, 0)), TrainConfig(max_steps=6, eval_every=3)
    return Lab(dataclasses.replace(PROFILES["quick"], data=data, train=train, block_size=16))


def test_training_over_the_batch_axis_ends_with_a_model_that_gains_nothing_from_context(lab):
    found = recorded_defect(lab, "batch axis", "transformer-pico", n_embd=8, batch_size=4)
    assert [row["step"] for row in found["history"]] == [3, 6]
    assert found["reported"] == found["history"][-1]["reported"] > 0
    assert recorded_defect(lab, "batch axis", "transformer-pico", n_embd=8, batch_size=4) == found
    assert lab.redrawn == 1


def test_training_with_no_defect_is_training(lab):
    config = lab.config("lstm-pico", n_embd=8, batch_size=4)
    found, run = train_with("none", config), lab.train("lstm-pico", n_embd=8, batch_size=4)
    assert found["alone"] == pytest.approx(run.summary["nll"], abs=1e-3)
    assert found["repaired"] == found["alone"]
    with pytest.raises(ValueError, match="unknown defect 'nothing'"):
        train_with("nothing", config)


def test_a_model_trained_with_activated_logits_is_scored_with_them(lab):
    found = train_with("relu on logits", lab.config("lstm-pico", n_embd=8, batch_size=4))
    assert found["alone"] != pytest.approx(found["repaired"], abs=1e-3)
