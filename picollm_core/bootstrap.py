"""Bootstrap over stories: how far a ratio of sums over stories would move with other stories of the same kind.

Tokens of one story depend on each other, so whole stories are drawn again, with replacement (Efron & Tibshirani 1993,
chapters 6 and 13). It measures the noise of the evaluation set only, not that of training; seeds measure that one.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from picollm_core.config import require

_CELLS_AT_ONCE = 4_000_000  # bounds the (resamples, stories) matrix of weights to 32 MB


def bootstrap_ratios(
    numerators: ArrayLike, denominators: ArrayLike, n_bootstrap: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Resampled values (n_bootstrap,) of sum(numerators) / sum(denominators), both (S,), one entry a story.

    The resamples depend on S, n_bootstrap and seed alone: two models that were scored on the same stories are resampled
    alike, and the differences of their values are a paired bootstrap. Raises ValueError when there are no stories,
    when the lengths differ, when a denominator is negative or all are 0, and when n_bootstrap < 1.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)  # (S,), (S,)
    require(
        top.shape == bottom.shape and top.ndim == 1, f"numerators {top.shape} and denominators {bottom.shape} differ"
    )
    require(top.size >= 1, "there are 0 stories to resample; give at least one")
    require(n_bootstrap >= 1, f"n_bootstrap is {n_bootstrap}; it must be at least 1")
    require(bool(bottom.min() >= 0 and bottom.max() > 0), "the denominators must be >= 0 and not all 0")
    generator, stories = np.random.default_rng(seed), top.size
    ratios, at_once = [], max(1, _CELLS_AT_ONCE // stories)
    for start in range(0, n_bootstrap, at_once):
        size = min(at_once, n_bootstrap - start)
        weights = generator.multinomial(stories, np.full(stories, 1 / stories), size)  # (size, S), rows sum to S
        with np.errstate(invalid="ignore"):  # a resample may hold nothing but stories of denominator 0
            ratios.append((weights @ top) / (weights @ bottom))
    return np.concatenate(ratios)


def ratio_interval(
    numerators: ArrayLike, denominators: ArrayLike, n_bootstrap: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of sum(numerators) / sum(denominators) at confidence `level`, both (S,), one entry a story.

    Raises ValueError as `bootstrap_ratios`, and when level is outside (0, 1).
    """
    require(0 < level < 1, f"level is {level}; it must lie in (0, 1)")
    tail = (1 - level) / 2
    low, high = np.nanquantile(bootstrap_ratios(numerators, denominators, n_bootstrap, seed), [tail, 1 - tail])
    return float(low), float(high)
