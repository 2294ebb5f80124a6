"""How well one feature alone tells a concept: precision, recall and F1, chosen on some stories and scored on others.

A feature fires at a token when its code is above 0 and reaches a threshold. For every feature and concept the threshold
with the best F1 on one half of the stories is taken; all that is reported comes from the other half, so that the
choice among thousands of features does not flatter the one that was chosen.

M story tokens, F features, K concepts, Q thresholds, D directions: the features, each of them twice for signed codes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from picollm_core.bootstrap import ratio_interval
from picollm_core.config import require
from picollm_core.interpret.concepts import ConceptData
from picollm_core.interpret.dictionaries import Dictionary, evaluated, require_width
from picollm_core.interpret.hooks import activations
from picollm_core.models import LanguageModel

THRESHOLDS = 48  # tried for each feature: 0 and quantiles of its positive codes
_FEATURES_AT_ONCE = 64  # of a dense z: bounds the copy that is made of it
_ROWS = 16  # stories that the model reads at a time

CONCEPT_COLUMNS = ("concept", "feature", "sign", "threshold", "precision", "recall", "f1", "f1_low", "f1_high",
                   "f1_chosen", "base_rate", "floor", "density")  # fmt: skip
FEATURE_COLUMNS = ("feature", "concept", "sign", "threshold", "precision", "recall", "f1", "f1_chosen", "floor",
                   "density")  # fmt: skip


@torch.no_grad()
def feature_codes(model: LanguageModel, dictionary: Dictionary, data: ConceptData) -> Tensor:
    """The dictionary's codes of all M story tokens, sparse (M, F), in the order of `data.groups`.

    `dictionary` reads its own site. Raises ValueError when the model has no such site, or another width there.
    """
    require_width(model, dictionary)
    site, device = dictionary.site, model.head.weight.device
    parts = []
    with evaluated(dictionary):
        for idx, mask in zip(data.idx.split(_ROWS), data.mask.split(_ROWS), strict=True):
            x = activations(model, idx.to(device), [site])[site][mask.to(device)]  # (m, C)
            parts.append(dictionary.encode(x).to_sparse().cpu())
    return torch.cat(parts).coalesce()


def first_half(groups: Tensor, seed: int = 0) -> Tensor:
    """Which of M tokens lie in the half of the stories that choices are made on: bool (M,), a story never in both.

    `groups` (M,) says which story a token is from. Raises ValueError for fewer than 2 stories.
    """
    stories, place = groups.unique(return_inverse=True)
    require(len(stories) >= 2, f"there are {len(stories)} stories; choosing and scoring need at least one each")
    order = torch.randperm(len(stories), generator=torch.Generator().manual_seed(seed))
    return (order < (len(stories) + 1) // 2)[place]


class _Firing(NamedTuple):
    """Where one direction is above 0: at tokens `rows` (n,), with sizes `values` (n,)."""

    feature: int
    sign: int
    rows: Tensor
    values: Tensor


def _columns(z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each feature the tokens where its code is not 0, and the codes there, of dense or sparse z (M, F)."""
    if z.is_sparse:
        z = z.coalesce()
        (rows, columns), values = z.indices(), z.values()
        order = columns.argsort(stable=True)
        sizes = torch.bincount(columns, minlength=z.size(1)).tolist()
        yield from zip(rows[order].split(sizes), values[order].split(sizes), strict=True)
        return
    for start in range(0, z.size(1), _FEATURES_AT_ONCE):
        for column in z[:, start : start + _FEATURES_AT_ONCE].T.contiguous():  # (M,)
            rows = column.nonzero()[:, 0]
            yield rows, column[rows]


def _firings(z: Tensor, signed: bool) -> Iterator[_Firing]:
    """Every direction in order: feature 0, and for signed codes feature 0 turned round, feature 1 ..."""
    for feature, (rows, values) in enumerate(_columns(z)):
        up = values > 0
        yield _Firing(feature, 1, rows[up], values[up])
        if signed:
            yield _Firing(feature, -1, rows[~up], -values[~up])
        elif not bool(up.all()):
            least = float(values.min())
            raise ValueError(f"feature {feature} has the code {least:g} < 0; pass signed=True for codes of both signs")


def _thresholds(values: Tensor) -> Tensor:
    """0 and up to THRESHOLDS - 1 quantiles of positive codes (n,), ascending and distinct: (Q,)."""
    places = torch.linspace(0, max(0, len(values) - 1), THRESHOLDS).round().long()
    quantiles = values.sort().values[places] if len(values) else values
    return torch.cat([values.new_zeros(1), quantiles[1:]]).unique()


def _counts(labels: Tensor, rows: Tensor, values: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """Labelled tokens (Q, K) and all tokens (Q,) at which codes `values` (n,) reach each threshold."""
    reached = torch.searchsorted(thresholds, values, right=True) - 1  # (n,), the highest threshold; the lowest is 0
    fires = torch.bincount(reached, minlength=len(thresholds)).to(labels.dtype)
    true = labels.new_zeros(len(thresholds), labels.size(1)).index_add_(0, reached, labels[rows])
    return true.flip(0).cumsum(0).flip(0), fires.flip(0).cumsum(0).flip(0)


def _f1(true: Tensor, fires: Tensor, positives: Tensor) -> Tensor:
    """2 x hits over all that fired and all that should; 0 where the feature never fires."""
    return 2 * true / (fires + positives)


@dataclass(frozen=True, eq=False)
class _Scored:
    """What every direction is worth for every concept; `chosen` is the F1 on the half that chose the threshold."""

    feature: np.ndarray  # (D,)
    sign: np.ndarray  # (D,)
    density: np.ndarray  # (D,)
    threshold: np.ndarray  # (D, K)
    chosen: np.ndarray  # (D, K)
    precision: np.ndarray  # (D, K)
    recall: np.ndarray  # (D, K)
    f1: np.ndarray  # (D, K)
    base_rate: np.ndarray  # (K,), on the half that scores
    scorable: np.ndarray  # (K,), whether the concept occurs in both halves

    @property
    def floor(self) -> np.ndarray:
        """F1 (K,) of saying yes to every token."""
        return 2 * self.base_rate / (1 + self.base_rate)

    def row(self, d: int, k: int) -> dict[str, float]:
        names = ("threshold", "precision", "recall", "f1")
        values = {name: float(getattr(self, name)[d, k]) for name in names}
        density, chosen = float(self.density[d]), float(self.chosen[d, k])
        return values | {"f1_chosen": chosen, "floor": float(self.floor[k]), "density": density}


def _score(z: Tensor, labels: Tensor, choosing: Tensor, signed: bool) -> _Scored:
    """All directions against all concepts; `choosing` (M,) is true at the tokens that thresholds are chosen on."""
    labels = labels.to(torch.float32)  # counts are exact up to 2**24 tokens
    scoring = ~choosing
    n_choosing, n_scoring = labels[choosing].sum(0), labels[scoring].sum(0)  # (K,) each
    concept, rows = torch.arange(labels.size(1)), []
    for feature, sign, at, values in _firings(z, signed):
        first = choosing[at]
        thresholds = _thresholds(values[first])
        true, fires = _counts(labels, at[first], values[first], thresholds)
        tried = _f1(true, fires[:, None], n_choosing)  # (Q, K)
        best = torch.from_numpy(np.nan_to_num(tried.numpy()).argmax(0))  # of equal ones the lowest threshold
        true, fires = _counts(labels, at[~first], values[~first], thresholds)
        hits, fired = true[best, concept], fires[best]  # (K,) each
        found = (thresholds[best], tried[best, concept], hits / fired, hits / n_scoring, _f1(hits, fired, n_scoring))
        rows.append((feature, sign, len(at) / len(labels), torch.stack(found).numpy()))
    names = ("threshold", "chosen", "precision", "recall", "f1")
    numbers = np.stack([row[3] for row in rows], axis=1)  # (5, D, K)
    return _Scored(
        feature=np.array([row[0] for row in rows]),
        sign=np.array([row[1] for row in rows]),
        density=np.array([row[2] for row in rows]),
        **dict(zip(names, numbers, strict=True)),
        base_rate=(n_scoring / scoring.sum()).numpy(),
        scorable=((n_choosing > 0) & (n_scoring > 0)).numpy(),
    )


def _require_matching(z: Tensor, labels: Tensor, groups: Tensor, names: Sequence[str]) -> None:
    fits = z.ndim == 2 and labels.shape == (len(z), len(names)) and groups.shape == (len(z),) and z.size(1) > 0
    require(
        fits,
        f"z {tuple(z.shape)}, labels {tuple(labels.shape)}, groups {tuple(groups.shape)} and {len(names)} names do not "
        "fit; they are (M, F), (M, K), (M,) and K",
    )


def _interval(z: Tensor, labels: Tensor, groups: Tensor, row: dict, n_bootstrap: int) -> tuple[float, float]:
    """95% interval over stories of the F1 that `row` reports; z (M,) is its feature, labels (M,) its concept."""
    code = row["sign"] * z
    fires = (code > 0) & (code >= row["threshold"])
    story = groups.unique(return_inverse=True)[1]
    hits, both = (fires & labels).float(), fires.float() + labels.float()
    top, bottom = (torch.bincount(story, weights=weights.double()).numpy() for weights in (2 * hits, both))
    return ratio_interval(top, bottom, n_bootstrap=n_bootstrap)


def concept_scores(
    z: Tensor,
    labels: Tensor,
    groups: Tensor,
    names: Sequence[str],
    *,
    signed: bool = False,
    seed: int = 0,
    n_bootstrap: int = 1000,
) -> pd.DataFrame:
    """For every concept the one feature that tells it best: a row with the columns CONCEPT_COLUMNS.

    z (M, F) are codes, dense or sparse; labels (M, K) bool; groups (M,) the story of each token; `seed` decides the
    halves. Feature, sign and threshold are those of the best F1 on one half, where it was f1_chosen. On the other half:
    precision, recall, f1 with its 95% interval over stories, base_rate (share of tokens in the concept) and floor, the
    F1 of saying yes always. density is the share of all tokens where the feature is above 0. `signed` codes count in
    both directions. Concepts that one of the halves does not have are left out. Raises ValueError for shapes that do
    not fit, fewer than 2 stories, and codes below 0 that are not called signed.
    """
    _require_matching(z, labels, groups, names)
    labels, choosing = labels.bool(), first_half(groups, seed)
    scored, scoring = _score(z, labels, choosing, signed), ~choosing
    rows = []
    for k in scored.scorable.nonzero()[0].tolist():
        d = int(scored.chosen[:, k].argmax())
        feature = int(scored.feature[d])
        row = {"concept": names[k], "feature": feature, "sign": int(scored.sign[d]), **scored.row(d, k)}
        code = z.index_select(1, torch.tensor([feature]))
        code = (code.to_dense() if code.is_sparse else code)[scoring, 0]
        low, high = _interval(code, labels[scoring, k], groups[scoring], row, n_bootstrap)
        rows.append(row | {"f1_low": low, "f1_high": high, "base_rate": float(scored.base_rate[k])})
    return pd.DataFrame(rows, columns=list(CONCEPT_COLUMNS))


def feature_concepts(
    z: Tensor, labels: Tensor, groups: Tensor, names: Sequence[str], *, signed: bool = False, seed: int = 0
) -> pd.DataFrame:
    """For every feature the concept it tells best: F rows with the columns FEATURE_COLUMNS.

    Arguments and halves as in `concept_scores`. The concept is the one whose F1 rises most above its floor on the half
    that chooses: always saying yes already has a high F1 on a common concept. A feature that does not fire there has
    concept "" and no numbers. Raises ValueError as `concept_scores`.
    """
    _require_matching(z, labels, groups, names)
    scored = _score(z, labels.bool(), first_half(groups, seed), signed)
    gain = np.where(scored.scorable & (scored.chosen > 0), scored.chosen - scored.floor, -np.inf)  # (D, K)
    directions = 2 if signed else 1
    rows = []
    for feature in range(z.size(1)):
        own = gain[feature * directions : (feature + 1) * directions]  # (1 or 2, K)
        turn, k = (int(i) for i in np.unravel_index(own.argmax(), own.shape))
        d = feature * directions + turn
        if np.isneginf(own[turn, k]):
            rows.append({"feature": feature, "concept": "", "sign": 1, "density": float(scored.density[d])})
        else:
            rows.append({"feature": feature, "concept": names[k], "sign": int(scored.sign[d]), **scored.row(d, k)})
    return pd.DataFrame(rows, columns=list(FEATURE_COLUMNS))
