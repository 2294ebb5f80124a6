"""One-hot or scaled embeddings, and how much context: the slides' k-grams at equal width and at equal weights."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from picollm_core.config import KGramConfig
from picollm_core.contrasts import Contrast, equivalence, paired_contrast
from picollm_core.kgram_contrasts import PARAMETERS, WIDTH, Arm, judge_lower, kgram_contrasts
from picollm_core.lab import Lab
from picollm_core.models import build_model
from picollm_core.runs import Run
from picollm_core.samples import diversity
from picollm_core.verdict_arms import (
    COUNTS_AND_LSTM,
    Trained,
    kgram_family,
    kgram_sizes,
    online_curve,
    smoothed,
    tuned_runs,
)
from picollm_core.verdict_evidence import Evidence, concluded, paired, spoken, together, told
from picollm_core.verdicts import Verdict, Word, fingerprints

CONTEXTS, COLUMN = (1, 3, 5), 32
EQUAL = {(3, "onehot"): 16, (3, "scaled"): 48, (5, "onehot"): 11, (5, "scaled"): 54}
"""Widths at which a k-gram has the weights of the one with a learned table of width 32, at 4,096 tokens."""
SIX: tuple[Arm, ...] = tuple((k, name, COLUMN) for k in CONTEXTS for name in ("onehot", "scaled"))
"""The slides' six pico k-grams."""
DRAWN: dict[str, Any] = {
    "prompt": "Once upon a time, there was a very intelligent",
    "budget": 2_000,
    "max_new_tokens": 200,
}
DIVERSITY_MARGIN = 0.05
"""Difference in distinct-2 (a share of all 2-grams) that counts as hardly any."""
ALIKE = 0.1
"""Curves whose roughness differs by less than this share of it look alike."""
PUBLISHED = 3_200_000
"""Weights that the slides give for the pico k-gram, whatever its input and its k."""


def context_runs(lab: Lab) -> dict[Arm, list[Run]]:
    """The k-grams of notebook 02: 300 updates of 16 x 256 tokens, each at the best of three rates, one run a seed."""

    def train(arm: Arm, rate: float, **rest: Any) -> Run:
        k, embedding, width = arm
        given = {"k": k, "embedding": embedding, "n_embd": width, "learning_rate": rate, "max_steps": 300}
        return lab.train("kgram-pico", **given, **rest)

    arms = [(k, name, COLUMN) for k in CONTEXTS for name in ("learned", "onehot", "scaled")]
    found = {}
    for arm in arms + [(k, name, width) for (k, name), width in EQUAL.items()]:
        losses = {rate: train(arm, rate).summary["nll"] for rate in COUNTS_AND_LSTM}
        best = min(losses, key=lambda rate: losses[rate])
        found[arm] = [train(arm, best, seed=seed) for seed in lab.profile.seeds]
    return found


def context_table(runs: Mapping[Arm, Sequence[Run]]) -> pd.DataFrame:
    """`kgram_contrasts` of these runs: every comparison of inputs and of k, with Holm's correction."""
    losses = {arm: [run.summary["nll"] for run in own] for arm, own in runs.items()}
    weights = {arm: own[0].summary["parameters"] for arm, own in runs.items()}
    return kgram_contrasts(losses, weights, width=COLUMN, equal=EQUAL)


def _row(
    table: pd.DataFrame, what: str, compared: str, pairs: int, worst: Literal["highest", "last"] = "highest"
) -> tuple[str, Contrast]:
    """Where a comparison speaks least for "lower", and the contrast there; "last": at the largest k."""
    rows = table[(table["what"] == what) & (table["compared"] == compared)]
    row = rows.loc[rows["difference"].idxmax()] if worst == "highest" else rows.iloc[-1]
    return row["where"], Contrast(row["difference"], row["low"], row["high"], pairs, row["p"])


def _lower(table: pd.DataFrame, what: str, compared: str, contexts: Sequence[str] | None = None) -> Word:
    rows = table[(table["what"] == what) & (table["compared"] == compared)]
    return judge_lower(rows if contexts is None else rows[rows["where"].isin(contexts)])


def judge_inputs(table: pd.DataFrame, pairs: int, runs: Sequence[str]) -> list[Verdict]:
    """Verdicts on one-hot against scaled input, from a `context_table`: lower, and more so with a larger k."""
    what, grown, shared = "one-hot - scaled", "growth of one-hot - scaled", ["K = 3", "K = 5"]
    found = []
    for claim_id, kind, places, words in (
        ("onehot-lower", what, shared, "one-hot less scaled, held-out loss"),
        ("onehot-gap-grows-with-k", grown, None, "change of (one-hot less scaled) with k"),
    ):
        word = {how: _lower(table, kind, how, places) for how in (WIDTH, PARAMETERS)}
        shown = {how: _row(table, kind, how, pairs, "last") for how in (WIDTH, PARAMETERS)}
        share = table[(table["what"] == what) & (table["compared"] == WIDTH)]["weights"].iloc[-1]
        where, effect = shown[PARAMETERS]
        cause = (
            f"at equal width it {told(word[WIDTH])}, {spoken(shown[WIDTH][1])}, where one-hot input has {share:.1f} "
            f"times the weights; at equal weights it {told(word[PARAMETERS])}, {spoken(effect)}. The slides call these "
            "models equal in weights"
        )
        found.append(
            concluded(claim_id, f"{words}, {where}, at equal weights; at equal width beside it", effect,
                      together(*word.values()), unit="nats per token", runs=runs, cause=cause)
        )  # fmt: skip
    return found


def judge_context(
    table: pd.DataFrame, loss: Mapping[Arm, Sequence[float]], short: Mapping[int, Sequence[float]], runs: Sequence[str]
) -> list[Verdict]:
    """Verdicts on k: the loss falls with it, and k = 5 with one-hot input is the best of six.

    `loss` has one value a seed for the arms of `context_runs`; `short` the losses of one-hot input at two k after a
    training of a quarter of the tokens, to see whether the order depends on how much text was read.
    """
    steps = table[table["what"].isin(("more context, one-hot", "more context, scaled")) & (table["compared"] == WIDTH)]
    word = together(*(judge_lower(steps.iloc[[row]]) for row in range(len(steps))))
    weakest = steps.loc[steps["difference"].idxmax()]
    pairs = len(loss[SIX[0]])
    where = f"{weakest['what'].partition(', ')[2]}, {weakest['where']}"
    shown = Contrast(weakest["difference"], weakest["low"], weakest["high"], pairs, weakest["p"])
    said = "; ".join(f"{row['what'].partition(', ')[2]} {row['where']} {row['difference']:+.3f}"
                     for _, row in steps.iterrows())  # fmt: skip
    cause = f"on the step and on the input: {said} nats"
    early = paired(short[max(short)], short[min(short)])
    cause += (
        f"; with a quarter of the tokens, one-hot K = {max(short)} - K = {min(short)} is {spoken(early)}: "
        "more tables need more text"
    ) * (early.mean > 0)
    what = f"held-out loss, one-hot and scaled at width 32, 1.2M tokens read; {where}"
    rising = concluded("k-lowers-loss", what, shown, word, unit="nats per token", runs=runs, cause=cause)
    best = (5, "onehot", COLUMN)
    wide = Evidence({str(arm): paired(loss[best], loss[arm]) for arm in SIX if arm != best})
    fair_best = (5, "onehot", EQUAL[5, "onehot"])
    fair = [(k, name, EQUAL.get((k, name), COLUMN)) for k, name, _ in SIX]
    equal = Evidence({str(arm): paired(loss[fair_best], loss[arm]) for arm in fair if arm != fair_best})
    word_wide, word_fair = wide.word(list(wide.contrasts), "below"), equal.word(list(equal.contrasts), "below")
    arm, effect = wide.weakest(list(wide.contrasts), "below")
    other, least = equal.weakest(list(equal.contrasts), "below")
    wide_said, fair_said = f"at width 32 less {arm}", f"at equal weights less {other}"
    what, shown = (fair_said, least) if least.mean > effect.mean else (wide_said, effect)
    top = concluded(
        "k5-onehot-best",
        f"k = 5 one-hot less its closest rival of the other five (k, input, width), held-out loss: {what}",
        shown,
        together(word_wide, word_fair),
        unit="nats per token",
        runs=runs,
        cause=f"at equal width it {told(word_wide)}, {spoken(effect)} nats against {arm}; at equal weights it "
        f"{told(word_fair)}, {spoken(least)} nats against {other}",
    )
    return [rising, top]


def roughness(run: Run) -> float:
    """How rough a loss curve is: RMS of the second differences of its logged points from a tenth of the training on.

    Nats per token. Arms of equal seed share their batches, so the batches' own noise is the same in both.
    """
    losses = _late(run)
    return float(np.sqrt(np.mean(np.diff(losses, n=2) ** 2)))


def bend(run: Run) -> float:
    """How far a loss curve bends: RMS distance of its smoothed points from the best parabola in log updates (nats)."""
    steps, _ = online_curve(run)
    late = smoothed(_late(run), 3)
    places = np.log(steps[steps > 0.1 * steps[-1]])
    return float(np.sqrt(np.mean((late - np.polyval(np.polyfit(places, late, 2), places)) ** 2)))


def _late(run: Run) -> NDArray[np.float64]:
    steps, losses = online_curve(run)
    return losses[steps > 0.1 * steps[-1]]


def judge_smoothness(runs: Mapping[Arm, Sequence[Run]], names: Sequence[str]) -> Verdict:
    """The verdict on "scaled curves are smoother, one-hot curves bend": roughness and bend, scaled less one-hot."""
    found = {}
    for kind, measure in (("roughness", roughness), ("bend", bend)):
        for k in CONTEXTS:
            one, other = (([measure(run) for run in runs[k, name, COLUMN]]) for name in ("scaled", "onehot"))
            found[f"{kind}, k = {k}"] = paired(one, other)
    evidence = Evidence(found)
    by_kind = {kind: [f"{kind}, k = {k}" for k in CONTEXTS] for kind in ("roughness", "bend")}
    words = {kind: evidence.word(own, "below") for kind, own in by_kind.items()}
    name, shown = evidence.weakest(by_kind["roughness"], "below")
    size = float(np.mean([roughness(run) for run in runs[5, "onehot", COLUMN]]))
    alike = equivalence(*(found[name] for name in by_kind["roughness"]), margin=ALIKE * size)
    if words["roughness"] == "open" and alike == "holds":
        words["roughness"] = "fails"
    bent = ", ".join(f"k = {k} {spoken(found[f'bend, k = {k}'])}" for k in CONTEXTS)
    cause = (
        f"by roughness it {told(words['roughness'])} ({spoken(shown)} nats where a one-hot curve has {size:.3f}, "
        f"most of it the noise of the batches, which both share); by the bend it {told(words['bend'])} ({bent})"
    )
    what = f"scaled less one-hot, second differences of the loss curve, {name[11:]}"
    word = together(*words.values())
    return concluded("scaled-curves-smoother", what, shown, word, unit="nats per token", runs=names, cause=cause)


def distinct_values(lab: Lab, runs: Mapping[Arm, Sequence[Run]]) -> dict[Arm, list[float]]:
    """distinct-2 in 2,000 tokens, top-p 0.95, of the slides' six pico k-grams, one value a seed."""
    return {arm: [_distinct(lab, run) for run in runs[arm]] for arm in SIX}


def _distinct(lab: Lab, run: Run) -> float:
    found = lab.measure("diversity", lambda: diversity(run.load_model(), run.load_tokenizer(), **DRAWN),
                        run=run.fingerprint, **DRAWN)  # fmt: skip
    return float(found["distinct_2"])


def judge_diversity(found: Mapping[Arm, Sequence[float]], names: Sequence[str]) -> Verdict:
    """The verdict on "k and embedding hardly change the diversity": every pair of the six within the margin."""
    pairs = {f"{a[:2]} less {b[:2]}": paired_contrast(found[a], found[b])
             for i, a in enumerate(SIX) for b in SIX[i + 1 :]}  # fmt: skip
    name = max(pairs, key=lambda name: abs(pairs[name].mean))
    word = equivalence(*pairs.values(), margin=DIVERSITY_MARGIN)
    within = sum(abs(c.mean) < DIVERSITY_MARGIN for c in pairs.values())
    what = f"distinct-2 in 2,000 tokens, each pair of six within {DIVERSITY_MARGIN:g}; widest: {name} (k, input)"
    cause = (
        f"{within} of {len(pairs)} pairs differ by less than {DIVERSITY_MARGIN:g}, the widest by {spoken(pairs[name])}"
    )
    return concluded("kgram-diversity-varies-little", what, pairs[name], word, unit="share of 2-grams", runs=names,
                     cause=cause)  # fmt: skip


def judge_shrinking(trained: Trained) -> Verdict:
    """The verdict on "one-hot's advantage shrinks with size": scaled less one-hot, tiny less pico, k = 3."""
    losses = trained.losses()

    def gap(size: str, kind: str) -> list[float]:
        return [b - a for a, b in zip(losses[f"{size} one-hot{kind}"], losses[f"{size} scaled{kind}"], strict=True)]

    kinds = {"width": "", "weights": ", equal"}
    leads = {(size, how): paired(gap(size, kind), [0.0] * len(gap(size, kind)))
             for size in ("pico", "tiny") for how, kind in kinds.items()}  # fmt: skip
    evidence = Evidence({how: paired(gap("tiny", kind), gap("pico", kind)) for how, kind in kinds.items()})
    word = evidence.word(["width"], "below")
    none = leads["pico", "weights"].high < 0
    said = "; ".join(f"{size} at equal {how} {spoken(lead)}" for (size, how), lead in leads.items())
    cause = f"one-hot's lead over scaled (above 0: one-hot is better): {said}"
    if word == "holds" and none:
        word = "depends"
        cause = f"at equal weights there is no lead that could shrink; {cause}"
    return concluded("onehot-gap-shrinks-with-size", "lead of one-hot over scaled at tiny less that at pico, k = 3, "
                     "equal width, 0.3M tokens read", evidence.contrasts["width"], word, unit="nats per token",
                     runs=fingerprints(*trained.runs.values()), cause=cause)  # fmt: skip


def kgram_weights(vocab_size: int = 50_257) -> dict[str, int]:
    """Exact weights of the slides' pico k-grams, by k and input; the models are built without memory for them."""
    found = {}
    with torch.device("meta"):
        for k, name, width in SIX:
            config = KGramConfig(vocab_size=vocab_size, n_embd=width, n_layer=1, k=k, embedding=name)  # type: ignore[arg-type]
            found[f"k = {k}, {name}"] = build_model(config).num_parameters()
    return found


def judge_weights(counts: Mapping[str, int], record: str) -> Verdict:
    """The verdict on "one-hot and scaled have 3.2M weights alike": exact counts, no statistics; `record` names them."""
    ratio = {k: counts[f"k = {k}, onehot"] / counts[f"k = {k}, scaled"] for k in CONTEXTS}
    alike = [k for k in CONTEXTS if abs(ratio[k] - 1) < 0.02 and abs(counts[f"k = {k}, onehot"] / PUBLISHED - 1) < 0.05]
    said = "; ".join(f"{name} {count:,}" for name, count in counts.items())
    word: Word = "holds" if len(alike) == len(CONTEXTS) else "fails"
    return Verdict(
        "equal-parameters-3.2M",
        "exact weights at 50,257 tokens and width 32: one-hot over scaled at k = 5",
        ratio[5],
        None,
        "ratio",
        (record,),
        word,
        f"{said}; one-hot input has a table for each place of the window, so they are alike at k = "
        f"{', '.join(map(str, alike)) or 'none'} alone",
    )


def claims_kgrams(lab: Lab) -> list[Verdict]:
    """Verdicts on the slides' claims about k-grams; in the quick profile on the exact counts alone."""
    counts = lab.measure("weights of k-grams", kgram_weights, vocabulary=50_257)
    found = [judge_weights(counts, lab.used[-1])]
    if lab.profile.name == "quick":
        return found
    runs, sizes = context_runs(lab), tuned_runs(lab, kgram_sizes(), COUNTS_AND_LSTM)
    table, names = context_table(runs), fingerprints(*runs.values())
    six = fingerprints(*(runs[arm] for arm in SIX))
    losses = {arm: [run.summary["nll"] for run in own] for arm, own in runs.items()}
    five = tuned_runs(lab, {"k = 5": kgram_family()["k-gram, one-hot"]}, COUNTS_AND_LSTM)
    short = {3: sizes.losses()["pico one-hot"], 5: five.losses()["k = 5"]}
    quarter = (*names, *fingerprints(sizes.runs["pico one-hot"], five.runs["k = 5"]))
    return [
        *found,
        *judge_inputs(table, len(lab.profile.seeds), names),
        *judge_context(table, losses, short, quarter),
        judge_smoothness(runs, six),
        judge_diversity(distinct_values(lab, runs), six),
        judge_shrinking(sizes),
    ]
