"""Norm placement and positions of the slides' pico Transformers: loss, diversity, and how the two go together."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from picollm_core.arms import best_rates, train_arms, tune_arms
from picollm_core.config import ModelConfig, TransformerConfig
from picollm_core.contrasts import equivalence, paired_contrast
from picollm_core.lab import Lab
from picollm_core.runs import Run
from picollm_core.verdict_arms import Trained, position_arms, tuned_runs
from picollm_core.verdict_evidence import Evidence, concluded, spoken, together, told
from picollm_core.verdict_families import distinct
from picollm_core.verdicts import Verdict, fingerprints

Values = Mapping[str, Sequence[float]]
"""Arm -> one value a seed."""
MARGIN = 0.02
"""Nats per token that count as hardly any difference: 2% of perplexity."""
BEST = "pre, absolute"
LONGER: dict[str, Any] = {"block_size": 64, "batch_size": 32, "eval_every": 100}
SIX_RATES, LONGER_RATES = (0.003, 0.01), (0.001, 0.003, 0.01, 0.03)
BUDGET = 2_000
"""Tokens whose 2-grams are counted, of the six arms."""


def longer_arms() -> dict[str, ModelConfig]:
    """The Transformers of notebook 07 whose positions the slides compare: two layers of four heads, pre-norm."""
    kinds = {"pre, absolute": "absolute", "pre, RoPE": "rope", "pre, NoPE": "none"}
    return {
        name: TransformerConfig(n_embd=64, n_layer=2, n_head=4, position=position)  # type: ignore[arg-type]
        for name, position in kinds.items()
    }


def longer_runs(lab: Lab) -> dict[str, list[Run]]:
    """The runs of notebook 07: 600 updates of 32 x 64 tokens, four times as much text as the six arms read."""
    rates = best_rates(tune_arms(lab, longer_arms(), LONGER_RATES, steps=150, **LONGER))
    return train_arms(lab, longer_arms(), rates, lab.profile.seeds, max_steps=600, **LONGER)


def all_pairs(values: Values) -> Evidence:
    """Every pair of arms: first less second."""
    return Evidence({f"{a} less {b}": paired_contrast(values[a], values[b]) for a, b in combinations(values, 2)})


def widest(evidence: Evidence) -> str:
    """The name of the contrast with the largest mean, in either direction."""
    return max(evidence.contrasts, key=lambda name: abs(evidence.contrasts[name].mean))


def goes_with(losses: Values, varied: Values) -> float:
    """Spearman's rank correlation of loss and diversity over all runs of all arms."""
    from scipy import stats  # slow to import and needed nowhere else

    both = [np.concatenate([np.asarray(values[name], float) for name in losses]) for values in (losses, varied)]
    return float(stats.spearmanr(*both).statistic)


def judge_variance(six: Values, longer: Values, runs: Sequence[str]) -> Verdict:
    """The verdict on "norm and positions make hardly a difference": every pair of arms within the margin."""
    found, beyond = all_pairs(six), all_pairs(longer)
    words = [equivalence(*e.contrasts.values(), margin=MARGIN) for e in (found, beyond)]
    name, other = widest(found), widest(beyond)
    return concluded(
        "minimal-variance-norm-position",
        f"final loss, each pair of six arms at its own rate within {MARGIN:g}; widest: {name}",
        found.contrasts[name],
        together(*words),
        unit="nats per token",
        runs=runs,
        cause=f"positions alone, in two layers and four times the text: {other} {spoken(beyond.contrasts[other])}. "
        "Attention that runs over the batch sees no order, so positions could not matter there",
    )


def _positions(values: Values, place: str) -> dict[str, Any]:
    """absolute less RoPE, absolute less NoPE, RoPE less NoPE with the norm at `place`."""
    named = [f"{place}, {name}" for name in ("absolute", "RoPE", "NoPE")]
    return {
        f"{a} less {b.partition(', ')[2]}": paired_contrast(values[a], values[b]) for a, b in combinations(named, 2)
    }


def judge_positions(six: Values, longer: Values, losses: Values, runs: Sequence[str]) -> Verdict:
    """The verdict on "absolute positions give the most diverse text, NoPE the least", by distinct-2."""
    evidence = Evidence(_positions(six, "pre") | _positions(six, "post"))
    beyond = Evidence(_positions(longer, "pre"))
    words = [
        evidence.word([n for n in evidence.contrasts if n.startswith(place)], "above") for place in ("pre", "post")
    ]
    words.append(beyond.word(list(beyond.contrasts), "above"))
    names = list(evidence.contrasts)
    name, shown = evidence.weakest(names, "above")
    longest = "; ".join(f"{name} {spoken(found)}" for name, found in beyond.contrasts.items())
    return concluded(
        "absolute-most-diverse-nope-least",
        f"distinct-2 in {BUDGET:,} tokens, top-p 0.95: {name}",
        shown,
        together(*words),
        unit="share of 2-grams",
        runs=runs,
        cause=f"pre-norm: it {told(words[0])}; post-norm: it {told(words[1])}; pre-norm, four times the text: it "
        f"{told(words[2])} ({longest}). Diversity follows the loss more than the positions: over all runs their ranks "
        f"correlate with {goes_with(losses, six):+.2f}",
    )


def judge_best(losses: Values, varied: Values, runs: Sequence[str]) -> Verdict:
    """The verdict on "pre-norm with absolute positions has the lowest perplexity and the most diverse text"."""
    others = [name for name in losses if name != BEST]
    lower = Evidence({f"loss: {name}": paired_contrast(losses[BEST], losses[name]) for name in others})
    richer = Evidence({f"diversity: {name}": paired_contrast(varied[BEST], varied[name]) for name in others})
    words = {"loss": lower.word(list(lower.contrasts), "below"),
             "diversity": richer.word(list(richer.contrasts), "above")}  # fmt: skip
    name, shown = lower.weakest(list(lower.contrasts), "below")
    most, least = richer.weakest(list(richer.contrasts), "above")
    return concluded(
        "prenorm-absolute-best",
        f"final loss, pre-norm with absolute positions less {name.removeprefix('loss: ')}, which is closest or better",
        shown,
        "fails" if "fails" in words.values() else together(*words.values()),
        unit="nats per token",
        runs=runs,
        cause=f"lowest loss: it {told(words['loss'])}; most diverse: it {told(words['diversity'])}, "
        f"{spoken(least)} against {most.removeprefix('diversity: ')} (both are claimed)",
    )


def six_runs(lab: Lab) -> Trained:
    """The slides' six pico Transformers, each at its own learning rate."""
    return tuned_runs(lab, position_arms(), SIX_RATES)


def claims_positions(lab: Lab) -> list[Verdict]:
    """Verdicts on the slides' claims about norm and positions; none in the quick profile."""
    if lab.profile.name == "quick":
        return []
    six, longer = six_runs(lab), longer_runs(lab)
    losses = six.losses()
    beyond = {name: [run.summary["nll"] for run in own] for name, own in longer.items()}
    varied, more = distinct(lab, six.runs, 0.95, budget=BUDGET), distinct(lab, longer, 0.95, budget=10_000)
    few = fingerprints(*six.runs.values())
    many = tuple(sorted({*few, *fingerprints(*longer.values())}))
    return [
        judge_variance(losses, beyond, many),
        judge_positions(varied, more, losses, many),
        judge_best(losses, varied, few),
    ]
