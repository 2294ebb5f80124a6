"""Verdicts on claims that rest on a defect, on one number too many, or on what the other notebooks have measured."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from picollm_core.arms import SHORT_RUNS, best_rates, early_losses, train_arms, tune_arms, values
from picollm_core.config import TransformerConfig
from picollm_core.contrasts import Contrast, equivalence, paired_contrast
from picollm_core.contrasts import verdict as decided
from picollm_core.defect_evidence import (
    NUCLEI,
    after_one_update,
    drawn_rows_table,
    entropy_table,
    input_speed,
    nuclei_diversity,
    one_batch_table,
    shipped_subjects,
    trained_inputs,
)
from picollm_core.defect_measures import drawn_unseen_share, share_interval, unseen_share
from picollm_core.defect_runs import by_seed, plan
from picollm_core.defect_study import GPT2_VOCABULARY, PAGE
from picollm_core.evaluate import encode_stories
from picollm_core.inference import evaluation_mode
from picollm_core.lab import Lab
from picollm_core.losses import token_nll
from picollm_core.mixer_study import mixer_arms
from picollm_core.models import LanguageModel
from picollm_core.position_study import order_effects
from picollm_core.preset_study import RECORDED, initial_losses, presets_of, recorded_start
from picollm_core.runs import Run
from picollm_core.verdict_evidence import Evidence, concluded, spoken, together, told
from picollm_core.verdicts import Verdict, Word, judged

MARGIN = 0.02
"""Nats by which losses may differ and still count as equal: perplexities that differ by 2%."""
NOTEBOOK_RATES = (0.001, 0.003, 0.01, 0.03)


def _names(lab: Lab, since: int) -> tuple[str, ...]:
    """The runs and measurements that the lab has looked up since then, as Verdict.runs names them."""
    used = dict.fromkeys(lab.used[since:])
    return tuple(name.removeprefix("runs/").removesuffix(".json") for name in used)


def _not_here(claim_id: str) -> Verdict:
    cause = "the quick profile does not train what this needs"
    return Verdict(claim_id, "not measured in this profile", None, None, "", (), "open", cause)


def judge_page(lab: Lab) -> Verdict:
    """Loss, perplexity and accuracy of the page: numbers of one text would obey perplexity = exp(loss)."""
    since, right, tokens = len(lab.used), int(PAGE["right"]), int(PAGE["tokens"])
    low, high = share_interval(right, tokens)
    implied, given = math.exp(PAGE["loss"]), PAGE["perplexity"]
    cause = (
        f"perplexity is exp(loss), which is {implied:.2f}; {given:g} belongs to a loss of {math.log(given):.3f}, "
        f"as of a last training batch; {right / tokens:.2%} is {right} of {tokens} tokens, whose binomial interval is "
        f"{low:.0%} to {high:.0%}"
    )
    if lab.profile.name != "quick":
        ours = one_batch_table(lab).set_index("model").loc["Transformer"]
        cause += (
            f"; single batches of as many tokens give our shipped Transformer {ours['low']:.0%} to {ours['high']:.0%} "
            f"where its mean is {ours['accuracy']:.0%}"
        )
    contrast = "perplexity given, less exp(validation loss given); 0 if both describe one text"
    word: Word = "fails" if abs(given - implied) > 0.01 else "open"
    runs = _names(lab, since)
    return Verdict("loss-perplexity-accuracy-agree", contrast, given - implied, None, "perplexity", runs, word, cause)


@torch.no_grad()
def cache_difference(model: LanguageModel, rows: torch.Tensor) -> list[float]:
    """Loss of each of `rows` (N, T + 1) token by token from the cache, less that of one pass: nats per token, (N,)."""
    found, weight = [], model.head.weight
    with evaluation_mode(model):
        for row in rows:
            whole = model.hidden(row[None, :-1])[0][0]  # (T, C)
            state, parts = model.init_state(1), []
            for token in row[:-1]:
                h, state = model.hidden(token.view(1, 1), state)
                parts.append(h[0])
            losses = [token_nll(h, weight, row[1:])[0].double().mean().item() for h in (torch.cat(parts), whole)]
            found.append(losses[0] - losses[1])
    return found


def judge_cache(lab: Lab) -> Verdict:
    """The cache changes how fast a Transformer writes, so crediting it with a lower loss needs a difference in loss."""
    since, subject = len(lab.used), shipped_subjects(lab)["Transformer"]
    stories, places = (20, 64) if lab.profile.name != "quick" else (5, 16)

    def compute() -> list[float]:
        model, tokenizer = subject.load()
        store = encode_stories(list(lab.corpus().texts("validation"))[: 2 * stories], tokenizer)
        ids = torch.from_numpy(store.inputs[: stories * (places + 1)]).view(stories, places + 1)
        return cache_difference(model, ids)

    own = lab.measure("loss from the cache", compute, **subject.identity, stories=stories, places=places)
    found = paired_contrast(own, [0.0] * len(own))
    cause = (
        "a cache stores what would be computed again: the same weights with and without it differ by "
        f"{found.mean:+.1e} nats a token, at most {max(map(abs, own)):.1e} in {len(own)} passages; it saves time, and "
        "the page's numbers come from one batch"
    )
    words: dict[str, Word] = {"holds": "fails", "fails": "depends", "open": "open"}
    word = words[equivalence(found, margin=0.001)]
    contrast = f"shipped Transformer, tokens from the cache less one pass, {len(own)} passages of {places} tokens"
    interval, runs = (found.low, found.high), _names(lab, since)
    return Verdict("kv-cache-transformer-better", contrast, found.mean, interval, "nats a token", runs, word, cause)


def judge_rows(lab: Lab) -> Verdict:
    """Rows drawn with replacement leave out 1/e of an epoch; whether that costs loss is told in the cause."""
    since, rows = len(lab.used), 40_000
    counted = [drawn_unseen_share(rows, 1, seed) for seed in plan(lab).seeds]
    cause = f"an epoch of draws never reads {unseen_share(rows):.1%} of the rows, a visit of each none"
    if lab.profile.name != "quick":
        table = drawn_rows_table(lab)
        drawn, once = (by_seed(table, "alone", way=way) for way in ("drawn rows", "every row once"))
        cause += f"; after one epoch of a k-gram that costs {spoken(paired_contrast(drawn, once), 'nats')}"
    contrast = f"share of {rows:,} rows never read in an epoch: drawn with replacement less every row once"
    shown, runs = paired_contrast(counted, [0.0] * len(counted)), _names(lab, since)
    word = decided(shown, claim="above")
    return concluded("no-row-sampling-loses-nothing", contrast, shown, word, unit="share", runs=runs, cause=cause)


def judge_start(lab: Lab) -> Verdict:
    """First losses of presets that start as they should, and why the recorded ones did not."""
    since, quick = len(lab.used), lab.profile.name == "quick"
    seeds, size = list(range(1 if quick else 5)), "pico" if quick else "course"
    rates = [] if quick else [1e-4, 3e-4]

    def fresh(config: TransformerConfig) -> list[float]:
        given: dict[str, Any] = {"model": config.fingerprint(), "seeds": seeds}
        return lab.measure("preset start", lambda: initial_losses(config, seeds), **given)

    def as_recorded(name: str) -> list[float]:
        given: dict[str, Any] = {"seeds": seeds, "rates": rates}
        return lab.measure("recorded start", lambda: recorded_start(name, **given), preset=name, **given)["first"]

    start = {n: fresh(config) for n, config in presets_of(size, GPT2_VOCABULARY).items() if n in RECORDED}
    again = {} if quick else {name: as_recorded(name) for name in RECORDED}
    found = paired_contrast(start["gpt-oss"], start["minGPT"])
    firsts = ", ".join(f"{name} {np.mean(own):.1f}" for name, own in again.items())
    cause = (
        "the recorded losses are those of a head tied to N(0, 1) embeddings, which minGPT and GPT-2 had in that code "
        "and gpt-oss had not" + (f": started so, first losses are {firsts}" if firsts else "")
        + f"; started at ln V = {math.log(GPT2_VOCABULARY):.2f}, all are alike"
    )  # fmt: skip
    return judged("gptoss-starts-lower", "first loss of gpt-oss less minGPT, each started as it should be, same seeds",
                  found, claim="below", unit="nats", runs=_names(lab, since), cause=cause, bound=-0.05)  # fmt: skip


def judge_inputs(lab: Lab) -> Verdict:
    """Whether the embedding k-gram has the lowest loss and the highest speed, at equal width and equal parameters."""
    since, trained = len(lab.used), trained_inputs(lab)
    loss, pace = trained.losses(), np.log(input_speed(lab))
    rivals = [name for name in loss if name != "embedding"]
    contrasts = {f"loss less {name}": paired_contrast(loss["embedding"], loss[name]) for name in rivals}
    contrasts |= {
        f"log time less {name}": paired_contrast(pace["embedding"].tolist(), pace[name].tolist()) for name in rivals
    }
    study = Evidence(contrasts)

    def best_of(without: str) -> Word:
        left = [name for name in contrasts if not name.endswith(f"less {without}")]
        return study.word(left, "below") if left else "open"  # the quick profile trains one rival alone

    words = {"equal width": best_of("one-hot, equal parameters"), "equal parameters": best_of("one-hot")}
    name, shown = study.weakest([f"loss less {rival}" for rival in rivals], "below")
    effects = "; ".join(f"{name} {spoken(found)}" for name, found in contrasts.items())
    cause = (
        "; ".join(f"at {how} it {told(word)}" for how, word in words.items())
        + f". Embedding's {effects} (nats; logarithm of the time of an update)"
    )
    return concluded("embedding-mlp-best-tradeoff", f"embedding k-gram, k = 3: {name}, the rival that does best", shown,
                     together(*words.values()), unit="nats", runs=_names(lab, since), cause=cause)  # fmt: skip


def _mixers(lab: Lab, names: Sequence[str]) -> dict[str, list[Run]]:
    """Runs of the notebook on linear attention, from its record."""
    given = SHORT_RUNS | {"block_size": 128, "batch_size": 8}
    arms = {name: config for name, config in mixer_arms().items() if name in names}
    rates = best_rates(tune_arms(lab, arms, (*NOTEBOOK_RATES, 0.1), steps=100, **given))
    return train_arms(lab, arms, rates, lab.profile.seeds, max_steps=300, **given)


def judge_linear(lab: Lab) -> Verdict:
    """Linear mixers against softmax at equal weights, on tokens of which all have read the same context."""
    if lab.profile.name == "quick":
        return _not_here("linear-attention-worse")
    since = len(lab.used)
    loss = early_losses(_mixers(lab, ("softmax", "linear", "GLA", "DeltaNet")), 128)
    study = Evidence({name: paired_contrast(loss[name], loss["softmax"]) for name in loss if name != "softmax"})
    words = {name: study.word([name], "above") for name in study.contrasts}
    effects = "; ".join(f"{name} {words[name]} ({spoken(found)})" for name, found in study.contrasts.items())
    cause = f"after 300 updates at equal weights, less softmax: {effects}"
    return concluded("linear-attention-worse", "plain linear attention less softmax, equal weights, first 128 tokens "
                     "of held-out stories", study.contrasts["linear"], together(*words.values()), unit="nats",
                     runs=_names(lab, since), cause=cause)  # fmt: skip


def judge_gates(lab: Lab) -> Verdict:
    """Gates and the delta rule against plain linear attention and against the same layer without its gate."""
    if lab.profile.name == "quick":
        return _not_here("gating-closes-the-gap")
    since = len(lab.used)
    loss = early_losses(_mixers(lab, ("softmax", "linear", "GLA, no gate", "GLA", "DeltaNet")), 128)
    pairs = (("GLA", "linear"), ("DeltaNet", "linear"), ("GLA", "GLA, no gate"))
    study = Evidence({f"{a} less {b}": paired_contrast(loss[a], loss[b]) for a, b in pairs})
    name, shown = study.weakest(list(study.contrasts), "below")
    effects = "; ".join(f"{name}: {spoken(found)}" for name, found in study.contrasts.items())
    past = ", ".join(f"{arm} {spoken(paired_contrast(loss[arm], loss['softmax']))}" for arm in ("GLA", "DeltaNet"))
    return concluded("gating-closes-the-gap", f"{name}, equal weights, first 128 tokens of held-out stories", shown,
                     study.word(list(study.contrasts), "below"), unit="nats", runs=_names(lab, since),
                     cause=f"{effects}; less softmax: {past}")  # fmt: skip


def judge_positions(lab: Lab) -> Verdict:
    """What a Transformer without positions knows of order, and what it pays for having to find it out."""
    if lab.profile.name == "quick":
        return _not_here("positions-not-needed")
    since, given = len(lab.used), {"block_size": 64, "batch_size": 32, "eval_every": 100}
    names = {"rope": "RoPE", "none": "NoPE", "absolute": "absolute"}
    arms = {n: TransformerConfig(n_embd=64, n_layer=2, n_head=4, position=p) for p, n in names.items()}  # type: ignore[arg-type]
    rates = best_rates(tune_arms(lab, arms, NOTEBOOK_RATES, steps=150, **given))
    runs = train_arms(lab, arms, rates, lab.profile.seeds, max_steps=600, **given)
    known = order_effects(lab, {"NoPE": runs["NoPE"]}, context=32, length=256, most=1_000)
    order, nats = paired_contrast(known["shuffled"], known["ordered"]), values(runs, "nll")
    against = {name: paired_contrast(nats["NoPE"], nats[name]) for name in ("RoPE", "absolute")}
    able = decided(order, claim="above")
    free = {name: equivalence(found, margin=MARGIN) for name, found in against.items()}
    word = together(able, *free.values())
    effects = "; ".join(f"{name} {spoken(found)} nats" for name, found in against.items())
    cause = (
        f"without them the order is known all the same (shuffling the context costs {spoken(order)} nats), so they are "
        f"not needed to tell it; but the loss is not that of the others, NoPE less {effects}"
    )
    return concluded("positions-not-needed", "NoPE less RoPE, two layers, loss on all held-out stories",
                     against["RoPE"], word, unit="nats", runs=_names(lab, since), cause=cause)  # fmt: skip


def judge_one_update(lab: Lab) -> Verdict:
    """What p changes in the text of a model after one update, beside what it changes after training."""
    if lab.profile.name == "quick":
        return _not_here("one-step-model-shows-top-p")
    since, arms = len(lab.used), after_one_update(lab)
    table, entropy = nuclei_diversity(lab, arms), entropy_table(lab, arms)
    gain = {
        arm: [b - a for a, b in zip(*(by_seed(table, "value", arm=arm, p=p) for p in (NUCLEI[0], 1.0)), strict=True)]
        for arm in arms
    }
    effects: dict[str, Contrast] = {arm: paired_contrast(own, [0.0] * len(own)) for arm, own in gain.items()}
    shown = paired_contrast(gain["one update"], gain["trained"])
    mean: pd.DataFrame = entropy.drop(columns="seed").groupby("arm").mean()
    one = mean.loc["one update"]
    cause = (
        f"after one update the next token's entropy is {one['entropy']:.2f} nats (ln V = {math.log(4_096):.2f}), so "
        f"p = {NUCLEI[0]:g} still leaves {one[f'size at {NUCLEI[0]:g}']:,.0f} tokens, and distinct-2 moves by "
        f"{spoken(effects['one update'])} from there to p = 1; in a trained model, whose entropy is "
        f"{mean.loc['trained', 'entropy']:.2f}, by {spoken(effects['trained'])}"
    )
    word = equivalence(shown, margin=0.05)
    return concluded("one-step-model-shows-top-p", f"change of distinct-2 from p = {NUCLEI[0]:g} to 1: LSTM after one "
                     "update less the trained one; the same if it shows what p does", shown, word, unit="distinct-2",
                     runs=_names(lab, since), cause=cause)  # fmt: skip


JUDGES: tuple[Callable[[Lab], Verdict], ...] = (
    judge_page,
    judge_cache,
    judge_rows,
    judge_start,
    judge_inputs,
    judge_linear,
    judge_gates,
    judge_positions,
    judge_one_update,
)


def claims_defects(lab: Lab, **_: Any) -> list[Verdict]:
    """The nine verdicts of this module, all computed; in the quick profile those that need long trainings stay open."""
    return [judge(lab) for judge in JUDGES]
