"""The k-gram study's comparisons over seeds: input layers at equal width and equal parameters, and window lengths."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from picollm_core.config import require
from picollm_core.contrasts import holm, paired_contrast

Arm = tuple[int, str, int]
"""A variant: k, input layer as in KGramConfig.embedding, width."""
WIDTH, PARAMETERS = "equal width", "equal parameters"
RIVALS = ("scaled", "learned")
TOLERANCE = 0.02
SPOKEN = {"onehot": "one-hot", "conv": "convolution"}
Values = NDArray[np.float64]
"""A value a seed, (S,)."""


def _fair(parameters: Mapping[Arm, int], width: int, equal: Mapping[tuple[int, str], int]) -> None:
    """ValueError unless all that is compared at equal parameters has those of the learned input at `width`."""
    for k, name in sorted({(k, name) for k, name, _ in parameters if name in ("onehot", *RIVALS)}):
        arm, reference = (k, name, equal.get((k, name), width)), (k, "learned", width)
        ratio = parameters[arm] / parameters[reference]
        require(
            abs(ratio - 1) <= TOLERANCE,
            f"{arm} (k, input, width) has {parameters[arm]:,} parameters, {reference} has {parameters[reference]:,}: "
            f"{ratio - 1:+.1%}, more than {TOLERANCE:.0%} apart; give it another width in `equal`",
        )


def _arms(
    loss: Mapping[Arm, Values], width: int, equal: Mapping[tuple[int, str], int]
) -> dict[tuple[str, str, str], tuple[Arm, Arm]]:
    """(what, where, compared at) -> the two variants, first less second."""
    contexts = sorted({k for k, _, _ in loss})
    inputs = list(dict.fromkeys(name for _, name, _ in loss))
    found: dict[tuple[str, str, str], tuple[Arm, Arm]] = {}
    for compared, widths in ((WIDTH, {}), (PARAMETERS, equal)):
        for rival in RIVALS:
            for k in contexts:
                pair = tuple((k, name, widths.get((k, name), width)) for name in ("onehot", rival))
                found[f"one-hot - {rival}", f"K = {k}", compared] = (pair[0], pair[1])
    for name in (name for name in inputs if name not in ("onehot", *RIVALS)):
        for k in contexts:
            found[f"{SPOKEN.get(name, name)} - learned", f"K = {k}", WIDTH] = (k, name, width), (k, "learned", width)
    for name in inputs:
        for short, long in pairwise(contexts):
            found[f"more context, {SPOKEN.get(name, name)}", f"K = {long} - K = {short}", WIDTH] = (
                (long, name, width),
                (short, name, width),
            )
    return found


def _sign(difference: float, p: float) -> str:
    if not p < 0.05:
        return "open"
    return "lower" if difference < 0 else "higher"


def kgram_contrasts(
    loss: Mapping[Arm, Sequence[float]],
    parameters: Mapping[Arm, int],
    *,
    width: int,
    equal: Mapping[tuple[int, str], int],
) -> pd.DataFrame:
    """All comparisons of the study: nats per token of the first less the second, negative where the first is better.

    `loss` holds a variant's held-out nats per token, one value a seed in the same order for all: for every k one-hot,
    learned and scaled at `width`, and at the width that `equal` names for (k, input), which gives it the parameters of
    the learned one within 2%. "growth" is how much a difference changes from one k to the next. Columns: what, where,
    compared (at equal width or equal parameters), weights (parameters of the first / of the second; missing for
    growth), difference, low, high (Student's 95% interval of this comparison alone), p (Holm's correction over the
    whole table; Holm 1979) and sign: "lower" or "higher" where p < 0.05, else "open". With one seed there are no
    intervals and every sign is open.
    Raises ValueError for a variant that is missing, different numbers of seeds, and parameters that are not equal.
    """
    needed = {
        (k, name, place.get((k, name), width))
        for k in {arm[0] for arm in loss}
        for name in ("onehot", *RIVALS)
        for place in ({}, equal)
    }
    missing = sorted(needed - loss.keys())
    require(not missing, f"no losses of {', '.join(map(str, missing))} (k, input, width); train these variants too")
    seeds = {len(values) for values in loss.values()}
    require(len(seeds) == 1, f"the variants have {sorted(seeds)} seeds; pairs need the same seeds in all")
    _fair(parameters, width, equal)
    values = {arm: np.asarray(found, dtype=float) for arm, found in loss.items()}
    arms = _arms(values, width, equal)
    differences: dict[tuple[str, str, str], Values] = {key: values[a] - values[b] for key, (a, b) in arms.items()}
    for what, compared in dict.fromkeys((what, how) for what, _, how in arms if what.startswith("one-hot")):
        for short, long in pairwise(sorted({k for k, _, _ in loss})):
            step = differences[what, f"K = {long}", compared] - differences[what, f"K = {short}", compared]
            differences[f"growth of {what}", f"K = {long} - K = {short}", compared] = step
    ratios = {key: parameters[a] / parameters[b] for key, (a, b) in arms.items()}
    found = [paired_contrast(values.tolist(), [0.0] * len(values)) for values in differences.values()]
    corrected = holm([c.p_value for c in found]) if seeds != {1} else [math.nan] * len(found)
    rows = [
        (*key, ratios.get(key, math.nan), c.mean, c.low, c.high, p, _sign(c.mean, p))
        for (key, c), p in zip(zip(differences, found, strict=True), corrected, strict=True)
    ]
    columns = ["what", "where", "compared", "weights", "difference", "low", "high", "p", "sign"]
    return pd.DataFrame(rows, columns=columns)


def judge_lower(contrasts: pd.DataFrame) -> Literal["holds", "fails", "open"]:
    """The claim that every difference in these rows of `kgram_contrasts` is negative.

    It holds when all are clearly lower, fails when one is clearly higher, and else the seeds leave it open.
    Raises ValueError for an empty table.
    """
    require(len(contrasts) > 0, "no rows to judge; the selection matches none of the table's contrasts")
    signs = set(contrasts["sign"])
    return "holds" if signs == {"lower"} else "fails" if "higher" in signs else "open"
