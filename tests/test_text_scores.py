"""Scores of text records: means over tokens, paired intervals, verdicts, and the p of equal surprise."""

import math

import numpy as np
import pytest

from picollm_core.text_scores import (
    Crossing,
    Difference,
    crossing,
    difference,
    human_crossing,
    quality_row,
    quality_table,
    score,
)

STORIES = 40


def record(nll, spread=0.3, seed=0, repetition=0.1, tokens=20):
    """Texts of about `nll` nats a token; records of one seed differ alike from story to story."""
    noise = np.random.default_rng(seed).normal(0, spread, STORIES)
    return {
        "nats": (tokens * (nll + noise)).tolist(),
        "count_nats": (tokens * (nll + 1 + noise)).tolist(),
        "tokens": [tokens] * STORIES,
        "repetition": [repetition] * (STORIES - 1) + [None],
        "variety": [0.5] * STORIES,
        "distinct": [0.1, 0.2, 0.3, 0.4, 0.5],
    }


def test_scores_are_means_over_tokens_and_over_the_stories_that_were_long_enough():
    uneven = {"nats": [10.0, 1.0], "count_nats": [4.0, 0.0], "tokens": [4, 1], "repetition": [0.5, None]}
    assert score(uneven) == pytest.approx(11 / 5)
    assert score(uneven, "count_nll") == pytest.approx(4 / 5)
    assert score(uneven, "repetition") == 0.5
    assert math.isnan(score(uneven | {"repetition": [None, None]}, "repetition"))
    with pytest.raises(ValueError, match="measure is 'bleu'; choose nll, count_nll, repetition or variety"):
        score(uneven, "bleu")


def test_a_row_holds_the_interval_around_the_score_and_missing_diversity_is_no_number():
    row = quality_row(record(3.0))
    assert row["nll_low"] < row["nll"] < row["nll_high"]
    assert row["count_nll"] == pytest.approx(row["nll"] + 1)
    assert [row[f"distinct_{n}"] for n in range(1, 6)] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert math.isnan(quality_row(record(3.0) | {"distinct": None})["distinct_2"])


def test_tables_name_group_and_setting_of_every_record():
    table = quality_table({"lstm": {"greedy": record(1.0), "top-p 1": record(4.0)}, "human": {"text": record(3.0)}})
    assert table[["family", "setting"]].to_numpy().tolist() == [
        ["lstm", "greedy"],
        ["lstm", "top-p 1"],
        ["human", "text"],
    ]
    assert quality_table({"top-k": {"top-k 5": record(1.0)}}, by="sampler").columns[0] == "sampler"


def test_differences_are_paired_over_stories():
    paired = difference(record(3.1, seed=1), record(3.0, seed=1))
    unpaired = difference(record(3.1, seed=1), record(3.0, seed=2))
    assert paired.value == pytest.approx(0.1)
    assert paired.high - paired.low < 1e-6 < unpaired.high - unpaired.low


def test_more_claims_widen_the_interval():
    one, other = record(3.1, seed=1), record(3.0, seed=2)
    single, many = difference(one, other), difference(one, other, claims=10)
    assert many.low < single.low < single.high < many.high
    with pytest.raises(ValueError, match="claims is 0"):
        difference(one, other, claims=0)


@pytest.mark.parametrize(
    ("low", "high", "expected", "verdict"),
    [
        (0.1, 0.3, 1, "holds"),
        (0.1, 0.3, -1, "fails"),
        (-0.3, -0.1, -1, "holds"),
        (-0.1, 0.3, 1, "open"),
        (0, 0, 1, "open"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side_of_zero(low, high, expected, verdict):
    assert Difference((low + high) / 2, low, high).verdict(expected) == verdict


def test_crossing_interpolates_the_first_rise_through_the_target():
    assert crossing([0, 0.5, 1], [1.0, 2.0, 4.0], 3.0) == pytest.approx(0.75)
    assert crossing([0, 0.5, 1], [1.0, 2.0, 4.0], 2.0) == pytest.approx(0.5)
    assert crossing([0, 0.2, 0.4, 1], [1.0, 3.0, 1.0, 3.0], 2.0) == pytest.approx(0.1)


@pytest.mark.parametrize("target", [0.5, 1.0, 4.1])
def test_a_target_outside_the_curve_has_no_crossing(target):
    assert crossing([0, 0.5, 1], [1.0, 2.0, 4.0], target) is None


@pytest.mark.parametrize(
    ("p_values", "nll", "message"),
    [
        ([0, 1], [1.0, 2.0, 3.0], "2 values of p but 3 scores"),
        ([1, 0], [1.0, 2.0], "the values of p must rise"),
        ([0, 0], [1.0, 2.0], "the values of p must rise"),
        ([1], [1.0], "1 values of p but 1 scores; give one each, at least 2"),
    ],
)
def test_curves_that_are_no_function_of_p_are_refused(p_values, nll, message):
    with pytest.raises(ValueError, match=message):
        crossing(p_values, nll, 1.5)


def test_the_p_of_equal_surprise_has_an_interval_over_stories_and_does_not_depend_on_the_order_of_p():
    curve = {1.0: record(4.0, seed=2), 0.0: record(1.0, seed=1), 0.5: record(2.5, seed=3)}
    found = human_crossing(curve, record(3.0, seed=4))
    assert found.low < found.p < found.high
    assert found.p == pytest.approx(2 / 3, abs=0.1)
    assert human_crossing(curve, record(3.0, seed=4), "count_nll").p == pytest.approx(found.p)


def test_curves_that_never_meet_the_human_text_say_on_which_side_they_stay():
    curve = {0.0: record(1.0), 1.0: record(2.0)}
    assert str(human_crossing(curve, record(5.0))) == "above all [above all, above all]"
    assert str(human_crossing(curve, record(0.5))) == "below all [below all, below all]"
    assert str(Crossing(0.9, 0.8, math.inf)) == "0.90 [0.80, above all]"
