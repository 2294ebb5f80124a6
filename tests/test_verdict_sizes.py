"""Larger models are judged quicker by tokens, and by time where their updates take longer."""

import pytest

from picollm_core.verdict_arms import Trained
from picollm_core.verdict_sizes import catching_up, judge_lower, judge_quicker, neighbours, size_evidence
from tests.verdict_values import NOISE, falling, made_run

PAIRS = [("small", "large")]


def trained(large_end=3.6, large_speed=2.0, seeds=5) -> Trained:
    def runs(end, speed, name, row):
        return [made_run(falling(end + NOISE[row, s], speed), s, name) for s in range(seeds)]

    import pandas as pd

    arms = {"small": runs(4.0, 1.0, "s", 0), "large": runs(large_end, large_speed, "l", 1)}
    return Trained(arms, pd.DataFrame(), {})


def verdict(found: Trained, ratio: float, lower=False):
    times = {"small": 1.0, "large": ratio}
    return judge_quicker("lstm-larger-quicker", size_evidence(found, PAIRS, times), PAIRS, times, ("r",), lower=lower)


def test_a_larger_model_that_is_ahead_in_tokens_and_in_time_is_quicker():
    found = verdict(trained(), 1.1)
    assert found.verdict == "holds"
    assert found.effect < 0
    assert found.interval[1] < 0


def test_slow_updates_make_the_answer_depend_on_what_is_counted():
    found = verdict(trained(), 20.0)
    assert found.verdict == "depends"
    assert "20.0 times as long" in found.cause
    assert "by tokens the claim holds, by time it fails" in found.cause


def test_a_larger_model_that_is_behind_is_not_quicker():
    assert verdict(trained(large_end=4.5, large_speed=0.5), 1.0).verdict == "fails"


def test_the_end_counts_where_the_claim_names_it():
    crossing = trained(large_end=4.2, large_speed=2.0)
    assert verdict(crossing, 1.0, lower=True).verdict == "fails"


def test_one_seed_leaves_it_open():
    found = verdict(trained(seeds=1), 1.0)
    assert (found.verdict, found.interval) == ("open", None)


def test_lower_at_the_end_is_judged_by_final_losses():
    for end, expected in ((3.6, "holds"), (4.4, "fails")):
        evidence = size_evidence(trained(large_end=end), PAIRS, {"small": 1.0, "large": 1.0})
        assert judge_lower("lstm-larger-lower", evidence, PAIRS, ("r",)).verdict == expected


def test_who_never_catches_up_counts_with_the_whole_training():
    small, worse = made_run(falling(4.0)), made_run(falling(5.0))
    soon, late = catching_up(small, worse)
    assert late == 300.0
    assert soon <= late
    assert catching_up(small, made_run(falling(3.0, 2.0)))[1] < soon


def test_neighbours_are_adjacent_sizes():
    assert neighbours(["pico", "tiny", "small"]) == [("pico", "tiny"), ("tiny", "small")]
    with pytest.raises(KeyError):
        size_evidence(trained(), [("small", "huge")], {"small": 1.0, "huge": 1.0})


def test_a_longer_training_that_says_otherwise_makes_it_depend():
    longer = size_evidence(
        Trained({"pico": trained().runs["large"], "tiny": trained().runs["small"]}, trained().tuned, {}),
        [("pico", "tiny")],
        {"pico": 1.0, "tiny": 1.0},
    )
    times = {"small": 1.0, "large": 1.0}
    evidence = size_evidence(trained(), PAIRS, times)
    found = judge_quicker("lstm-larger-quicker", evidence, PAIRS, times, ("r",), lower=False, longer=longer)
    assert found.verdict == "depends"
    assert "After one pass over the text (5 seeds) it fails by tokens" in found.cause
