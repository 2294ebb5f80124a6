"""Bootstrap over stories."""

import numpy as np
import pytest

from picollm_core import bootstrap
from picollm_core.bootstrap import bootstrap_ratios, ratio_interval


def stories(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Nats and tokens of n stories whose nats a token are 3 on average and vary from story to story."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(50, 250, n)
    return tokens * generator.normal(3, 0.5, n), tokens


def test_the_interval_is_that_of_a_loop_over_resampled_stories():
    nats, tokens = stories(40, 0)
    generator = np.random.default_rng(1)
    drawn = generator.integers(0, 40, (20_000, 40))
    expected = np.quantile(nats[drawn].sum(1) / tokens[drawn].sum(1), [0.025, 0.975])
    assert ratio_interval(nats, tokens, n_bootstrap=20_000) == pytest.approx(expected, abs=0.01)


def test_about_95_of_100_intervals_contain_the_truth():
    covered = [low < 3 < high for low, high in (ratio_interval(*stories(100, seed), 400) for seed in range(300))]
    assert 0.90 <= np.mean(covered) <= 0.98


def test_the_interval_narrows_with_the_square_root_of_the_number_of_stories():
    few, many = (ratio_interval(*stories(n, 0)) for n in (200, 3200))
    assert 3 < (few[1] - few[0]) / (many[1] - many[0]) < 5.3


def test_equal_seeds_resample_alike_so_that_differences_are_paired():
    nats, tokens = stories(100, 0)
    difference = bootstrap_ratios(nats + 0.1 * tokens, tokens) - bootstrap_ratios(nats, tokens)
    np.testing.assert_allclose(difference, 0.1, rtol=1e-9)


def test_resamples_do_not_depend_on_how_many_fit_in_memory_at_once(monkeypatch):
    nats, tokens = stories(30, 0)
    whole = bootstrap_ratios(nats, tokens, 100)
    monkeypatch.setattr(bootstrap, "_CELLS_AT_ONCE", 70)
    np.testing.assert_allclose(bootstrap_ratios(nats, tokens, 100), whole, rtol=1e-12)


def test_one_story_gives_an_interval_of_no_width_and_empty_stories_no_warning():
    assert ratio_interval([6.0], [2.0]) == (3.0, 3.0)
    assert ratio_interval([0.0, 6.0], [0.0, 2.0]) == (3.0, 3.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "0 stories"),
        (([1.0], [1.0, 2.0]), r"numerators \(1,\) and denominators \(2,\) differ"),
        (([1.0], [0.0]), "not all 0"),
        (([1.0], [1.0], 0), "n_bootstrap is 0"),
        (([1.0], [1.0], 10, 0, 1.0), "level is 1.0"),
    ],
)
def test_bad_input_is_refused_with_its_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        ratio_interval(*arguments)
