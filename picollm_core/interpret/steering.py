"""What a feature does: taken away, whose prediction suffers; turned up, what becomes likelier.

Both edits add a difference to what passes at the dictionary's site, x - z_f d_f or x + a d_f for the feature's code z_f
and direction d_f, so what the dictionary leaves unexplained stays in the model (Templeton et al. 2024; Cunningham et
al. 2023, arXiv 2309.08600). N stories, T tokens each, K concepts, V tokens of vocabulary.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import tiktoken
import torch
from numpy.typing import NDArray
from torch import Tensor

from picollm_core.bootstrap import bootstrap_ratios, ratio_interval
from picollm_core.config import SamplingConfig, require
from picollm_core.inference import evaluation_mode
from picollm_core.interpret.concepts import ConceptData
from picollm_core.interpret.dictionaries import Dictionary, evaluated, require_width
from picollm_core.interpret.hooks import Edit, hooked
from picollm_core.models import LanguageModel
from picollm_core.sampling import generate

_ROWS = 8  # stories at a time: their logits are held, (rows, T, V)
ABLATION_COLUMNS = ("feature", "concept", "targets", "inside", "inside_low", "inside_high", "outside", "outside_low",
                    "outside_high", "difference", "difference_low", "difference_high", "mass", "mass_change",
                    "mass_change_low", "mass_change_high")  # fmt: skip


def _require_feature(dictionary: Dictionary, feature: int) -> int:
    size = dictionary.dict_size
    require(0 <= feature < size, f"feature is {feature}; this dictionary has the features 0 to {size - 1}")
    return feature


@torch.no_grad()
def _without(x: Tensor, dictionary: Dictionary, feature: int) -> Tensor:
    return x - dictionary.encode(x)[..., feature : feature + 1] * dictionary.directions[feature]


def ablate_feature(dictionary: Dictionary, feature: int) -> Edit:
    """An edit for `hooked` at the dictionary's site that takes one feature away: x (..., C) -> x - z_f d_f.

    Where the feature does not fire nothing changes, bit for bit. Raises ValueError for a feature that is not there.
    """
    return partial(_without, dictionary=dictionary, feature=_require_feature(dictionary, feature))


def steer(dictionary: Dictionary, feature: int, amount: float) -> Edit:
    """An edit for `hooked` at the dictionary's site that adds `amount` of a feature at every token: x -> x + a d_f.

    `amount` is in units of the feature's code: its own size where it fires is the scale to think in. Below 0 it pushes
    the other way. Raises ValueError for a feature that is not there and an amount that is not finite.
    """
    require(bool(np.isfinite(amount)), f"amount is {amount}; it must be a finite number")
    push = amount * dictionary.directions[_require_feature(dictionary, feature)].detach()
    return lambda x: x + push


def concept_tokens(data: ConceptData, min_share: float = 0.5, min_count: int = 5) -> dict[str, Tensor]:
    """The characteristic tokens of each concept: ids that belong to it at least `min_share` of the times they occur.

    Ids that occur fewer than `min_count` times in `data` are left out. A concept such as "the hero is a girl" has none.
    Raises ValueError for min_share outside (0, 1].
    """
    require(0 < min_share <= 1, f"min_share is {min_share}; it must lie in (0, 1]")
    ids, place = data.idx[data.mask].unique(return_inverse=True)  # (U,), (M,)
    counts = torch.bincount(place)[:, None]  # (U, 1)
    inside = torch.zeros(len(ids), len(data.names)).index_add_(0, place, data.flat_labels.float())  # (U, K)
    chosen = (inside >= min_share * counts) & (counts >= min_count)
    return {name: ids[chosen[:, k]] for k, name in enumerate(data.names)}


@torch.no_grad()
def _predictions(
    model: LanguageModel, data: ConceptData, members: Tensor, edit: Mapping[str, Edit] | None = None
) -> tuple[Tensor, Tensor]:
    """Loss (N, T - 1) in nats of every token after the first, and the mass (N, T - 1, K) on `members` (V, K)."""
    losses, masses = [], []
    device = model.head.weight.device
    for idx in data.idx.split(_ROWS):
        idx = idx.to(device)
        with evaluation_mode(model), hooked(model, edit=edit):
            logp = model(idx[:, :-1]).float().log_softmax(-1)  # (rows, T - 1, V)
        losses.append(-logp.gather(-1, idx[:, 1:, None])[..., 0].cpu())
        masses.append((logp.exp_() @ members.to(device)).cpu())
    return torch.cat(losses), torch.cat(masses)


def _members(model: LanguageModel, groups: Sequence[Tensor]) -> Tensor:
    """Which of V tokens belong to each of K groups of ids, as numbers (V, K)."""
    members = torch.zeros(model.config.vocab_size, len(groups))
    for k, ids in enumerate(groups):
        members[ids, k] = 1.0
    return members


def _difference_interval(tops: Sequence[NDArray], bottoms: Sequence[NDArray], n_bootstrap: int) -> tuple[float, float]:
    """95% interval of the first ratio of sums over stories less the second, both with the same resampled stories."""
    first, second = (bootstrap_ratios(a, b, n_bootstrap) for a, b in zip(tops, bottoms, strict=True))
    low, high = np.nanquantile(first - second, [0.025, 0.975])
    return float(low), float(high)


def _ablation_row(
    change: NDArray, mass_change: NDArray, mass: NDArray, inside: NDArray, scored: NDArray, n_bootstrap: int
) -> dict[str, float]:
    """The numbers of one feature and concept; all arguments but the last are (N, T - 1)."""
    outside = scored & ~inside
    counts = [part.sum(1) for part in (inside, outside)]  # (N,) each
    sums = [(change * part).sum(1) for part in (inside, outside)]
    gains, n = (mass_change * inside).sum(1), counts[0].sum()
    row = {"targets": int(n), "mass": (mass * inside).sum() / n, "mass_change": gains.sum() / n}
    for name, top, bottom in (("inside", sums[0], counts[0]), ("outside", sums[1], counts[1])):
        low, high = ratio_interval(top, bottom, n_bootstrap)
        row |= {name: top.sum() / bottom.sum(), f"{name}_low": low, f"{name}_high": high}
    row["difference"] = row["inside"] - row["outside"]
    row["difference_low"], row["difference_high"] = _difference_interval(sums, counts, n_bootstrap)
    row["mass_change_low"], row["mass_change_high"] = ratio_interval(gains, counts[0], n_bootstrap)
    return row


def ablation_effects(
    model: LanguageModel,
    dictionary: Dictionary,
    features: Iterable[int],
    data: ConceptData,
    *,
    tokens: Mapping[str, Tensor] | None = None,
    n_bootstrap: int = 400,
) -> pd.DataFrame:
    """What taking features away does to the prediction of each concept: a row a feature and concept, ABLATION_COLUMNS.

    `inside` is the mean change of the loss (nats) on tokens that belong to the concept, `targets` of them, predicted
    from what comes before; `outside` that on all other story tokens, `difference` the first less the second. `mass` is
    the probability that the intact model gives, before tokens of the concept, to the concept's characteristic tokens
    (`tokens`, by default concept_tokens(data)), `mass_change` its change; both NaN where there are none. The `_low` and
    `_high` are 95% intervals over stories. Concepts that are a target in fewer than two stories, or every target, are
    left out; an interval from few stories says little, so give `data.common()`. Raises ValueError for features that are
    not there and a dictionary of another site or width.
    """
    require_width(model, dictionary)
    features = [_require_feature(dictionary, feature) for feature in features]
    tokens = concept_tokens(data) if tokens is None else tokens
    groups = [tokens.get(name, torch.empty(0, dtype=torch.long)) for name in data.names]
    members = _members(model, groups)
    scored, labels = data.mask[:, 1:].numpy(), (data.labels & data.mask[..., None])[:, 1:].numpy()
    clean_loss, clean_mass = _predictions(model, data, members)
    rows = []
    for feature in features:
        edit = {dictionary.site: ablate_feature(dictionary, feature)}
        with evaluated(dictionary):
            loss, mass = _predictions(model, data, members, edit)
        change, mass_change = (loss - clean_loss).double().numpy(), (mass - clean_mass).double().numpy()
        for k, name in enumerate(data.names):
            inside = labels[..., k]
            if inside.any(1).sum() < 2 or (inside == scored).all():
                continue
            row = _ablation_row(change, mass_change[..., k], clean_mass[..., k].numpy(), inside, scored, n_bootstrap)
            if not len(groups[k]):
                row |= {column: np.nan for column in row if column.startswith("mass")}
            rows.append({"feature": feature, "concept": name, **row})
    return pd.DataFrame(rows, columns=list(ABLATION_COLUMNS))


def never_falls(values: Sequence[float], tolerance: float = 1e-4) -> bool:
    """Whether no value is more than `tolerance` below one before it, and the last is above the first."""
    highest = np.maximum.accumulate(np.asarray(values, dtype=float))
    return bool((np.asarray(values) >= highest - tolerance).all() and values[-1] > values[0])


def steering_curve(
    model: LanguageModel,
    dictionary: Dictionary,
    feature: int,
    tokens: Tensor,
    amounts: Sequence[float],
    data: ConceptData,
    *,
    tolerance: float = 1e-4,
    n_bootstrap: int = 1000,
) -> pd.DataFrame:
    """The mean probability of `tokens` (ids) at every story token of `data` while a feature is turned up.

    One row an amount, ascending (units of the feature's code; 0 is the model as it is): amount, mass, its 95% interval
    over stories low to high, and monotone: whether the mass never falls by more than `tolerance` on the way up and is
    higher at the end (see never_falls), the same in every row. Raises ValueError for fewer than 2 different amounts, no
    tokens, ids outside the vocabulary, and what `steer` refuses.
    """
    require_width(model, dictionary)
    ascending, size = sorted(set(map(float, amounts))), model.config.vocab_size
    require(len(ascending) >= 2, f"the amounts are {list(amounts)}; a curve needs at least 2 different ones")
    require(tokens.numel() > 0, "there are 0 tokens to watch; give the ids whose probability should rise")
    require(bool((tokens >= 0).all() and (tokens < size).all()), f"the tokens go beyond the vocabulary of {size}")
    members, scored = _members(model, [tokens]), data.mask[:, 1:].numpy()
    counts, rows = scored.sum(1), []
    for amount in ascending:
        edit = {dictionary.site: steer(dictionary, feature, amount)}
        mass = _predictions(model, data, members, edit)[1][..., 0].double().numpy()
        sums = (mass * scored).sum(1)  # (N,)
        low, high = ratio_interval(sums, counts, n_bootstrap)
        rows.append({"amount": amount, "mass": sums.sum() / counts.sum(), "low": low, "high": high})
    table = pd.DataFrame(rows)
    return table.assign(monotone=never_falls(table["mass"].tolist(), tolerance))


def steered_text(
    model: LanguageModel,
    tokenizer: tiktoken.Encoding,
    dictionary: Dictionary,
    feature: int,
    amount: float,
    prompt: str,
    *,
    sampling: SamplingConfig | None = None,
    length: int = 100,
    seed: int = 0,
) -> str:
    """The prompt and up to `length` tokens that the model continues it with while a feature is turned up.

    With amount 0 exactly what `generate` gives. Raises ValueError as `steer` and `generate`.
    """
    require_width(model, dictionary)
    with hooked(model, edit={dictionary.site: steer(dictionary, feature, amount)}):
        return generate(model, tokenizer, prompt, max_new_tokens=length, sampling=sampling, seed=seed)
