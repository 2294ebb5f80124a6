"""The defect on purpose does what the defective scripts do."""

import numpy as np
import torch

from picollm_core.batches import LineBatches
from picollm_core.defects import ScoredPadding, padding_experiment
from picollm_core.losses import IGNORE
from picollm_core.token_store import TokenStore

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
