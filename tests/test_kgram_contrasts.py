"""Each comparison pairs the arms it names; Holm's correction decides the sign; a claim needs all of its rows."""

import numpy as np
import pandas as pd
import pytest

from picollm_core.contrasts import holm
from picollm_core.kgram_contrasts import PARAMETERS, WIDTH, judge_lower, kgram_contrasts

EQUAL = {(3, "onehot"): 16, (3, "scaled"): 48}
MEANS = {
    (1, "onehot", 32): 4.0, (1, "learned", 32): 4.1, (1, "scaled", 32): 4.1, (1, "conv", 32): 4.2,
    (3, "onehot", 32): 3.0, (3, "learned", 32): 3.2, (3, "scaled", 32): 3.5, (3, "conv", 32): 3.6,
    (3, "onehot", 16): 3.3, (3, "scaled", 48): 3.25,
}  # fmt: skip

PARAMETERS_OF = dict.fromkeys(MEANS, 1000) | {(3, "onehot", 32): 3000, (3, "scaled", 32): 500, (3, "onehot", 16): 985}


def losses(seeds=5, noise=0.001):
    """A seed moves all arms alike by far more than the arms' own noise, as a seed's data order does."""
    generator = np.random.default_rng(0)
    common = generator.normal(0, 0.3, seeds)
    return {arm: (mean + common + noise * generator.normal(size=seeds)).tolist() for arm, mean in MEANS.items()}


def contrasts(loss=None, parameters=PARAMETERS_OF, **settings):
    return kgram_contrasts(loss or losses(**settings), parameters, width=32, equal=EQUAL)


def row(table: pd.DataFrame, what: str, where: str, compared: str) -> pd.Series:
    (index,) = table.index[(table.what == what) & (table["where"] == where) & (table.compared == compared)]
    return table.loc[index]


@pytest.mark.parametrize(
    ("key", "difference", "sign"),
    [
        (("one-hot - scaled", "K = 3", WIDTH), -0.5, "lower"),
        (("one-hot - scaled", "K = 3", PARAMETERS), 0.05, "higher"),
        (("one-hot - learned", "K = 3", PARAMETERS), 0.1, "higher"),
        (("one-hot - scaled", "K = 1", PARAMETERS), -0.1, "lower"),
        (("growth of one-hot - scaled", "K = 3 - K = 1", WIDTH), -0.4, "lower"),
        (("growth of one-hot - scaled", "K = 3 - K = 1", PARAMETERS), 0.15, "higher"),
        (("convolution - learned", "K = 3", WIDTH), 0.4, "higher"),
        (("more context, one-hot", "K = 3 - K = 1", WIDTH), -1.0, "lower"),
        (("more context, learned", "K = 3 - K = 1", WIDTH), -0.9, "lower"),
    ],
)
def test_each_comparison_is_the_difference_of_the_arms_it_names(key, difference, sign):
    found = row(contrasts(), *key)
    assert found.difference == pytest.approx(difference, abs=0.005)
    assert found.low <= found.difference <= found.high
    assert found.sign == sign


def test_every_comparison_is_there_once():
    table = contrasts()
    assert not table.duplicated(["what", "where", "compared"]).any()
    assert len(table) == 2 * 2 * 2 + 2 * 2 + 2 + 4


def test_the_ratio_of_weights_stands_beside_each_difference_of_two_variants():
    table = contrasts()
    assert row(table, "one-hot - scaled", "K = 3", WIDTH).weights == pytest.approx(6.0)
    assert row(table, "one-hot - scaled", "K = 3", PARAMETERS).weights == pytest.approx(0.985)
    assert set(table[table.weights.isna()].what) == {"growth of one-hot - scaled", "growth of one-hot - learned"}


def test_parameters_more_than_two_percent_apart_are_not_called_equal():
    with pytest.raises(ValueError, match=r"\(3, 'scaled', 48\) \(k, input, width\) has 1,030 .* \+3\.0%, more than 2%"):
        contrasts(parameters=PARAMETERS_OF | {(3, "scaled", 48): 1030})


def test_pairing_removes_what_the_arms_of_a_seed_share():
    found = row(contrasts(noise=0.0), "one-hot - scaled", "K = 3", WIDTH)
    assert found.high - found.low < 1e-9


def test_p_is_corrected_over_the_whole_table_and_decides_the_sign():
    table = contrasts(noise=0.1)
    alone = [
        float(p)
        for p in table.apply(lambda r: 2 * (1 - _t_cdf(abs(r.difference) / ((r.high - r.low) / 2 / 2.7764))), axis=1)
    ]
    np.testing.assert_allclose(table.p, holm(alone), atol=2e-3)
    assert set(table[table.p >= 0.05].sign) == {"open"}
    assert "open" not in set(table[table.p < 0.05].sign)


def _t_cdf(t: float) -> float:
    """Student's distribution with 4 degrees of freedom in closed form."""
    u = t / (t * t + 4) ** 0.5
    return 0.5 + 0.75 * (u - u**3 / 3)


def test_one_seed_leaves_everything_open_without_an_error():
    table = contrasts(seeds=1)
    assert set(table.sign) == {"open"}
    assert table[["low", "high", "p"]].isna().all(axis=None)
    assert row(table, "one-hot - scaled", "K = 3", WIDTH).difference == pytest.approx(-0.5, abs=0.01)


def test_identical_arms_differ_by_nothing_and_stay_open():
    loss = losses()
    loss[1, "learned", 32] = loss[1, "onehot", 32]
    found = row(contrasts(loss), "one-hot - learned", "K = 1", WIDTH)
    assert (found.difference, found.sign) == (0.0, "open")


@pytest.mark.parametrize(
    ("signs", "verdict"),
    [(["lower", "lower"], "holds"), (["lower", "open"], "open"), (["higher", "lower"], "fails"), (["open"], "open")],
)
def test_a_claim_holds_only_when_all_its_rows_are_clear(signs, verdict):
    assert judge_lower(pd.DataFrame({"sign": signs})) == verdict


def test_a_missing_arm_and_uneven_seeds_and_an_empty_claim_are_refused():
    loss = losses()
    with pytest.raises(ValueError, match=r"no losses of \(3, 'onehot', 16\)"):
        contrasts({arm: values for arm, values in loss.items() if arm != (3, "onehot", 16)})
    with pytest.raises(ValueError, match=r"\[4, 5\] seeds"):
        contrasts(loss | {(3, "onehot", 32): [3.0] * 4})
    with pytest.raises(ValueError, match="no rows to judge"):
        judge_lower(contrasts().iloc[:0])
