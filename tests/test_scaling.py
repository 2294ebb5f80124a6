"""Scaling fits find laws that are known, say how sure they are, and refuse what they cannot decide."""

import numpy as np
import pandas as pd
import pytest

from picollm_core.scaling import Estimate, fit_scaling, forecast, optimal_sizes, optimal_split

LAW = {"E": 2.0, "A": 30.0, "alpha": 0.35, "B": 400.0, "beta": 0.45}
SIZES = np.array([34e3, 72e3, 156e3, 361e3, 918e3])
TOKENS = 1024 * np.array([100, 200, 400, 800])


def loss(parameters, tokens):
    return LAW["E"] + LAW["A"] / parameters ** LAW["alpha"] + LAW["B"] / tokens ** LAW["beta"]


def runs(noise=0.0, seed=0) -> pd.DataFrame:
    grid = pd.MultiIndex.from_product([SIZES, TOKENS], names=["parameters", "tokens"]).to_frame(index=False)
    scatter = np.exp(noise * np.random.default_rng(seed).normal(size=len(grid)))
    return grid.assign(nll=loss(grid["parameters"], grid["tokens"]) * scatter)


def test_a_law_without_noise_is_found_exactly():
    fit = fit_scaling(runs(), resamples=0)
    assert fit.floor.value == pytest.approx(LAW["E"], rel=1e-4)
    assert fit.coefficient("parameters").value == pytest.approx(LAW["A"], rel=1e-3)
    assert fit.exponent("parameters").value == pytest.approx(LAW["alpha"], rel=1e-4)
    assert fit.coefficient("tokens").value == pytest.approx(LAW["B"], rel=1e-3)
    assert fit.exponent("tokens").value == pytest.approx(LAW["beta"], rel=1e-4)
    assert fit.predict(parameters=5e6, tokens=1e7).value == pytest.approx(loss(5e6, 1e7), rel=1e-5)


def test_the_published_huber_loss_finds_the_same_law():
    fit = fit_scaling(runs(), resamples=0, delta=1e-3)
    assert fit.exponent("parameters").value == pytest.approx(LAW["alpha"], rel=1e-4)


def test_one_run_gone_wrong_pulls_little():
    table = runs()
    table.loc[7, "nll"] *= 1.5
    fit = fit_scaling(table, resamples=0)
    assert fit.exponent("tokens").value == pytest.approx(LAW["beta"], rel=0.15)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    inside, generator = [], np.random.default_rng(5)
    place = {"parameters": 2e6, "tokens": 1.6e6}
    for seed in range(16):
        fit = fit_scaling(runs(0.005, seed), resamples=40)
        inside += [
            LAW["E"] in fit.floor,
            LAW["alpha"] in fit.exponent("parameters"),
            LAW["beta"] in fit.exponent("tokens"),
            loss(**place) in fit.predict(**place),
            loss(**place) * np.exp(0.005 * generator.normal()) in fit.predict_run(**place),
        ]
    assert 0.85 <= np.mean(inside) <= 1.0  # 95% asked for, 80 trials in five related kinds


def test_a_new_run_scatters_more_widely_than_the_curve():
    fit = fit_scaling(runs(0.01, 1), resamples=60)
    curve, run = (ask(parameters=3e5, tokens=4e5) for ask in (fit.predict, fit.predict_run))
    assert run.value == curve.value
    assert run.high - run.low > curve.high - curve.low > 0


def test_one_variable_without_a_floor_is_the_straight_line_on_logarithmic_axes():
    table = pd.DataFrame({"tokens": TOKENS, "nll": 9.0 * TOKENS**-0.095})
    fit = fit_scaling(table, ["tokens"], floor=False, resamples=0)
    assert fit.exponent("tokens").value == pytest.approx(0.095, abs=1e-6)
    assert fit.coefficient("tokens").value == pytest.approx(9.0, rel=1e-5)
    assert fit.floor == Estimate(0.0)


def test_the_same_table_gives_the_same_intervals():
    first, second = (fit_scaling(runs(0.01), resamples=5, seed=3).exponent("tokens") for _ in range(2))
    assert first == second


def test_the_optimal_split_is_that_of_the_exponents_and_nothing_near_it_is_better():
    fit = fit_scaling(runs(), resamples=3)
    split = optimal_split(fit)
    assert split.share.value == pytest.approx(LAW["beta"] / (LAW["alpha"] + LAW["beta"]), rel=1e-3)
    assert split.determined
    sizes = optimal_sizes(fit, [1e11, 1e12])
    np.testing.assert_allclose(6 * sizes["parameters"] * sizes["tokens"], sizes["flops"])
    for factor in (0.9, 1.1):
        near = fit.curve(sizes.assign(parameters=sizes["parameters"] * factor, tokens=sizes["tokens"] / factor))
        assert (near > sizes["loss"]).all()


def test_a_split_that_the_data_do_not_fix_says_why():
    flat = runs(0.02, 2)
    flat["nll"] = 3.0 + 400 / flat["tokens"] ** 0.45 + 0.05 * np.random.default_rng(0).normal(size=len(flat))
    split = optimal_split(fit_scaling(flat, resamples=40))
    assert not split.determined
    assert "parameters" in split.why or "wide" in split.why
    assert "resampled" in optimal_split(fit_scaling(runs(), resamples=0)).why


def test_a_run_held_out_of_the_fit_is_predicted_with_its_error():
    table = runs(0.002, 4)
    out = (table["parameters"] == SIZES[-1]) & (table["tokens"] == TOKENS[-1])
    fit = fit_scaling(table[~out], resamples=40)
    found = forecast(fit, table[out])
    assert found["measured"] == table.loc[out, "nll"].iloc[0]
    assert found["predicted"] == fit.predict_run(parameters=SIZES[-1], tokens=TOKENS[-1]).value
    assert found["error"] == pytest.approx(found["predicted"] - found["measured"])
    assert found["percent"] == pytest.approx(100 * found["error"] / found["measured"])
    assert abs(found["percent"]) < 1
    assert found["low"] < found["predicted"] < found["high"]
    several = forecast(fit, pd.concat([table[out], table[out].assign(nll=9.0)]))
    assert several["measured"] == pytest.approx((found["measured"] + 9.0) / 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[:6], "6 different points for a law of 5 numbers; it needs at least 7"),
        (lambda t: pd.concat([t[:6]] * 3), "6 different points"),
        (lambda t: t[t["tokens"] == TOKENS[0]], "tokens is the same in every row"),
        (lambda t: t.assign(nll=t["nll"].where(t.index > 0, float("inf"))), "finite and above 0"),
        (lambda t: t.assign(tokens=t["tokens"] - TOKENS[0]), "finite and above 0"),
        (lambda t: t.drop(columns="nll"), "no column nll"),
        (lambda t: t[:0], "empty"),
    ],
)
def test_what_determines_no_law_is_refused_with_the_reason(change, words):
    with pytest.raises(ValueError, match=words):
        fit_scaling(change(runs()))


def test_questions_that_a_fit_cannot_answer_are_refused():
    fit = fit_scaling(runs(), resamples=0)
    with pytest.raises(ValueError, match="no value above 0 for tokens"):
        fit.predict(parameters=1e5)
    with pytest.raises(ValueError, match="no variable 'width'"):
        fit.exponent("width")
    with pytest.raises(ValueError, match="name each once"):
        fit_scaling(runs(), ["tokens", "tokens"])
    with pytest.raises(ValueError, match="stand at 5 places"):
        forecast(fit, runs().query("tokens == @TOKENS[0]"))
    with pytest.raises(ValueError, match="the table is empty"):
        forecast(fit, runs()[:0])
