"""Do larger models converge quicker and end lower? Sizes of one family at equal tokens, and what seconds change."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd

from picollm_core.config import ModelConfig
from picollm_core.contrasts import Contrast
from picollm_core.lab import Lab
from picollm_core.preset_study import update_seconds
from picollm_core.runs import Run
from picollm_core.tuning import tune
from picollm_core.verdict_arms import (
    COUNTS_AND_LSTM,
    TRANSFORMERS,
    Trained,
    early_loss,
    kgram_sizes,
    lstm_sizes,
    online_curve,
    smoothed,
    transformer_sizes,
    tuned_runs,
    updates_to,
)
from picollm_core.verdict_evidence import Evidence, concluded, paired, spoken, together, told
from picollm_core.verdicts import Verdict, fingerprints

Pairs = Sequence[tuple[str, str]]
"""(smaller, larger) arms."""
LONGER: Pairs = [("pico", "tiny")]
PROMPT = "Once upon a time, there was a very intelligent"
"""That of the samples in notebook 05, which is part of its runs' identity."""


def neighbours(names: Sequence[str]) -> Pairs:
    """Every size with the next larger one."""
    return list(pairwise(names))


def update_times(lab: Lab, trained: Trained, rounds: int = 12) -> dict[str, float]:
    """Arm -> median seconds of an update on this machine, all arms in turn, so that other work slows all alike."""
    models: dict[str, ModelConfig] = {name: runs[0].config.model for name, runs in trained.runs.items()}
    train = next(iter(trained.runs.values()))[0].config.train
    found = lab.measure(
        "verdict update time",
        lambda: update_seconds(models, train, rounds),
        rounds=rounds,
        models=[model.fingerprint() for model in models.values()],
        batch_size=train.batch_size,
    )
    return {name: statistics.median(found[name]) for name in models}


def _target(run: Run) -> float:
    """The loss at which a run ends: its smoothed loss on unseen text at the last point."""
    return float(smoothed(online_curve(run)[1], 3)[-3:].mean())


def catching_up(smaller: Run, larger: Run) -> tuple[float, float]:
    """Updates after which either run has the loss with which the smaller one ends, the whole training where never."""
    target, whole = _target(smaller), float(online_curve(smaller)[0][-1])
    return min(updates_to(smaller, target), whole), min(updates_to(larger, target), whole)


def size_evidence(trained: Trained, pairs: Pairs, times: Mapping[str, float]) -> Evidence:
    """Larger less smaller for each pair: early and final loss, updates and time to the smaller one's final loss.

    Keys are "early", "end", "updates" and "time", each with ": larger - smaller". Losses in nats per token; updates and
    time are logarithms to base 2 of the ratio, so -1 is half as many.
    """
    found: dict[str, Contrast] = {}
    for small, large in pairs:
        first, second, name = trained.runs[large], trained.runs[small], f"{large} - {small}"
        found[f"early: {name}"] = paired([early_loss(r) for r in first], [early_loss(r) for r in second])
        found[f"end: {name}"] = paired([r.summary["nll"] for r in first], [r.summary["nll"] for r in second])
        reached = [catching_up(s, b) for s, b in zip(second, first, strict=True)]
        ratios = [float(np.log2(late / soon)) for soon, late in reached]
        found[f"updates: {name}"] = paired(ratios, [0.0] * len(ratios))
        slower = float(np.log2(times[large] / times[small]))
        found[f"time: {name}"] = paired([ratio + slower for ratio in ratios], [0.0] * len(ratios))
    return Evidence(found)


def _named(pairs: Pairs, *kinds: str) -> list[str]:
    return [f"{kind}: {large} - {small}" for kind in kinds for small, large in pairs]


def judge_quicker(
    claim_id: str,
    evidence: Evidence,
    pairs: Pairs,
    times: Mapping[str, float],
    runs: Sequence[str],
    *,
    lower: bool,
    longer: Evidence | None = None,
) -> Verdict:
    """The verdict on "larger converges quicker" (and, with `lower`, "and ends lower"), counted in tokens and in time.

    Quicker in tokens: a lower loss early on, and fewer updates to the loss with which the smaller one ends. `longer`
    has the contrasts of pico and tiny after one pass over the text, which are a second reading.
    """
    kinds = ("early", "updates", *(("end",) if lower else ()))
    brief = evidence.word(_named(pairs, *kinds), "below")
    whole = brief if longer is None else longer.word(_named(LONGER, *kinds), "below")
    by_tokens = together(brief, whole)
    by_time = evidence.word(_named(pairs, "time"), "below")
    name, shown = evidence.weakest(_named(pairs, "early"), "below")
    clock = "; ".join(
        f"{large} against {small}: an update takes {times[large] / times[small]:.1f} times as long, and the smaller "
        f"one's final loss {2 ** evidence.contrasts[f'time: {large} - {small}'].mean:.2f} times"
        for small, large in pairs
    )
    what = f"loss on unseen text between a tenth and a quarter of the training, equal tokens, {name[7:]}"
    ends = "".join(f"; at the end {spoken(evidence.contrasts[n])}" for n in _named(pairs, "end")) if lower else ""
    cause = f"by tokens the claim {told(brief)}, by time it {told(by_time)}. {clock}"
    if longer is not None:
        found = ", ".join(f"{kind} {spoken(longer.contrasts[_named(LONGER, kind)[0]])}" for kind in ("early", "end"))
        seeds = longer.contrasts[_named(LONGER, "end")[0]].pairs
        cause += f". After one pass over the text ({seeds} seeds) it {told(whole)} by tokens: {found}"
    word = together(by_tokens, by_time) if by_tokens == "holds" else by_tokens
    return concluded(claim_id, what + ends, shown, word, unit="nats per token", runs=runs, cause=cause)


def with_edges(verdict: Verdict, trained: Trained) -> Verdict:
    """The verdict, with the arms whose best rate stands at the end of the grid named in its cause."""
    edges = trained.edges()
    said = f"{verdict.cause}. Best rate at the end of the grid: {', '.join(edges)}"
    return replace(verdict, cause=said) if edges else verdict


def judge_lower(claim_id: str, evidence: Evidence, pairs: Pairs, runs: Sequence[str]) -> Verdict:
    """The verdict on "larger ends lower"."""
    names = _named(pairs, "end")
    name, shown = evidence.weakest(names, "below")
    others = ", ".join(f"{n[5:]} {spoken(evidence.contrasts[n])}" for n in names)
    what, word = f"held-out loss at the end, equal tokens, {name[5:]}", evidence.word(names, "below")
    return concluded(claim_id, what, shown, word, unit="nats per token", runs=runs, cause=f"measured: {others}")


def pass_runs(lab: Lab, family: str) -> Trained:
    """Pico and tiny presets of a family after one pass over the text, as notebook 05 trained them: three seeds each."""
    tuned = {size: tune(lab, family, size) for size in ("pico", "tiny")}
    rates = {size: min(losses, key=lambda rate: losses[rate]) for size, losses in tuned.items()}
    given = {"prompt": PROMPT, "max_steps": 640, "eval_every": 80}
    runs = {
        size: [lab.train(f"{family}-{size}", learning_rate=rate, seed=seed, **given) for seed in lab.profile.seeds[:3]]
        for size, rate in rates.items()
    }
    return Trained(runs, pd.DataFrame.from_dict(tuned, orient="index"), rates)


def claims_sizes(lab: Lab) -> list[Verdict]:
    """Verdicts on the slides' claims about size; in the quick profile about the LSTM alone."""
    studies: list[tuple[str, str, Trained, Pairs]] = [
        ("lstm-larger-quicker", "lstm", tuned_runs(lab, lstm_sizes(), COUNTS_AND_LSTM), [("pico", "tiny")])
    ]
    if lab.profile.name != "quick":
        inputs = [(f"pico {name}", f"tiny {name}") for name in ("one-hot", "scaled")]
        studies += [
            ("kgram-larger-quicker", "kgram", tuned_runs(lab, kgram_sizes(), COUNTS_AND_LSTM), inputs),
            ("transformer-larger-quicker", "transformer", tuned_runs(lab, transformer_sizes(), TRANSFORMERS),
             [("pico", "tiny")]),
        ]  # fmt: skip
    found = []
    for claim_id, family, trained, pairs in studies:
        times, longer = update_times(lab, trained), None
        runs = fingerprints(*(trained.runs[name] for pair in pairs for name in pair))
        evidence = size_evidence(trained, pairs, times)
        if lab.profile.name != "quick":
            whole = pass_runs(lab, family)
            longer = size_evidence(whole, LONGER, {"pico": 1.0, "tiny": 1.0})
            runs = fingerprints(*(trained.runs[name] for pair in pairs for name in pair), *whole.runs.values())
        lower = family != "lstm"  # of the LSTM, lower is a claim of its own
        verdict = judge_quicker(claim_id, evidence, pairs, times, runs, lower=lower, longer=longer)
        found.append(with_edges(verdict, trained))
        if not lower:
            found.append(judge_lower("lstm-larger-lower", evidence, pairs, runs))
    return found
