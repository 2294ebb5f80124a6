"""Which family is best at pico size? Perplexity and diversity of k-gram, LSTM and Transformer, at two lengths."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from picollm_core.config import TransformerConfig
from picollm_core.contrasts import paired_contrast
from picollm_core.lab import Lab
from picollm_core.runs import Run
from picollm_core.samples import diversity, human_diversity
from picollm_core.train import load_data, validation_texts
from picollm_core.tuning import tune
from picollm_core.verdict_arms import (
    COUNTS_AND_LSTM,
    TRANSFORMERS,
    Trained,
    kgram_family,
    lstm_sizes,
    settings,
    shifted,
    transformer_sizes,
    tuned_runs,
)
from picollm_core.verdict_evidence import Evidence, concluded, spoken, together, told
from picollm_core.verdicts import Verdict, fingerprints

PROMPT = "Once upon a time, there was a very intelligent"
"""The slides' own prompt."""
LEARNED, ROPE = "Transformer, learned positions", "Transformer, RoPE"
NUCLEI = (0.95, 1.0)
FEWER = 2_000
"""Tokens whose 2-grams are counted after the short training."""
DRAWN: dict[str, Any] = {"prompt": PROMPT, "budget": 5_000, "max_new_tokens": 200, "seed": 0}
QUICK_DRAWN: dict[str, Any] = {"prompt": "Once upon a time", "budget": 500, "max_new_tokens": 64, "seed": 0}


def short_families(lab: Lab) -> Trained:
    """Pico models of the families after 300 short updates: k-grams (k = 5), LSTM, Transformers of two kinds."""
    quick = lab.profile.name == "quick"
    rotary = {ROPE: TransformerConfig(n_embd=64, n_head=1, n_layer=1, position="rope")}
    parts = [
        tuned_runs(lab, dict(list(kgram_family().items())[: 1 if quick else 2]), COUNTS_AND_LSTM),
        tuned_runs(lab, {"LSTM": lstm_sizes()["pico"]}, COUNTS_AND_LSTM),
        tuned_runs(lab, {LEARNED: transformer_sizes()["pico"]} | ({} if quick else rotary), TRANSFORMERS),
    ]
    import pandas as pd

    return Trained(
        {name: runs for part in parts for name, runs in part.runs.items()},
        pd.concat([part.tuned for part in parts]),
        {name: rate for part in parts for name, rate in part.rates.items()},
    )


def long_families(lab: Lab) -> Trained:
    """The pico models of notebook 05: one pass over the training stories, k-gram with k = 3 and a learned table."""
    import pandas as pd

    found: dict[str, tuple[str, dict[str, Any]]] = {
        "k-gram, learned": ("kgram", {}),
        "LSTM": ("lstm", {}),
        LEARNED: ("transformer", {}),
        ROPE: ("transformer", {"position": "rope"}),
    }
    runs, tuned = {}, {}
    for name, (family, more) in found.items():
        losses = tune(lab, family, "pico", *([(0.003, 0.03)] if more else []), **more)
        rate = min(losses, key=lambda rate: losses[rate])
        tuned[name] = losses
        runs[name] = [
            lab.train(
                f"{family}-pico", learning_rate=rate, seed=seed, prompt=PROMPT, max_steps=640, eval_every=80, **more
            )
            for seed in lab.profile.seeds
        ]
    rates = {name: own[0].config.train.learning_rate for name, own in runs.items()}
    return Trained(runs, pd.DataFrame.from_dict(tuned, orient="index"), rates)  # type: ignore[arg-type]


def off_by_one(lab: Lab, right: Trained) -> dict[str, Sequence[Run]]:
    """The k-grams of `short_families` with the course's window, at the rates of the right ones."""
    from picollm_core.arms import train_arms

    wrong = {
        name: config for name, config in shifted(kgram_family()).items() if name.partition(", off")[0] in right.runs
    }
    rates = {name: right.rates[name.partition(", off")[0]] for name in wrong}
    return dict(train_arms(lab, wrong, rates, lab.profile.seeds, **settings(lab)))


def drawn(lab: Lab, top_p: float, **changes: Any) -> dict[str, Any]:
    """How text is drawn for distinct-n: one prompt, a fixed number of tokens (`budget` in `changes` for another)."""
    given = QUICK_DRAWN if lab.profile.name == "quick" else DRAWN
    return given | {"top_p": top_p} | changes


def distinct(
    lab: Lab, runs: Mapping[str, Sequence[Run]], top_p: float, n: int = 2, **changes: Any
) -> dict[str, list[float]]:
    """Arm -> distinct-n of each run's text at a fixed number of tokens, one value a seed."""
    given = drawn(lab, top_p, **changes)

    def one(run: Run) -> float:
        found = lab.measure(
            "diversity",
            lambda: diversity(run.load_model(), run.load_tokenizer(), **given),
            run=run.fingerprint,
            **given,
        )
        return float(found[f"distinct_{n}"])

    return {name: [one(run) for run in own] for name, own in runs.items()}


def human_distinct(lab: Lab, run: Run, n: int = 2) -> float:
    """distinct-n of held-out stories, without as many first tokens as the prompt has: the reference."""
    given = drawn(lab, 1.0)
    tokenizer = run.load_tokenizer()
    counted = {
        "budget": given["budget"],
        "skip": len(tokenizer.encode(given["prompt"])),
        "max_tokens": given["max_new_tokens"],
    }
    found = lab.measure(
        "story diversity",
        lambda: human_diversity(validation_texts(load_data(run.config.data)), tokenizer, **counted),
        corpus=run.context["corpus_hashes"],
        tokenizer=tokenizer.name,
        **counted,
    )
    return float(found[f"distinct_{n}"])


Values = Mapping[str, Sequence[float]]
"""Arm -> one value a seed."""


def against(values: Values, first: str) -> Evidence:
    """One arm less each of the others; the other k-gram is left out where the first is a k-gram."""
    others = [name for name in values if name != first and (not is_kgram(first) or not is_kgram(name))]
    return Evidence({f"{first} less {name}": paired_contrast(values[first], values[name]) for name in others})


def is_kgram(name: str) -> bool:
    """Whether an arm is a k-gram."""
    return name.startswith("k-gram")


def best_kgram(losses: Values) -> str:
    """The k-gram with the lowest mean loss."""
    return min((name for name in losses if is_kgram(name)), key=lambda name: fmean(losses[name]))


def _effects(evidence: Evidence) -> str:
    return "; ".join(f"{name.partition(' less ')[2]} {spoken(found)}" for name, found in evidence.contrasts.items())


def judge_lstm(short: Values, long: Values, runs: Sequence[str]) -> Verdict:
    """The verdict on "at pico size the LSTM has the lowest perplexity": it against all, at two lengths of training."""
    found = {"one pass over the text": against(long, "LSTM"), "a ninth of a pass": against(short, "LSTM")}
    rope = [e.word([n], "below") for e in found.values() for n in e.contrasts if n.endswith(ROPE)]
    rest = [e.word([n for n in e.contrasts if not n.endswith(ROPE)], "below") for e in found.values()]
    evidence = found["one pass over the text"] if long else found["a ninth of a pass"]
    name, shown = evidence.weakest(list(evidence.contrasts), "below")
    said = ". ".join(
        f"{length[0].upper()}{length[1:]}, LSTM less the others: {_effects(e)}" for length, e in found.items()
    )
    return concluded(
        "lstm-best-at-pico",
        f"held-out loss after one pass at equal tokens, tuned rates: {name}",
        shown,
        together(*rest, *rope),
        unit="nats per token",
        runs=runs,
        cause=f"on positions and on the length of training. {said}. Attention over the batch axis hides the story from "
        "a Transformer",
    )


def judge_highest(short: Values, long: Values, wrong: Values, runs: Sequence[str]) -> Verdict:
    """The verdict on "at pico size the k-gram has the highest perplexity"; `wrong` are k-grams that are off by one."""
    evidence, early = against(long, best_kgram(long)), against(short, best_kgram(short))
    words = [e.word([name], "above") for e in (evidence, early) for name in e.contrasts]
    name, shown = evidence.weakest(list(evidence.contrasts), "above")
    cause = f"on the rival. After one pass, k-gram less {_effects(evidence)}; after a ninth of it {_effects(early)}"
    if wrong:
        blind = best_kgram(wrong)
        shifted_by = Evidence(
            {f"k-gram less {n}": paired_contrast(wrong[blind], short[n]) for n in short if not is_kgram(n)}
        )
        worst = shifted_by.word(list(shifted_by.contrasts), "above")
        cause += f". With the window off by one it {told(worst)}: {_effects(shifted_by)}"
    return concluded(
        "kgram-highest-perplexity",
        f"held-out loss after one pass at equal tokens, tuned rates: {name}",
        shown,
        together(*words),
        unit="nats per token",
        runs=runs,
        cause=cause,
    )


def judge_richest(
    short: Mapping[float, Values],
    long: Mapping[float, Values],
    wrong: Mapping[float, Values],
    losses: Values,
    human: float,
    runs: Sequence[str],
) -> Verdict:
    """The verdict on "at pico size the k-gram's text is the most diverse", by distinct-2 at each nucleus (the keys).

    `losses` are those of the short runs, by which the best k-gram is chosen; `human` is distinct-2 of held-out text.
    """
    found = {p: against(values, next(filter(is_kgram, values))) for p, values in long.items()}
    early = {p: against(values, best_kgram(losses)) for p, values in short.items()}
    words = [e.word([name], "above") for group in (found, early) for e in group.values() for name in e.contrasts]
    first = found[min(found)] if found else early[min(early)]
    name, shown = first.weakest(list(first.contrasts), "above")
    cause = ". ".join(f"After one pass at top-p {p:g}, k-gram less {_effects(e)}" for p, e in found.items())
    if wrong:
        p = min(wrong)
        pairs = [(a, n) for a in wrong[p] for n in short[p] if not is_kgram(n)]
        moved = Evidence({f"{a} less {n}": paired_contrast(wrong[p][a], short[p][n]) for a, n in pairs})
        kept = Evidence({a: paired_contrast(wrong[p][a], short[p][a.removesuffix(", off by one")]) for a in wrong[p]})
        one = next(iter(kept.contrasts.values()))
        cause += (
            f". With the window off by one, top-p {p:g}, the claim {told(moved.word(list(moved.contrasts), 'above'))}; "
            f"the defect itself changes distinct-2 by {spoken(one)}"
        )
    return concluded(
        "kgram-richest-diversity",
        f"distinct-2 in 5,000 tokens, top-p {min(found or early):g}, {name} (human text {human:.2f})",
        shown,
        together(*words),
        unit="share of 2-grams",
        runs=runs,
        cause=f"on rival and training. {cause}",
    )


def claims_families(lab: Lab) -> list[Verdict]:
    """Verdicts on the slides' claims about the families at pico size."""
    quick = lab.profile.name == "quick"
    short = short_families(lab)
    long = short if quick else long_families(lab)
    wrong = {} if quick else off_by_one(lab, short)
    runs = fingerprints(*short.runs.values(), *long.runs.values(), *wrong.values())
    losses, nuclei = short.losses(), NUCLEI[:1] if quick else NUCLEI
    blind = {name: [run.summary["nll"] for run in own] for name, own in wrong.items()}
    found = [judge_lstm(losses, long.losses(), runs), judge_highest(losses, long.losses(), blind, runs)]
    best = best_kgram(losses)
    brief = {name: own for name, own in short.runs.items() if name == best or not is_kgram(name)}
    blurred = {name: own for name, own in wrong.items() if name.startswith(best)}
    changes = {} if quick else {"budget": FEWER}
    varied = {p: distinct(lab, long.runs, p) for p in nuclei}
    early = {NUCLEI[0]: distinct(lab, brief, NUCLEI[0], **changes)}
    mixed = {NUCLEI[0]: distinct(lab, blurred, NUCLEI[0], **changes)} if blurred else {}
    human = human_distinct(lab, short.runs["LSTM"][0])
    return [*found, judge_richest(early, varied, mixed, losses, human, runs)]
