"""A power law for one learning curve, tested on a later part of the curve that the fit has not seen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from picollm_core.config import require

LOWEST, HIGHEST = 0.01, 3.0
"""Exponents that are tried: a slower curve is nearly a logarithm, a steeper one nearly a step."""
FEWEST = 4


@dataclass(frozen=True)
class LearningCurve:
    """L = floor + amplitude * (tokens / unit)^-exponent, in nats per token.

    `unit` is the number of tokens at the first fitted point, so that amplitude is what the curve can still lose there.
    `fit_error` is the root mean square of the fitted part's residuals. `held_out` has a row for every later point:
    tokens, loss, predicted, error (predicted - loss); `held_out_error` is their root mean square, `naive_error` that of
    expecting the last fitted loss to stay. `exponent` is NaN where the curve does not fall. `at_the_edge` says that the
    exponent is the lowest or highest that is tried, or the floor 0: then the two are not to be read, only predictions.
    """

    floor: float
    amplitude: float
    exponent: float
    unit: float
    fit_error: float
    held_out: pd.DataFrame
    held_out_error: float
    naive_error: float
    at_the_edge: bool

    def predict(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """Loss in nats per token after so many training tokens."""
        seen = np.asarray(tokens, dtype=float)
        if not math.isfinite(self.exponent):
            return np.full_like(seen, self.floor)
        return self.floor + self.amplitude * (seen / self.unit) ** -self.exponent


def _best_line(power: NDArray[np.float64], losses: NDArray[np.float64]) -> tuple[float, float, float]:
    """floor and amplitude, both at least 0, with the least squared error for one exponent; and that error."""
    from scipy.optimize import nnls  # slow to import and needed nowhere else

    (floor, amplitude), norm = nnls(np.column_stack([np.ones_like(power), power]), losses)
    return float(floor), float(amplitude), float(norm**2)


def _rms(errors: NDArray[np.float64]) -> float:
    return float(np.sqrt((errors**2).mean())) if len(errors) else math.nan


def learning_curve_fit(tokens: Sequence[float], losses: Sequence[float], held_out: float = 0.25) -> LearningCurve:
    """Fit floor + amplitude * tokens^-exponent to the earlier points of a curve and predict the later ones.

    The last `held_out` share of the points (at least one) is kept from the fit. For every exponent the other two are
    the non-negative least squares; the exponent is searched between 0.01 and 3. A schedule that lowers the learning
    rate towards the end makes the loss fall faster than any power law says, which the held-out error then shows.
    Raises ValueError for lists of different length, values that are not finite and positive, tokens that do not
    increase, a share outside (0, 1), and fewer than 4 points to fit.
    """
    from scipy.optimize import minimize_scalar

    x, y = np.asarray(tokens, dtype=float), np.asarray(losses, dtype=float)
    require(x.shape == y.shape and x.ndim == 1, f"{x.size} token counts do not go with {y.size} losses; give pairs")
    require(0 < held_out < 1, f"held_out is {held_out}; it is the share of points to predict, between 0 and 1")
    bad = [str(a) for a in [*x, *y] if not (math.isfinite(a) and a > 0)]
    require(not bad, f"tokens and losses must be finite and positive, but there is {', '.join(bad[:3])}")
    require(bool((np.diff(x) > 0).all()), "tokens must increase from point to point; sort them and average ties")
    later = max(1, round(held_out * len(x)))
    early = len(x) - later
    require(
        early >= FEWEST,
        f"{len(x)} points less {later} held out leave {early}, but three numbers need at least {FEWEST}; "
        "evaluate more often, or hold out less",
    )
    unit = float(x[0])
    seen, known = x[:early] / unit, y[:early]

    def error(log_exponent: float) -> float:
        return _best_line(seen ** -math.exp(log_exponent), known)[2]

    ends = math.log(LOWEST), math.log(HIGHEST)
    grid = np.linspace(*ends, 60)
    best = int(np.argmin([error(place) for place in grid]))
    around = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]  # the error may have several valleys
    found = minimize_scalar(error, bounds=around, method="bounded", options={"xatol": 1e-10})
    log_exponent = min((float(found.x), float(grid[best])), key=error)
    exponent = math.exp(log_exponent)
    floor, amplitude, _ = _best_line(seen**-exponent, known)
    falls = amplitude > 0
    curve = floor + amplitude * (x / unit) ** -exponent
    table = pd.DataFrame({"tokens": x[early:], "loss": y[early:], "predicted": curve[early:]})
    table["error"] = table["predicted"] - table["loss"]
    return LearningCurve(
        floor=floor,
        amplitude=amplitude,
        exponent=exponent if falls else math.nan,
        unit=unit,
        fit_error=_rms(curve[:early] - known),
        held_out=table,
        held_out_error=_rms(table["error"].to_numpy()),
        naive_error=_rms(known[-1] - y[early:]),
        at_the_edge=bool(falls and (floor == 0 or not LOWEST * 1.01 < exponent < HIGHEST / 1.01)),
    )
