"""Scaling laws: held-out loss as a floor plus a power of each of several variables, fitted and extrapolated.

L(N, D) = E + A / N**alpha + B / D**beta, N parameters and D training tokens, L in nats per token (Hoffmann et al. 2022,
arXiv 2203.15556, eq. 2). Their third approach (eq. 3): the Huber loss of log residuals is minimised by L-BFGS from a
grid of starts. With one variable and without the floor it is the straight line on logarithmic axes of Kaplan et al.
(2020, arXiv 2001.08361, eqs. 1.1 and 1.2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from picollm_core.config import require
from picollm_core.plots import require_columns

Array = NDArray[np.float64]
HUBER_DELTA = 1e-2
"""Log residuals beyond this one count by their size and not by its square, so that a run that failed pulls little.

Hoffmann et al. take 0.001, which is nearly the absolute value everywhere. With about 20 runs such a curve passes
exactly through as many of them as it has numbers, and the intervals come out too short: in two sets of 40 simulated
tables with noise of 0.5%, the 95% intervals of alpha held the truth in 32 with 0.001, and in 38 with 0.01.
"""
STARTS = (0.1, 0.3, 0.6, 1.0, 1.6)  # exponents
POLISHED = 4  # starts of least loss that L-BFGS goes on from
EXPONENTS = (1e-3, 5.0)  # a term with the least is a constant, which cannot be told from the floor
LEAST_TERM = np.log(1e-6)  # a floor or term below 0.000001 nats counts as none
FLOPS = 6.0  # of one parameter and token: forward 2, backward 4 (Kaplan et al. 2020, section 2.1)


@dataclass(frozen=True)
class Estimate:
    """A fitted number and the ends of its 95% bootstrap interval, NaN where nothing was resampled."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    def __str__(self) -> str:
        return f"{self.value:.3g}" + (f" ({self.low:.3g} to {self.high:.3g})" if self.low <= self.high else "")

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def _estimate(value: float, draws: Array) -> Estimate:
    if len(draws) == 0:
        return Estimate(value)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def _logs(theta: Array, logs: Array, floor: bool) -> tuple[Array, Array]:
    """Log of each summand of the law, (P, terms), at centred log variables `logs` (P, K), and log of their sum (P,).

    theta is (e,) a_1, exponent_1, a_2, exponent_2 and so on: the floor and the terms' sizes as logarithms.
    """
    rest = theta[1:] if floor else theta
    terms = rest[0::2] - rest[1::2] * logs
    if floor:
        terms = np.concatenate([np.full((len(logs), 1), theta[0]), terms], axis=1)
    top = terms.max(axis=1, keepdims=True)
    return terms, (top + np.log(np.exp(terms - top).sum(axis=1, keepdims=True)))[:, 0]


def _objective(theta: Array, logs: Array, target: Array, floor: bool, delta: float) -> tuple[float, Array]:
    """Huber loss in units of delta squared, summed over runs, and its gradient."""
    terms, fitted = _logs(theta, logs, floor)
    off = (fitted - target) / delta
    inside = np.abs(off) <= 1
    value = np.where(inside, 0.5 * off**2, np.abs(off) - 0.5).sum()
    slope = np.clip(off, -1, 1)[:, None] / delta * np.exp(terms - fitted[:, None])  # (P, terms)
    own = slope[:, 1:] if floor else slope
    gradient = np.empty_like(theta)
    if floor:
        gradient[0] = slope[:, 0].sum()
    gradient[int(floor) :: 2] = own.sum(axis=0)
    gradient[int(floor) + 1 :: 2] = -(own * logs).sum(axis=0)
    return float(value), gradient


def _start(exponents: Sequence[float], logs: Array, target: Array, floor: bool) -> Array:
    """The best theta for these exponents by least squares: without them the law is linear in sizes above 0."""
    from scipy.optimize import nnls

    columns = np.exp(-logs * np.asarray(exponents))
    if floor:
        columns = np.concatenate([np.ones((len(logs), 1)), columns], axis=1)
    weights = np.exp(-target)[:, None]  # relative errors
    sizes = np.log(np.maximum(nnls(columns * weights, np.ones(len(logs)))[0], 1e-3))
    pairs = np.stack([sizes[int(floor) :], np.asarray(exponents)], axis=1).ravel()
    return np.concatenate([sizes[:1], pairs]) if floor else pairs


def _descend(start: Array, logs: Array, target: Array, floor: bool, widths: Sequence[float]) -> tuple[float, Array]:
    """Loss and theta where L-BFGS ends from `start`, under Huber losses of these widths in turn: smooth ones first."""
    from scipy.optimize import minimize

    bounds: list[tuple[float, float]] = [(LEAST_TERM, 10.0)] * int(floor) + [
        (LEAST_TERM, 10.0),
        EXPONENTS,
    ] * logs.shape[1]
    best, value = np.clip(start, *np.transpose(bounds)), np.inf
    for width in widths:
        found = minimize(
            _objective, best, (logs, target, floor, width), "L-BFGS-B", jac=True, bounds=bounds,
            options={"maxiter": 2_000, "maxfun": 4_000, "ftol": 1e-14, "gtol": 1e-9, "maxcor": 20},
        )  # fmt: skip
        best, value = found.x, float(found.fun)
    return value, best


def _fit(logs: Array, target: Array, floor: bool, delta: float) -> Array:
    starts = [_start(own, logs, target, floor) for own in product(STARTS, repeat=logs.shape[1])]
    starts.sort(key=lambda theta: _objective(theta, logs, target, floor, 3e-2)[0])
    widths = sorted({max(delta, 3e-2), max(delta, 3e-3), delta}, reverse=True)  # smooth first: it has no sharp valleys
    ends = [_descend(start, logs, target, floor, widths) for start in starts[:POLISHED]]
    return min(ends, key=lambda found: found[0])[1]


@dataclass(frozen=True)
class ScalingFit:
    """A fitted law L = floor + sum of coefficient / variable ** exponent, in nats per token.

    `variables` are the table's columns; `thetas` (1 + R, P) the fit and its R bootstrap refits, internally at variables
    divided by `centre`; `residuals` (n,) of log loss, measured less fitted; `places` the number of different points.
    """

    variables: tuple[str, ...]
    has_floor: bool
    centre: Array
    thetas: Array
    residuals: Array
    places: int
    error: float
    """Standard deviation of log residuals, for the degrees of freedom that the fit took."""

    def _column(self, place: int) -> Array:
        return self.thetas[:, place]

    def _index(self, variable: str) -> int:
        require(variable in self.variables, f"no variable {variable!r} in this fit of {', '.join(self.variables)}")
        return self.variables.index(variable)

    @property
    def floor(self) -> Estimate:
        """E: the loss that no size and no amount of text would undercut; 0 when it was not fitted."""
        if not self.has_floor:
            return Estimate(0.0)
        values = np.exp(self._column(0))
        return _estimate(float(values[0]), values[1:])

    def _exponents(self, variable: str) -> Array:
        return self._column(int(self.has_floor) + 2 * self._index(variable) + 1)

    def exponent(self, variable: str) -> Estimate:
        """alpha or beta: the exponent of a variable. ValueError for one that the fit does not have."""
        values = self._exponents(variable)
        return _estimate(float(values[0]), values[1:])

    def _coefficients(self, variable: str) -> Array:
        place = self._index(variable)
        return np.exp(self._column(int(self.has_floor) + 2 * place)) * self.centre[place] ** self._exponents(variable)

    def coefficient(self, variable: str) -> Estimate:
        """A or B: what stands above a variable."""
        values = self._coefficients(variable)
        return _estimate(float(values[0]), values[1:])

    def _at(self, values: Mapping[str, float]) -> Array:
        """Log of predicted loss at one place, by the fit and by every refit: (1 + R,)."""
        missing = [name for name in self.variables if not values.get(name, 0.0) > 0]
        require(not missing, f"no value above 0 for {', '.join(missing)}; the law needs {', '.join(self.variables)}")
        place = np.log([[values[name] for name in self.variables]]) - np.log(self.centre)
        return np.array([_logs(theta, place, self.has_floor)[1][0] for theta in self.thetas])

    def predict(self, **values: float) -> Estimate:
        """Loss (nats per token) on the fitted curve at a value above 0 for every variable, and the curve's interval."""
        found = np.exp(self._at(values))
        return _estimate(float(found[0]), found[1:])

    def predict_run(self, **values: float) -> Estimate:
        """As `predict`, with an interval for one new run: the curve's uncertainty and a run's own scatter.

        The scatter is drawn from the fit's residuals, so it is that of the runs which were fitted.
        """
        found = self._at(values)
        own = np.random.default_rng(0).choice(_inflated(self.residuals, self.thetas.shape[1]), len(found))
        return _estimate(float(np.exp(found[0])), np.exp(found + own)[1:])

    def curve(self, table: pd.DataFrame) -> Array:
        """Fitted loss (n,) at every row of a table with the variables as columns."""
        require_columns(table, list(self.variables))
        logs = np.log(table[list(self.variables)].to_numpy(dtype=float)) - np.log(self.centre)
        return np.exp(_logs(self.thetas[0], logs, self.has_floor)[1])

    def at_bound(self, variable: str) -> float:
        """Share of the refits whose exponent ran into a bound, where the data do not tell the term from a constant."""
        values = self._exponents(variable)[1:]
        low, high = EXPONENTS
        return float(np.mean((values < 2 * low) | (values > 0.99 * high))) if len(values) else 0.0


def _inflated(residuals: Array, parameters: int) -> Array:
    """Residuals centred, as large as errors are (a fit of so many parameters takes a part away), and wider by what
    Student's distribution has over the normal, since their scatter is itself estimated."""
    from scipy import stats

    count, free = len(residuals), len(residuals) - parameters
    student = float(stats.t.ppf(0.975, free) / stats.norm.ppf(0.975))
    return (residuals - residuals.mean()) * np.sqrt(count / free) * student


def _checked(table: pd.DataFrame, variables: Sequence[str], loss: str, parameters: int) -> int:
    require_columns(table, [*variables, loss])
    values = table[[*variables, loss]].to_numpy(dtype=float)
    require(
        bool(np.isfinite(values).all() and (values > 0).all()),
        f"{', '.join([*variables, loss])} must be finite and above 0 in every row; drop the runs where they are not",
    )
    constant = [name for name in variables if table[name].nunique() == 1]
    require(
        not constant, f"{', '.join(constant)} is the same in every row, so its exponent is undetermined; leave it out"
    )
    places = len(table[list(variables)].drop_duplicates())
    require(
        places >= parameters + 2,
        f"{places} different points for a law of {parameters} numbers; it needs at least {parameters + 2}",
    )
    return places


def fit_scaling(
    table: pd.DataFrame,
    variables: Sequence[str] = ("parameters", "tokens"),
    *,
    loss: str = "nll",
    floor: bool = True,
    delta: float = HUBER_DELTA,
    resamples: int = 200,
    seed: int = 0,
) -> ScalingFit:
    """Fit the law to a table with a row a run: columns of `variables` and `loss` (nats per token).

    Intervals are percentiles over `resamples` refits (0: none), each to the fitted losses times residuals drawn from
    all runs with replacement: a residual bootstrap (Efron & Tibshirani 1993, section 9.4). Runs are not drawn
    themselves, since a draw that misses the few runs at the smallest budget leaves its exponent undetermined. It
    assumes that runs scatter alike everywhere and, where several seeds share a place, that the law is right there.
    Raises ValueError for missing columns, values that are not above 0, a variable that never changes, and fewer
    different points than the law has numbers plus 2.
    """
    parameters = int(floor) + 2 * len(variables)
    require(len(variables) > 0 and len(set(variables)) == len(variables), f"variables are {variables}; name each once")
    places = _checked(table, variables, loss, parameters)
    raw = np.log(table[list(variables)].to_numpy(dtype=float))
    centre = raw.mean(axis=0)
    logs, target = raw - centre, np.log(table[loss].to_numpy(dtype=float))
    best = _fit(logs, target, floor, delta)
    fitted = _logs(best, logs, floor)[1]
    residuals = target - fitted
    drawn = _inflated(residuals, parameters)
    widths = sorted({max(delta, HUBER_DELTA), delta}, reverse=True)
    generator, thetas = np.random.default_rng(seed), [best]
    for _ in range(resamples):
        again = fitted + generator.choice(drawn, len(target))
        thetas.append(_descend(best, logs, again, floor, widths)[1])
    error = float(np.sqrt((residuals**2).sum() / (len(residuals) - parameters)))
    return ScalingFit(tuple(variables), floor, np.exp(centre), np.stack(thetas), residuals, places, error)


@dataclass(frozen=True)
class Split:
    """How to spend compute C on parameters (as C ** share) and on tokens (as C ** (1 - share)).

    `share` is beta / (alpha + beta), `determined` whether the data fix it: `why` says what is missing where they don't.
    """

    share: Estimate
    determined: bool
    why: str


def optimal_split(
    fit: ScalingFit, parameters: str = "parameters", tokens: str = "tokens", widest: float = 0.3
) -> Split:
    """The compute-optimal split of Hoffmann et al. (2022, eq. 4) that a fit implies, for C = 6 N D.

    It counts as determined when no more than 1 in 20 refits pushes an exponent to a bound and the interval of the share
    is no wider than `widest`. Raises ValueError for a fit without these variables.
    """
    alpha, beta = fit._exponents(parameters), fit._exponents(tokens)
    shares = beta / (alpha + beta)
    share = _estimate(float(shares[0]), shares[1:])
    stuck = {name: fit.at_bound(name) for name in (parameters, tokens)}
    worst = max(stuck, key=lambda name: stuck[name])
    if len(fit.thetas) == 1:
        return Split(share, False, "nothing was resampled, so there is no interval")
    if stuck[worst] > 0.05:
        return Split(share, False, f"the exponent of {worst} runs into a bound in {stuck[worst]:.0%} of the refits")
    if share.high - share.low > widest:
        return Split(share, False, f"its interval is {share.high - share.low:.2f} wide, more than {widest:g}")
    return Split(share, True, "")


def optimal_sizes(
    fit: ScalingFit, flops: ArrayLike, parameters: str = "parameters", tokens: str = "tokens"
) -> pd.DataFrame:
    """Parameters, tokens and predicted loss that are optimal for each number of operations, by the fit alone.

    Columns: flops, parameters, tokens, loss. Raises ValueError for a fit without these variables.
    """
    alpha, beta = (float(fit._exponents(name)[0]) for name in (parameters, tokens))
    a, b = (float(fit._coefficients(name)[0]) for name in (parameters, tokens))
    spent = np.asarray(flops, dtype=float)
    scale = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    size = scale * (spent / FLOPS) ** (beta / (alpha + beta))
    table = pd.DataFrame({"flops": spent, parameters: size, tokens: spent / FLOPS / size})
    return table.assign(loss=fit.curve(table))


def forecast(fit: ScalingFit, held_out: pd.DataFrame, loss: str = "nll") -> dict[str, float]:
    """A fit's prediction for runs that it has not seen and that stand at one place, beside what they reached.

    `measured` is the mean of `loss` over them; `predicted`, `low` and `high` are those of `predict_run`; `error` is
    predicted less measured in nats per token, and `percent` that in per cent of the measured loss. Raises ValueError
    for missing columns, no rows, and rows at several places.
    """
    require_columns(held_out, [*fit.variables, loss])
    places = held_out[list(fit.variables)].drop_duplicates()
    require(len(places) == 1, f"the rows held out stand at {len(places)} places; hold out one")
    measured = float(held_out[loss].mean())
    found = fit.predict_run(**{name: float(places[name].iloc[0]) for name in fit.variables})
    error = found.value - measured
    numbers = {"measured": measured, "predicted": found.value, "low": found.low, "high": found.high}
    return numbers | {"error": error, "percent": 100 * error / measured}
