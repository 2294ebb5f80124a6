"""Verdicts on custom text follow the tables: each is turned by turning what it rests on."""

import numpy as np
import pandas as pd
import pytest

from picollm_core.custom_claims import at_equal, by_seed, claim_ids, judge_custom_claims, turning_point
from picollm_core.custom_study import PLANS, passes

PLAN = PLANS["standard"]


def sizes(seeds=5, epoch_slope=-1.0, update_slope=1.0, gentler=0.5, late=0.5) -> pd.DataFrame:
    """Losses of five seeds that move with log lines by these slopes, gpt-oss's by `gentler` times as much."""
    rng, rows = np.random.default_rng(3), []
    for arm, factor in (("LSTM", 1.0), ("gpt-oss", gentler)):
        for seed in range(seeds):
            for place, lines in enumerate(PLAN.sizes):
                last = PLAN.longest if lines == PLAN.sizes[-1] else max(PLAN.updates, passes(PLAN, lines))
                for step in sorted({*PLAN.reads, PLAN.updates, passes(PLAN, lines)}):
                    if step > last:
                        continue
                    slope = update_slope if step == PLAN.updates else epoch_slope
                    seen = 6 + factor * slope * place + rng.normal(0, 0.01)
                    falling = 8 - np.log(step) / 2 if step <= 100 else 8 - np.log(100) / 2 + late * (step - 100) / 100
                    rows.append((arm, seed, lines, step, seen, 8 - np.log(step), falling + rng.normal(0, 0.01), "r"))
    columns = ["arm", "seed", "lines", "step", "seen_loss", "train_loss", "held_out_loss", "record"]
    return pd.DataFrame(rows, columns=columns)


def smoke(gain=0.0, seeds=5) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = [
        (arm, seed, share, step, 20 + (gain if share and step else 0) + rng.normal(0, 0.1), "s")
        for arm in ("LSTM", "Transformer")
        for seed in range(seeds)
        for share in (PLAN.smoke_share, 0.0)
        for step in (0, 1, 3)
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "share", "step", "per_1000", "record"])


def words(**changes) -> dict[str, str]:
    gain = changes.pop("gain", 0.0)
    found = judge_custom_claims(sizes(**changes), smoke(gain, changes.get("seeds", 5)), PLAN)
    assert tuple(each.id for each in found) == claim_ids()
    return {each.id: each.verdict for each in found}


def test_a_fall_at_equal_epochs_that_is_a_rise_at_equal_updates_depends():
    assert words()["loss-falls-with-corpus-size"] == "depends"
    assert words(update_slope=-1.0)["loss-falls-with-corpus-size"] == "holds"
    assert words(epoch_slope=1.0)["loss-falls-with-corpus-size"] == "fails"
    assert words(epoch_slope=0.0)["loss-falls-with-corpus-size"] == "open"


def test_gentler_means_that_the_other_falls_more():
    assert words()["gptoss-gentler"] == "holds"
    assert words(gentler=2.0)["gptoss-gentler"] == "fails"
    assert words(gentler=1.0)["gptoss-gentler"] == "open"


def test_the_first_updates_lower_both_losses_and_the_cause_says_where_that_ends():
    verdict = {each.id: each for each in judge_custom_claims(sizes(), smoke(), PLAN)}["more-steps-lower-both"]
    assert verdict.verdict == "holds"
    assert verdict.effect < 0
    assert "LSTM: lowest held-out loss after 100 updates" in verdict.cause


def test_an_echo_must_outdo_the_control():
    assert words()["echo-of-new-words"] == "fails"
    assert words(gain=10.0)["echo-of-new-words"] == "holds"
    assert words(gain=1.0)["echo-of-new-words"] == "open"


def test_an_echo_that_stories_alone_or_an_untrained_model_have_too_is_none():
    for share, step in ((0.0, 1), (PLAN.smoke_share, 0)):
        rows = smoke(gain=10.0)
        rows.loc[(rows["share"] == share) & ((rows["step"] > 0) == (step > 0)), "per_1000"] += 20
        (found,) = [each for each in judge_custom_claims(sizes(), rows, PLAN) if each.id == "echo-of-new-words"]
        assert found.verdict == "fails"


def test_one_seed_leaves_every_claim_open_and_has_no_interval():
    found = judge_custom_claims(sizes(seeds=1), smoke(seeds=1), PLAN)
    assert {each.verdict for each in found} == {"open"}
    assert {each.interval for each in found} == {None}


def test_rows_after_equal_epochs_and_equal_updates_are_told_apart():
    table = sizes(seeds=1)
    epochs = at_equal(table, PLAN, "epochs")
    assert dict(zip(epochs["lines"], epochs["step"], strict=True)) == {n: passes(PLAN, n) for n in PLAN.sizes}
    assert set(at_equal(table, PLAN, "updates")["step"]) == {PLAN.updates}
    with pytest.raises(ValueError, match="choose 'epochs' or 'updates'"):
        at_equal(table, PLAN, "steps")


def test_the_turning_point_is_the_least_mean_of_the_seeds():
    step, later = turning_point(sizes(), "LSTM", PLAN.sizes[-1])
    assert step == 100
    assert later.mean == pytest.approx(1.5, abs=0.05)
    assert later.low > 0


def test_values_by_seed_must_be_one_a_seed():
    table = sizes(seeds=2)
    with pytest.raises(ValueError, match="there must be one a seed"):
        by_seed(table, "seen_loss", arm="LSTM", lines=3)
    with pytest.raises(ValueError, match="0 values of seen_loss"):
        by_seed(table, "seen_loss", arm="GRU")
