"""Correlations between the columns of a run table, with intervals."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from picollm_core.analysis_table import require_rows
from picollm_core.config import require
from picollm_core.contrasts import holm

Method = Literal["spearman", "pearson"]
FEWEST = 4
"""Fisher's interval divides by n - 3."""


def _numbers(table: pd.DataFrame, columns: Sequence[str], method: str) -> pd.DataFrame:
    """The columns as floats; ValueError for what cannot be correlated."""
    require(method in ("spearman", "pearson"), f"method is {method!r}; choose 'spearman' or 'pearson'")
    require(len(set(columns)) == len(columns) >= 2, f"columns are {list(columns)}; name at least two, each once")
    require_rows(table, columns)
    require(len(table) >= FEWEST, f"{len(table)} runs say nothing of a correlation; give at least {FEWEST}")
    words = [name for name in columns if not pd.api.types.is_numeric_dtype(table[name])]
    require(not words, f"column {', '.join(words)} holds no numbers; correlate a number, or use regress for categories")
    found = table[list(columns)].astype(float)
    return found.where(np.isfinite(found))


def constant_columns(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The columns that never vary, so that no correlation with them exists. ValueError for a missing column."""
    require_rows(table, columns)
    return [name for name in columns if table[name].nunique() <= 1]


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64], method: str) -> tuple[float, int]:
    """r over the rows where both are known, and their number; NaN where one is constant or too few are known."""
    from scipy import stats  # slow to import and needed nowhere else

    both = np.isfinite(first) & np.isfinite(second)
    x, y = first[both], second[both]
    if len(x) < FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan, len(x)
    if method == "spearman":
        x, y = stats.rankdata(x), stats.rankdata(y)
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1.0, 1.0)), len(x)


def correlation_matrix(table: pd.DataFrame, columns: Sequence[str], method: Method = "spearman") -> pd.DataFrame:
    """Correlations between all pairs of numeric columns, (C, C), over the rows in which both are known.

    Spearman's is that of the ranks: it asks only whether one grows with the other, so neither a log scale nor one
    diverged run changes much. Constant columns have none (NaN; `constant_columns` names them), and neither have pairs
    with fewer than 4 common rows, such as K and the number of heads. Rows should be independent: average over seeds
    first. Raises ValueError for missing, repeated and non-numeric columns, and for fewer than 4 rows.
    """
    data = _numbers(table, columns, method)
    values = data.to_numpy()
    found = [[_correlation(x, y, method)[0] for y in values.T] for x in values.T]
    return pd.DataFrame(found, index=list(columns), columns=list(columns))


def _interval(r: float, n: int, method: str, confidence: float) -> tuple[float, float]:
    """Fisher's interval: atanh(r) is about normal with variance 1 / (n - 3), (1 + r^2 / 2) / (n - 3) for ranks."""
    from scipy import stats

    if not math.isfinite(r) or abs(r) == 1:
        return r, r
    spread = math.sqrt((1 + r * r / 2 if method == "spearman" else 1.0) / (n - 3))
    half = float(stats.norm.ppf((1 + confidence) / 2)) * spread
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def _p_value(r: float, n: int) -> float:
    """Two-sided, of no correlation: r sqrt((n - 2) / (1 - r^2)) is Student's t with n - 2 degrees of freedom."""
    from scipy import stats

    if abs(r) == 1:
        return 0.0
    return float(2 * stats.t.sf(abs(r) * math.sqrt((n - 2) / (1 - r * r)), n - 2))


def correlation_intervals(
    table: pd.DataFrame, columns: Sequence[str], method: Method = "spearman", confidence: float = 0.95
) -> pd.DataFrame:
    """Every pair of columns as one row: first, second, n (common rows), correlation, low, high, p, p_holm.

    The strongest come first. Intervals are Fisher's (1921), for ranks with the variance of Bonett and Wright (2000);
    p belongs to no correlation (Student's t), p_holm is corrected for all pairs of the table. Pairs without a
    correlation have NaN throughout and come last. A correlation of exactly 1 or -1 has no width, which is no certainty.
    Raises ValueError as `correlation_matrix` does, and for a confidence outside (0, 1).
    """
    require(0 < confidence < 1, f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95")
    data = _numbers(table, columns, method)
    rows = []
    for first, second in combinations(columns, 2):
        r, n = _correlation(data[first].to_numpy(), data[second].to_numpy(), method)
        p = _p_value(r, n) if math.isfinite(r) else math.nan
        rows.append((first, second, n, r, *_interval(r, n, method, confidence), p))
    found = pd.DataFrame(rows, columns=["first", "second", "n", "correlation", "low", "high", "p"])
    tested = found["p"].notna()
    found["p_holm"] = math.nan
    found.loc[tested, "p_holm"] = holm(found.loc[tested, "p"].tolist())
    order = found["correlation"].abs().sort_values(ascending=False, kind="stable", na_position="last").index
    return found.loc[order].reset_index(drop=True)
