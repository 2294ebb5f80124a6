"""Paired contrasts against a calculation by hand and against simulation."""

import math

import numpy as np
import pytest

from picollm_core.contrasts import Contrast, equivalence, holm, paired_contrast, verdict


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


def test_p_value_is_below_a_threshold_exactly_when_the_interval_leaves_out_zero():
    generator = np.random.default_rng(1)
    for _ in range(200):
        contrast = paired_contrast(generator.normal(1, 1, size=5), np.zeros(5))
        assert (contrast.p_value < 0.05) == (contrast.low > 0 or contrast.high < 0)


def test_p_value_by_hand_and_without_spread():
    assert paired_contrast([1.0, 2.0, 3.0], [0.5, 1.0, 1.5]).p_value == pytest.approx(0.0741799)  # t = 3.4641, 2 df
    assert paired_contrast([1.0, 1.0], [0.0, 0.0]).p_value == 0
    assert paired_contrast([1.0, 1.0], [1.0, 1.0]).p_value == 1
    assert math.isnan(paired_contrast([2.0], [1.5]).p_value)


def test_holm_multiplies_the_smallest_most_and_never_turns_the_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_false_claims_in_a_family_at_the_level():
    generator = np.random.default_rng(0)
    families = generator.uniform(size=(4000, 6))
    assert np.mean([min(holm(family)) < 0.05 for family in families]) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1])
def test_holm_refuses_what_is_no_probability(bad):
    with pytest.raises(ValueError, match="p-values must lie in"):
        holm([0.5, bad])


@pytest.mark.parametrize(
    ("low", "high", "bound", "below", "above"),
    [
        (-2.0, -1.0, 0.0, "holds", "fails"),
        (1.0, 2.0, 0.0, "fails", "holds"),
        (-1.0, 1.0, 0.0, "open", "open"),
        (-0.5, -0.4, -0.45, "open", "open"),
        (-0.5, -0.4, -0.3, "holds", "fails"),
        (math.nan, math.nan, 0.0, "open", "open"),
    ],
)
def test_a_claim_is_decided_by_the_whole_interval(low, high, bound, below, above):
    contrast = Contrast((low + high) / 2, low, high, 5)
    assert verdict(contrast, claim="below", bound=bound) == below
    assert verdict(contrast, claim="above", bound=bound) == above


def test_a_claim_about_several_differences_holds_for_all_and_fails_with_one():
    negative, unclear, positive = Contrast(-1, -2, -0.5, 5), Contrast(0, -1, 1, 5), Contrast(1, 0.5, 2, 5)
    assert verdict(negative, negative, claim="below") == "holds"
    assert verdict(negative, unclear, claim="below") == "open"
    assert verdict(negative, unclear, positive, claim="below") == "fails"


def test_an_unknown_claim_and_a_claim_without_evidence_are_refused():
    with pytest.raises(ValueError, match="claim is 'equal'"):
        verdict(Contrast(0, -1, 1, 5), claim="equal")
    with pytest.raises(ValueError, match="0 contrasts"):
        verdict(claim="below")


@pytest.mark.parametrize(
    ("intervals", "found"),
    [
        ([(-0.05, 0.05)], "holds"),
        ([(-0.05, 0.05), (0.0, 0.09)], "holds"),
        ([(-0.05, 0.11)], "open"),
        ([(-0.3, 0.3)], "open"),
        ([(-0.05, 0.05), (0.11, 0.3)], "fails"),
        ([(-0.3, -0.11)], "fails"),
        ([(math.nan, math.nan)], "open"),
    ],
)
def test_differences_count_as_none_only_when_every_interval_lies_within_the_margin(intervals, found):
    contrasts = [Contrast((low + high) / 2, low, high, 5) for low, high in intervals]
    assert equivalence(*contrasts, margin=0.1) == found


def test_equivalence_needs_a_margin_and_a_contrast():
    with pytest.raises(ValueError, match="margin is 0"):
        equivalence(Contrast(0, -1, 1, 3), margin=0)
    with pytest.raises(ValueError, match="0 contrasts"):
        equivalence(margin=0.1)
