"""The nucleus of a next-token distribution (Holtzman et al. 2019, arXiv 1904.09751): exact, and without a full sort.

Takes logits (..., V) and returns new ones of the same type, -inf where a token is ruled out. Masses are compared in
float64; of equal logits the lower id counts as the larger one.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from picollm_core.config import require

NARROW = 64  # how many of the largest logits are looked at first
SHORT = 2048  # longer rows, on a CPU, are put into bins where that is not enough; others are sorted
BINS = 4096
_SPAN = 60.0  # nats below the largest logit; what lies lower has no mass in float64 and shares the lowest bin
_ROUNDING = 1e-11  # masses closer to p than this are left to the full sort, whose order of additions is the definition


def require_p(p: float) -> None:
    """ValueError when p is not a nucleus's mass."""
    require(0 < p <= 1, f"top_p is {p}; it must lie in (0, 1], where 1 keeps every token")


def keep_largest(logits: Tensor, threshold: Tensor, count: Tensor | int) -> Tensor:
    """The `count` largest logits of every row, -inf elsewhere, given each row's count-th largest value (..., 1)."""
    kept = logits >= threshold  # (..., V)
    if bool((kept.count_nonzero(-1).unsqueeze(-1) > count).any()):  # ties at the threshold: lower ids come first
        larger, tied = logits > threshold, logits == threshold
        kept = larger | (tied & (tied.cumsum(-1) <= count - larger.sum(-1, keepdim=True)))
    return torch.where(kept, logits, -math.inf)


def top_p_filter_by_sorting(logits: Tensor, p: float) -> Tensor:
    """`top_p_filter` as the definition reads, by a stable sort of everything: the truth for the fast one."""
    require_p(p)
    if p == 1:
        return logits
    order = logits.argsort(dim=-1, descending=True, stable=True)  # (..., V), of equal logits the lower id first
    mass = torch.softmax(logits, -1, dtype=torch.float64).gather(-1, order).cumsum(-1)
    crossing = (mass < p).sum(-1, keepdim=True)
    inside = torch.arange(logits.size(-1), device=logits.device) <= crossing
    return torch.where(torch.zeros_like(inside).scatter(-1, order, inside), logits, -math.inf)


def _keep_above(logits: Tensor, bound: float) -> Tensor:
    """The logits above a number, -inf elsewhere: one pass without the branches that make torch.where slow here."""
    return functional.threshold(logits, bound, -math.inf)


def _cut_in_bin(
    logits: Tensor, probabilities: Tensor, bins: Tensor, crossed: int, before: Tensor, p: float
) -> Tensor | None:
    """The filtered logits of one row (V,) whose mass reaches p in the bin `crossed`, with `before` above that bin.

    Only that bin's tokens are sorted. None where rounding would decide.
    """
    ids = torch.from_numpy(np.flatnonzero(bins.numpy() == crossed))  # a quarter of the time of torch's nonzero
    values, order = logits[ids].sort(descending=True, stable=True)
    running = torch.cat([before, before + probabilities[ids][order].cumsum(0)])
    inside = int(torch.searchsorted(running, p))  # tokens of this bin up to the one that crosses
    if not 1 <= inside < len(running) or bool((running - p).abs().min() < _ROUNDING):
        return None
    if inside == len(values):
        return logits.masked_fill(bins < crossed, -math.inf)
    if values[inside] == values[inside - 1]:
        return keep_largest(logits, values[inside - 1], (bins > crossed).sum() + inside)
    return _keep_above(logits, float(values[inside]))


def _wide_nuclei(logits: Tensor, probabilities: Tensor, p: float) -> Tensor | None:
    """The filtered logits of rows (R, V), by bins of equal width over the logits; None where rounding would decide.

    The running sum of the bins' masses says in which bin p is crossed.
    """
    wide = logits.float()
    high = wide.amax(-1, keepdim=True)  # (R, 1)
    low = torch.maximum(wide.amin(-1, keepdim=True), high - _SPAN)
    if not bool(((low < high) & (high < math.inf)).all()):
        return None
    bins = (wide - low).mul_((BINS - 1) / (high - low)).clamp_min_(0).long()  # (R, V), a larger logit in no lower bin
    mass = probabilities.new_zeros(len(logits), BINS).scatter_add_(1, bins, probabilities).flip(1)  # likeliest first
    reached = mass.cumsum(1)
    places = torch.searchsorted(reached, reached.new_full((len(logits), 1), p)).squeeze(1).clamp_max_(BINS - 1)
    filtered = []
    for row, place in enumerate(places.tolist()):
        before = reached[row, place : place + 1] - mass[row, place]  # the mass of all likelier bins
        kept = _cut_in_bin(logits[row], probabilities[row], bins[row], BINS - 1 - place, before, p)
        if kept is None:
            return None
        filtered.append(kept)
    return torch.stack(filtered) if len(filtered) > 1 else filtered[0]


def top_p_filter(logits: Tensor, p: float) -> Tensor:
    """The nucleus of logits (..., V): the fewest most probable tokens whose mass is at least p, -inf elsewhere.

    Holtzman et al. 2019, equation 2: mass(k) >= p > mass(k - 1), so the token that crosses p is inside. p = 1 changes
    nothing and p -> 0 leaves the argmax. A small nucleus is found among the largest logits, a large one by bins or, in
    short rows and on a GPU, by a sort; the result is that of `top_p_filter_by_sorting`. Raises ValueError when p is
    outside (0, 1].
    """
    require_p(p)
    if p == 1:
        return logits
    if logits.size(-1) <= NARROW:
        return top_p_filter_by_sorting(logits, p)
    probabilities = torch.softmax(logits, -1, dtype=torch.float64)  # (..., V)
    if NARROW * float(probabilities.amax(-1).min()) >= p:  # else the largest ones cannot hold p in every row
        largest, ids = logits.topk(NARROW, dim=-1)
        mass = probabilities.gather(-1, ids).cumsum(-1)  # (..., NARROW)
        if bool((mass[..., -1] >= p).all()):
            before = (mass < p).sum(-1, keepdim=True)  # tokens ahead of the one that crosses p
            if logits.numel() == logits.size(-1) and int(before) + 1 < NARROW:  # one row, such as a user waits for
                last, following = largest.flatten()[int(before) : int(before) + 2].tolist()
                if following < last:
                    return _keep_above(logits, following)
            return keep_largest(logits, largest.gather(-1, before), before + 1)
    if logits.size(-1) <= SHORT or logits.device.type != "cpu":
        return top_p_filter_by_sorting(logits, p)
    rows, shares = (values.reshape(-1, logits.size(-1)) for values in (logits, probabilities))
    filtered = _wide_nuclei(rows, shares, p)
    return top_p_filter_by_sorting(logits, p) if filtered is None else filtered.view_as(logits)
