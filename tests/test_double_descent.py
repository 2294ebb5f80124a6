"""Double descent: windows whose contexts differ, exact noise, and a fit that only wide models reach."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from picollm_core.double_descent import (
    ERROR,
    LETTERS,
    LOSS,
    DescentSetting,
    WholeBatch,
    descent_lines,
    descent_run,
    descent_study,
    letter_windows,
    with_noise,
)
from picollm_core.lab import Lab
from picollm_core.profiles import get_profile
from picollm_core.results import ResultStore
from picollm_core.storyworld import generate_stories

TEXTS = list(generate_stories(40, seed=0))
SETTING = DescentSetting(windows=60, test_windows=100, updates=150, every=50, k=3)


def test_windows_are_pieces_of_the_text_in_known_letters():
    found = letter_windows(["The Cat!", "sat; 12 on"], 2, 11, seed=0, distinct=False)
    joined = "the cat\nsat  on"  # lower case, without what has no number
    spelt = {"".join(LETTERS[i] for i in window) for window in found}
    assert spelt <= {joined[i : i + 3] for i in range(len(joined))}
    assert found.shape == (11, 3)


def test_distinct_windows_have_different_contexts_in_an_order_of_the_seed():
    found = letter_windows(TEXTS, 3, 300, seed=0, distinct=True)
    assert len(np.unique(found[:, :3], axis=0)) == 300
    assert (found == letter_windows(TEXTS, 3, 300, seed=0, distinct=True)).all()
    assert (found != letter_windows(TEXTS, 3, 300, seed=1, distinct=True)).any()
    with pytest.raises(ValueError, match="ask for fewer"):
        letter_windows(["abcabcabc"], 2, 4, seed=0, distinct=True)
    with pytest.raises(ValueError, match="hold 2 letters"):
        letter_windows(["ab"], 2, 1, seed=0, distinct=False)


def test_noise_changes_that_share_of_targets_and_no_context():
    windows = np.zeros((1000, 4), dtype=np.int64)
    noisy = with_noise(windows, 0.3, seed=0)
    assert not noisy[:, :3].any()
    assert np.count_nonzero(noisy[:, 3]) == pytest.approx(300 * (1 - 1 / len(LETTERS)), abs=15)
    assert (with_noise(windows, 0.0, seed=0) == windows).all()


def test_a_batch_is_all_windows_and_scores_their_last_letter():
    batches = WholeBatch(np.array([[1, 2, 3], [4, 5, 6]]))
    for _ in range(2):
        idx, targets = batches.next_batch()
        assert idx.tolist() == [[1, 2], [4, 5]]
        assert targets.tolist() == [[-100, 3], [-100, 6]]
    assert (batches.epoch, batches.steps_per_epoch) == (2.0, 1)
    again = WholeBatch(np.array([[1, 2, 3]]))
    again.load_state_dict(batches.state_dict())
    assert again.epoch == 2


def test_only_a_wide_model_fits_all_windows_and_stopping_early_is_never_worse():
    train = letter_windows(TEXTS, 3, 60, seed=0, distinct=True)
    test = letter_windows(TEXTS, 3, 100, seed=9, distinct=False)
    narrow, wide = (descent_run(train, test, width, SETTING, seed=0) for width in (1, 32))
    assert wide["train_error"] == 0
    assert wide["train_loss"] < 0.05
    assert narrow["train_error"] > 0.5
    for found in (narrow, wide):
        assert found["stopped"] <= found["test_loss"]
    assert wide["parameters"] > narrow["parameters"]


def test_weights_follow_from_the_seed_and_leave_torchs_generator_alone():
    train = letter_windows(TEXTS, 3, 20, seed=0, distinct=True)
    short, before = SETTING.replace(updates=5), torch.get_rng_state()
    runs = [descent_run(train, train, 4, short, seed) for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert runs[0] == runs[1]
    assert runs[0]["train_loss"] != runs[2]["train_loss"]
    assert runs[0]["train_loss"] == pytest.approx(math.log(len(LETTERS)), abs=1)


def test_the_study_has_a_row_a_width_and_seed_and_is_recorded(tmp_path):
    lab = Lab(get_profile("quick"))
    lab.store = ResultStore(tmp_path)
    short = SETTING.replace(updates=3)
    rows = descent_study(lab, (1, 2), short, (0, 1), stories=15)
    assert [(row["width"], row["seed"]) for row in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert descent_study(lab, (1, 2), short, (0, 1), stories=15) == rows
    assert lab.redrawn == 2
    with pytest.raises(ValueError, match="0 widths"):
        descent_study(lab, (), short, (0,))


def test_lines_put_losses_and_errors_into_panels_of_their_own():
    row = {"width": 3, "seed": 0, "test_loss": 2.0, "stopped": 1.0, "test_error": 0.5, "train_error": 0.1}
    table = descent_lines(pd.DataFrame([row]))
    assert table[["panel", "value"]].to_numpy().tolist() == [[LOSS, 2.0], [LOSS, 1.0], [ERROR, 0.5], [ERROR, 0.1]]
    assert set(table["width"]) == {3}


@pytest.mark.parametrize(
    ("changes", "message"), [({"windows": 0}, "windows is 0"), ({"noise": 1.5}, "noise is 1.5"), ({"k": 0}, "k is 0")]
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DescentSetting(**changes)
