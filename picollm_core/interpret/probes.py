"""Linear probes: what can be read off a model's activations by a weighted sum, beside what any labels would allow.

A probe is a logistic regression per concept. Its control task gives every token id a label by chance, as often positive
as the concept, which a probe can only memorise (Hewitt & Liang 2019, arXiv 1909.03368). Selectivity is how much better
the concept does. An untrained model of the same configuration says how much the tokens alone, mixed at random, reveal.

M tokens, C width of a site, K concepts.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from picollm_core.config import require
from picollm_core.interpret.concepts import ConceptData
from picollm_core.interpret.feature_scores import first_half
from picollm_core.interpret.hooks import activations, require_site
from picollm_core.interpret.untrained import untrained_model
from picollm_core.models import LanguageModel

METRICS = ("accuracy", "balanced_accuracy", "f1", "auroc")
PROBE_COLUMNS = ("site", "weights", "concept", "base_rate", *METRICS, *(f"control_{m}" for m in METRICS),
                 "selectivity")  # fmt: skip
_ROWS = 16  # stories that the model reads at a time
_LEAST_SPREAD = 1e-6  # a coordinate that varies less is left at 0 rather than blown up


@dataclass(frozen=True, eq=False)
class LinearProbes:
    """K logistic regressions on standardised inputs: logits = (x - mean) / spread @ weight + bias."""

    mean: Tensor  # (C,)
    spread: Tensor  # (C,)
    weight: Tensor  # (C, K)
    bias: Tensor  # (K,)

    def logits(self, x: Tensor) -> Tensor:
        """(M, K) for x (M, C); above 0 means yes."""
        return (x - self.mean) / self.spread @ self.weight + self.bias


def fit_probes(x: Tensor, labels: Tensor, l2: float = 1e-3, max_steps: int = 100) -> LinearProbes:
    """Logistic regressions of labels (M, K) on x (M, C), all at once, by full-batch LBFGS.

    Minimises the mean cross-entropy plus l2 / 2 times the squared weights of each concept; the bias is free. Inputs are
    standardised on these M tokens, and a coordinate that is constant there counts for nothing. The problem is convex,
    so the start (zero) does not matter. Raises ValueError when shapes do not fit or l2 is not positive.
    """
    require(
        x.ndim == 2 and labels.ndim == 2 and len(x) == len(labels) and len(x) > 0,
        f"x {tuple(x.shape)} and labels {tuple(labels.shape)} do not fit; they are (M, C) and (M, K) with M > 0",
    )
    require(l2 > 0, f"l2 is {l2}; it must be positive, or separable labels have no finite solution")
    mean, spread = x.mean(0), x.std(0, correction=0)
    spread = torch.where(spread > _LEAST_SPREAD, spread, torch.inf)
    inputs, targets = (x - mean) / spread, labels.to(x.dtype)
    rate = targets.mean(0).clamp(1e-4, 1 - 1e-4)
    weight = torch.zeros(x.size(1), labels.size(1), dtype=x.dtype, requires_grad=True)
    bias = rate.logit().requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=max_steps, tolerance_grad=1e-5, tolerance_change=1e-8, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        each = F.binary_cross_entropy_with_logits(inputs @ weight + bias, targets, reduction="none")
        loss = each.mean(0).sum() + l2 / 2 * weight.square().sum()  # concepts share nothing but the line search
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return LinearProbes(mean, spread, weight.detach(), bias.detach())


def auroc(scores: Tensor, labels: Tensor) -> Tensor:
    """Probability (K,) that a positive scores above a negative, ties as a half, for (M, K); NaN without both kinds."""
    from scipy import stats  # slow to import and needed nowhere else

    ranks = torch.from_numpy(stats.rankdata(scores.numpy(), axis=0))  # float64, ties share their mean rank
    positives = labels.sum(0).double()
    negatives = len(labels) - positives
    above = (ranks * labels).sum(0) - positives * (positives + 1) / 2  # Mann and Whitney's U
    return above / (positives * negatives)


def probe_metrics(logits: Tensor, labels: Tensor, base_rate: Tensor) -> dict[str, Tensor]:
    """METRICS (K,) each of logits (M, K) against labels (M, K) bool.

    accuracy and f1 say yes where the probability is above a half. balanced_accuracy, the mean of the shares found of
    both kinds, says yes where it is above `base_rate` (K,), that of the training tokens, so that a rare concept is not
    always denied: 0.5 is chance. auroc needs no threshold; 0.5 is chance.
    """
    yes = logits > 0
    positives, negatives = labels.sum(0), (~labels).sum(0)
    likelier = logits > base_rate.logit()
    found, spared = (likelier & labels).sum(0) / positives, (~likelier & ~labels).sum(0) / negatives
    return {
        "accuracy": (yes == labels).double().mean(0),
        "balanced_accuracy": (found.double() + spared) / 2,
        "f1": 2.0 * (yes & labels).sum(0).double() / (yes.sum(0) + positives),
        "auroc": auroc(logits, labels),
    }


def control_labels(tokens: Tensor, labels: Tensor, seed: int = 0) -> Tensor:
    """Labels (M, K) bool that depend on the token id (M,) alone, by chance, as often true as `labels` (M, K).

    For each concept ids are taken in random order, each that still fits, until the base rate is reached as nearly as
    whole ids allow.
    """
    generator = torch.Generator().manual_seed(seed)
    ids, place = tokens.unique(return_inverse=True)
    counts = torch.bincount(place).numpy()  # (U,)
    chosen = torch.zeros(len(ids), labels.size(1), dtype=torch.bool)
    for k, wanted in enumerate(labels.sum(0).tolist()):
        left = wanted
        for u in torch.randperm(len(ids), generator=generator).tolist():
            if counts[u] <= left:
                chosen[u, k] = True
                left -= int(counts[u])
    return chosen[place]


def _token_sample(data: ConceptData, max_tokens: int, seed: int) -> Tensor:
    """Which tokens are used: bool (N, T), at most `max_tokens` of those that mask has, drawn without replacement."""
    places = data.mask.flatten().nonzero()[:, 0]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
    sample = torch.zeros(data.mask.numel(), dtype=torch.bool)
    sample[places[order[:max_tokens]]] = True
    return sample.view_as(data.mask)


def _read(model: LanguageModel, sites: list[str], idx: Tensor, sample: Tensor) -> dict[str, Tensor]:
    """What passes at each site at the sampled tokens: (M, C) each, on the CPU."""
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    device = model.head.weight.device
    for rows, kept in zip(idx.split(_ROWS), sample.split(_ROWS), strict=True):
        seen = activations(model, rows.to(device), sites)
        for site in sites:
            parts[site].append(seen[site].float().cpu()[kept])
    return {site: torch.cat(part) for site, part in parts.items()}


def _rates(labels: Tensor) -> Tensor:
    """Base rates (K,) of labels (M, K), kept off 0 and 1."""
    return labels.float().mean(0).clamp(1e-6, 1 - 1e-6)


def probe_study(
    model: LanguageModel,
    sites: Iterable[str],
    data: ConceptData,
    *,
    untrained: bool = True,
    max_tokens: int = 20_000,
    l2: float = 1e-3,
    seed: int = 0,
) -> pd.DataFrame:
    """Probes of every concept at every site: a row each with the columns PROBE_COLUMNS, on held-out stories.

    Half of the stories train the probes and the other half are scored; `seed` decides which, which tokens are used (at
    most `max_tokens` in all), the control labels and the fresh weights. Columns accuracy to auroc are explained at
    `probe_metrics`, those with control_ are the same for the control task, and selectivity is the difference of the
    two balanced accuracies (NaN where chance left a control label out of a half). weights is "trained", or "untrained"
    for a fresh model of the same configuration (left out with untrained=False). Concepts that one of the halves does
    not have are left out. Raises ValueError for a site that the model has not, no site at all, fewer than 2 stories,
    and max_tokens < 2.
    """
    sites = [require_site(model, site) for site in sites]
    require(sites != [], "there are 0 sites; name at least one, such as 'hidden'")
    require(max_tokens >= 2, f"max_tokens is {max_tokens}; it must be at least 2")
    sample = _token_sample(data, max_tokens, seed)
    labels, training = data.labels[sample], first_half(sample.nonzero()[:, 0], seed)  # (M, K), (M,)
    kept = labels[training].any(0) & labels[~training].any(0)
    names = [name for name, keep in zip(data.names, kept.tolist(), strict=True) if keep]
    labels = labels[:, kept]
    both = torch.cat([labels, control_labels(data.idx[sample], labels, seed)], dim=1)  # (M, 2 K)
    models = {"trained": model}
    if untrained:
        models["untrained"] = untrained_model(model, seed)
    tables = []
    for weights, own in models.items():
        for site, x in _read(own, sites, data.idx, sample).items():
            probes = fit_probes(x[training], both[training], l2)
            found = probe_metrics(probes.logits(x[~training]), both[~training], _rates(both[training]))
            columns = {name: values.numpy().reshape(2, -1) for name, values in found.items()}  # (2, K): truth, control
            table = pd.DataFrame({name: pair[0] for name, pair in columns.items()})
            control = pd.DataFrame({f"control_{name}": pair[1] for name, pair in columns.items()})
            place = {"site": site, "weights": weights, "concept": names}
            base_rate = labels[~training].double().mean(0).numpy()
            tables.append(pd.concat([table, control], axis=1).assign(**place, base_rate=base_rate))
    study = pd.concat(tables, ignore_index=True)
    study["selectivity"] = study["balanced_accuracy"] - study["control_balanced_accuracy"]
    return study[list(PROBE_COLUMNS)]
