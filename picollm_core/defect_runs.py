"""Trainings with and without the defects, seed by seed: what each defect does to losses, samples and rankings.

Transformers are trained with Muon here: after a few hundred updates of AdamW none of them has learned to use more
than a token of context, so a defect that takes the context away could not be seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from picollm_core.config import KGramConfig, LSTMConfig, TransformerConfig
from picollm_core.defects import recorded_defect
from picollm_core.lab import Lab
from picollm_core.norm_study import published_arms
from picollm_core.runs import Run
from picollm_core.verdict_arms import COUNTS_AND_LSTM, settings

RIGHT, DEFECT, ONE_TOKEN = "right axis", "batch axis", "one token"
AXES = {RIGHT: "none", DEFECT: "batch axis"}
MUON_RATES, TUNING_SEED = (0.01, 0.03), 100
WIDTH = 64  # of the published pico Transformers
KGRAM_RATE, LSTM_RATE = 0.1, 0.3
"""AdamW's best rates for pico models in short trainings."""


@dataclass(frozen=True)
class Plan:
    """How much of the study a profile does."""

    seeds: tuple[int, ...]
    axis_seeds: tuple[int, ...]
    arms: tuple[str, ...]
    widths: tuple[int, ...]
    contexts: tuple[int, ...]
    blocks: tuple[int, ...]
    budget: int
    """Drawn tokens by which diversity is measured."""


def plan(lab: Lab) -> Plan:
    """Five seeds, three where many arms or widths are trained; in the quick profile one seed and the fewest arms."""
    if lab.profile.name == "quick":
        return Plan((0,), (0,), ("pre, RoPE",), (), (3,), (128,), 300)
    seeds, arms = lab.profile.seeds, ("pre, absolute", "pre, RoPE", "pre, NoPE", "post, RoPE")
    return Plan(seeds, seeds[:3], arms, (64, 128), (1, 3), (64, 128, 256, 512), 2_000)


def _one_token(config: TransformerConfig) -> TransformerConfig:
    """The same model whose attention sees the current token alone."""
    return config.replace(mixers=("window",), window=1)


def muon_rates(lab: Lab) -> dict[str, float]:
    """absolute or RoPE -> the better of MUON_RATES for the right axis, by a seed of its own; NoPE takes that of RoPE.

    A model with the defect takes the same rate, as a change of code would. The quick profile tries none.
    """
    if lab.profile.name == "quick":
        return dict.fromkeys(("absolute", "RoPE"), MUON_RATES[-1])
    given = settings(lab) | {"optimizer": "muon", "seed": TUNING_SEED}
    found = {}
    for position in ("absolute", "RoPE"):
        config = published_arms()[f"pre, {position}"]
        losses = {rate: recorded_defect(lab, "none", config, learning_rate=rate, **given) for rate in MUON_RATES}
        found[position] = min(MUON_RATES, key=lambda rate: losses[rate]["reported"])
    return found


def _axis_row(lab: Lab, arm: str, axis: str, seed: int, width: int, rate: float) -> dict[str, Any]:
    config = published_arms()[arm].replace(n_embd=width)
    config = _one_token(config) if axis == ONE_TOKEN else config
    given = settings(lab) | {"optimizer": "muon", "seed": seed, "learning_rate": rate}
    found = recorded_defect(lab, AXES.get(axis, "none"), config, **given)
    norm, position = arm.split(", ")
    names = ("reported", "alone", "repaired", "parameters", "train_seconds")
    return {"arm": arm, "norm": norm, "position": position, "axis": axis, "seed": seed, "width": width} | {
        name: found[name] for name in names
    }


def axis_table(lab: Lab) -> pd.DataFrame:
    """Attention over the right axis and over the batch, for the published pico Transformers: one row a run.

    Columns arm ("pre, RoPE"), norm, position, axis (RIGHT, DEFECT, or ONE_TOKEN: a right model whose attention is cut
    to the current token), seed, width, and of `train_with` reported, alone, repaired (nats per token), parameters,
    train_seconds. "pre, RoPE" has all seeds of the plan and the cut model too, the other arms fewer seeds; widths
    other than 64 are of "pre, RoPE".
    """
    own, rates = plan(lab), muon_rates(lab)
    rows = []
    for arm in own.arms:
        rate = rates["absolute" if arm.endswith("absolute") else "RoPE"]
        seeds = own.seeds if arm == "pre, RoPE" else own.axis_seeds
        rows += [_axis_row(lab, arm, axis, seed, WIDTH, rate) for axis in AXES for seed in seeds]
    for width in (width for width in own.widths if width != WIDTH):
        rows += [_axis_row(lab, "pre, RoPE", a, s, width, rates["RoPE"]) for a in AXES for s in own.axis_seeds]
    rows += [_axis_row(lab, "pre, RoPE", ONE_TOKEN, seed, WIDTH, rates["RoPE"]) for seed in own.seeds]
    return pd.DataFrame(rows)


def logits_table(lab: Lab) -> pd.DataFrame:
    """LSTMs with and without an activation on their logits: columns arm ("right", "ReLU"), seed, rate, alone (nats).

    Each arm has the best of COUNTS_AND_LSTM, by a seed of its own; the quick profile tries none.
    """
    config, given = LSTMConfig(n_embd=32), settings(lab)
    rows = []
    for arm, defect in {"right": "none", "ReLU": "relu on logits"}.items():
        rate = LSTM_RATE
        if lab.profile.name != "quick":
            tried = {r: recorded_defect(lab, defect, config, learning_rate=r, seed=TUNING_SEED, **given)["alone"]
                     for r in COUNTS_AND_LSTM}  # fmt: skip
            rate = min(tried, key=tried.__getitem__)
        for seed in plan(lab).seeds:
            found = recorded_defect(lab, defect, config, learning_rate=rate, seed=seed, **given)
            rows.append({"arm": arm, "seed": seed, "rate": rate, "alone": found["alone"]})
    return pd.DataFrame(rows)


def kgram_runs(lab: Lab) -> dict[tuple[int, int], list[Run]]:
    """(k, offset) -> runs, one a seed, of pico k-grams with a learned embedding: offset 1 is the course's window."""
    given = settings(lab) | {"learning_rate": KGRAM_RATE}
    return {
        (k, offset): [lab.train(KGramConfig(k=k, n_embd=32, offset=offset), seed=s, **given) for s in plan(lab).seeds]
        for k in plan(lab).contexts
        for offset in (0, 1)
    }


def padding_table(lab: Lab) -> pd.DataFrame:
    """An LSTM trained on stories padded to a block whose padding is scored, by block: as many tokens an update in all.

    Columns block, seed, reported and reported_accuracy (padding scored), reported_text (nats per token of the same rows
    without padding: the starts of stories), alone (of whole stories).
    """
    given = settings(lab)
    tokens = given.pop("block_size") * given.pop("batch_size")
    rows = []
    for block in plan(lab).blocks:
        for seed in plan(lab).axis_seeds:
            sizes: dict[str, Any] = {"block_size": block, "batch_size": max(1, tokens // block)}
            found = recorded_defect(lab, "padding scored", LSTMConfig(n_embd=32), seed=seed, learning_rate=LSTM_RATE,
                                    **sizes, **given)  # fmt: skip
            names = ("reported", "reported_accuracy", "reported_text", "alone", "train_seconds")
            rows.append({"block": block, "seed": seed} | {name: found[name] for name in names})
    return pd.DataFrame(rows)


def by_seed(table: pd.DataFrame, value: str, **where: Any) -> list[float]:
    """One value a seed, in the order of seeds, of the rows in which every column of `where` has its value."""
    chosen = table
    for column, wanted in where.items():
        chosen = chosen[chosen[column] == wanted]
    return chosen.sort_values("seed")[value].tolist()


def spread(losses: Mapping[str, Sequence[float]]) -> list[float]:
    """The highest less the lowest of some arms, seed by seed: {arm: one value a seed} -> one value a seed."""
    return [max(values) - min(values) for values in zip(*losses.values(), strict=True)]
