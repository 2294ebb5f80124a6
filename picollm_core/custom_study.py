"""What a small model learns from your own lines alone: few or many of them, for few or many updates.

Everything is scored on the same held-out lines, which no model trains on. With a constant learning rate the first n
updates of a long run are a run of n updates, so one run is read at many places: after equal updates and after equal
epochs. Losses are in nats per token.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import tiktoken

from picollm_core.arms import TUNING_SEED
from picollm_core.batches import LineBatches
from picollm_core.config import ModelConfig, TrainConfig, require
from picollm_core.corpora import Corpus, load_corpus
from picollm_core.evaluate import evaluate
from picollm_core.lab import Lab
from picollm_core.models import LanguageModel, build_model
from picollm_core.presets import preset
from picollm_core.token_store import TokenStore, encode_stories, token_dtype
from picollm_core.tokenizers import load_tokenizer
from picollm_core.trainer import Trainer, TrainingDiverged, seeded

BLOCK = 80  # tokens; the longest of our lines fits, so none is cut


@dataclass(frozen=True)
class Plan:
    """How much of the study a profile computes. The learning rates are those of `tuned_rates` in this plan."""

    sizes: tuple[int, ...]
    """Numbers of training lines."""
    epochs: int
    """Passes over the lines, where passes are held equal."""
    updates: int
    """Updates, where updates are held equal."""
    longest: int
    """Updates of the runs on the most lines."""
    reads: tuple[int, ...]
    """Updates after which every run is read."""
    shares: tuple[float, ...]
    """Shares of custom rows in the mixtures."""
    mixture_steps: int
    tuning: int
    """Fine-tuning updates after a training on stories."""
    smoke_reads: tuple[int, ...]
    """Updates after which the smoke test is sampled."""
    rates: tuple[float, ...]
    tuning_steps: int
    stories: int
    """Held-out stories that are scored."""
    sampled: int
    """Tokens sampled from every model."""
    line_batch: int = 3  # divides 3, 63 and 123 lines, so that an epoch is a whole number of updates
    mixture_batch: int = 12
    smoke_share: float = 0.75
    """The share of custom rows in the smoke test."""
    smoke_extra: int = 0
    """Further seeds of the smoke test's first three updates: rare words need many."""

    def mixture_settings(self) -> dict[str, Any]:
        """What the results of the mixtures depend on, beside model, rate, seed and texts."""
        names = ("shares", "mixture_steps", "tuning", "stories", "sampled", "mixture_batch")
        return {name: getattr(self, name) for name in names}

    def smoke_settings(self) -> dict[str, Any]:
        """What the results of the smoke test depend on, beside model, rate, seed and texts."""
        return {name: getattr(self, name) for name in ("smoke_reads", "smoke_share", "sampled", "mixture_batch")}


PLANS = {
    "quick": Plan(sizes=(3, 60), epochs=1, updates=20, longest=60, reads=(1, 3, 6, 20, 60), shares=(0.0, 0.5),
                  mixture_steps=60, tuning=10, smoke_reads=(0, 1, 3), rates=(0.03,), tuning_steps=3, stories=10,
                  sampled=300),
    "standard": Plan(sizes=(3, 63, 123, 291), epochs=3, updates=200, longest=400,
                     reads=(1, 3, 6, 12, 25, 50, 100, 200, 300, 400), shares=(0.0, 0.1, 0.25, 0.5, 0.9, 1.0),
                     mixture_steps=150, tuning=60, smoke_reads=(0, 1, 3, 6, 25, 100),
                     rates=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3), tuning_steps=100, stories=60, sampled=1_600,
                     smoke_extra=5),
}  # fmt: skip


def plan_of(lab: Lab) -> Plan:
    """The plan of the lab's profile; the full profile takes the standard one."""
    return PLANS["quick" if lab.profile.name == "quick" else "standard"]


def line_models(vocab_size: int) -> dict[str, ModelConfig]:
    """The models that read custom lines alone: an LSTM, and gpt-oss with 4 experts instead of 32, 2 of them active."""
    shape = {"vocab_size": vocab_size, "block_size": BLOCK}
    return {
        "LSTM": preset("lstm-pico", **shape),
        "gpt-oss": preset("gpt-oss-pico", n_expert=4, n_expert_active=2, **shape),
    }


def own_lines(name: str = "custom") -> Corpus:
    """The corpus of `name` with a fifth of its lines held out as "validation", by a hash of the line."""
    return load_corpus(name, splits=(80, 20, 0))


def subset(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` of the texts in an order that `seed` draws: of one seed, a smaller subset is part of every larger one.

    Raises ValueError when there are fewer texts, or count is below 1.
    """
    require(1 <= count <= len(texts), f"{count} lines asked for; the corpus has {len(texts)} for training")
    return [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))[:count]]


def line_batches(
    texts: Iterable[str], tokenizer: tiktoken.Encoding, batch_size: int, seed: int, block_size: int = BLOCK
) -> LineBatches:
    """Batches of lines, one a row. Raises ValueError when there are fewer lines than a batch needs."""
    parts = list(encode_stories(texts, tokenizer, threads=1))
    require(bool(parts), "0 lines to train on; give at least one")
    tokens = np.concatenate([ids for ids, _ in parts]).astype(token_dtype(tokenizer))
    starts = np.cumsum([0] + [len(ids) for ids, _ in parts])[:-1]
    ends = np.concatenate([end + start for (_, end), start in zip(parts, starts, strict=True)])
    return LineBatches(TokenStore(tokens, np.concatenate([[0], ends]), 0), block_size, batch_size, seed)


def loss_on(model: LanguageModel, tokenizer: tiktoken.Encoding, texts: Iterable[str]) -> float:
    """Nats per token of whole texts, as the one evaluator counts them."""
    return evaluate(model, tokenizer, texts, n_bootstrap=1).nll


def learning_curve(
    model: ModelConfig,
    train: TrainConfig,
    texts: Sequence[str],
    held_out: Sequence[str],
    tokenizer: tiktoken.Encoding,
    reads: Iterable[int],
) -> list[dict[str, float]]:
    """Train on `texts` with a constant rate and read the losses after each number of updates in `reads`.

    A row has step, epoch (passes over the texts), seen_loss (mean over the batches of the last epoch, or of all so
    far: what a training log shows), train_loss (on the first 64 texts) and held_out_loss, in nats per token. Raises
    ValueError for reads below 1 and fewer texts than a batch holds.
    """
    reads = sorted(set(reads))
    require(bool(reads) and reads[0] >= 1, f"reads are {reads}; give at least one number of updates, from 1")
    train = train.replace(schedule="constant", warmup_ratio=0.0, max_steps=reads[-1])
    rows, seen = [], []
    with seeded(train.seed):
        batches = line_batches(texts, tokenizer, train.batch_size, train.seed, model.block_size)
        trainer = Trainer(build_model(model), batches, train)
        while trainer.step < reads[-1]:
            seen.append(trainer.advance()["loss"])
            if trainer.step in reads:
                losses = {
                    "seen_loss": float(np.mean(seen[-batches.steps_per_epoch :])),
                    "train_loss": loss_on(trainer.model, tokenizer, texts[:64]),
                    "held_out_loss": loss_on(trainer.model, tokenizer, held_out),
                }
                rows.append({"step": trainer.step, "epoch": batches.epoch} | losses)
    return rows


def timed(compute: Callable[[], list[dict[str, Any]]]) -> dict[str, Any]:
    """The rows that `compute` returns, and the processor seconds that it took."""
    started = time.process_time()
    rows = compute()
    return {"rows": rows, "seconds": round(time.process_time() - started, 2)}


def measured_table(lab: Lab, name: str, compute: Callable[[], list], **parameters: Any) -> pd.DataFrame:
    """A measurement's rows, each with the file it is recorded in and the seconds that all of them took."""
    found = lab.measure(name, lambda: timed(compute), **parameters)
    return pd.DataFrame(found["rows"]).assign(record=lab.used[-1], seconds=found["seconds"])


def tuned_rates(lab: Lab) -> pd.DataFrame:
    """Held-out loss of each model of custom lines (row) at each learning rate (column), on all lines, seed apart.

    `attrs["seconds"]` is what the tuning cost.
    """
    plan, lines, tokenizer = plan_of(lab), own_lines(), load_tokenizer(lab.profile.data.tokenizer)

    def losses(config: ModelConfig) -> list[dict[str, Any]]:
        return [{"rate": rate, "loss": loss(config, rate)} for rate in plan.rates]

    def loss(config: ModelConfig, rate: float) -> float | None:
        train = TrainConfig(learning_rate=rate, batch_size=plan.line_batch, seed=TUNING_SEED)
        texts, held_out = list(lines.texts("train")), list(lines.texts("validation"))
        try:
            curve = learning_curve(config, train, texts, held_out, tokenizer, [plan.tuning_steps])
        except TrainingDiverged:
            return None
        return curve[-1]["held_out_loss"]

    parts = [
        measured_table(
            lab,
            "custom rates",
            partial(losses, config),
            model=config.fingerprint(),
            lines=lines.content_hash,
            rates=list(plan.rates),
            steps=plan.tuning_steps,
            batch=plan.line_batch,
        ).assign(arm=name)
        for name, config in line_models(tokenizer.n_vocab).items()
    ]
    table = pd.concat(parts).pivot(index="arm", columns="rate", values="loss").astype(float)
    table = table.fillna(float("inf")).loc[list(line_models(tokenizer.n_vocab))]
    table.attrs["seconds"] = sum(part["seconds"].iloc[0] for part in parts)
    return table


def size_table(lab: Lab, rates: Mapping[str, float]) -> pd.DataFrame:
    """Learning curves of every model, number of lines and seed: columns arm, lines, seed and those of a curve.

    Every seed draws its own lines, the same for all models, the smaller sets inside the larger. All are scored on the
    same held-out lines.
    """
    plan, lines, tokenizer = plan_of(lab), own_lines(), load_tokenizer(lab.profile.data.tokenizer)

    def curves(config: ModelConfig, rate: float, seed: int) -> list[dict[str, Any]]:
        train = TrainConfig(learning_rate=rate, batch_size=plan.line_batch, seed=seed)
        texts, held_out = list(lines.texts("train")), list(lines.texts("validation"))
        rows = []
        for count in plan.sizes:
            last = plan.longest if count == max(plan.sizes) else max(plan.updates, passes(plan, count))
            reads = {step for step in plan.reads if step <= last} | {plan.updates, passes(plan, count)}
            found = learning_curve(config, train, subset(texts, count, seed), held_out, tokenizer, reads)
            rows += [{"lines": count} | row for row in found]
        return rows

    parts = [
        measured_table(
            lab,
            "custom sizes",
            partial(curves, config, rates[name], seed),
            model=config.fingerprint(),
            lines=lines.content_hash,
            rate=rates[name],
            seed=seed,
            sizes=list(plan.sizes),
            reads=[*plan.reads, plan.updates, plan.epochs, plan.longest],
            batch=plan.line_batch,
        ).assign(arm=name, seed=seed)
        for name, config in line_models(tokenizer.n_vocab).items()
        for seed in lab.profile.seeds
    ]
    return pd.concat(parts, ignore_index=True)


def passes(plan: Plan, count: int) -> int:
    """Updates of the plan's epochs over `count` lines."""
    return plan.epochs * -(-count // plan.line_batch)
