"""Claims about norms hold, fail or stay open as their intervals say."""

import numpy as np
import pandas as pd
import pytest

from picollm_core.contrasts import paired_contrast
from picollm_core.norm_claims import bullets, judge_norm_claims, with_interval
from picollm_core.norm_study import norm_arms, published_arms

NOISE = np.random.default_rng(0).normal(0, 0.001, (20, 5))


def values(arms, **offsets) -> dict[str, list[float]]:
    """Five seeds around 4, moved by the offset of the arm whose name (blanks as _) is given."""
    moves = {name.replace("_", ", "): move for name, move in offsets.items()}
    return {name: (4 + moves.get(name, 0.0) + noise).tolist() for name, noise in zip(arms, NOISE, strict=False)}


def slopes(pre=-0.5, post=0.0) -> pd.DataFrame:
    rows = [("pre", pre, pre - 0.02, pre + 0.02, 20), ("post", post, post - 0.02, post + 0.02, 20)]
    return pd.DataFrame(rows, columns=["arm", "slope", "low", "high", "seeds"])


def judged(**changes) -> dict[str, tuple[str, str]]:
    given = {
        "course": values(published_arms()),
        "end": values(published_arms()),
        "distinct": values(published_arms()),
        "deep": {name: [4.0 + 0.01 * seed for seed in range(5)] for name in norm_arms()},
        "cost": paired_contrast([0.1, 0.11, 0.12], [0, 0, 0]),
        "slopes": slopes(),
        "margin": 0.02,
        "slope_margin": 0.1,
    }
    table = judge_norm_claims(**(given | changes))
    assert list(table.columns) == ["claim", "source", "measured", "effect", "verdict"]
    return {row.claim: (row.verdict, row.effect) for row in table.itertuples()}


def verdict_on(words: str, **changes) -> tuple[str, str]:
    (found,) = [answer for claim, answer in judged(**changes).items() if words in claim]
    return found


def test_no_difference_holds_only_where_whole_intervals_lie_within_the_margin():
    for words, table in (("validation curves", "course"), ("perplexities", "end")):
        assert verdict_on(words)[0] == "holds"
        assert verdict_on(words, **{table: values(published_arms(), post_RoPE=0.05)})[0] == "fails"
        verdict, effect = verdict_on(words, **{table: values(published_arms(), post_RoPE=0.02)})
        assert verdict == "open"
        assert [part.split(":")[0] for part in effect.split("; ")] == ["absolute", "RoPE", "NoPE"]


def test_the_best_has_to_beat_every_other_arm():
    ahead = values(published_arms(), pre_absolute=-0.1)
    assert verdict_on("lowest perplexity", end=ahead)[0] == "holds"
    assert (
        verdict_on("lowest perplexity", end=values(published_arms(), pre_absolute=-0.1, post_NoPE=-0.2))[0] == "fails"
    )
    assert verdict_on("most diverse", distinct=ahead)[0] == "fails"
    assert verdict_on("most diverse", distinct=values(published_arms(), pre_absolute=0.1))[0] == "holds"


def test_depth_cost_and_slopes_are_judged_by_their_own_numbers():
    deep = {
        name: [4.0 - (name == "pre RMSNorm") + 0.01 * seed * len(name) for seed in range(5)] for name in norm_arms()
    }
    assert verdict_on("converges better", deep=deep)[0] == "holds"
    assert verdict_on("LayerNorm costs more")[0] == "holds"
    assert verdict_on("LayerNorm costs more", cost=paired_contrast([-0.1, -0.11], [0, 0]))[0] == "fails"
    assert verdict_on("slope -0.5")[0] == "holds"
    assert verdict_on("slope -0.5", slopes=slopes(pre=-0.3)) == ("fails", "pre: +0.200 (+0.180 to +0.220)")
    assert verdict_on("slope 0 ", slopes=slopes(post=0.09))[0] == "open"


def test_one_seed_decides_nothing_about_training():
    one = {name: own[:1] for name, own in values(published_arms(), pre_absolute=-1.0).items()}
    found = judged(course=one, end=one, distinct=one, deep={name: [4.0] for name in norm_arms()})
    assert [answer[0] for answer in found.values()][:5] == ["open"] * 5
    assert "(" not in found["minimal variance of the perplexities across norms"][1]


def test_slopes_of_several_settings_and_missing_arms_are_refused():
    with pytest.raises(ValueError, match="2 slopes for 'pre'"):
        judged(slopes=pd.concat([slopes(), slopes()]))
    with pytest.raises(KeyError, match="post RMSNorm"):
        judged(deep={"pre RMSNorm": [1.0]})


def test_a_number_without_an_interval_stands_alone():
    assert with_interval(0.5) == "+0.500"
    assert with_interval(-0.5, float("nan"), float("nan")) == "-0.500"
    assert with_interval(-0.5, -1, 0.25) == "-0.500 (-1.000 to +0.250)"


def test_parts_become_bold_names_with_lists():
    assert bullets({"Loss": ["a 1", "b 2"], "Time": ["a 3"]}) == "**Loss**\n\n- a 1\n- b 2\n\n**Time**\n\n- a 3"
