"""Correlations against scipy, and intervals that cover at their stated rate."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from picollm_core.analysis_correlation import constant_columns, correlation_intervals, correlation_matrix


def table(n: int = 20, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    width = generator.integers(1, 5, size=n).astype(float)  # with ties
    return pd.DataFrame(
        {
            "width": width,
            "loss": 3 - 0.3 * width + generator.normal(size=n),
            "rate": 10 ** generator.uniform(-3, -1, size=n),
            "dropout": 0.0,
            "family": ["lstm"] * n,
        }
    )


@pytest.mark.parametrize(("method", "theirs"), [("spearman", stats.spearmanr), ("pearson", stats.pearsonr)])
def test_correlations_and_their_p_values_are_scipys(method, theirs):
    columns = ["width", "loss", "rate"]
    matrix = correlation_matrix(table(), columns, method)
    pairs = correlation_intervals(table(), columns, method).set_index(["first", "second"])
    for (first, second), row in pairs.iterrows():
        expected = theirs(table()[first], table()[second])
        assert matrix.loc[first, second] == matrix.loc[second, first] == pytest.approx(expected.statistic)
        assert row["correlation"] == pytest.approx(expected.statistic)
        assert row["p"] == pytest.approx(expected.pvalue)
    assert np.diag(matrix) == pytest.approx(1)


def test_pearsons_interval_is_scipys():
    data = table()
    row = correlation_intervals(data, ["width", "loss"], "pearson").iloc[0]
    expected = stats.pearsonr(data["width"], data["loss"]).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))


def test_a_constant_has_no_correlation_and_no_warning_and_is_named():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix = correlation_matrix(table(), ["width", "loss", "dropout"])
        pairs = correlation_intervals(table(), ["width", "loss", "dropout"])
    assert matrix["dropout"].isna().all()
    assert np.isfinite(matrix.loc["width", "loss"])
    assert pairs.iloc[-2:][["correlation", "low", "high", "p", "p_holm"]].isna().all(axis=None)
    assert constant_columns(table(), ["width", "loss", "dropout"]) == ["dropout"]


def test_pairs_use_the_rows_that_both_have_and_need_four_of_them():
    data = table().assign(k=[1.0, 2.0, 4.0, 3.0, 5.0] + [math.nan] * 15, heads=[math.nan] * 17 + [1.0, 2.0, 4.0])
    pairs = correlation_intervals(data, ["k", "loss", "heads"]).set_index(["first", "second"])
    first = data.iloc[:5]
    assert pairs.loc[("k", "loss"), "correlation"] == pytest.approx(
        stats.spearmanr(first["k"], first["loss"]).statistic
    )
    assert pairs["n"].to_dict() == {("k", "loss"): 5, ("loss", "heads"): 3, ("k", "heads"): 0}
    assert pairs.loc[[("loss", "heads"), ("k", "heads")], "correlation"].isna().all()


def test_a_diverged_run_counts_as_missing():
    data = table()
    data.loc[0, "loss"] = math.inf
    assert correlation_matrix(data, ["width", "loss"]).iloc[0, 1] == pytest.approx(
        correlation_matrix(data.iloc[1:], ["width", "loss"]).iloc[0, 1]
    )


def test_a_perfect_correlation_has_no_width():
    data = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [2.0, 4.0, 6.0, 8.0]})
    row = correlation_intervals(data, ["a", "b"]).iloc[0]
    assert (row["correlation"], row["low"], row["high"], row["p"]) == (1, 1, 1, 0)


@pytest.mark.parametrize("method", ["spearman", "pearson"])
def test_intervals_cover_the_true_correlation_95_times_in_100(method):
    generator, true = np.random.default_rng(0), 0.6
    expected = true if method == "pearson" else 6 / math.pi * math.asin(true / 2)  # of ranks, for normal pairs
    hits = 0
    for _ in range(500):
        x, noise = generator.normal(size=(2, 48))
        sample = pd.DataFrame({"x": x, "y": true * x + math.sqrt(1 - true**2) * noise})
        row = correlation_intervals(sample, ["x", "y"], method).iloc[0]
        hits += row["low"] <= expected <= row["high"]
    assert abs(hits / 500 - 0.95) <= 0.03


def test_the_strongest_pair_comes_first_and_holm_covers_all_pairs():
    pairs = correlation_intervals(table(), ["width", "loss", "rate"])
    assert pairs["correlation"].abs().is_monotonic_decreasing
    assert pairs["p_holm"].iloc[0] == pytest.approx(min(1.0, 3 * pairs["p"].iloc[0]))


@pytest.mark.parametrize(
    ("data", "columns", "method", "message"),
    [
        (table(3), ["width", "loss"], "spearman", "3 runs say nothing of a correlation; give at least 4"),
        (table(), ["width", "family"], "spearman", "column family holds no numbers"),
        (table(), ["width", "depth"], "spearman", "no column depth; it has width, loss"),
        (table(), ["width"], "spearman", "name at least two, each once"),
        (table(), ["width", "width"], "spearman", "name at least two, each once"),
        (table(), ["width", "loss"], "kendall", "method is 'kendall'; choose 'spearman' or 'pearson'"),
    ],
)
def test_what_cannot_be_correlated_is_refused_with_the_reason(data, columns, method, message):
    for ask in (correlation_matrix, correlation_intervals):
        with pytest.raises(ValueError, match=message):
            ask(data, columns, method)


def test_a_confidence_is_a_share():
    with pytest.raises(ValueError, match="confidence is 95"):
        correlation_intervals(table(), ["width", "loss"], confidence=95)
