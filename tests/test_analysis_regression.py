"""Least squares against known effects, brute-force refits, scipy, and a stated rate of coverage."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from picollm_core.analysis_regression import design_matrix, regress, residual_bias

FAMILIES = ("kgram", "lstm", "transformer")
OFFSET = {"kgram": 0.0, "lstm": -0.4, "transformer": -0.6}


def runs(n: int = 48, noise: float = 0.05, seed: int = 0) -> pd.DataFrame:
    """loss = 4 - 0.3 log2 width - 0.1 depth + the family's offset + noise."""
    generator = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "family": [FAMILIES[i % 3] for i in range(n)],
            "log_width": generator.integers(4, 9, size=n).astype(float),
            "depth": generator.integers(1, 4, size=n),
        },
        index=[f"run {i}" for i in range(n)],
    )
    true = 4 - 0.3 * table["log_width"] - 0.1 * table["depth"] + table["family"].map(OFFSET)
    return table.assign(loss=true + noise * generator.normal(size=n))


def fit(table: pd.DataFrame, **settings):
    return regress(table, "loss", ["log_width", "depth"], ["family"], **settings)


def test_known_coefficients_come_back_exactly_without_noise():
    found = fit(runs(noise=0.0))
    assert found.coefficients["estimate"].to_dict() == pytest.approx(
        {"intercept": 4, "log_width": -0.3, "depth": -0.1, "family = lstm": -0.4, "family = transformer": -0.6}
    )
    assert found.references == {"family": "kgram"}
    assert found.r_squared == pytest.approx(1)
    assert found.residuals.abs().max() < 1e-10


def test_one_predictor_gives_scipys_line_with_its_standard_error():
    table = runs()
    found = regress(table, "loss", ["log_width"])
    expected = stats.linregress(table["log_width"], table["loss"])
    row = found.coefficients.loc["log_width"]
    assert (row["estimate"], row["standard_error"], row["p"]) == pytest.approx(
        (expected.slope, expected.stderr, expected.pvalue)
    )
    assert found.coefficients.loc["intercept", "standard_error"] == pytest.approx(expected.intercept_stderr)
    assert found.r_squared == pytest.approx(expected.rvalue**2)
    half = stats.t.ppf(0.975, 46) * expected.stderr
    assert (row["low"], row["high"]) == pytest.approx((expected.slope - half, expected.slope + half))
    assert found.adjusted_r_squared == pytest.approx(1 - (1 - expected.rvalue**2) * 47 / 46)


def test_two_groups_are_students_test_by_another_name():
    table = runs().query("family != 'lstm'")
    found = regress(table, "loss", categorical=["family"])
    groups = [table.loc[table["family"] == name, "loss"] for name in ("transformer", "kgram")]
    expected = stats.ttest_ind(*groups)
    row = found.coefficients.loc["family = transformer"]
    assert row["estimate"] == pytest.approx(groups[0].mean() - groups[1].mean())
    assert (row["t"], row["p"]) == pytest.approx((expected.statistic, expected.pvalue))


def test_leave_one_out_is_what_refitting_without_each_run_predicts():
    table = runs(n=20, noise=0.3)
    found = fit(table)
    design, _ = design_matrix(table, ["log_width", "depth"], ["family"])
    for place, name in enumerate(table.index):
        rest = np.arange(len(table)) != place
        estimates = np.linalg.lstsq(design.to_numpy()[rest], table["loss"].to_numpy()[rest], rcond=None)[0]
        prediction = design.to_numpy()[place] @ estimates
        assert found.loo_fitted[name] == pytest.approx(prediction)
        assert found.loo_residuals[name] == pytest.approx(table.loc[name, "loss"] - prediction)
    assert found.loo_error == pytest.approx(math.sqrt((found.loo_residuals**2).mean()))
    assert found.leverage.sum() == pytest.approx(5), "the hat matrix projects on 5 coefficients"


def test_a_run_that_alone_determines_a_coefficient_cannot_be_predicted():
    table = runs().iloc[:14].assign(loss=lambda t: t["loss"])
    table.loc["run 0", "family"] = "linear"
    found = fit(table)
    assert math.isnan(found.loo_residuals["run 0"])
    assert found.loo_residuals.drop("run 0").notna().all()
    assert math.isfinite(found.loo_error)


def test_intervals_cover_the_true_coefficients_95_times_in_100():
    truth = pd.Series({"log_width": -0.3, "depth": -0.1, "family = lstm": -0.4, "family = transformer": -0.6})
    hits = sum(
        (found["low"] <= truth) & (truth <= found["high"])
        for found in (fit(runs(n=24, noise=0.5, seed=seed)).coefficients.loc[truth.index] for seed in range(500))
    )
    assert ((hits / 500 - 0.95).abs() <= 0.03).all(), hits.to_dict()


def test_scales_of_columns_do_not_matter():
    table = runs()
    small = fit(table.assign(log_width=table["log_width"] * 1e-9, depth=table["depth"] * 1e9)).coefficients
    assert small.loc["log_width", "estimate"] == pytest.approx(
        1e9 * fit(table).coefficients.loc["log_width", "estimate"]
    )
    assert small["p"].to_numpy() == pytest.approx(fit(table).coefficients["p"].to_numpy(), rel=1e-6)


def test_the_reference_is_the_first_level_or_the_first_category():
    table = runs()
    assert fit(table).references["family"] == "kgram"
    ordered = table.assign(family=pd.Categorical(table["family"], ["transformer", "kgram", "lstm", "linear"]))
    found = fit(ordered)
    assert found.references["family"] == "transformer"
    assert list(found.coefficients.index[-2:]) == ["family = kgram", "family = lstm"]
    assert found.fitted.to_numpy() == pytest.approx(fit(table).fitted.to_numpy())


def test_a_fit_without_the_family_is_biased_by_its_offset_and_one_with_it_is_not():
    table = runs(n=120)
    blind = residual_bias(regress(table, "loss", ["log_width", "depth"]), table["family"]).set_index("group")
    mean = np.mean(list(OFFSET.values()))
    for family in FAMILIES:
        row = blind.loc[family]
        assert row["low"] < row["bias"] < row["high"]
        assert row["bias"] == pytest.approx(OFFSET[family] - mean, abs=0.03)
        assert row["p_holm"] >= row["p"]
    seeing = residual_bias(fit(table), table["family"])
    assert ((seeing["low"] < 0) & (seeing["high"] > 0)).all()
    inside = residual_bias(fit(table), table["family"], held_out=False)
    assert inside["bias"].abs().max() < 1e-10


def test_a_bias_has_students_interval_and_one_run_has_none():
    table = runs(n=30).assign(group=["alone"] + ["others"] * 29)
    found = fit(table)
    bias = residual_bias(found, table["group"]).set_index("group")
    assert math.isnan(bias.loc["alone", "low"])
    assert bias.loc["alone", "note"] == "one run, no interval"
    expected = stats.ttest_1samp(found.loo_residuals.iloc[1:], 0)
    interval = expected.confidence_interval(0.95)
    assert (bias.loc["others", "low"], bias.loc["others", "high"]) == pytest.approx((interval.low, interval.high))
    assert bias.loc["others", "p"] == pytest.approx(expected.pvalue)


def test_groups_must_be_those_of_the_fitted_table():
    found = fit(runs())
    with pytest.raises(ValueError, match="groups has 47 values for 48 runs"):
        residual_bias(found, runs()["family"].iloc[1:])


@pytest.mark.parametrize(
    ("change", "numeric", "categorical", "message"),
    [
        ({"twice": lambda t: 2 * t["depth"] + 1}, ["depth", "twice"], [], "twice follows from intercept, depth"),
        ({"heads": 4}, ["depth", "heads"], [], "heads is constant"),
        ({"zero": 0}, ["depth", "zero"], [], "zero is 0 in all rows"),
        ({"kind": lambda t: t["family"] + "!"}, [], ["family", "kind"], "kind = lstm! follows from family = lstm"),
        ({"depth": math.nan}, ["depth"], [], "of 48 rows, these have no finite value: depth in 48"),
        ({"loss": math.inf}, ["depth"], [], "loss in 48"),
        ({}, ["family"], [], "column family holds no numbers; name it among the categorical"),
        ({"family": "lstm"}, ["depth"], ["family"], "family is lstm in all 48 rows; leave it out"),
        ({}, ["width"], [], "no column width; it has family, log_width"),
        ({}, [], [], "nothing to fit loss to"),
        ({}, ["depth", "depth"], [], "name one twice"),
    ],
)  # fmt: skip
def test_fits_that_mean_nothing_are_refused_with_the_reason(change, numeric, categorical, message):
    with pytest.raises(ValueError, match=message):
        regress(runs().assign(**change), "loss", numeric, categorical)


def test_runs_must_outnumber_coefficients():
    with pytest.raises(ValueError, match="5 runs cannot determine 5 coefficients and the noise; give at least 6"):
        fit(runs(n=5))
