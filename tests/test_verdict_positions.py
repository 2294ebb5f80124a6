"""Norm and positions: small differences need margins, the best must beat all others in both respects."""

import pytest

from picollm_core.verdict_arms import position_arms
from picollm_core.verdict_positions import (
    BEST,
    all_pairs,
    goes_with,
    judge_best,
    judge_positions,
    judge_variance,
    longer_arms,
    widest,
)
from tests.verdict_values import near


def six(base=4.0, **moved):
    """The six arms around a value; `pre_RoPE` and so on move one."""
    moves = {name.replace("_", ", "): move for name, move in moved.items()}
    return near({name: base + moves.get(name, 0.0) for name in position_arms()})


def longer(base=4.0, **moved):
    return {name: own for name, own in six(base, **moved).items() if name in longer_arms()}


def test_minimal_variance_needs_every_pair_within_the_margin():
    assert judge_variance(six(), longer(), ("r",)).verdict == "holds"
    found = judge_variance(six(post_NoPE=0.3), longer(), ("r",))
    assert found.verdict == "depends"
    assert abs(found.effect) == pytest.approx(0.3, abs=0.02)
    assert judge_variance(six(post_NoPE=0.3), longer(pre_RoPE=-0.2), ("r",)).verdict == "fails"


def test_the_widest_pair_is_named_whatever_its_sign():
    assert widest(all_pairs(six(post_NoPE=-0.3))).endswith("post, NoPE")
    assert len(all_pairs(six()).contrasts) == 15


def test_the_order_of_diversity_must_hold_with_either_norm():
    ordered = {f"{place}_{name}": move for place in ("pre", "post")
               for name, move in (("absolute", 0.1), ("RoPE", 0.0), ("NoPE", -0.1))}  # fmt: skip
    beyond = {name: move for name, move in ordered.items() if name.startswith("pre")}
    assert judge_positions(six(0.6, **ordered), longer(0.6, **beyond), six(), ("r",)).verdict == "holds"
    turned = ordered | {"post_NoPE": 0.2}
    assert judge_positions(six(0.6, **turned), longer(0.6, **beyond), six(), ("r",)).verdict == "depends"


def test_the_best_needs_the_lowest_loss_and_the_most_diverse_text():
    ahead, varied = six(pre_absolute=-0.2), six(0.6, pre_absolute=0.1)
    assert judge_best(ahead, varied, ("r",)).verdict == "holds"
    assert judge_best(six(pre_absolute=0.2), varied, ("r",)).verdict == "fails"
    assert judge_best(ahead, six(0.6, pre_absolute=-0.1), ("r",)).verdict == "fails"
    assert judge_best(ahead, six(0.6), ("r",)).verdict == "open"
    assert BEST in position_arms()


def test_ranks_of_loss_and_diversity_go_together():
    losses = near({"a": 3.0, "b": 4.0, "c": 5.0})
    assert goes_with(losses, near({"a": 0.3, "b": 0.5, "c": 0.7})) > 0.7
    assert goes_with(losses, near({"a": 0.7, "b": 0.5, "c": 0.3})) < -0.7
