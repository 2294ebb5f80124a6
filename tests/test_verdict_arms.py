"""Arms differ in what their names say; curves are read where text is new; rates are chosen per arm."""

import dataclasses

import numpy as np
import pytest

from picollm_core.config import DataConfig
from picollm_core.lab import Lab
from picollm_core.models import build_model
from picollm_core.profiles import PROFILES
from picollm_core.verdict_arms import (
    early_loss,
    kgram_family,
    kgram_sizes,
    lstm_sizes,
    online_curve,
    position_arms,
    settings,
    shifted,
    smoothed,
    transformer_sizes,
    tuned_runs,
    updates_to,
)
from tests.verdict_values import falling, made_run


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    """The quick profile on a small text, with trainings of three updates."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(f"the {n} cats sat on mat {n}" for n in range(300)))
    data = DataConfig(corpus=("text.txt",), splits=(60, 40, 0))
    short = {"block_size": 16, "batch_size": 4, "max_steps": 3, "eval_every": 3, "eval_stories": 3, "final_stories": 5}
    monkeypatch.setattr("picollm_core.verdict_arms.settings", lambda _: dict(short))
    return Lab(dataclasses.replace(PROFILES["quick"], data=data))


def weights(config) -> int:
    return build_model(config.replace(vocab_size=4_096)).num_parameters()


def test_k_grams_called_equal_have_equal_weights_and_the_others_have_not():
    arms = kgram_sizes()
    for size in ("pico", "tiny"):
        equal = [weights(arms[f"{size} {name}, equal"]) for name in ("one-hot", "scaled")]
        assert equal[0] == pytest.approx(equal[1], rel=0.02)
        assert weights(arms[f"{size} one-hot"]) > 1.8 * weights(arms[f"{size} scaled"])
        assert arms[f"{size} one-hot"].n_embd == arms[f"{size} scaled"].n_embd


def test_sizes_grow_and_positions_cross_with_norms():
    for arms in (lstm_sizes(), transformer_sizes()):
        assert weights(arms["pico"]) < weights(arms["tiny"])
    assert {(c.norm, c.position) for c in position_arms().values()} == {
        (norm, position) for norm in ("pre", "post") for position in ("absolute", "rope", "none")
    }


def test_the_shifted_window_is_the_only_change():
    for name, config in shifted(kgram_family()).items():
        assert config == kgram_family()[name.removesuffix(", off by one")].replace(offset=1)


def test_the_quick_profile_is_short_and_the_standard_one_is_that_of_the_other_studies():
    quick, standard = (settings(Lab(PROFILES[name])) for name in ("quick", "standard"))
    assert quick["max_steps"] <= 100
    assert (standard["block_size"], standard["batch_size"], standard["max_steps"]) == (64, 16, 300)


def test_every_arm_gets_its_own_rate_and_a_run_a_seed(lab):
    arms = {name: config.replace(n_embd=16) for name, config in kgram_family().items()}
    quick = tuned_runs(lab, arms, (0.01, 0.03))
    assert quick.tuned.empty
    assert quick.rates == dict.fromkeys(arms, 0.03)
    assert quick.edges() == []
    wide = Lab(dataclasses.replace(lab.profile, name="try", seeds=(0, 1)))
    wide.store = lab.store
    found = tuned_runs(wide, arms, (0.01, 0.03))
    assert list(found.tuned.columns) == [0.01, 0.03]
    assert {name: len(runs) for name, runs in found.runs.items()} == dict.fromkeys(arms, 2)
    for name, runs in found.runs.items():
        assert runs[0].config.train.learning_rate == found.tuned.loc[name].idxmin()
    assert set(found.losses()) == set(arms)
    assert set(found.parts("k-gram, one-hot")) == {"k-gram, one-hot"}
    with pytest.raises(ValueError, match="no arm nobody"):
        found.parts("nobody")


def test_early_loss_reads_between_a_tenth_and_a_quarter():
    curve = np.arange(60.0)[::-1]
    run = made_run(curve)
    steps, losses = online_curve(run)
    inside = (steps > 30) & (steps <= 75)
    assert early_loss(run) == losses[inside].mean()
    with pytest.raises(ValueError, match=r"share is 0\.05"):
        early_loss(run, share=0.05)


def test_a_second_reading_is_no_unseen_text():
    with pytest.raises(ValueError, match=r"1\.50 times"):
        online_curve(made_run(falling(4.0), epoch=1.5))


def test_smoothing_keeps_lines_straight_and_evens_out_noise():
    assert smoothed(np.arange(9.0), 3).tolist() == pytest.approx(list(range(9)))
    noise = np.random.default_rng(0).normal(size=200)
    assert smoothed(noise, 3).std() < 0.6 * noise.std()


def test_a_quicker_curve_reaches_a_loss_sooner_and_a_bad_one_never():
    slow, quick = made_run(falling(4.0)), made_run(falling(4.0, speed=2))
    assert updates_to(quick, 4.5) < updates_to(slow, 4.5) < float("inf")
    assert updates_to(slow, 3.9) == float("inf")
