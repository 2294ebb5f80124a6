"""What the records of `text_quality` say: scores with intervals, differences, and the p of equal surprise.

A record holds, for each of S held-out beginnings, what two judges paid for one text that continues it. All intervals
come from drawing the beginnings again, the same ones for every text: they say how much a number would move with other
beginnings, and nothing about training the models anew. Shape legend: S stories, P settings, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from picollm_core.bootstrap import bootstrap_ratios, ratio_interval
from picollm_core.config import require

Record = Mapping[str, Any]
"""nats, count_nats, tokens, repetition and variety, a list of S each, and distinct: see QualityStudy.describe."""


def _sums(record: Record, measure: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Numerators and denominators (S,) of nats a token ("nll", "count_nll"), or of "repetition" or "variety"."""
    if measure in ("repetition", "variety"):
        values = np.array(record[measure], float)
        return np.nan_to_num(values), np.isfinite(values).astype(float)
    keys = {"nll": "nats", "count_nll": "count_nats"}
    require(measure in keys, f"measure is {measure!r}; choose nll, count_nll, repetition or variety")
    return np.array(record[keys[measure]], float), np.array(record["tokens"], float)


def score(record: Record, measure: str = "nll") -> float:
    """The mean over tokens ("nll", "count_nll": nats) or over stories ("repetition", "variety": shares)."""
    top, bottom = _sums(record, measure)
    return float(top.sum() / bottom.sum()) if bottom.sum() else float("nan")


def quality_row(record: Record) -> dict[str, float]:
    """One row of a table: nll with its 95% bootstrap interval over stories, count_nll, repetition, distinct_1 to 5."""
    low, high = ratio_interval(*_sums(record, "nll"))
    distinct = record["distinct"] or [float("nan")] * 5
    return {
        "nll": score(record),
        "nll_low": low,
        "nll_high": high,
        "count_nll": score(record, "count_nll"),
        "repetition": score(record, "repetition"),
        **{f"distinct_{n}": value for n, value in enumerate(distinct, 1)},
    }


def quality_table(records: Mapping[str, Mapping[str, Record]], by: str = "family") -> pd.DataFrame:
    """`quality_row` of records[group][setting] in rows, after the columns `by` (the group) and setting."""
    rows = [
        {by: group, "setting": setting} | quality_row(r) for group, own in records.items() for setting, r in own.items()
    ]
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Difference:
    """A score of one set of texts less that of another, with a bootstrap interval over stories."""

    value: float
    low: float
    high: float

    def verdict(self, expected: int) -> str:
        """Of a claim that the difference is positive (`expected` 1) or negative (-1): holds, fails or open."""
        if self.low <= 0 <= self.high:
            return "open"
        return "holds" if (self.value > 0) == (expected > 0) else "fails"

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def difference(one: Record, other: Record, measure: str = "nll", *, claims: int = 1, n: int = 10_000) -> Difference:
    """score(one) - score(other) with its interval, 95% for `claims` intervals together (Bonferroni).

    Both are resampled alike: the same beginnings, drawn again with replacement.
    """
    require(claims >= 1, f"claims is {claims}; it must be at least 1")
    drawn = bootstrap_ratios(*_sums(one, measure), n) - bootstrap_ratios(*_sums(other, measure), n)
    low, high = np.nanquantile(drawn, [0.025 / claims, 1 - 0.025 / claims])
    return Difference(score(one, measure) - score(other, measure), float(low), float(high))


def _crossings(p_values: ArrayLike, nll: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where each of the curves nll (P, R) first reaches target (R,): -inf at the first point already, inf never."""
    p = np.asarray(p_values, float)
    require(
        p.size == len(nll) and p.size >= 2, f"{p.size} values of p but {len(nll)} scores; give one each, at least 2"
    )
    require(bool((np.diff(p) > 0).all()), f"the values of p must rise: {p.tolist()}")
    found = np.full(target.shape, np.inf)  # (R,)
    for i in reversed(range(len(p) - 1)):  # from the right, so that the first crossing is written last
        rises = (nll[i] < target) & (nll[i + 1] >= target)
        share = np.divide(target - nll[i], nll[i + 1] - nll[i], where=rises, out=np.zeros_like(target))
        found = np.where(rises, p[i] + share * (p[i + 1] - p[i]), found)
    return np.where(nll[0] >= target, -np.inf, found)


def crossing(p_values: Sequence[float], nll: Sequence[float], target: float) -> float | None:
    """The p at which a curve of nats a token first rises to `target`, interpolated linearly.

    None when the curve lies at or above the target from the start, or never reaches it. Raises ValueError when the
    values of p do not rise, or do not match the scores in number.
    """
    found = float(_crossings(p_values, np.array(nll, float)[:, None], np.array([float(target)]))[0])
    return found if np.isfinite(found) else None


@dataclass(frozen=True)
class Crossing:
    """The p of equal surprise with its interval: -inf is below every p that was tried, inf above all of them."""

    p: float
    low: float
    high: float

    def __str__(self) -> str:
        def shown(p: float) -> str:
            return f"{p:.2f}" if np.isfinite(p) else "below all" if p < 0 else "above all"

        return f"{shown(self.p)} [{shown(self.low)}, {shown(self.high)}]"


def human_crossing(curve: Mapping[float, Record], human: Record, measure: str = "nll", n: int = 2_000) -> Crossing:
    """The top-p at which texts are as surprising as the human ones, with a 95% bootstrap interval over stories.

    `curve` maps p (0 is greedy) to its record; `measure` is "nll" or "count_nll". Generated and human texts are
    resampled alike, by their beginnings.
    """
    p_values = sorted(curve)
    point = np.array([[score(curve[p], measure)] for p in p_values])  # (P, 1)
    drawn = np.stack([bootstrap_ratios(*_sums(curve[p], measure), n) for p in p_values])  # (P, R)
    found = np.sort(_crossings(p_values, drawn, bootstrap_ratios(*_sums(human, measure), n)))
    low, high = (float(found[round(q * (n - 1))]) for q in (0.025, 0.975))  # no interpolation between infinities
    return Crossing(float(_crossings(p_values, point, np.array([score(human, measure)]))[0]), low, high)
