"""Differences between two arms of an experiment, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picollm_core.config import require


@dataclass(frozen=True)
class Contrast:
    """A mean difference over paired runs, its confidence interval, and the number of pairs."""

    mean: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        if self.pairs == 1:
            return f"{self.mean:+.3f} (one pair, no interval)"
        return f"{self.mean:+.3f} (95% interval {self.low:+.3f} to {self.high:+.3f}, {self.pairs} pairs)"


def paired_contrast(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> Contrast:
    """Mean of first - second over pairs, with Student's interval (Student 1908); NaN ends for a single pair.

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
    return Contrast(mean, mean - half, mean + half, pairs)
