"""What each feature of a dictionary stands for, as far as texts show it: where it fires, how often, towards what.

    index = feature_index(model, tokenizer, autoencoder, stories)
    index.ranked("f1")[:10]      # features by any column of index.table
    index.evidence(17)           # contexts, histogram, promoted and suppressed tokens

M story tokens of N stories, F features, n tokens where one of them fires.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import tiktoken
import torch
from torch import Tensor

from picollm_core.config import require
from picollm_core.inference import require_same_vocabulary
from picollm_core.interpret.concepts import ConceptData, rule_concepts
from picollm_core.interpret.dictionaries import Dictionary
from picollm_core.interpret.direct_effects import direct_effect, direct_path, stream_scale
from picollm_core.interpret.feature_evidence import (
    Context,
    Evidence,
    context_around,
    extreme_tokens,
    histogram,
    short,
)
from picollm_core.interpret.feature_scores import feature_codes, feature_concepts
from picollm_core.models import LanguageModel
from picollm_core.models.transformer import Transformer
from picollm_core.next_token import token_text
from picollm_core.playground_html import visible

STRONGEST, WEAKER = 8, 4
"""Contexts shown of a feature: where it fires most (of a signed code in each direction), and random ones of less."""
PEAK_TOKENS = 4
TABLE_COLUMNS = ("feature", "density", "mean", "max", "min", "stories", "tokens", "concept", "sign", "threshold",
                 "precision", "recall", "f1", "floor", "gain")  # fmt: skip
LENGTH = 128
_LOOKED_AT = 50  # strongest activations among which the different peak tokens are looked for
_ROWS = 16


class _Codes:
    """Codes of M story tokens by feature, only those that are not 0: 12 bytes each."""

    def __init__(self, z: Tensor) -> None:
        z = z.coalesce()  # sparse (M, F)
        rows, columns = z.indices()
        order = columns.argsort(stable=True)
        self.rows, self.values = rows[order].int(), z.values()[order].float()
        self.columns = columns[order].int()
        self.counts = torch.bincount(columns, minlength=z.size(1))  # (F,)
        self.ends = self.counts.cumsum(0).tolist()
        self.signed = bool((self.values < 0).any())

    def of(self, feature: int) -> tuple[Tensor, Tensor]:
        """The tokens (n,) where a feature fires, ascending, and its codes (n,) there."""
        part = slice(self.ends[feature - 1] if feature else 0, self.ends[feature])
        return self.rows[part].long(), self.values[part]

    def extreme(self, largest: bool) -> Tensor:
        """The largest or the smallest code of each feature, at least or at most 0: (F,)."""
        found = torch.zeros(len(self.counts))
        return found.scatter_reduce(0, self.columns.long(), self.values, "amax" if largest else "amin")


@dataclass(frozen=True, eq=False)
class _Source:
    """What evidence is made of on demand."""

    model: LanguageModel
    tokenizer: tiktoken.Encoding
    dictionary: Dictionary
    data: ConceptData
    codes: _Codes
    ids: Tensor  # (M,) the story tokens
    story: Tensor  # (M,) which story each is from
    scale: float  # of the final norm
    no_effect: str  # why a feature has no direct effect on the logits; empty when it has one

    def span(self, token: int) -> tuple[int, int]:
        """The story tokens, from and to, of the story that a token is from."""
        story = self.story[token]
        return tuple(torch.searchsorted(self.story, torch.stack([story, story + 1])).tolist())  # type: ignore


@dataclass(eq=False)
class FeatureIndex:
    """Every feature of a dictionary on some texts.

    `table` has a row a feature: `feature` (from 0), `density` (share of tokens where its code is not 0), `mean` (size
    of the code where it fires, NaN for one that never does), `max` and `min` of the code, `stories` it fires in,
    `tokens` it fires at most, the `concept` it tells best with columns of `feature_concepts`, and the `gain` of its f1
    over the floor, which is what always saying yes would reach. `sign` is -1 where a signed code tells it by being low,
    and then `tokens` are those where it is lowest.
    """

    site: str
    tokens: int
    stories: int
    dict_size: int
    table: pd.DataFrame
    recorded: dict[int, Evidence] = field(default_factory=dict, repr=False)
    source: _Source | None = field(default=None, repr=False)

    @property
    def metrics(self) -> list[str]:
        """The columns that features can be ranked by."""
        return [name for name in self.table.columns if pd.api.types.is_numeric_dtype(self.table[name])]

    def require_feature(self, feature: int) -> int:
        """`feature`; ValueError with the range when there is none of that number."""
        require(
            0 <= feature < self.dict_size,
            f"feature is {feature}; this dictionary at {self.site!r} has features 0 to {self.dict_size - 1}",
        )
        return feature

    def ranked(self, by: str = "max", search: str = "") -> list[int]:
        """Features by falling value of a column ("feature": rising), those without a value last.

        `search` keeps those whose concept or tokens contain it, whatever the case. ValueError for a column that cannot
        be ranked by.
        """
        require(by in self.metrics, f"features cannot be ranked by {by!r}; choose one of {', '.join(self.metrics)}")
        table = self.table
        if search.strip():
            words = table["concept"] + "\n" + table["tokens"]
            table = table[words.str.contains(search.strip(), case=False, regex=False)]
        order = table[by].sort_values(ascending=by == "feature", kind="stable", na_position="last").index
        return table.loc[order, "feature"].tolist()

    def facts(self, feature: int) -> dict[str, Any]:
        """A feature's row of the table as JSON values, None where there is none. ValueError as `evidence`."""
        self.require_feature(feature)
        require(
            feature in self._rows,
            f"feature {feature} was not recorded; recorded were {', '.join(map(str, self.recorded))}. Build the index "
            "anew, with the model and the texts, to see others",
        )
        return {name: None if pd.isna(value) else _plain(value) for name, value in self._rows[feature].items()}

    @cached_property
    def _rows(self) -> dict[int, dict[str, Any]]:
        return {row["feature"]: row for row in self.table.to_dict("records")}

    def evidence(self, feature: int) -> Evidence:
        """What there is to see of a feature, put together at the first call.

        ValueError for a number out of range, and for one that a recorded index does not hold.
        """
        facts = self.facts(feature)
        if feature not in self.recorded:
            assert self.source is not None
            self.recorded[feature] = _evidence(self.source, feature, facts)
        return self.recorded[feature]

    def to_dict(self, features: Iterable[int]) -> dict[str, Any]:
        """JSON values of the index restricted to some features, with all there is to see of them: about 5 KB each.

        Of no features there is nothing to see but the index's own settings.
        """
        evidence = [asdict(self.evidence(feature)) for feature in dict.fromkeys(features)]
        settings = {name: getattr(self, name) for name in ("site", "tokens", "stories", "dict_size")}
        return settings | {"evidence": evidence}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FeatureIndex":
        """The index that `to_dict` wrote, with the features it was given and no others."""
        evidence = [Evidence.from_dict(each) for each in values["evidence"]]
        table = pd.DataFrame([each.facts for each in evidence], columns=None if evidence else list(TABLE_COLUMNS))
        settings = {name: value for name, value in values.items() if name != "evidence"}
        return cls(table=table, recorded={each.feature: each for each in evidence}, **settings)


def _plain(value: Any) -> Any:
    value = getattr(value, "item", lambda: value)()
    return short(value) if isinstance(value, float) else value


def _places(source: _Source, rows: Tensor, values: Tensor) -> list[int]:
    """The strongest token of each story out of tokens (n,) with codes (n,), those with the largest code first.

    Stories that are the same up to that token are taken once: what passes at a token depends on it and those before it
    alone, so they would show one thing twice.
    """
    order = values.argsort(descending=True, stable=True)
    rows = rows[order]
    first = np.unique(source.story[rows].numpy(), return_index=True)[1]  # of each story
    seen: set[tuple[int, ...]] = set()
    kept = []
    for row in rows[np.sort(first)].tolist():
        words = tuple(source.ids[source.span(row)[0] : row + 1].tolist())
        if words not in seen:
            seen.add(words)
            kept.append(row)
    return kept


def _contexts(source: _Source, places: Iterable[int], rows: Tensor, values: Tensor) -> tuple[Context, ...]:
    """A context around each of some tokens, given where the feature fires (n,) and its codes (n,) there."""
    found = []
    for place in places:
        start, stop = source.span(place)
        own = torch.zeros(stop - start)
        inside = (rows >= start) & (rows < stop)
        own[rows[inside] - start] = values[inside]
        story = int(source.story[place])
        found.append(context_around(story, source.ids[start:stop].tolist(), own, place - start, source.tokenizer))
    return tuple(found)


def _evidence(source: _Source, feature: int, facts: dict[str, Any]) -> Evidence:
    rows, values = source.codes.of(feature)
    firing = _places(source, rows[values > 0], values[values > 0])
    rest, random = firing[STRONGEST:], torch.Generator().manual_seed(feature)
    quarters = [rest[i * len(rest) // WEAKER : (i + 1) * len(rest) // WEAKER] for i in range(WEAKER)]
    weaker = [quarter[int(torch.randint(len(quarter), (), generator=random))] for quarter in quarters if quarter]
    negative = _places(source, rows[values < 0], -values[values < 0])[:STRONGEST]
    promoted, suppressed, no_effect = _effect(source, feature, facts)
    return Evidence(
        feature=feature,
        facts=facts,
        strongest=_contexts(source, firing[:STRONGEST], rows, values),
        weaker=_contexts(source, weaker, rows, values),
        negative=_contexts(source, negative, rows, values),
        histogram=histogram(values),
        promoted=promoted,
        suppressed=suppressed,
        no_effect=no_effect,
    )


def _effect(source: _Source, feature: int, facts: dict[str, Any]) -> tuple[tuple, tuple, str]:
    """Promoted and suppressed tokens, or why there are none."""
    size = max(facts["max"], -facts["min"])
    if source.no_effect or not size:
        return (), (), source.no_effect or "it never fires in these texts, so the size of its effect is unknown"
    direction = source.dictionary.directions[feature].detach()
    effect = direct_effect(source.model, source.dictionary.site, direction * size, source.scale)
    return *extreme_tokens(effect, source.tokenizer), ""


def _path_to_logits(model: LanguageModel, site: str, data: ConceptData) -> tuple[float, str]:
    """The scale of the final norm, 1 without one, and why there is no direct effect, empty when there is."""
    try:
        _, normed = direct_path(model, site)
    except ValueError as error:
        return 1.0, str(error)
    if not normed:
        return 1.0, ""
    assert isinstance(model, Transformer)
    return stream_scale(model, data.idx[:_ROWS], data.mask[:_ROWS]), ""


def _peak_tokens(codes: _Codes, signs: Iterable[int], ids: Tensor, tokenizer: tiktoken.Encoding) -> list[str]:
    """The different tokens at which each feature, times its sign, is largest, the strongest first, as one string."""
    words = []
    for feature, sign in enumerate(signs):
        rows, values = codes.of(feature)
        rows, values = rows[sign * values > 0], values[sign * values > 0].abs()
        top = values.topk(min(_LOOKED_AT, len(values))).indices
        different = list(dict.fromkeys(ids[rows[top]].tolist()))[:PEAK_TOKENS]
        words.append(" ".join(visible(token_text(tokenizer, i)) for i in different))
    return words


def _nearest_concepts(codes: _Codes, data: ConceptData, z: Tensor) -> pd.DataFrame:
    """The columns of `feature_concepts` and the gain, a row a feature; without any concept empty ones."""
    if data.names:
        found = feature_concepts(z, data.flat_labels, data.groups, data.names, signed=codes.signed)
    else:
        found = pd.DataFrame({"concept": "", "sign": 1}, index=range(len(codes.counts)))
    found = found.reindex(columns=["concept", "sign", "threshold", "precision", "recall", "f1", "floor"])
    return found.assign(gain=found["f1"] - found["floor"])


def _table(codes: _Codes, data: ConceptData, concepts: pd.DataFrame, tokens: list[str]) -> pd.DataFrame:
    size = len(codes.counts)
    total = torch.zeros(size).index_add_(0, codes.columns.long(), codes.values.abs())
    pairs = (codes.columns.long() * len(data) + data.groups[codes.rows.long()]).unique()
    columns = {
        "feature": range(size),
        "density": (codes.counts / int(data.mask.sum())).tolist(),
        "mean": (total / codes.counts).tolist(),  # 0 / 0: NaN
        "max": codes.extreme(largest=True).tolist(),
        "min": codes.extreme(largest=False).tolist(),
        "stories": torch.bincount(pairs // len(data), minlength=size).tolist(),
        "tokens": tokens,
    }
    return pd.concat([pd.DataFrame(columns), concepts], axis=1)


def feature_index(
    model: LanguageModel,
    tokenizer: tiktoken.Encoding,
    dictionary: Dictionary,
    data: ConceptData | Iterable[str],
    length: int = LENGTH,
) -> FeatureIndex:
    """Read stories and keep of every feature what tells it from others; see FeatureIndex and Evidence.

    `data` are texts, of which the first `length` tokens are read (fewer where the model cannot hold so many) and the
    concepts of `rule_concepts` found, or stories with other concepts. 16 stories pass at a time; what stays is 12 bytes
    for each token and feature that fires there.
    Raises ValueError for a dictionary of another site or width, another vocabulary, and fewer than 2 texts.
    """
    require_same_vocabulary(model, tokenizer)
    length = min(length, model.context_limit or length)
    stories = data if isinstance(data, ConceptData) else rule_concepts(data, tokenizer, length)
    z = feature_codes(model, dictionary, stories)
    codes, ids = _Codes(z), stories.idx[stories.mask]
    concepts = _nearest_concepts(codes, stories, z)
    table = _table(codes, stories, concepts, _peak_tokens(codes, concepts["sign"], ids, tokenizer))
    path = _path_to_logits(model, dictionary.site, stories)
    source = _Source(model, tokenizer, dictionary, stories, codes, ids, stories.groups, *path)
    return FeatureIndex(dictionary.site, len(ids), len(stories), dictionary.dict_size, table, source=source)
