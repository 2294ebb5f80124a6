"""Paired contrasts against a calculation by hand and against simulation."""

import math

import numpy as np
import pytest

from picollm_core.contrasts import paired_contrast


def test_interval_is_students_by_hand():
    contrast = paired_contrast([1.0, 2.0, 3.0], [0.5, 1.0, 1.5])  # differences 0.5, 1.0, 1.5
    half = 4.302652729911275 * 0.5 / math.sqrt(3)  # t quantile for 2 degrees of freedom
    assert contrast.mean == pytest.approx(1.0)
    assert (contrast.low, contrast.high) == pytest.approx((1.0 - half, 1.0 + half))
    assert str(contrast) == "+1.000 (95% interval -0.242 to +2.242, 3 pairs)"


def test_interval_covers_the_true_difference_about_95_times_in_100():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        shared, noise = generator.normal(size=5), generator.normal(scale=0.1, size=(2, 5))
        contrast = paired_contrast(shared + 0.3 + noise[0], shared + noise[1])
        hits += contrast.low <= 0.3 <= contrast.high
    assert 925 <= hits <= 975


def test_one_pair_has_a_difference_and_no_interval():
    contrast = paired_contrast([2.0], [1.5])
    assert contrast.mean == 0.5
    assert math.isnan(contrast.low)
    assert str(contrast) == "+0.500 (one pair, no interval)"


@pytest.mark.parametrize(("first", "second"), [([1.0], [1.0, 2.0]), ([], [])])
def test_unpaired_values_are_refused_with_both_counts(first, second):
    with pytest.raises(ValueError, match=f"{len(first)} values cannot be paired with {len(second)}"):
        paired_contrast(first, second)
