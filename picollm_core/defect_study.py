"""What each known defect does, measured: one table over all of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from picollm_core.contrasts import Contrast, paired_contrast
from picollm_core.defect_evidence import (
    PROMPT,
    drawn_rows_table,
    leak_table,
    one_batch_table,
    pooled_table,
    unseen_table,
    wrong_nuclei,
)
from picollm_core.defect_measures import kgram_parameters, share_interval
from picollm_core.defect_runs import (
    DEFECT,
    ONE_TOKEN,
    RIGHT,
    WIDTH,
    axis_table,
    by_seed,
    kgram_runs,
    logits_table,
    padding_table,
    plan,
    spread,
)
from picollm_core.lab import Lab
from picollm_core.position_study import drawn_diversity
from picollm_core.preset_study import start_by_width

PAGE = {"loss": 1.665, "perplexity": 6.389, "right": 41, "tokens": 56}
"""What a project page gives for one model: 41 of 56 is 73.21%."""
COLUMNS = ("defect", "fakes", "measured", "effect", "low", "high", "unit", "seeds", "who")
GPT2_VOCABULARY = 50_257
_START = {"widths": [16, 32, 64, 128, 256, 384, 512, 768], "vocab_size": GPT2_VOCABULARY, "seeds": [0, 1, 2]}
"""As the notebook on presets measures it."""

Measured = tuple[str, Contrast, str]
"""What was compared, the effect, its unit."""


def _exact(value: float, low: float = math.nan, high: float = math.nan) -> Contrast:
    """A number that no seed moves."""
    return Contrast(value, low, high, 0)


def _batch_axis(lab: Lab) -> list[Measured]:
    table = axis_table(lab)
    small = table[table["width"] == WIDTH]

    def losses(axis: str, column: str = "reported", arm: str = "pre, RoPE") -> list[float]:
        return by_seed(small, column, axis=axis, arm=arm)

    found: list[Measured] = [
        ("reported loss, less the right axis's", paired_contrast(losses(DEFECT), losses(RIGHT)), "nats"),
        ("loss of one story at a time, less that of attention cut to one token",
         paired_contrast(losses(DEFECT, "alone"), losses(ONE_TOKEN, "alone")), "nats"),
    ]  # fmt: skip
    shared = set(plan(lab).axis_seeds)
    few = table[table["seed"].isin(shared)]
    arms = list(dict.fromkeys(small["arm"]))
    for axis in (RIGHT, DEFECT) if len(arms) > 1 else ():
        ranges = spread({arm: by_seed(few, "reported", axis=axis, arm=arm, width=WIDTH) for arm in arms})
        title = f"highest less lowest of {len(arms)} choices of norm and positions, {axis}"
        found.append((title, paired_contrast(ranges, [0.0] * len(ranges)), "nats"))
    for axis in (RIGHT, DEFECT) if plan(lab).widths else ():
        narrow, wide = (by_seed(few, "reported", axis=axis, arm="pre, RoPE", width=w) for w in plan(lab).widths)
        found.append((f"width {plan(lab).widths[-1]} less width {plan(lab).widths[0]}, {axis}",
                      paired_contrast(wide, narrow), "nats"))  # fmt: skip
    lstm = by_seed(logits_table(lab), "alone", arm="right")
    for axis in (RIGHT, DEFECT):
        found.append((f"LSTM less Transformer, {axis}", paired_contrast(lstm, losses(axis, "alone")), "nats"))
    return found


def _off_by_one(lab: Lab) -> list[Measured]:
    runs, own = kgram_runs(lab), plan(lab)
    loss = {key: [run.summary["nll"] for run in found] for key, found in runs.items()}
    drawn = drawn_diversity(lab, {str(offset): runs[3, offset] for offset in (0, 1)}, prompt=PROMPT,
                            budget=own.budget, max_new_tokens=60, top_p=0.95, seed=0)  # fmt: skip
    found: list[Measured] = [
        ("loss at k = 3, less the right window's", paired_contrast(loss[3, 1], loss[3, 0]), "nats"),
        ("distinct-2 of drawn text, less the right window's", paired_contrast(drawn["1"], drawn["0"]), "share"),
    ]
    first, last = own.contexts[0], own.contexts[-1]
    for offset, name in ((0, "right window"), (1, "defect")) if last > first else ():
        gain = paired_contrast(loss[last, offset], loss[first, offset])
        found.append((f"k = {last} less k = {first}, {name}", gain, "nats"))
    return found


def _padding(lab: Lab) -> list[Measured]:
    table = padding_table(lab)
    found: list[Measured] = []
    for block in reversed(plan(lab).blocks):
        reported, text, accuracy = (
            by_seed(table, name, block=block) for name in ("reported", "reported_text", "reported_accuracy")
        )
        found.append((f"loss with padding less without, block {block}", paired_contrast(reported, text), "nats"))
        shown = paired_contrast(accuracy, [0.0] * len(accuracy))
        found.append((f"accuracy reported with padding, block {block}", shown, "share"))
    return found


def _leak(lab: Lab) -> list[Measured]:
    table = leak_table(lab)
    return [
        (what, paired_contrast(table[first].tolist(), table[second].tolist()), "nats")
        for what, first, second in (
            ("gap that stays hidden: new stories less drawn rows", "held out", "drawn"),
            ("gap as reported: drawn rows less training", "drawn", "train"),
            ("gap as it is: new stories less training", "held out", "train"),
        )
    ]


def _one_batch(lab: Lab) -> list[Measured]:
    low, high = share_interval(int(PAGE["right"]), int(PAGE["tokens"]))
    table = one_batch_table(lab).set_index("model").loc["Transformer"]
    return [
        ("perplexity given, less exp(loss given)", _exact(PAGE["perplexity"] - math.exp(PAGE["loss"])), "perplexity"),
        ("accuracy of 41 of 56 tokens, with its binomial interval", _exact(PAGE["right"] / PAGE["tokens"], low, high),
         "share"),
        ("accuracy of our shipped Transformer in single batches of 56 tokens (mean; middle 95%)",
         _exact(table["accuracy"], table["low"], table["high"]), "share"),
    ]  # fmt: skip


def _activated(lab: Lab) -> list[Measured]:
    table = logits_table(lab)
    right = by_seed(table, "alone", arm="right")
    return [
        ("ReLU on the LSTM's logits, less none", paired_contrast(by_seed(table, "alone", arm="ReLU"), right), "nats")
    ]


def _pooled(lab: Lab) -> list[Measured]:
    table = pooled_table(lab)
    short, long = table["length"].unique()[[1, -1]]
    found = []
    for model, own in table.groupby("model", sort=False):
        pair = paired_contrast(by_seed(own, "distinct", length=short), by_seed(own, "distinct", length=long))
        found.append((f"{model}: distinct-2 of samples of {short} tokens, less {long}", pair, "share"))
    return found


def _counts(_: Lab) -> list[Measured]:
    rows = pd.DataFrame(kgram_parameters((1, 3, 5), 32, 1, GPT2_VOCABULARY)).set_index(["k", "embedding"])["total"]
    sizes = {k: (rows[k, "onehot"], rows[k, "scaled"]) for k in (1, 3, 5)}
    return [
        (f"weights, one-hot over scaled, k = {k}: {a / 1e6:.2f}M over {b / 1e6:.2f}M", _exact(a / b), "times")
        for k, (a, b) in sizes.items()
    ]


def _nuclei(lab: Lab) -> list[Measured]:
    return [
        (f"{row['model']}, p = 0.9, {row['mistake']}: share of draws that change", _exact(row["affected"]), "share")
        for _, row in wrong_nuclei(lab).iterrows()
    ]


def _starts(lab: Lab) -> list[Measured]:
    given: dict[str, Any] = _START
    table = pd.DataFrame(lab.measure("start by width", lambda: start_by_width(**given), **given))
    width = 384
    own = table[table["width"] == width]
    right = by_seed(own, "loss", arm="this project, tied head")
    return [
        (f"first loss at width {width}: tied N(0, 1) head, less ours",
         paired_contrast(by_seed(own, "loss", arm="N(0, 1), tied head"), right), "nats"),
    ]  # fmt: skip


def _unseen(lab: Lab) -> list[Measured]:
    first = unseen_table(lab).iloc[0]
    table = drawn_rows_table(lab)
    drawn, once = (by_seed(table, "alone", way=way) for way in ("drawn rows", "every row once"))
    return [
        (
            "share of rows that an epoch of draws never reads",
            _exact(first["expected"], first["low"], first["high"]),
            "share",
        ),
        ("loss after an epoch, less every row once", paired_contrast(drawn, once), "nats"),
    ]


_Row = tuple[str, str, str, Callable[[Lab], Sequence[Measured]]]
_ROWS: Mapping[str, _Row] = {
    "batch axis": ("attention over the batch axis", "LSTMs beat Transformers; norm, positions and size hardly matter",
                   "slides, two others", _batch_axis),
    "off by one": ("k-gram window one token early", "the k-gram is worst and most diverse",
                   "the course's starter code, slides, notes, most others", _off_by_one),
    "padding": ("padding (id 0) is scored", "low losses at long blocks", "nearly all", _padding),
    "leak": ("validation rows drawn from training rows", "a validation loss equal to the training loss",
             "page, four others", _leak),
    "one batch": ("perplexity and accuracy of the last training batch", "73.21% accuracy beside a loss of 1.665",
                  "page", _one_batch),
    "logits": ("an activation on the output logits", "the LSTM trails", "page", _activated),
    "pooled": ("distinct-n pooled over texts of different length", "rankings of diversity", "several", _pooled),
    "counts": ("one-hot and embedded inputs called equally large", "one-hot is better, more so with k", "slides",
               _counts),
    "nuclei": ("the nucleus drops the crossing token, or keeps one more", "studies of top-p", "eleven", _nuclei),
    "starts": ("a head tied to N(0, 1) embeddings", "presets start at 234 and 360", "notes, others", _starts),
    "unseen": ("rows drawn in place of visited", "an epoch of data", "the course's starter code", _unseen),
}  # fmt: skip
DEFECT_NAMES = tuple(_ROWS)
QUICK = ("batch axis", "off by one", "counts")
"""What the quick profile measures."""


def defect_table(lab: Lab, names: Sequence[str] | None = None) -> pd.DataFrame:
    """One row a measured effect, with the columns of COLUMNS: the defect, what it fakes, what was compared, the effect.

    `low` and `high` are the 95% interval over `seeds` paired seeds; without seeds (exact numbers and shares counted on
    one model) they are what `measured` says, or missing. `who` had the defect: the slides, page and notes of
    claims.py, or how many of the other public projects that were read. `names` chooses among DEFECT_NAMES; the quick
    profile measures those of QUICK. Raises ValueError for another name.
    """
    chosen = tuple(names) if names is not None else QUICK if lab.profile.name == "quick" else DEFECT_NAMES
    unknown = [name for name in chosen if name not in _ROWS]
    if unknown:
        raise ValueError(f"no defect is called {', '.join(unknown)}; choose among {', '.join(_ROWS)}")
    rows = []
    for name in chosen:
        defect, fakes, who, measure = _ROWS[name]
        rows += [(defect, fakes, what, c.mean, c.low, c.high, unit, c.pairs, who) for what, c, unit in measure(lab)]
    return pd.DataFrame(rows, columns=list(COLUMNS))
