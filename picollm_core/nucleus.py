"""The nucleus of a next-token distribution (Holtzman et al. 2019, arXiv 1904.09751): exact, and without a full sort.

Takes logits (..., V) and returns new ones of the same type, -inf where a token is ruled out. Masses are compared in
float64; of equal logits the lower id counts as the larger one.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from picollm_core.config import require

NUCLEUS_WIDTHS = (64, 512)  # how many of the largest logits are looked at, in turn, before all are put into bins
BINS = 4096
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


def _wide_nucleus(logits: Tensor, probabilities: Tensor, p: float) -> Tensor | None:
    """The filtered logits of one row (V,) whose nucleus is large; None where rounding would decide.

    Bins of equal width over the logits hold masses whose running sum says in which bin p is crossed; only that bin's
    tokens are sorted.
    """
    wide = logits.float()
    low, high = wide.aminmax()
    if low == -math.inf:
        low = wide[wide > -math.inf].amin()
    if not low < high < math.inf:
        return None
    bins = ((wide - low) * ((BINS - 1) / (high - low))).clamp_min_(0).long()  # (V,), a larger logit in no lower bin
    mass = probabilities.new_zeros(BINS).scatter_add_(0, bins, probabilities).flip(0)  # most likely bin first
    reached = mass.cumsum(0)
    place = int(torch.searchsorted(reached, p))
    if place == BINS:
        return None
    crossed = BINS - 1 - place
    ids = (bins == crossed).nonzero().squeeze(1)
    values, order = logits[ids].sort(descending=True, stable=True)
    before = reached[place] - mass[place]  # mass of all more likely bins
    running = torch.cat([before.unsqueeze(0), before + probabilities[ids][order].cumsum(0)])
    inside = int(torch.searchsorted(running, p))  # tokens of this bin up to the one that crosses
    if not 1 <= inside < len(running) or bool((running - p).abs().min() < _ROUNDING):
        return None
    if inside == len(values):
        return logits.masked_fill(bins < crossed, -math.inf)
    if values[inside] == values[inside - 1]:
        return keep_largest(logits, values[inside - 1], (bins > crossed).sum() + inside)
    # The larger ones stay. This passes over them once, without the branches that make torch.where slow here.
    return functional.threshold(logits, float(values[inside]), -math.inf)


def top_p_filter(logits: Tensor, p: float) -> Tensor:
    """The nucleus of logits (..., V): the fewest most probable tokens whose mass is at least p, -inf elsewhere.

    Holtzman et al. 2019, equation 2: mass(k) >= p > mass(k - 1), so the token that crosses p is inside. p = 1 changes
    nothing and p -> 0 leaves the argmax. A small nucleus is found among the largest logits, a large one by bins; the
    result is that of `top_p_filter_by_sorting`. Raises ValueError when p is outside (0, 1].
    """
    require_p(p)
    if p == 1:
        return logits
    vocab_size = logits.size(-1)
    if vocab_size <= NUCLEUS_WIDTHS[-1]:
        return top_p_filter_by_sorting(logits, p)
    probabilities = torch.softmax(logits, -1, dtype=torch.float64)  # (..., V)
    reachable = NUCLEUS_WIDTHS[0] * float(probabilities.amax(-1).min())  # the most that the first width can hold
    for width, following in zip(NUCLEUS_WIDTHS, (*NUCLEUS_WIDTHS[1:], 0), strict=True):
        if reachable < p:
            reachable *= following / width
            continue
        largest, ids = logits.topk(width, dim=-1)
        shares = probabilities.gather(-1, ids)  # (..., width)
        mass = shares.cumsum(-1)
        if bool((mass[..., -1] >= p).all()):
            before = (mass < p).sum(-1, keepdim=True)  # tokens ahead of the one that crosses p
            return keep_largest(logits, largest.gather(-1, before), before + 1)
        reachable = float((mass[..., -1] + (following - width) * shares[..., -1]).min())
    rows = zip(logits.reshape(-1, vocab_size), probabilities.reshape(-1, vocab_size), strict=True)
    filtered = [_wide_nucleus(row, shares, p) for row, shares in rows]
    if any(row is None for row in filtered):
        return top_p_filter_by_sorting(logits, p)
    return torch.stack([row for row in filtered if row is not None]).view_as(logits)
