"""The ladder's figure: every rung named with its cost and pace, colours by what is sure."""

import math

import pandas as pd
import pytest

from picollm_core.plots_ladder import BETTER, UNSURE, WORSE, plot_ladder
from tests.legible import assert_legible


def ladder(*rows: tuple[str, float, float, float], p_holm: float = 0.01, seeds: int = 3) -> pd.DataFrame:
    columns = ["rung", "cost", "low", "high"]
    table = pd.DataFrame([("the recipe", 0.0, 0.0, 0.0), *rows], columns=columns)
    sides = table["low"] * table["high"] > 0
    return table.assign(
        milliseconds=280.0,
        updates=140,
        bits_per_byte=1.2 + table["cost"],
        p_holm=sides.map({True: p_holm, False: math.nan if seeds == 1 else 0.6}),
        seeds=seeds,
    )


def test_every_rung_is_named_with_its_cost_and_what_is_sure_has_a_colour():
    rows = ("AdamW", 0.2, 0.15, 0.25), ("GELU", 0.01, -0.02, 0.04), ("half the batch", -0.05, -0.08, -0.02)
    figure = plot_ladder(ladder(*rows), title="Muon is worth the most of what was switched off")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["AdamW", "GELU", "half the batch"]
    colours = [patch.get_facecolor()[:3] for patch in axes.patches]
    wanted = [tuple(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)) for c in (WORSE, UNSURE, BETTER)]
    assert colours == [pytest.approx(colour) for colour in wanted]
    texts = " ".join(text.get_text() for text in axes.texts)
    assert all(cost in texts for cost in ("+0.200", "+0.010", "-0.050"))
    assert_legible(figure)


def test_an_interval_on_one_side_is_undecided_where_many_rungs_explain_it():
    figure = plot_ladder(ladder(("AdamW", 0.2, 0.01, 0.39), p_holm=0.3), title="One of many intervals is off 0")
    assert figure.axes[0].patches[0].get_facecolor()[:3] == pytest.approx((138 / 255,) * 3)
    assert "after Holm" in figure.axes[0].get_xlabel()


def test_a_single_cost_far_beyond_the_others_does_not_hide_them():
    rows = ("none of it", 3.0, 2.9, 3.1), ("a", 0.1, 0.09, 0.11), ("b", 0.08, 0.07, 0.09), ("c", 0.05, 0.04, 0.06)
    axes = plot_ladder(ladder(*rows), title="One rung is far away").axes[0]
    assert axes.get_xlim()[1] == pytest.approx(0.32)
    assert any("+3.000" in text.get_text() for text in axes.texts)


def test_one_seed_has_no_intervals_and_says_so():
    figure = plot_ladder(ladder(("AdamW", 0.2, math.nan, math.nan), seeds=1), title="One seed decides nothing")
    assert "one seed" in figure.axes[0].get_xlabel()
    assert figure.axes[0].patches[0].get_facecolor()[:3] == pytest.approx((138 / 255,) * 3)


def test_missing_columns_and_a_lone_recipe_are_refused():
    with pytest.raises(ValueError, match="cost"):
        plot_ladder(pd.DataFrame({"rung": ["a"]}), title="t")
    with pytest.raises(ValueError, match="1 rungs"):
        plot_ladder(ladder(), title="t")
