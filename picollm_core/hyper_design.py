"""Which runs a hyperparameter study makes: changes of one thing at a time, and a balanced random design.

All runs of a study see the same number of tokens: where a batch or a window changes, the updates change with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from picollm_core.config import KGramConfig, LSTMConfig, ModelConfig, TransformerConfig, require

FAMILIES = ("kgram", "lstm", "transformer")
WIDTH, BLOCK, BATCH = 32, 64, 16
BASE: dict[str, ModelConfig] = {
    "kgram": KGramConfig(n_embd=WIDTH, n_layer=1, k=3, activation="silu"),
    "lstm": LSTMConfig(n_embd=WIDTH, n_layer=1),
    "transformer": TransformerConfig(n_embd=WIDTH, n_layer=1, n_head=2, position="rope", activation="gelu", tied=False),
}
"""The model that every change starts from, one a family; window BLOCK, batch BATCH, the head's weights its own."""
ACTIVATIONS = ("gelu", "relu", "silu")


@dataclass(frozen=True)
class Change:
    """One thing changed about a family's base: `knob` is what, `label` says to what, `settings` are those of Lab.train.

    `scale` multiplies the base's learning rate. A `retuned` change has its learning rate chosen anew, from the base's
    grid, or, with `optimizer` in its settings, from that optimizer's.
    """

    knob: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    retuned: bool = False


# Without decay Adam is AdamW, so "no weight decay" is also Adam's fair arm. SGD has none: at its rates of about 1, a
# decay of 0.1 would take a tenth of every weight in each update.
_WIDTHS = tuple(Change("width", f"width {width}", {"n_embd": width}, retuned=True) for width in (16, 64))
_COMMON = (
    *_WIDTHS,
    Change("layers", "2 layers", {"n_layer": 2}),
    Change("block size", "block 32, batch 32", {"block_size": 32, "batch_size": 32}),
    Change("block size", "block 128, batch 8", {"block_size": 128, "batch_size": 8}),
    Change("batch size", "batch 8", {"batch_size": 8}),
    Change("batch size", "batch 32", {"batch_size": 32}),
    Change("learning rate", "half the rate", scale=0.5),
    Change("learning rate", "twice the rate", scale=2.0),
    Change("optimizer", "Adam, decay as L2", {"optimizer": "adam"}, retuned=True),
    Change("optimizer", "SGD, no decay", {"optimizer": "sgd", "weight_decay": 0.0}, retuned=True),
    Change("optimizer", "Muon", {"optimizer": "muon"}, retuned=True),
    Change("weight decay", "no weight decay", {"weight_decay": 0.0}, retuned=True),
    Change("dropout", "dropout 0.1", {"dropout": 0.1}),
)
_TIED = Change("tying", "head tied to embedding", {"tied": True}, retuned=True)
_OWN: dict[str, tuple[Change, ...]] = {
    "kgram": (
        *(Change("k", f"k = {k}", {"k": k}, retuned=True) for k in (1, 2, 6)),
        *(Change("activation", name, {"activation": name.lower()}, retuned=True) for name in ("GELU", "ReLU")),
    ),
    "lstm": (_TIED,),
    "transformer": (
        *(Change("heads", f"{n} head{'s' * (n > 1)}", {"n_head": n}) for n in (1, 4)),
        *(Change("activation", name, {"activation": name.lower()}, retuned=True) for name in ("ReLU", "SiLU")),
        _TIED,
    ),
}


def changes(family: str) -> tuple[Change, ...]:
    """The changes that are tried in a family, one at a time. ValueError for an unknown family."""
    require(family in BASE, f"unknown family {family!r}; choose one of {', '.join(BASE)}")
    return (*_COMMON, *_OWN[family])


def equal_tokens(settings: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """The settings with block_size, batch_size and as many updates as see `tokens` tokens.

    ValueError when a whole number of updates does not: then models would see different amounts of text.
    """
    shape = {"block_size": BLOCK, "batch_size": BATCH} | dict(settings)
    update = shape["block_size"] * shape["batch_size"]
    require(
        tokens % update == 0 and tokens >= update,
        f"{tokens} tokens are no whole number of updates of {shape['batch_size']} x {shape['block_size']}; "
        f"take a multiple of {update}",
    )
    return shape | {"max_steps": tokens // update}


LEVELS: dict[str, dict[str, tuple[Any, ...]]] = {
    "kgram": {"n_embd": (8, 16, 32, 64), "k": (1, 2, 4, 8), "block_size": (16, 32, 64, 128), "activation": ACTIVATIONS},
    "lstm": {"n_embd": (8, 16, 32, 64), "block_size": (16, 32, 64, 128)},
    "transformer": {
        "n_embd": (8, 16, 32, 64), "block_size": (16, 32, 64, 128), "n_head": (1, 2, 4), "activation": ACTIVATIONS,
    },
}  # fmt: skip
"""What the random design draws from: the first two of a family are crossed, so that its heat map has no empty cell."""
_EVERYWHERE: dict[str, tuple[Any, ...]] = {"n_layer": (1, 2), "batch_size": (8, 16, 32)}
RATE_SPAN = 4.0
"""Learning rates are drawn log-uniformly within this factor of the family's best, one in each of equal strata."""
_TRIES = 3_000


def _columns(family: str, count: int, generator: np.random.Generator) -> tuple[dict[str, list[Any]], int]:
    """`count` values of every setting, every level as often as every other, and how many of the settings are crossed.

    The first two are, in the order of their pairs, where there are as many runs as pairs; the rest is to be shuffled.
    """
    levels = LEVELS[family] | _EVERYWHERE
    columns: dict[str, list[Any]] = {}
    first, second = list(levels)[:2]
    pairs = [(a, b) for a in levels[first] for b in levels[second]]
    crossed = 2 if count % len(pairs) == 0 else 0
    if crossed:
        columns |= {first: [pairs[row % len(pairs)][0] for row in range(count)]}
        columns |= {second: [pairs[row % len(pairs)][1] for row in range(count)]}
    for name, own in list(levels.items())[crossed:]:
        order = generator.permutation(len(own))  # which levels come once more when count is no multiple
        columns[name] = [own[order[row % len(own)]] for row in range(count)]
    strata = (np.arange(count) + generator.random(count)) / count
    columns["rate_factor"] = [float(f"{factor:.4g}") for factor in RATE_SPAN ** (2 * strata - 1)]
    return columns, crossed


def _ranks(values: Sequence[Any]) -> NDArray[np.float64]:
    """Average ranks of a column, centred and of length 1, so that inner products are Spearman's correlations."""
    ranks = (
        pd.Series(pd.Categorical(values, categories=sorted(set(values))).codes).rank().to_numpy(dtype=float, copy=True)
    )
    ranks -= ranks.mean()
    return ranks / max(float(np.linalg.norm(ranks)), 1e-12)


def random_design(family: str, count: int = 16, seed: int = 0) -> pd.DataFrame:
    """`count` settings of a family, a row each, drawn so that no two of them go together.

    The family's first two settings are crossed where `count` allows it; the others are shuffled 3,000 times, and the
    shuffle is kept whose largest Spearman correlation between two columns is smallest. Columns are the settings of
    Lab.train and rate_factor, a multiple of the family's best learning rate. Raises ValueError for an unknown family
    and fewer than 4 rows.
    """
    require(family in LEVELS, f"unknown family {family!r}; choose one of {', '.join(LEVELS)}")
    require(count >= 4, f"count is {count}; a design needs at least 4 runs a family")
    generator = np.random.default_rng([seed, FAMILIES.index(family)])
    columns, crossed = _columns(family, count, generator)
    names = list(columns)
    ranks = np.stack([_ranks(values) for values in columns.values()])  # (settings, count)
    least, kept = np.inf, [np.arange(count)] * len(names)
    for _ in range(_TRIES):
        orders = [np.arange(count)] * crossed + [generator.permutation(count) for _ in names[crossed:]]
        shuffled = np.stack([row[order] for row, order in zip(ranks, orders, strict=True)])
        worst = float(np.abs(np.triu(shuffled @ shuffled.T, 1)).max())
        if worst < least:
            least, kept = worst, orders
    return pd.DataFrame(
        {name: [columns[name][place] for place in order] for name, order in zip(names, kept, strict=True)}
    )


def whole_design(count: int = 16, seed: int = 0) -> pd.DataFrame:
    """The random designs of the three families under each other, with columns family and seed (a different one a run).

    Settings that a family does not have are missing (NaN): an LSTM has no k and no choice of activation.
    """
    parts = [random_design(family, count, seed).assign(family=family) for family in FAMILIES]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(seed=200 + np.arange(len(table)))
