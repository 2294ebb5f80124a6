"""Claims about size and data follow from the runs' losses and intervals, and say so when one seed decides nothing."""

import math

import pandas as pd
import pytest

from picollm_core.scaling_claims import FLAT, change_effects, falls, family_gaps, judge_scaling, spread_ratio
from picollm_core.scaling_study import CHANGES, CONSTANT, Plan

SEEDS = range(5)
PLAN = Plan(budgets=(100, 800), rival_width=32, changed_widths=(16, 64), constant_budget=400)
WOBBLE = (0.0, 0.004, -0.003, 0.002, -0.001)


def row(family, width, steps, seed, change, nll, fall):
    return {
        "family": family,
        "width": width,
        "steps": steps,
        "seed": seed,
        "change": change,
        "parameters": 4_096 * width,
        "tokens": 1_024 * steps,
        "nll": nll,
        "early": nll + fall,
        "last": nll,
        "fingerprint": f"{family}-{width}-{steps}-{seed}-{change}",
    }


def runs(seeds=SEEDS, fall=0.4, gap_few=0.3, gap_many=-0.1, effects=(0.3, 0.1)) -> pd.DataFrame:
    """A study whose effects are known: what Transformers lose to LSTMs, how far they fall, what changes do."""
    rows = []
    for seed in seeds:
        noise = WOBBLE[seed]
        for steps, gap in ((100, gap_few), (800, gap_many)):
            rows.append(row("lstm", 32, steps, seed, "", 4.0, fall))
            rows.append(row("transformer", 32, steps, seed, "", 4.0 + gap + noise, fall + noise))
        rows.append(row("transformer", 32, 400, seed, CONSTANT, 4.0, fall - noise))
        rows.append(row("transformer", 128, 800, seed, "", 3.5 + noise, fall))
        for width, effect in zip((16, 64), effects, strict=True):
            rows.append(row("transformer", width, 100, seed, "", 4.5, fall))
            for place, change in enumerate(CHANGES):
                own = effect * (1 + 0.1 * place) + WOBBLE[(seed + place) % 5]
                rows.append(row("transformer", width, 100, seed, change, 4.5 + own, fall))
    return pd.DataFrame(rows)


def verdicts(table) -> dict[str, object]:
    return {v.id: v for v in judge_scaling(table, PLAN)}


def test_a_run_that_goes_on_falling_is_not_flat_and_the_cause_names_its_numbers():
    found = verdicts(runs())["base-flattens-before-0.3-epoch"]
    assert found.verdict == "fails"
    assert found.effect == pytest.approx(0.4 + sum(WOBBLE) / 5)
    assert "0.40" in found.cause
    assert "110M" in found.cause
    assert verdicts(runs(fall=FLAT / 5))["base-flattens-before-0.3-epoch"].verdict == "holds"


def test_falls_before_and_after_add_up_to_the_whole_fall_from_ln_v():
    table = falls(runs()).set_index(["width", "steps", "change"])
    own = table.loc[(32, 800, "")]
    assert own["before"] + own["after"] == pytest.approx(math.log(4_096) - (4.0 - 0.1 + sum(WOBBLE) / 5))
    assert own["share"] == pytest.approx(own["after"] / (own["before"] + own["after"]))
    assert own["low"] < own["after"] < own["high"]


@pytest.mark.parametrize(
    ("few", "many", "word"), [(0.3, -0.1, "holds"), (-0.3, -0.5, "fails"), (0.3, 0.5, "fails"), (0.0, -0.3, "open")]
)
def test_transformers_need_more_data_only_if_they_start_behind_and_catch_up(few, many, word):
    assert verdicts(runs(gap_few=few, gap_many=many))["transformers-need-more-data"].verdict == word


def test_gaps_pair_the_seeds_and_the_gain_is_their_difference():
    gaps = family_gaps(runs(), 32, (100, 800))
    assert gaps["100 updates"].mean == pytest.approx(0.3 + sum(WOBBLE) / 5)
    assert gaps["gained"].mean == pytest.approx(0.4)
    assert gaps["gained"].high - gaps["gained"].low == pytest.approx(0, abs=1e-9)  # the seeds' noise is common to both


def test_the_spread_of_changes_is_compared_by_its_ratio():
    effects = change_effects(runs(), (16, 64), 100)
    assert len(effects) == 2 * len(CHANGES) * 5
    nats = spread_ratio(effects, 16, 64, noise=False)
    assert nats.mean == pytest.approx(3.0, rel=0.05)
    assert nats.low < nats.mean < nats.high
    assert spread_ratio(effects, 16, 64).mean == pytest.approx(nats.mean)  # both widths have the same noise here
    assert verdicts(runs())["small-models-show-differences"].verdict == "holds"
    assert verdicts(runs(effects=(0.1, 0.3)))["small-models-show-differences"].verdict == "fails"


def test_one_seed_leaves_every_claim_open_without_an_interval():
    found = verdicts(runs(seeds=[0]))
    assert {v.verdict for v in found.values()} == {"open"}
    assert {v.interval for v in found.values()} == {None}
    assert all(v.effect is not None and math.isfinite(v.effect) for v in found.values())


def test_arms_that_are_missing_are_named():
    table = runs()
    with pytest.raises(ValueError, match=r"no run of lstm, width 32, 800 updates"):
        family_gaps(table[(table["family"] != "lstm") | (table["steps"] < 800)], 32, (100, 800))
    with pytest.raises(ValueError, match="no changed run"):
        change_effects(table[table["change"] == ""], (16, 64), 100)
    with pytest.raises(ValueError, match="no column change"):
        family_gaps(table.drop(columns="change"), 32, (100, 800))
