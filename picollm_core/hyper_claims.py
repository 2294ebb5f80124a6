"""Verdicts on what others concluded about hyperparameters, each computed from the study's runs."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pandas as pd

from picollm_core.contrasts import Contrast, equivalence, paired_contrast, verdict
from picollm_core.figure_style import FAMILY_LABELS
from picollm_core.hyper_design import BASE
from picollm_core.hyper_design_claims import (
    LAST_BATCH,
    judge_context_of_lstm,
    judge_correlation,
    judge_design,
    judge_residuals,
)
from picollm_core.hyper_effects import paired
from picollm_core.hyper_study import Arm
from picollm_core.runs import Run
from picollm_core.verdicts import Verdict, Word, fingerprints

MARGIN = 0.01
"""Nats per token below which a difference counts as none: 1% of perplexity."""


def several(contrasts: Sequence[Contrast], claim: str, margin: float = MARGIN) -> Word:
    """The verdict of a claim about several places: it holds in all, in none, or depends on the place.

    "depends" where it holds in one place and is refuted in another; "fails" where it is refuted somewhere and holds
    nowhere, and where all differences are smaller than `margin` by their whole intervals; else "open".
    """
    words = [verdict(c, claim=claim) for c in contrasts]  # type: ignore[arg-type]
    if set(words) == {"holds"}:
        return "holds"
    if "fails" in words:
        return "depends" if "holds" in words else "fails"
    return "fails" if equivalence(*contrasts, margin=margin) == "holds" else "open"


def _spoken(found: Mapping[str, Contrast]) -> str:
    return "; ".join(f"{name} {contrast}" for name, contrast in found.items())


def _interval(contrast: Contrast) -> tuple[float, float] | None:
    return None if contrast.pairs == 1 else (contrast.low, contrast.high)


def _mean_over(pairs: Sequence[tuple[Arm, Arm]]) -> Contrast:
    """The difference first - second, averaged over the places for each seed, over paired seeds."""
    seeds = [seed for seed in pairs[0][0].values() if all(seed in arm.values() for pair in pairs for arm in pair)]
    first, second = (
        [statistics.fmean(pair[side].values()[seed] for pair in pairs) for seed in seeds] for side in (0, 1)
    )
    return paired_contrast(first, second)


def _runs(arms: Sequence[Arm]) -> tuple[str, ...]:
    return fingerprints(*(arm.runs for arm in arms))


def judge_widths(arms: Mapping[str, Sequence[Arm]]) -> Verdict:
    """larger-embeddings-dominate: every doubling of the width of k-gram and Transformer, each at its own best rate."""
    pairs: dict[str, tuple[Arm, Arm]] = {}
    for family in ("kgram", "transformer"):
        by_width = {
            arm.runs[0].config.model.n_embd: arm for arm in arms[family] if arm.label.startswith(("base", "width"))
        }
        for small, large in pairwise(sorted(by_width)):
            pairs[f"{FAMILY_LABELS[family]} {large} - {small}:"] = by_width[large], by_width[small]
    found = {name: paired(*pair) for name, pair in pairs.items()}
    mean = _mean_over(list(pairs.values()))
    return Verdict(
        "larger-embeddings-dominate",
        "twice the width, equal tokens, learning rate tuned for each width: mean of "
        + ", ".join(name.rstrip(":") for name in pairs),
        mean.mean, _interval(mean), "nats per token", _runs([arm for pair in pairs.values() for arm in pair]),
        several(list(found.values()), "below"), f"each doubling: {_spoken(found)}",
    )  # fmt: skip


def judge_activations(grids: Mapping[str, Mapping[tuple[int, str], Arm]]) -> Verdict:
    """gelu-beats-relu: GELU less ReLU at every width of k-gram and Transformer, each at its own best rate."""
    pairs = {
        f"{FAMILY_LABELS[family]} {width}:": (grid[width, "gelu"], grid[width, "relu"])
        for family, grid in grids.items()
        for width in sorted({width for width, _ in grid})
    }
    found = {name: paired(*pair) for name, pair in pairs.items()}
    mean = _mean_over(list(pairs.values()))
    cause = (
        f"GELU - ReLU by family and width: {_spoken(found)}; less than {MARGIN:g} nats would count as none; an LSTM "
        "has no such activation, and one put on its logits, as there, is a defect"
    )
    return Verdict(
        "gelu-beats-relu", "GELU - ReLU at equal width and tokens, each at its own best rate, mean over the places",
        mean.mean, _interval(mean), "nats per token", _runs([arm for pair in pairs.values() for arm in pair]),
        several(list(found.values()), "below"), cause,
    )  # fmt: skip


def judge_families(arms: Mapping[str, Sequence[Arm]]) -> Verdict:
    """transformer-lowest-perplexity-highest-accuracy: the bases of equal width, tokens and tuning, in both measures."""
    bases = {family: own[0] for family, own in arms.items()}
    others = [family for family in bases if family != "transformer"]
    loss = {f"- {FAMILY_LABELS[f]}": paired(bases["transformer"], bases[f]) for f in others}
    # less accuracy is worse: turned round, so that all four claims point the same way
    accuracy = [paired(bases[f], bases["transformer"], "accuracy") for f in others]
    best = min(others, key=lambda f: statistics.fmean(bases[f].values().values()))
    found = paired(bases["transformer"], bases[best])
    shares = ", ".join(
        f"{FAMILY_LABELS[f]} {statistics.fmean(b.values('accuracy').values()):.1%}" for f, b in bases.items()
    )
    tokens = bases["transformer"].runs[0].summary["tokens_seen"]
    return Verdict(
        "transformer-lowest-perplexity-highest-accuracy",
        f"Transformer - {FAMILY_LABELS[best]}, the better of the others, at width {BASE['transformer'].n_embd}, "
        f"one layer, {tokens:,} tokens, each family at its own best rate",
        found.mean, _interval(found), "nats per token", _runs(list(bases.values())),
        several([*loss.values(), *accuracy], "below"),
        f"Transformer {_spoken(loss)}; accuracy {shares}; the order may change with the tokens seen. On the page, "
        f"accuracy came from the last training batch of {LAST_BATCH} tokens and perplexity from the training loss",
    )  # fmt: skip


def judge_three(arms: Mapping[str, Arm]) -> Verdict:
    """three-configs-ranking: does every choice alone go the way of the configurations that changed all three?"""
    joint = paired(arms["large"], arms["small"])
    alone = {
        "width": paired(arms["width 64"], arms["width 16"]),
        "block size": paired(arms["block 128"], arms["block 32"]),
        "learning rate": paired(arms["twice the rate"], arms["half the rate"]),
    }
    word = several(list(alone.values()), "below" if joint.mean < 0 else "above")
    against = [name for name, c in alone.items() if c.mean * joint.mean < 0]
    return Verdict(
        "three-configs-ranking", "large - small configuration of an LSTM (width x 4, block x 4, rate x 4 at once)",
        joint.mean, _interval(joint), "nats per token", _runs(list(arms.values())),
        "depends" if word == "fails" else word,
        f"all three at once {joint}; alone {_spoken(alone)}; against the ranking: {', '.join(against) or 'none'}. One "
        "ranking of three runs cannot tell which of three choices made it",
    )  # fmt: skip


def claims_hyperparameters(
    arms: Mapping[str, Sequence[Arm]],
    activations: Mapping[str, Mapping[tuple[int, str], Arm]],
    confounded: Mapping[str, Arm],
    table: pd.DataFrame,
    runs: Sequence[Run],
    columns: Sequence[str],
) -> list[Verdict]:
    """The eight verdicts on claims about hyperparameters.

    `arms` are those of one_at_a_time for each family, `activations` of activation_arms, `confounded` of
    confounded_arms, `table` the comparison_table of the random design's `runs`, `columns` its numbers that may be
    correlated with the loss.
    """
    return [
        judge_widths(arms),
        judge_context_of_lstm(table, runs),
        judge_activations(activations),
        judge_correlation(table, runs, columns),
        judge_design(table, runs),
        judge_residuals(table, runs),
        judge_families(arms),
        judge_three(confounded),
    ]
