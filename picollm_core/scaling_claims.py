"""What a talk concluded about size and data, put to the test: flattening, hunger for data, room for differences."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from picollm_core.config import require
from picollm_core.contrasts import Contrast, paired_contrast, verdict
from picollm_core.lab import Lab
from picollm_core.plots import require_columns
from picollm_core.scaling_study import CONSTANT, EARLY, Plan, study_plan, study_table, tune, whole_study
from picollm_core.verdicts import Verdict, Word, judged

FLAT = 0.05
"""Nats per token: a run that falls by less than this after EARLY of it counts as flat there."""
BASE_SIZE, STORIES_TOKENS = 110e6, 470e6
"""Parameters of the base models of the talk, and GPT-2 tokens in one pass over TinyStories, both about."""


def _own(table: pd.DataFrame, family: str, width: int, steps: int, change: str = "") -> pd.DataFrame:
    """The runs of one arm in the order of their seeds. ValueError when there is none."""
    require_columns(table, ["family", "width", "steps", "change", "seed", "nll"])
    chosen = (table["family"] == family) & (table["width"] == width) & (table["steps"] == steps)
    own = table[chosen & (table["change"] == change)].sort_values("seed")
    require(len(own) > 0, f"no run of {family}, width {width}, {steps} updates, change {change!r} in the table")
    return own


def falls(table: pd.DataFrame) -> pd.DataFrame:
    """How much held-out loss fell before and after EARLY of each run that was evaluated there: a row an arm.

    Columns: width, steps, change, parameters, epochs_like (tokens per parameter as a share of those that one pass over
    TinyStories gives a model of 110M), before and after (mean falls in nats per token; before counts from ln V), share
    (of the whole fall that lies after EARLY), low and high (Student's 95% interval of after; NaN for one seed), seeds.
    """
    seen = table[(table["family"] == "transformer") & table["early"].notna()]
    rows = []
    for (width, steps, change), own in seen.groupby(["width", "steps", "change"], sort=True):
        found = paired_contrast(own["early"].tolist(), own["last"].tolist())
        start = math.log(4_096)
        before = start - own["early"].mean()
        rows.append({
            "width": width, "steps": steps, "change": change, "parameters": own["parameters"].iloc[0],
            "epochs_like": (own["tokens"] / own["parameters"]).iloc[0] / (STORIES_TOKENS / BASE_SIZE),
            "before": before, "after": found.mean, "share": found.mean / (before + found.mean),
            "low": found.low, "high": found.high, "seeds": found.pairs,
        })  # fmt: skip
    return pd.DataFrame(rows)


def family_gaps(table: pd.DataFrame, width: int, budgets: Sequence[int]) -> dict[str, Contrast]:
    """Transformer minus LSTM at equal parameters (nats per token) at the first and the last budget, and what the gap
    gains from the first to the last: paired seeds."""
    few, many = min(budgets), max(budgets)
    loss = {
        (family, steps): _own(table, family, width, steps)["nll"].to_numpy()
        for family in ("transformer", "lstm")
        for steps in (few, many)
    }
    gaps = {steps: (loss["transformer", steps] - loss["lstm", steps]).tolist() for steps in (few, many)}
    zero = [0.0] * len(gaps[few])
    return {
        f"{few} updates": paired_contrast(gaps[few], zero),
        f"{many} updates": paired_contrast(gaps[many], zero),
        "gained": paired_contrast(gaps[few], gaps[many]),
    }


def change_effects(table: pd.DataFrame, widths: Sequence[int], steps: int) -> pd.DataFrame:
    """Loss of every changed run minus that of the plain run with the same seed: width, change, seed, effect (nats)."""
    parts = []
    for width in widths:
        plain = _own(table, "transformer", width, steps).set_index("seed")["nll"]
        changes = table.loc[(table["width"] == width) & (table["steps"] == steps), "change"]
        for change in [name for name in dict.fromkeys(changes) if name not in ("", CONSTANT)]:
            own = _own(table, "transformer", width, steps, change).set_index("seed")["nll"]
            effect = (own - plain).dropna()
            parts.append(
                pd.DataFrame({"width": width, "change": change, "seed": effect.index, "effect": effect.values})
            )
    require(len(parts) > 0, f"no changed run of widths {list(widths)} at {steps} updates in the table")
    return pd.concat(parts, ignore_index=True)


def _in_noise(effects: pd.DataFrame) -> float:
    """Root mean square over changes of their mean effect, over the standard deviation that seeds give an effect."""
    changes = effects.groupby("change")["effect"]
    return float(np.sqrt((changes.mean() ** 2).mean()) / np.sqrt(changes.var().mean()))


def _spread(effects: pd.DataFrame) -> float:
    return float(np.sqrt((effects.groupby("change")["effect"].mean() ** 2).mean()))


def spread_ratio(effects: pd.DataFrame, small: int, large: int, *, noise: bool = True) -> Contrast:
    """How many times as far the changes spread the loss at the small width as at the large one.

    With `noise` each spread is in units of the scatter that seeds give an effect, else in nats. The interval is
    Student's for the jackknife over seeds of the ratio's logarithm (Tukey 1958); `p_value` belongs to a ratio of 1.
    With one seed there is a ratio of nats alone and no interval, and in units of noise NaN.
    """
    measure = _in_noise if noise else _spread

    def log_ratio(rows: pd.DataFrame) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            return math.log(measure(rows[rows["width"] == small])) - math.log(measure(rows[rows["width"] == large]))

    seeds = sorted(set(effects["seed"]))
    whole, count = log_ratio(effects), len(seeds)
    if count < 3:  # leaving one out would leave one, which scatters in no way
        return Contrast(math.exp(whole), math.nan, math.nan, 1)
    pseudo = [count * whole - (count - 1) * log_ratio(effects[effects["seed"] != seed]) for seed in seeds]
    found = paired_contrast(pseudo, [0.0] * count)
    half = (found.high - found.low) / 2
    return Contrast(math.exp(whole), math.exp(whole - half), math.exp(whole + half), count, found.p_value)


def ratio_text(ratio: Contrast) -> str:
    """A ratio and its interval in brackets, where it has one."""
    return f"{ratio.mean:.2f}" + (f" ({ratio.low:.2f} to {ratio.high:.2f})" if ratio.pairs > 1 else "")


def _judge_flat(table: pd.DataFrame, width: int, steps: int, constant_steps: int) -> Verdict:
    cosine, constant = (
        _own(table, "transformer", width, steps),
        _own(table, "transformer", width, constant_steps, CONSTANT),
    )
    after = paired_contrast(cosine["early"].tolist(), cosine["last"].tolist())
    steady = paired_contrast(constant["early"].tolist(), constant["last"].tolist())
    rows = falls(table).set_index(["width", "steps", "change"])
    row = rows.loc[(width, steps, "")]
    wide = rows.loc[(table["width"].max(), steps, "")]
    cause = (
        f"of the whole fall from ln V only {row['share']:.0%} comes after {EARLY:g} of the run, so on a linear axis "
        f"the curve looks flat while it still falls; at a constant rate it falls by {steady.mean:.2f} nats, and in the "
        f"widest model ({wide['parameters'] / 1e6:.2f}M, one run) by {wide['after']:.2f}. None of 110M was trained: "
        f"this run reads {row['epochs_like']:.1f} times the tokens per parameter of one in a pass over TinyStories"
    )
    return judged(
        "base-flattens-before-0.3-epoch",
        f"fall of held-out loss after {EARLY:g} of a run of one pass; flat would be below {FLAT:g}",
        after,
        claim="below",
        bound=FLAT,
        unit="nats per token",
        runs=[*cosine["fingerprint"], *constant["fingerprint"]],
        cause=cause,
    )


def _standing(gap: Contrast) -> str:
    """Where the first of two models stands by its loss less that of the other."""
    return {"holds": "ahead", "fails": "behind", "open": "not clearly apart"}[verdict(gap, claim="below")]


def _judge_hunger(table: pd.DataFrame, width: int, budgets: Sequence[int]) -> Verdict:
    gaps = family_gaps(table, width, budgets)
    (few, first), (many, last), (_, gained) = gaps.items()
    behind, gains = verdict(first, claim="above"), verdict(gained, claim="above")
    word: Word = "holds" if behind == gains == "holds" else "fails" if "fails" in (behind, gains) else "open"
    fingerprints = [f for n in ("transformer", "lstm") for s in (min(budgets), max(budgets))
                    for f in _own(table, n, width, s)["fingerprint"]]  # fmt: skip
    cause = (
        f"at equal parameters Transformer minus LSTM is {first.mean:+.2f} nats after {few} and {last.mean:+.2f} after "
        f"{many}, both trained with Muon at rates of their own: the Transformer is {_standing(first)} with the least "
        f"data and {_standing(last)} with the most; other optimizers were not compared"
    )
    return Verdict(
        "transformers-need-more-data",
        f"(Transformer - LSTM) at {few} minus the same at {many}, equal parameters; above 0: more data help it more",
        gained.mean,
        None if gained.pairs == 1 else (gained.low, gained.high),
        "nats per token",
        tuple(fingerprints),
        word,
        "" if word == "holds" else cause,
    )


def _judge_room(table: pd.DataFrame, widths: Sequence[int], steps: int) -> Verdict:
    small, large = min(widths), max(widths)
    effects = change_effects(table, widths, steps)
    ratio, nats = (spread_ratio(effects, small, large, noise=noise) for noise in (True, False))
    sizes = [_own(table, "transformer", width, steps)["parameters"].iloc[0] for width in (small, large)]
    words: set[Word] = {verdict(each, claim="above", bound=1.0) for each in (ratio, nats)}
    word: Word = words.pop() if len(words) == 1 else "depends"
    known = ratio if ratio.pairs > 1 else nats
    in_nats = {width: _spread(effects[effects["width"] == width]) for width in (small, large)}
    most = effects.groupby("change")["effect"].mean().abs().idxmax()
    cause = (
        f"after {steps} updates the same changes, most of all {most}, spread the loss by {in_nats[small]:.2f} nats in "
        f"the small and by {in_nats[large]:.2f} in the large model: {ratio_text(nats)} times as far in nats, "
        f"but {ratio_text(ratio)} times in units of seeds' noise; models of 110M were not trained"
    )
    return Verdict(
        "small-models-show-differences",
        f"spread of loss over {effects['change'].nunique()} changes of hyperparameters in units of seeds' noise: "
        f"{sizes[0]:,} parameters over {sizes[1]:,}; above 1 as claimed",
        known.mean,
        None if known.pairs == 1 else (known.low, known.high),
        "ratio of spreads",
        tuple(table.loc[table["width"].isin(widths) & (table["steps"] == steps), "fingerprint"]),
        word,
        "" if word == "holds" else cause,
    )


def claims_scaling(lab: Lab) -> list[Verdict]:
    """Verdicts on the three claims about size and data, from the study's runs (trained where they are not known)."""
    plan = study_plan(lab)
    return judge_scaling(study_table(whole_study(lab, plan, tune(lab, plan))), plan)


def judge_scaling(table: pd.DataFrame, plan: Plan) -> list[Verdict]:
    """The verdicts that a table of `study_table` gives with the arms of `plan`.

    With one seed every claim is open. Raises ValueError for arms that the table lacks.
    """
    return [
        _judge_flat(table, plan.rival_width, max(plan.budgets), plan.constant_budget),
        _judge_hunger(table, plan.rival_width, plan.budgets),
        _judge_room(table, plan.changed_widths, min(plan.budgets)),
    ]
