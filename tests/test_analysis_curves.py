"""A learning curve's power law: parameters that are known come back, and the later part is truly held out."""

import math

import numpy as np
import pytest

from picollm_core.analysis_curves import learning_curve_fit

TOKENS = np.arange(1, 21) * 20_000.0


def curve(floor: float = 2.0, amplitude: float = 3.0, exponent: float = 0.5) -> np.ndarray:
    return floor + amplitude * (TOKENS / TOKENS[0]) ** -exponent


@pytest.mark.parametrize(("floor", "exponent"), [(2.0, 0.5), (0.5, 0.1), (3.0, 1.2)])
def test_a_known_law_comes_back_and_predicts_what_it_has_not_seen(floor, exponent):
    found = learning_curve_fit(TOKENS, curve(floor, 3.0, exponent))
    assert (found.floor, found.amplitude, found.exponent) == pytest.approx((floor, 3.0, exponent), abs=1e-3)
    assert found.held_out_error < 1e-4
    assert not found.at_the_edge
    assert found.predict([TOKENS[-1] * 10])[0] == pytest.approx(floor + 3 * 200**-exponent, abs=1e-3)


def test_the_last_quarter_is_not_fitted():
    changed = curve()
    changed[15:] += 1.0
    found = learning_curve_fit(TOKENS, changed)
    assert found.floor == pytest.approx(2.0, abs=1e-3)
    assert found.held_out["tokens"].tolist() == TOKENS[15:].tolist()
    assert found.held_out["error"].to_numpy() == pytest.approx(-1.0, abs=1e-3)
    assert found.held_out_error == pytest.approx(1.0, abs=1e-3)


def test_errors_are_root_mean_squares_and_the_naive_one_expects_no_change():
    noisy = curve() + 0.01 * np.random.default_rng(0).normal(size=20)
    found = learning_curve_fit(TOKENS, noisy)
    error = found.predict(TOKENS) - noisy
    assert found.fit_error == pytest.approx(math.sqrt((error[:15] ** 2).mean()))
    assert found.held_out_error == pytest.approx(math.sqrt((error[15:] ** 2).mean()))
    assert found.naive_error == pytest.approx(math.sqrt(((noisy[14] - noisy[15:]) ** 2).mean()))
    assert found.held_out_error < found.naive_error


def test_predictions_of_noisy_curves_miss_by_about_the_noise():
    generator = np.random.default_rng(1)
    errors = [learning_curve_fit(TOKENS, curve() + 0.01 * generator.normal(size=20)).held_out_error for _ in range(30)]
    assert 0.005 < np.median(errors) < 0.03


def test_a_curve_that_does_not_fall_has_no_exponent():
    found = learning_curve_fit(TOKENS[:8], [3.0] * 8)
    assert math.isnan(found.exponent)
    assert found.predict([1e9])[0] == pytest.approx(3.0)
    rising = learning_curve_fit(TOKENS[:8], np.linspace(3, 4, 8))
    assert math.isnan(rising.exponent)


@pytest.mark.parametrize("losses", [20 - np.log(TOKENS), np.where(TOKENS[0] < TOKENS, 2.0, 9.0)])
def test_a_logarithm_or_a_step_is_no_power_law_and_says_that_it_is_at_the_edge(losses):
    assert learning_curve_fit(TOKENS, losses).at_the_edge


@pytest.mark.parametrize(
    ("tokens", "losses", "share", "message"),
    [
        ([1, 2, 3], [1.0, 2.0], 0.25, "3 token counts do not go with 2 losses"),
        (
            [1, 2, 3, 4],
            [4.0, 3.0, 2.0, 1.0],
            0.25,
            "4 points less 1 held out leave 3, but three numbers need at least 4",
        ),
        ([1, 2, 3, 4, 4, 6], [1.0] * 6, 0.25, "tokens must increase"),
        ([1, 2, 3, 4, 5, 6], [1.0, 1.0, math.nan, 1.0, 1.0, 1.0], 0.25, "finite and positive, but there is nan"),
        ([0, 2, 3, 4, 5, 6], [1.0] * 6, 0.25, "finite and positive, but there is 0.0"),
        ([1, 2, 3, 4, 5, 6], [1.0] * 6, 1.0, "held_out is 1.0"),
    ],
)
def test_curves_that_cannot_be_fitted_are_refused(tokens, losses, share, message):
    with pytest.raises(ValueError, match=message):
        learning_curve_fit(tokens, losses, share)
