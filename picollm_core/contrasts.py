"""Differences between two arms of an experiment, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from picollm_core.config import require


@dataclass(frozen=True)
class Contrast:
    """A mean difference over paired runs, its confidence interval, the number of pairs, and a two-sided p-value.

    `p_value` belongs to the hypothesis that the difference is 0; NaN for a single pair.
    """

    mean: float
    low: float
    high: float
    pairs: int
    p_value: float = float("nan")

    def __str__(self) -> str:
        if self.pairs == 1:
            return f"{self.mean:+.3f} (one pair, no interval)"
        return f"{self.mean:+.3f} (95% interval {self.low:+.3f} to {self.high:+.3f}, {self.pairs} pairs)"


def paired_contrast(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> Contrast:
    """Mean of first - second over pairs, with Student's interval and test (Student 1908); NaN for a single pair.

    Pairs share seed and data order, so what they have in common cancels. Raises ValueError for unequal lengths.
    """
    from scipy import stats  # slow to import and needed nowhere else

    require(
        len(first) == len(second) >= 1, f"{len(first)} values cannot be paired with {len(second)}; give one pair a seed"
    )
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    mean, pairs = float(differences.mean()), len(differences)
    if pairs == 1:
        return Contrast(mean, float("nan"), float("nan"), 1)
    error = float(differences.std(ddof=1)) / pairs**0.5
    half = float(stats.t.ppf((1 + confidence) / 2, pairs - 1)) * error
    p_value = float(2 * stats.t.sf(abs(mean) / error, pairs - 1)) if error > 0 else float(mean == 0)
    return Contrast(mean, mean - half, mean + half, pairs, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being several (Holm 1979), in the order given.

    Rejecting where the corrected value is below 0.05 makes a false claim anywhere in the family with a probability of
    at most 0.05, however the tests depend on each other. Raises ValueError for a value that is no probability.
    """
    bad = [p for p in p_values if not 0 <= p <= 1]
    require(not bad, f"p-values must lie in [0, 1], but there are {bad}; a single pair has none, so leave it out")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def verdict(
    *contrasts: Contrast, claim: Literal["below", "above"], bound: float = 0.0
) -> Literal["holds", "fails", "open"]:
    """Whether the claim that all these differences lie below (or above) `bound` holds, by their whole intervals.

    It holds when every interval lies on the claimed side, fails when one lies on the other side, and is open else; a
    single pair has no interval and leaves it open. Raises ValueError for another claim and without a contrast.
    """
    require(claim in ("below", "above"), f"claim is {claim!r}; choose 'below' or 'above'")
    require(len(contrasts) > 0, "there are 0 contrasts; give at least one to judge a claim by")
    below, above = [c.high < bound for c in contrasts], [c.low > bound for c in contrasts]
    agrees, contradicts = (below, above) if claim == "below" else (above, below)
    return "fails" if any(contradicts) else "holds" if all(agrees) else "open"


def equivalence(*contrasts: Contrast, margin: float) -> Literal["holds", "fails", "open"]:
    """Whether all these differences are smaller than `margin` in size, by their whole intervals.

    It holds when every interval lies within (-margin, margin), as two one-sided tests would have it (Schuirmann 1987,
    here with 95% intervals, which is stricter than their 90%); it fails when one interval lies outside; else it is
    open. Raises ValueError for a margin that is not above 0 and without a contrast.
    """
    require(margin > 0, f"margin is {margin}; it must be above 0, the largest difference that counts as none")
    sides = (
        verdict(*contrasts, claim="below", bound=margin),
        verdict(*contrasts, claim="above", bound=-margin),
    )
    return "fails" if "fails" in sides else "holds" if sides == ("holds", "holds") else "open"
