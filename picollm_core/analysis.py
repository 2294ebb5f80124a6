"""What many runs say together: who is on the front, what goes with what, by how much, and whether it is sure.

Everything here takes tables (`comparison_table` makes one from runs) and returns tables, so that each number can be
looked at before it is drawn by plots_analysis.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from picollm_core.analysis_correlation import constant_columns, correlation_intervals, correlation_matrix
from picollm_core.analysis_curves import LearningCurve, learning_curve_fit
from picollm_core.analysis_regression import Regression, regress, residual_bias
from picollm_core.analysis_table import comparison_table, require_comparable, require_rows
from picollm_core.config import require
from picollm_core.contrasts import equivalence, holm, paired_contrast

__all__ = [
    "LearningCurve",
    "Regression",
    "comparison_table",
    "constant_columns",
    "contrasts_against",
    "correlation_intervals",
    "correlation_matrix",
    "heat_map_table",
    "learning_curve_fit",
    "pareto_front",
    "regress",
    "require_comparable",
    "residual_bias",
]


def _numeric(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """ValueError naming a column that holds no numbers."""
    words = [name for name in columns if not pd.api.types.is_numeric_dtype(table[name])]
    require(not words, f"column {', '.join(words)} holds no numbers")


def pareto_front(table: pd.DataFrame, cost: str, value: str, lower_is_better: bool = True) -> pd.Series:
    """Which rows no other row beats: boolean Series "on_front", (N,), with the table's index.

    A row is beaten by one that costs no more and is no worse, and is better in at least one of the two; equal rows do
    not beat each other, so both stay. `value` is better when lower (loss), or higher with `lower_is_better=False`
    (accuracy). A row without a finite cost and value, such as a run that diverged, is never on the front.
    Raises ValueError for missing columns, columns without numbers and an empty table.
    """
    require_rows(table, [cost, value])
    _numeric(table, [cost, value])
    costs, values = table[cost].to_numpy(dtype=float), table[value].to_numpy(dtype=float)
    losses = values if lower_is_better else -values
    finite = np.isfinite(costs) & np.isfinite(losses)
    no_worse = (costs[:, None] <= costs) & (losses[:, None] <= losses)  # (N, N): row i against row j
    better = (costs[:, None] < costs) | (losses[:, None] < losses)
    beaten = (finite[:, None] & no_worse & better).any(axis=0)
    return pd.Series(finite & ~beaten, index=table.index, name="on_front")


def heat_map_table(
    table: pd.DataFrame, row: str, column: str, value: str, agg: Literal["min", "max", "mean"] = "min"
) -> dict[str, pd.DataFrame]:
    """Family -> table of `value` with the sorted levels of `row` down and of `column` across; NaN where nothing ran.

    Several runs in one cell become their least (`agg="min"`: the best that was found there, whatever else varied),
    largest or mean value. A family that has no `row` or `column` at all (an LSTM has no K) is left out, so nothing is
    drawn over a setting that it does not have. Raises ValueError for missing columns, another `agg`, an empty table,
    and when no family is left.
    """
    require(agg in ("min", "max", "mean"), f"agg is {agg!r}; choose 'min', 'max' or 'mean'")
    require_rows(table, ["family", row, column, value])
    require(len({row, column, value}) == 3, f"row, column and value are {row}, {column}, {value}; name three columns")
    _numeric(table, [value])
    known = table.dropna(subset=[row, column, value])
    families = [family for family in dict.fromkeys(table["family"]) if (known["family"] == family).any()]
    require(bool(families), f"no family has {row}, {column} and {value} together; name settings that one family has")
    return {
        str(family): known[known["family"] == family].pivot_table(
            index=row, columns=column, values=value, aggfunc=agg, observed=True
        )
        for family in families
    }


def contrasts_against(
    reference: str, values: Mapping[str, Sequence[float]] | pd.DataFrame, margin: float | None = None
) -> pd.DataFrame:
    """Every other arm less the reference, over paired seeds, as one family of tests.

    `values` holds one number a seed for every arm, the seeds in one order; `arms.values` makes such a table (a row a
    seed, a column an arm). Columns: arm, reference, difference, low, high (Student's 95% interval of this difference
    alone), pairs, p, p_holm (Holm's correction over the table), sign ("lower" or "higher" where p_holm < 0.05, else
    "open"), note; with a `margin` also equivalent: whether the difference is smaller than it in size by the whole
    interval ("holds", "fails" or "open", see contrasts.equivalence). One seed gives a difference only, and the note
    says so. Raises ValueError for an unknown reference, no other arm, arms with other numbers of seeds, missing or
    infinite values, and a margin that is not above 0.
    """
    arms = {str(name): np.asarray(values[name], dtype=float) for name in values}
    require(reference in arms, f"there is no arm {reference!r}; choose one of {', '.join(arms)}")
    others = [name for name in arms if name != reference]
    require(bool(others), f"{reference!r} is the only arm; a contrast needs another one")
    bad = [name for name, found in arms.items() if not np.isfinite(found).all()]
    require(not bad, f"arm {', '.join(bad)} has no finite value for some seed; a pair needs both of its runs")
    found = {name: paired_contrast(arms[name].tolist(), arms[reference].tolist()) for name in others}
    single = next(iter(found.values())).pairs == 1
    corrected = [math.nan] * len(others) if single else holm([contrast.p_value for contrast in found.values()])
    rows = []
    for (name, contrast), p in zip(found.items(), corrected, strict=True):
        sign = ("lower" if contrast.mean < 0 else "higher") if p < 0.05 else "open"
        rows.append(
            {
                "arm": name,
                "reference": reference,
                "difference": contrast.mean,
                "low": contrast.low,
                "high": contrast.high,
                "pairs": contrast.pairs,
                "p": contrast.p_value,
                "p_holm": p,
                "sign": sign,
                **({} if margin is None else {"equivalent": equivalence(contrast, margin=margin)}),
                "note": "one seed: no interval, nothing is decided" if single else "",
            }
        )
    return pd.DataFrame(rows)
