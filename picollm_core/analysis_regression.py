"""Ordinary least squares over a run table: coefficients with intervals, leave-one-out residuals, bias by family."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from picollm_core.analysis_table import require_rows
from picollm_core.config import require
from picollm_core.contrasts import holm

INTERCEPT = "intercept"
_ZERO = 1e-9
"""Below this share of a column's length, what other columns do not explain of it is rounding."""


@dataclass(frozen=True)
class Regression:
    """A least-squares fit y = X b + noise over N runs.

    coefficients: index term; estimate, standard_error, low, high (Student's interval), t, p; in y's unit per unit of
    the term. references: the level of every categorical column that the others are compared with.
    fitted, residuals (y - fitted), leverage (diagonal of the hat matrix), loo_fitted (the prediction for a run by the
    fit without it) and loo_residuals (y - loo_fitted): Series (N,) with the table's index; the last two are NaN for a
    run that alone determines a coefficient. spread: the noise's estimated standard deviation.
    """

    y: str
    coefficients: pd.DataFrame
    references: dict[str, str]
    r_squared: float
    adjusted_r_squared: float
    spread: float
    degrees_of_freedom: int
    fitted: pd.Series
    residuals: pd.Series
    leverage: pd.Series
    loo_fitted: pd.Series
    loo_residuals: pd.Series

    @property
    def loo_error(self) -> float:
        """Root mean square of the leave-one-out residuals: how far a run like these would be missed, in y's unit."""
        return float(np.sqrt((self.loo_residuals.dropna() ** 2).mean()))


def _levels(column: pd.Series) -> list[object]:
    """Levels in the order of a Categorical, else in that of appearance; the first is the reference."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return [level for level in column.cat.categories if (column == level).any()]
    return list(dict.fromkeys(column))


def design_matrix(
    table: pd.DataFrame, numeric: Sequence[str], categorical: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """X (N, terms): an intercept, the numeric columns, and a 0/1 column for every level but a column's first.

    Also returns that first level, the reference, of every categorical column. A level's term is "column = level".
    Raises ValueError for a missing value, numbers that are none, and a categorical column of one level.
    """
    terms: dict[str, NDArray[np.float64]] = {INTERCEPT: np.ones(len(table))}
    for name in numeric:
        require(
            pd.api.types.is_numeric_dtype(table[name]), f"column {name} holds no numbers; name it among the categorical"
        )
        terms[name] = table[name].to_numpy(dtype=float)
    references: dict[str, str] = {}
    for name in categorical:
        first, *others = _levels(table[name])
        require(bool(others), f"{name} is {first} in all {len(table)} rows; leave it out")
        references[name] = str(first)
        terms |= {f"{name} = {level}": (table[name] == level).to_numpy(dtype=float) for level in others}
    return pd.DataFrame(terms, index=table.index), references


def _collinear(design: NDArray[np.float64], names: Sequence[str]) -> str | None:
    """The first term that the ones before it determine, in words with these; None when all say something new."""
    lengths = np.linalg.norm(design, axis=0)
    if (zero := np.flatnonzero(lengths == 0)).size:
        return f"{names[zero[0]]} is 0 in all rows"
    scaled = design / lengths
    basis = np.empty((len(design), 0))
    for place, column in enumerate(scaled.T):
        rest = column - basis @ (basis.T @ column)
        rest = rest - basis @ (basis.T @ rest)  # twice is enough against rounding
        if np.linalg.norm(rest) < _ZERO:
            shares = np.linalg.lstsq(scaled[:, :place], column, rcond=None)[0]
            others = [names[i] for i in range(place) if abs(shares[i]) > 1e-6]
            known = "is constant" if others == [INTERCEPT] else f"follows from {', '.join(others)}"
            return f"{names[place]} {known}"
        basis = np.column_stack([basis, rest / np.linalg.norm(rest)])
    return None


def _require_known(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """ValueError naming the columns that have no finite value somewhere, and in how many rows."""
    known = {
        name: np.isfinite(table[name].to_numpy(dtype=float))
        if pd.api.types.is_numeric_dtype(table[name])
        else table[name].notna().to_numpy()
        for name in columns
    }
    gaps = [f"{name} in {(~found).sum()}" for name, found in known.items() if not found.all()]
    require(
        not gaps,
        f"of {len(table)} rows, these have no finite value: {', '.join(gaps)}; leave the rows out, "
        "or fit each family by its own settings",
    )


def regress(
    table: pd.DataFrame, y: str, numeric: Sequence[str] = (), categorical: Sequence[str] = (), confidence: float = 0.95
) -> Regression:
    """Fit y by ordinary least squares to numeric columns and to categorical ones (one coefficient a further level).

    Intervals are Student's, for independent noise of one spread: average over seeds first, and take logarithms of what
    acts by factors (widths, rates). Leave-one-out residuals are e / (1 - h) with h from the hat matrix (Allen 1974), so
    nothing is fitted anew. Raises ValueError for missing columns, values that are not finite, columns that follow from
    others (named), and no more rows than coefficients.
    """
    from scipy import stats  # slow to import and needed nowhere else

    columns = [y, *numeric, *categorical]
    require(len(set(columns)) == len(columns), f"columns {columns} name one twice; each has one part in a fit")
    require(len(columns) > 1, f"there is nothing to fit {y} to; name numeric or categorical columns")
    require(0 < confidence < 1, f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95")
    require_rows(table, columns)
    _require_known(table, columns)
    design, references = design_matrix(table, numeric, categorical)
    x, values = design.to_numpy(), table[y].to_numpy(dtype=float)
    n, terms = x.shape
    require(n > terms, f"{n} runs cannot determine {terms} coefficients and the noise; give at least {terms + 1}")
    found = _collinear(x, list(design.columns))
    require(found is None, f"the columns are collinear: {found}; leave one of them out")

    scale = np.linalg.norm(x, axis=0)
    q, r = np.linalg.qr(x / scale)  # (N, P), (P, P)
    inverse = np.linalg.inv(r)
    estimates = (inverse @ (q.T @ values)) / scale
    fitted = x @ estimates
    residuals = values - fitted
    freedom = n - terms
    error_sum, total_sum = float(residuals @ residuals), float(((values - values.mean()) ** 2).sum())
    variance = error_sum / freedom
    errors = np.sqrt(variance * (inverse**2).sum(axis=1)) / scale
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * errors
    with np.errstate(divide="ignore", invalid="ignore"):  # a perfect fit has no standard errors to divide by
        t = estimates / errors
    coefficients = pd.DataFrame(
        {
            "estimate": estimates,
            "standard_error": errors,
            "low": estimates - half,
            "high": estimates + half,
            "t": t,
            "p": 2 * stats.t.sf(np.abs(t), freedom),
        },
        index=pd.Index(design.columns, name="term"),
    )
    leverage = (q**2).sum(axis=1)
    alone = 1 - leverage < _ZERO
    loo = np.where(alone, math.nan, residuals / np.where(alone, 1.0, 1 - leverage))
    r_squared = 1 - error_sum / total_sum if total_sum > 0 else math.nan

    def series(numbers: NDArray[np.float64], name: str) -> pd.Series:
        return pd.Series(numbers, index=table.index, name=name)

    return Regression(
        y=y,
        coefficients=coefficients,
        references=references,
        r_squared=r_squared,
        adjusted_r_squared=1 - (1 - r_squared) * (n - 1) / freedom,
        spread=math.sqrt(variance),
        degrees_of_freedom=freedom,
        fitted=series(fitted, "fitted"),
        residuals=series(residuals, "residual"),
        leverage=series(leverage, "leverage"),
        loo_fitted=series(values - loo, "loo_fitted"),
        loo_residuals=series(loo, "loo_residual"),
    )


def residual_bias(
    regression: Regression, groups: pd.Series, held_out: bool = True, confidence: float = 0.95
) -> pd.DataFrame:
    """The mean residual of every group (of every family, say): group, n, bias, low, high, p, p_holm, note.

    A bias above 0 means that the fit expects less than the group's runs have: a higher loss than predicted. Residuals
    are leave-one-out, or those of the fit itself with `held_out=False`; these are 0 on average by construction in every
    group that the fit has a coefficient for. Intervals are Student's over runs; a group of one run has none, and the
    note says so. Raises ValueError unless `groups` has a value for every run of the fit.
    """
    from scipy import stats

    residuals = regression.loo_residuals if held_out else regression.residuals
    require(
        len(groups) == len(residuals) and groups.index.equals(residuals.index) and bool(groups.notna().all()),
        f"groups has {groups.notna().sum()} values for {len(residuals)} runs; give the fitted table's own column",
    )
    rows = []
    known = residuals.notna().to_numpy()
    for name, own in residuals[known].groupby(groups.to_numpy()[known], sort=False):
        n, mean = len(own), float(own.mean())
        if n == 1:
            rows.append((name, 1, mean, math.nan, math.nan, math.nan, "one run, no interval"))
            continue
        error = float(own.std(ddof=1)) / math.sqrt(n)
        half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
        p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else float(mean == 0)
        rows.append((name, n, mean, mean - half, mean + half, p, ""))
    table = pd.DataFrame(rows, columns=["group", "n", "bias", "low", "high", "p", "note"])
    tested = table["p"].notna()
    table["p_holm"] = math.nan
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].tolist())
    return table[["group", "n", "bias", "low", "high", "p", "p_holm", "note"]]
