"""Fronts, maps and contrasts over a run table, against counting by hand and by brute force."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm_core import analysis
from picollm_core.analysis import contrasts_against, heat_map_table, pareto_front
from picollm_core.contrasts import paired_contrast

NUMBER = st.one_of(st.integers(0, 5).map(float), st.just(math.nan), st.just(math.inf))


def beaten(one: tuple[float, float], others: list[tuple[float, float]]) -> bool:
    """By the words of the definition: another costs no more, is no worse, and differs."""
    return any(cost <= one[0] and loss <= one[1] and (cost, loss) != one for cost, loss in others)


@given(st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=12), st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_front_is_that_of_comparing_all_pairs(points, lower_is_better):
    table = pd.DataFrame(points, columns=["seconds", "score"])
    found = pareto_front(table, "seconds", "score", lower_is_better)
    sign = 1 if lower_is_better else -1
    finite = [(cost, sign * score) for cost, score in points if math.isfinite(cost) and math.isfinite(score)]
    expected = [
        math.isfinite(cost) and math.isfinite(score) and not beaten((cost, sign * score), finite)
        for cost, score in points
    ]
    assert found.tolist() == expected


def test_front_by_hand_with_a_tie_and_a_diverged_run():
    table = pd.DataFrame(
        {"parameters": [1, 2, 2, 3, 4, 0], "nll": [5.0, 4.0, 4.0, 4.5, 3.0, math.nan]}, index=list("abcdef")
    )
    front = pareto_front(table, "parameters", "nll")
    assert front.name == "on_front"
    assert front[front].index.tolist() == ["a", "b", "c", "e"]


def test_accuracy_is_better_when_higher():
    table = pd.DataFrame({"seconds": [1, 2, 3], "accuracy": [0.2, 0.4, 0.3]})
    assert pareto_front(table, "seconds", "accuracy", lower_is_better=False).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"nll": [1.0]}), "no column seconds; it has nll"),
        (pd.DataFrame({"seconds": [], "nll": []}), "the table is empty"),
        (pd.DataFrame({"seconds": ["fast"], "nll": [1.0]}), "column seconds holds no numbers"),
    ],
)
def test_a_front_needs_columns_rows_and_numbers(table, message):
    with pytest.raises(ValueError, match=message):
        pareto_front(table, "seconds", "nll")


def grid() -> pd.DataFrame:
    rows = [
        ("kgram", 64, 1, 3.0), ("kgram", 64, 1, 3.4), ("kgram", 32, 3, 2.9), ("kgram", 32, 1, 3.6),
        ("lstm", 64, math.nan, 2.5), ("transformer", 64, math.nan, 2.6),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["family", "n_embd", "k", "nll"])


def test_a_map_has_sorted_sides_and_the_best_mean_or_worst_of_each_cell():
    maps = {agg: heat_map_table(grid(), "n_embd", "k", "nll", agg)["kgram"] for agg in ("min", "mean", "max")}
    least = maps["min"]
    assert (least.index.tolist(), least.columns.tolist()) == ([32, 64], [1, 3])
    assert (least.index.name, least.columns.name) == ("n_embd", "k")
    assert [maps[agg].loc[64, 1] for agg in ("min", "mean", "max")] == pytest.approx([3.0, 3.2, 3.4])
    assert math.isnan(least.loc[64, 3])


def test_a_family_without_the_setting_has_no_map():
    assert list(heat_map_table(grid(), "n_embd", "k", "nll")) == ["kgram"]
    with pytest.raises(ValueError, match="no family has n_embd, k and nll together"):
        heat_map_table(grid().query("family == 'lstm'"), "n_embd", "k", "nll")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("n_embd", "layers", "nll"), "no column layers"),
        (("n_embd", "n_embd", "nll"), "name three columns"),
        (("n_embd", "nll", "family"), "column family holds no numbers"),
        (("n_embd", "k", "nll", "median"), "agg is 'median'; choose 'min', 'max' or 'mean'"),
    ],
)
def test_maps_of_what_is_not_there_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        heat_map_table(grid(), *arguments)


ARMS = {"base": [3.0, 3.1, 3.2, 3.0, 3.1], "low": [2.5, 2.61, 2.7, 2.49, 2.6], "same": [3.01, 3.1, 3.19, 3.0, 3.1]}


def test_contrasts_are_the_paired_ones_with_one_correction_over_the_table():
    table = contrasts_against("base", ARMS, margin=0.05).set_index("arm")
    for arm in ("low", "same"):
        expected = paired_contrast(ARMS[arm], ARMS["base"])
        row = table.loc[arm]
        assert (row["difference"], row["low"], row["high"], row["p"], row["pairs"]) == pytest.approx(
            (expected.mean, expected.low, expected.high, expected.p_value, 5)
        )
    assert table.loc["low", "p_holm"] == pytest.approx(2 * table.loc["low", "p"])
    assert table["sign"].tolist() == ["lower", "open"]
    assert table["equivalent"].tolist() == ["fails", "holds"]
    assert (table["note"] == "").all()


def test_a_table_of_seeds_by_arms_gives_the_same_and_equivalence_only_when_asked_for():
    frame = contrasts_against("base", pd.DataFrame(ARMS))
    pd.testing.assert_frame_equal(frame, contrasts_against("base", ARMS))
    assert "equivalent" not in frame


def test_one_seed_has_a_difference_no_interval_and_a_note():
    table = contrasts_against("a", {"a": [1.0], "b": [1.5], "c": [0.5]}, margin=0.1)
    assert table["difference"].tolist() == [0.5, -0.5]
    assert table[["low", "high", "p", "p_holm"]].isna().all(axis=None)
    assert set(table["sign"]) == set(table["equivalent"]) == {"open"}
    assert set(table["note"]) == {"one seed: no interval, nothing is decided"}


def test_a_family_of_true_nulls_makes_a_false_claim_about_five_times_in_a_hundred():
    generator = np.random.default_rng(3)
    wrong = 0
    for _ in range(500):
        # every arm has its own reference-free noise: five arms against one reference, all equal in truth
        values = {name: generator.normal(size=5).tolist() for name in "abcdef"}
        wrong += (contrasts_against("a", values)["sign"] != "open").any()
    assert wrong / 500 <= 0.05 + 0.03


@pytest.mark.parametrize(
    ("reference", "values", "message"),
    [
        ("x", ARMS, "no arm 'x'; choose one of base, low, same"),
        ("base", {"base": [1.0, 2.0]}, "'base' is the only arm"),
        ("base", {"base": [1.0, 2.0], "b": [1.0]}, "1 values cannot be paired with 2"),
        ("base", {"base": [1.0, 2.0], "b": [1.0, math.nan]}, "arm b has no finite value for some seed"),
    ],
)
def test_contrasts_without_pairs_are_refused(reference, values, message):
    with pytest.raises(ValueError, match=message):
        contrasts_against(reference, values)


def test_a_margin_must_be_above_0():
    with pytest.raises(ValueError, match="margin is 0"):
        contrasts_against("base", ARMS, margin=0)


def test_everything_that_is_offered_exists():
    assert all(callable(getattr(analysis, name)) for name in analysis.__all__)
