"""What the loss becomes when a part of a model is taken away: a head, an MLP, a whole mixer, an LSTM's state.

Taken away means replaced, at every token, by zeros or by the mean of what usually passes there. The mean is the
milder question: zeros also take away what the part always adds, which later layers count on (Wang et al. 2022, arXiv
2211.00593). B rows, T positions, H heads of width D, W the width of a site.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from picollm_core.config import require
from picollm_core.inference import evaluation_mode
from picollm_core.interpret.attention_maps import attention_layers
from picollm_core.interpret.hooks import Edit, activations, head_outputs, hooked, require_site
from picollm_core.losses import token_nll
from picollm_core.models import LanguageModel

Kind = Literal["zero", "mean"]
KINDS: tuple[Kind, ...] = ("zero", "mean")
EFFECTS = ("nll_clean", "nll", "effect", "standard_error")
_ROWS = 32  # at a time, which bounds the memory that a wide site takes


def _require_mask(idx: Tensor, mask: Tensor | None) -> Tensor:
    """Which tokens of `idx` (B, T) are real, all of them by default. ValueError where nothing could be scored."""
    require(idx.ndim == 2 and idx.size(1) >= 2, f"ids have shape {tuple(idx.shape)}; give (B, T) with T at least 2")
    mask = torch.ones_like(idx, dtype=torch.bool) if mask is None else mask
    fits = mask.shape == idx.shape and mask.dtype == torch.bool
    require(fits, f"the mask is {tuple(mask.shape)} of {mask.dtype}; give {tuple(idx.shape)} of torch.bool, as the ids")
    require(bool(mask[:, 1:].any()), "the mask leaves no target: no token after the first position is real")
    return mask


@torch.no_grad()
def _row_losses(model: LanguageModel, idx: Tensor, mask: Tensor, edit: Mapping[str, Edit] | None = None) -> Tensor:
    """Sum (B,) of each row's losses in nats, over targets idx[:, 1:] that are real, in float64 on the CPU."""
    sums = []
    for part, real in zip(idx.split(_ROWS), mask[:, 1:].split(_ROWS), strict=True):
        with evaluation_mode(model), hooked(model, edit=edit):
            hidden = model.hidden(part)[0][:, :-1]  # (b, T - 1, C)
        nll = torch.zeros(real.shape, dtype=torch.float64)
        nll[real.cpu()] = token_nll(hidden[real], model.head.weight, part[:, 1:][real])[0].cpu().double()
        sums.append(nll.sum(-1))
    return torch.cat(sums)


def _compared(clean: Tensor, ablated: Tensor, counts: Tensor) -> dict[str, float]:
    """The columns EFFECTS for the losses (B,) that rows of `counts` (B,) scored targets have, with and without."""
    total, n = counts.sum(), len(counts)
    effect = (ablated - clean).sum() / total
    # a ratio of sums over rows: rows are independent, tokens of one row are not (Cochran 1977, chapter 6)
    residual = ablated - clean - effect * counts
    error = (n / (n - 1) * residual.square().sum()).sqrt() / total if n > 1 else torch.tensor(torch.nan)
    values = (clean.sum() / total, ablated.sum() / total, effect, error)
    return {name: value.item() for name, value in zip(EFFECTS, values, strict=True)}


def ablation_effect(
    model: LanguageModel, idx: Tensor, edit: Mapping[str, Edit], mask: Tensor | None = None
) -> dict[str, float]:
    """What `edit`, as `hooked` takes it, does to the mean next-token loss in nats on ids `idx` (B, T).

    nll_clean and nll are the losses without and with it, effect their difference, standard_error that of the effect,
    paired by row and clustered by row (NaN for one row). `mask` (B, T) is true at real tokens: only they are scored,
    each from what came before it. Raises ValueError for shapes that do not go together and when nothing is scored.
    """
    mask = _require_mask(idx, mask)
    counts = mask[:, 1:].sum(-1).cpu().double()
    return _compared(_row_losses(model, idx, mask), _row_losses(model, idx, mask, edit), counts)


@torch.no_grad()
def site_means(
    model: LanguageModel, sites: Iterable[str], idx: Tensor, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Mean (W,) of what passes at each site over the rows and real positions of ids `idx` (B, T).

    Where a site sees the tokens in another order or number (inside experts), over all that passes there.
    Raises ValueError for an unknown site, one where nothing passes, and one where ids rather than numbers pass.
    """
    sites, mask = list(sites), _require_mask(idx, mask)
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(sites, 0)
    for part, real in zip(idx.split(_ROWS), mask.split(_ROWS), strict=True):
        for site, x in activations(model, part, sites).items():
            require(x.is_floating_point(), f"token ids pass at {site!r}, and they have no mean; choose a later site")
            in_order = x.ndim == 3 and x.shape[:2] == real.shape
            flat = (x[real] if in_order else x.flatten(0, -2)).cpu().double()  # (n, W)
            sums[site] = sums.get(site, 0) + flat.sum(0)
            counts[site] += len(flat)
    return {site: (sums[site] / counts[site]).to(model.head.weight.dtype) for site in sites}


def _fill(x: Tensor, value: Tensor | float, part: slice) -> Tensor:
    new = x.clone()
    new[..., part] = value if isinstance(value, float) else value[part].to(x)
    return new


def _fill_heads(x: Tensor, value: Tensor | float, parts: Sequence[slice]) -> Tensor:
    for part in parts:
        x = _fill(x, value, part)
    return x


def head_edits(
    model: LanguageModel, heads: Iterable[tuple[int, int]], means: Mapping[str, Tensor] | None = None
) -> dict[str, Edit]:
    """What `hooked` takes as `edit` so that `heads`, each a layer and a head counted from 1, give their means or zeros.

    `means` are those of `site_means` at the sites `head_outputs(layer - 1)`; zeros without them. All of the heads are
    taken away together. Raises ValueError for a model without attention and a head that it has not.
    """
    layers = attention_layers(model)
    parts: dict[str, list[slice]] = {}
    for layer, head in heads:
        known = 1 <= layer <= len(layers) and 1 <= head <= layers[0].n_head
        require(known, f"there is no layer {layer}, head {head}; there are {len(layers)} of {layers[0].n_head} heads")
        width = layers[layer - 1].proj.in_features // layers[layer - 1].n_head
        parts.setdefault(head_outputs(layer - 1), []).append(slice((head - 1) * width, head * width))
    return {
        site: partial(_fill_heads, value=0.0 if means is None else means[site], parts=own)
        for site, own in parts.items()
    }


def head_ablation(
    model: LanguageModel,
    idx: Tensor,
    mask: Tensor | None = None,
    kinds: Sequence[Kind] = KINDS,
    reference: Tensor | None = None,
) -> pd.DataFrame:
    """What the loss on ids `idx` (B, T) becomes without each head: one row a kind and head, counted from 1.

    Columns layer, head, kind, and those of `ablation_effect`. Kind "zero" replaces the head's output (B, T, D), before
    the projection that mixes the heads, by zeros; "mean" by its mean over the rows and positions of `reference` ids,
    by default the real ones of `idx`. For linear mixers too. Raises ValueError for a model without attention, an
    unknown kind, and as `ablation_effect`.
    """
    mask = _require_mask(idx, mask)
    for kind in kinds:
        require(kind in KINDS, f"kind is {kind!r}; choose {' or '.join(KINDS)}")
    layers = attention_layers(model)
    means = None
    if "mean" in kinds:
        sites = [head_outputs(layer) for layer in range(len(layers))]
        means = site_means(model, sites, *((idx, mask) if reference is None else (reference,)))
    clean, counts = _row_losses(model, idx, mask), mask[:, 1:].sum(-1).cpu().double()
    rows = []
    for kind in kinds:
        for layer, mixer in enumerate(layers, 1):
            for head in range(1, mixer.n_head + 1):
                edit = head_edits(model, [(layer, head)], means if kind == "mean" else None)
                effect = _compared(clean, _row_losses(model, idx, mask, edit), counts)
                rows.append({"layer": layer, "head": head, "kind": kind, **effect})
    return pd.DataFrame(rows)


def site_ablation(
    model: LanguageModel,
    idx: Tensor,
    sites: Sequence[str],
    kind: Kind = "mean",
    mask: Tensor | None = None,
    reference: Tensor | None = None,
) -> pd.DataFrame:
    """What the loss on ids `idx` (B, T) becomes without what passes at each of `sites`, of any family.

    One row a site, each taken away alone: columns site, kind, and those of `ablation_effect`. An LSTM's states are
    replaced after every token. Kinds, `mask` and `reference` as in `head_ablation`. Raises ValueError for an unknown
    site or kind, and as `ablation_effect`.
    """
    mask = _require_mask(idx, mask)
    require(kind in KINDS, f"kind is {kind!r}; choose {' or '.join(KINDS)}")
    for site in sites:
        require_site(model, site)
    # zeros need no means, but the run also tells of sites where nothing passes
    means = site_means(model, sites, *((idx, mask) if reference is None else (reference,)))
    clean, counts = _row_losses(model, idx, mask), mask[:, 1:].sum(-1).cpu().double()
    rows = []
    for site in sites:
        edit = partial(_fill, value=0.0 if kind == "zero" else means[site], part=slice(None))
        effect = _compared(clean, _row_losses(model, idx, mask, {site: edit}), counts)
        rows.append({"site": site, "kind": kind, **effect})
    return pd.DataFrame(rows)
