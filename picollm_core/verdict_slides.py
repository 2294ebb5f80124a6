"""All verdicts in one list: those on the slides' claims, and those of the studies of notebooks 13 to 16."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from picollm_core.claims import CLAIMS
from picollm_core.config import require
from picollm_core.contrasts import Contrast
from picollm_core.custom_claims import claims_custom
from picollm_core.defect_claims import claims_defects
from picollm_core.hyper_claims import claims_hyperparameters
from picollm_core.hyper_design import FAMILIES
from picollm_core.hyper_effects import design_table
from picollm_core.hyper_study import QUICK, STANDARD, activation_arms, confounded_arms, design_runs, one_at_a_time
from picollm_core.lab import Lab
from picollm_core.overfit_study import claims_overfitting
from picollm_core.scaling_claims import claims_scaling
from picollm_core.verdict_decoding import claims_decoding
from picollm_core.verdict_evidence import spoken
from picollm_core.verdict_families import claims_families
from picollm_core.verdict_kgrams import claims_kgrams
from picollm_core.verdict_positions import claims_positions
from picollm_core.verdict_sizes import claims_sizes
from picollm_core.verdicts import Verdict

Study = Callable[[Lab], list[Verdict]]
DESIGN_COLUMNS = (
    "n_embd", "block_size", "batch_size", "n_layer", "relative_rate", "k", "n_head", "parameters", "steps",
    "tokens_per_second", "train_seconds", "grad_norm_mean", "train_loss", "accuracy", "perplexity", "nll",
)  # fmt: skip
"""Settings and results of the random design that notebook 15 correlates."""
BATCH, WINDOW, WEIGHTS = (
    "attention over the batch axis",
    "k-gram window one token early",
    "one-hot and embedded inputs called equally large",
)
MADE_BY: dict[str, tuple[str, tuple[str, ...]]] = {
    "lstm-best-at-pico": (BATCH, ("LSTM less Transformer",)),
    "minimal-variance-norm-position": (BATCH, ("highest less lowest",)),
    "transformer-larger-quicker": (BATCH, ("width",)),
    "transformer-greedy-collapses": (BATCH, ("loss of one story",)),
    "kgram-highest-perplexity": (WINDOW, ("loss at k",)),
    "kgram-richest-diversity": (WINDOW, ("distinct-2",)),
    "kgram-incoherent-at-any-p": (WINDOW, ("loss at k",)),
    "onehot-lower": (WEIGHTS, ("weights",)),
    "onehot-gap-grows-with-k": (WEIGHTS, ("weights",)),
}
"""Claim -> the defect behind it, and how the rows of defect_study.defect_table begin that show it switched on."""


def claims_hyper(lab: Lab) -> list[Verdict]:
    """The verdicts of notebook 15, from its runs."""
    plan = QUICK if lab.profile.name == "quick" else STANDARD
    arms = {family: one_at_a_time(lab, family, plan) for family in FAMILIES}
    rates = {family: own[0].rate for family, own in arms.items()}
    runs = design_runs(lab, rates, plan)
    grids = {family: activation_arms(lab, family, rates[family], plan) for family in ("kgram", "transformer")}
    three = confounded_arms(lab, "lstm", rates["lstm"], plan)
    design = design_table(runs, rates)
    return claims_hyperparameters(arms, grids, three, design, runs, list(DESIGN_COLUMNS))


SLIDES: dict[str, Study] = {
    "sizes": claims_sizes,
    "k-grams": claims_kgrams,
    "norm and positions": claims_positions,
    "families": claims_families,
    "decoding": claims_decoding,
}
"""What this notebook measures itself."""
OTHERS: dict[str, Study] = {
    "scaling": claims_scaling,
    "hyperparameters": claims_hyper,
    "custom text": claims_custom,
    "overfitting": claims_overfitting,
    "defects": claims_defects,
}
"""What notebooks 13 to 16 measure, and the defects."""


def claims_slides(lab: Lab) -> list[Verdict]:
    """Verdicts on the slides' claims about sizes, k-grams, norm and positions, families and decoding.

    The quick profile judges the cheap ones alone, with one seed, and decides nothing.
    """
    return [found for study in SLIDES.values() for found in study(lab)]


def collect(lab: Lab, studies: Iterable[Study]) -> list[Verdict]:
    """The verdicts of several studies. ValueError when two of them judge the same claim."""
    found = [each for study in studies for each in study(lab)]
    names = [each.id for each in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    require(not twice, f"judged by two studies: {', '.join(twice)}; leave one of each out")
    return found


def with_defects(verdicts: Iterable[Verdict], table: pd.DataFrame) -> list[Verdict]:
    """The verdicts, with what the defect behind a claim does when it is switched on added to its cause.

    `table` is a defect_study.defect_table; claims that hold, and those without a known defect, stay as they are.
    """
    return [each if each.verdict == "holds" else replace(each, cause=each.cause + _shown(each.id, table))
            for each in verdicts]  # fmt: skip


def _shown(claim_id: str, table: pd.DataFrame) -> str:
    """A sentence with the measured effects of the defect behind a claim; empty without one, or without its rows."""
    defect, starts = MADE_BY.get(claim_id, ("", ()))
    rows = table[(table["defect"] == defect) & table["measured"].str.startswith(starts or ("\0",))]
    said = "; ".join(f"{row['measured']}: {spoken(_contrast(row), row['unit'])}" for _, row in rows.iterrows())
    return f". Defect behind it, switched on ({defect}): {said}" if said else ""


def _contrast(row: Mapping[str, Any]) -> Contrast:
    return Contrast(row["effect"], row["low"], row["high"], max(1, int(row["seeds"])))


def not_judged(verdicts: Sequence[Verdict]) -> list[str]:
    """The claims without a verdict, in the order of the list of claims."""
    done = {each.id for each in verdicts}
    return [name for name in CLAIMS if name not in done]


def tally(table: pd.DataFrame) -> pd.DataFrame:
    """Sources in rows, verdicts in columns, the number of claims in the cells; the last row and column are sums.

    `table` is a verdict_table. Raises ValueError for an empty one.
    """
    require(len(table) > 0, "the table of verdicts is empty; judge at least one claim")
    counts = pd.crosstab(table["source"], table["verdict"])
    words = [word for word in ("holds", "fails", "depends", "open") if word in counts]
    counts = counts.reindex(index=list(dict.fromkeys(table["source"])), columns=words)
    counts["all"] = counts.sum(axis="columns")
    counts.loc["all"] = counts.sum()
    return counts


def compute_spent(lab: Lab) -> tuple[int, float]:
    """How many runs the lab looked up or trained so far, and the sum of their training times in seconds."""
    names = {name.removeprefix("runs/").removesuffix(".json") for name in lab.used if name.startswith("runs/")}
    return len(names), sum(lab.store.load_run(name).summary["train_seconds"] for name in names)
