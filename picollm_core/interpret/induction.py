"""When heads learn to repeat: small Transformers trained on text and repeated random tokens, watched as they learn.

An induction head finds the earlier copy of the present token and puts its weight on what followed it (Elhage et al.
2021, "A Mathematical Framework for Transformer Circuits"; Olsson et al. 2022, arXiv 2209.11895). It needs a layer below
that tells every token what stood before it, so one layer cannot have one. Stories hardly ask for it, but random tokens
that come again do: rows of them are mixed into the training text, each row with a period of its own, so that no fixed
distance gives the answer. B batch, T time, L layers, H heads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import tiktoken
import torch
from torch import Tensor

from picollm_core.batches import Batch, Batches, make_batches
from picollm_core.config import Config, TrainConfig, TransformerConfig, require
from picollm_core.corpora import Corpus
from picollm_core.inference import evaluation_mode
from picollm_core.interpret.ablation import head_edits
from picollm_core.interpret.attention_maps import (
    attention_layers,
    attention_patterns,
    first_tokens,
    repeated_tokens,
    repetition_loss,
    repetition_scores,
)
from picollm_core.interpret.hooks import hooked
from picollm_core.lab import Lab
from picollm_core.losses import next_token_loss
from picollm_core.models import LanguageModel, build_model
from picollm_core.next_token import token_text
from picollm_core.token_store import token_store
from picollm_core.tokenizers import load_tokenizer
from picollm_core.trainer import Trainer, seeded

REPEATED_STREAM = 2  # beside the streams of batches.py, which draw from the same seed
HELD_OUT_SEED = 1_000_000
LEAST_SCORE = 0.2
"""No head whose final score lies below is called an induction head."""
SHOWN = 9
"""Tokens of the sequence whose weights a run keeps."""
WATCHED = ("induction", "previous_token", "duplicate_token", "first_token")


class RepeatedRows:
    """Batches of `text` with `n_rows` rows below them in which random tokens come again and again.

    Each row has a period drawn evenly from `periods` (least, most), and that many different ones of `tokens` (n,),
    repeated to the width of the text's rows. Every token is a target, the first period's too, as in text. Rows come
    from (seed, step) alone. Raises ValueError for no rows, periods that are not 2 <= least <= most, and too few tokens.
    """

    def __init__(
        self, text: Batches, tokens: Sequence[int] | Tensor, n_rows: int, periods: tuple[int, int], seed: int = 0
    ) -> None:
        least, most = periods
        require(n_rows >= 1, f"n_rows is {n_rows}; it must be at least 1, or give the text's batches as they are")
        require(2 <= least <= most, f"periods go from {least} to {most}; the least must be 2 and not exceed the most")
        self.tokens = np.unique(np.asarray(tokens, dtype=np.int64))
        require(
            len(self.tokens) >= most,
            f"{len(self.tokens)} different tokens are too few for a period of {most}; give more, or shorten it",
        )
        self.text, self.n_rows, self.periods, self.seed = text, n_rows, periods, seed
        self._step = 0

    def next_batch(self) -> Batch:
        """idx and targets, int64 (B + n_rows, T): the text's rows, then the repeated ones."""
        idx, targets = self.text.next_batch()  # (B, T)
        generator = np.random.default_rng([self.seed, REPEATED_STREAM, self._step])
        rows = np.empty((self.n_rows, idx.size(1) + 1), dtype=np.int64)
        for row in rows:
            period = generator.integers(*self.periods, endpoint=True)
            row[:] = np.resize(generator.choice(self.tokens, period, replace=False), len(row))
        self._step += 1
        repeated = torch.from_numpy(rows)
        return torch.cat([idx, repeated[:, :-1]]), torch.cat([targets, repeated[:, 1:]])

    @property
    def epoch(self) -> float:
        """Passes over the text."""
        return self.text.epoch

    @property
    def steps_per_epoch(self) -> int:
        return self.text.steps_per_epoch

    def _own_state(self) -> dict[str, Any]:
        return {"seed": self.seed, "n_rows": self.n_rows, "periods": list(self.periods), "n_tokens": len(self.tokens)}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, **self._own_state(), "text": self.text.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, own in self._own_state().items():
            require(
                state[name] == own,
                f"the saved loader has {name}={state[name]} but this one has {own}; resume with the same settings, "
                "or start a new run",
            )
        self.text.load_state_dict(state["text"])
        self._step = int(state["step"])


@dataclass(frozen=True)
class InductionSetting(Config):
    """How a run of this study is trained and watched."""

    repeated: float = 0.5
    """Share of the rows of a batch in which random tokens repeat; 0 is plain text."""
    periods: tuple[int, int] = (5, 30)
    """Shortest and longest period of such a row, in tokens."""
    pool_size: int = 512
    """They are drawn from that many of the training text's most frequent tokens."""
    batch_size: int = 16
    max_steps: int = 1_000
    learning_rate: float = 0.03
    """Of Muon, and of AdamW for embeddings and norms."""
    every: int = 20
    """Updates between two looks at the heads."""
    length: int = 25
    """Tokens of a held-out sequence that comes twice."""
    held_out: int = 50
    """Held-out rows, as many of text as of repeated tokens."""

    def validate(self) -> None:
        require(0 <= self.repeated < 1, f"repeated is {self.repeated}; it must be a share in [0, 1)")
        for name in ("batch_size", "max_steps", "every", "held_out"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(self.length >= 3, f"length is {self.length}; a sequence to repeat needs at least 3 tokens")

    @property
    def repeated_rows(self) -> int:
        """Rows of a batch with repeated tokens. At least one row is text."""
        return min(round(self.repeated * self.batch_size), self.batch_size - 1)


def frequent_tokens(corpus: Corpus, tokenizer: tiktoken.Encoding, count: int) -> Tensor:
    """The `count` most frequent tokens (n,) of a corpus's training text, ascending, without the end of text.

    Fewer where the text has fewer different ones.
    """
    counts = np.bincount(token_store(corpus, "train", tokenizer).tokens, minlength=tokenizer.n_vocab)
    counts[tokenizer.eot_token] = 0
    order = np.argsort(-counts, kind="stable")[: min(count, np.count_nonzero(counts))]
    return torch.from_numpy(np.sort(order))


def watch_heads(model: LanguageModel, repeated: Tensor, length: int) -> dict[str, Any]:
    """How far a model repeats ids (B, 1 + 2 length) of `repeated_tokens`, and by which head.

    The highest of each score in WATCHED among its heads, layer and head of the highest induction score, and the loss
    in nats a token on the first and on the second copy. Raises ValueError as `repetition_scores`.
    """
    scores = repetition_scores(attention_patterns(model, repeated), length)
    best = scores.loc[scores["induction"].idxmax()]
    first, second = repetition_loss(model, repeated, length)
    highest = {name: round(float(scores[name].max()), 4) for name in WATCHED}
    where = {"layer": int(best["layer"]), "head": int(best["head"])}
    return highest | where | {"first": round(first, 4), "second": round(second, 4)}


@torch.no_grad()
def _text_loss(model: LanguageModel, idx: Tensor) -> float:
    with evaluation_mode(model):
        return next_token_loss(model, idx[:, :-1], idx[:, 1:]).item()


def _trained(
    config: TransformerConfig, corpus: Corpus, tokenizer: tiktoken.Encoding, setting: InductionSetting, seed: int
) -> tuple[LanguageModel, Tensor, list[dict[str, Any]]]:
    """The trained model, the held-out repeated ids, and the rows that were watched."""
    require(setting.length * 2 < config.block_size, f"2 x {setting.length} held-out tokens exceed the block_size")
    tokens = frequent_tokens(corpus, tokenizer, setting.pool_size)
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)  # the same held-out rows for all seeds and arms
    repeated = repeated_tokens(tokens, setting.held_out, setting.length, tokenizer.eot_token, generator)
    text = first_tokens(corpus.texts("validation"), tokenizer, config.block_size, setting.held_out)
    plain = setting.batch_size - setting.repeated_rows
    batches = make_batches([corpus], (1.0,), tokenizer, config.block_size, plain, seed)
    if setting.repeated_rows:
        batches = RepeatedRows(batches, tokens, setting.repeated_rows, setting.periods, seed)
    settings = TrainConfig(
        max_steps=setting.max_steps,
        batch_size=setting.batch_size,
        optimizer="muon",
        learning_rate=setting.learning_rate,
        precision="float32",
        seed=seed,
    )
    with seeded(seed):
        model = build_model(config.replace(vocab_size=tokenizer.n_vocab))
        trainer = Trainer(model, batches, settings)
        repeated, text = repeated.to(trainer.device), text.to(trainer.device)
        rows: list[dict[str, Any]] = []
        losses: list[float] = []
        while True:
            if trainer.step % setting.every == 0 or trainer.step == trainer.total_steps:
                loss = round(float(np.mean(losses)), 4) if losses else None
                seen = watch_heads(model, repeated, setting.length)
                rows.append({"step": trainer.step, "loss": loss} | seen | {"text": round(_text_loss(model, text), 4)})
                losses = []
            if trainer.step == trainer.total_steps:
                return model.eval(), repeated, rows
            losses.append(trainer.advance()["loss"])


def induction_run(
    config: TransformerConfig, corpus: Corpus, tokenizer: tiktoken.Encoding, setting: InductionSetting, seed: int = 0
) -> dict[str, Any]:
    """Train one model on text with repeated random tokens and watch its heads; JSON values.

    `rows` has one row at the start and one each `setting.every` updates: step, `loss` (nats a token over the training
    batches since the last row; none at the start), those of `watch_heads` on held-out sequences, and `text`, the loss
    on the starts of held-out stories. `heads` are the final scores of every head, `patterns` [layer][head][t][s] the
    final weights on `tokens`, one short sequence that comes twice; `corpus` names the text. The vocabulary is the
    tokenizer's. Raises ValueError for impossible settings.
    """
    model, repeated, rows = _trained(config, corpus, tokenizer, setting, seed)
    final = repetition_scores(attention_patterns(model, repeated), setting.length).round(4)
    once = repeated[:1, 1 : 1 + min(SHOWN, setting.length)]
    shown = torch.cat([repeated[:1, :1], once, once], dim=1)  # (1, 1 + 2 SHOWN)
    patterns = attention_patterns(model, shown)[:, 0]  # (L, H, T, T)
    return {
        "rows": rows,
        "heads": final.to_dict("records"),
        "tokens": ["<start>", *(token_text(tokenizer, token) for token in shown[0, 1:].tolist())],
        "patterns": patterns.double().round(decimals=3).tolist(),
        "corpus": corpus.name,
    }


def without_heads(model: LanguageModel, repeated: Tensor, length: int) -> list[dict[str, Any]]:
    """What is left of a model's repeating when one head is taken away: a row a head, counted from 1.

    Columns layer and head of the one whose output is set to zero, `induction` (the highest score of any other head) and
    `second` (nats a token on the second copy) on ids `repeated` (B, 1 + 2 length) of `repeated_tokens`. The first row,
    layer and head 0, has all heads. Raises ValueError as `repetition_scores`.
    """
    layers = attention_layers(model)
    heads = [(layer, head) for layer in range(1, len(layers) + 1) for head in range(1, layers[0].n_head + 1)]
    rows = []
    for layer, head in [(0, 0), *heads]:
        with hooked(model, edit=head_edits(model, [(layer, head)] if layer else [])):
            scores = repetition_scores(attention_patterns(model, repeated), length)
            _, second = repetition_loss(model, repeated, length)
        others = scores[(scores["layer"] != layer) | (scores["head"] != head)]
        left = round(float(others["induction"].max()), 4)
        rows.append({"layer": layer, "head": head, "induction": left, "second": round(second, 4)})
    return rows


def recorded_ablations(lab: Lab, config: TransformerConfig, setting: InductionSetting, seed: int) -> pd.DataFrame:
    """`without_heads` of the model that `induction_run` trains on the lab's corpus, recorded by the lab."""

    def compute() -> list[dict[str, Any]]:
        tokenizer = load_tokenizer(lab.profile.data.tokenizer)
        once = setting.replace(every=setting.max_steps)  # looking changes nothing
        model, repeated, _ = _trained(config, lab.corpus(), tokenizer, once, seed)
        return without_heads(model, repeated, setting.length)

    given = {"model": config.fingerprint(), "setting": setting.to_dict(), "seed": seed}
    return pd.DataFrame(lab.measure("induction ablations", compute, tokenizer=lab.profile.data.tokenizer, **given))


def recorded_induction(lab: Lab, config: TransformerConfig, setting: InductionSetting, seed: int) -> dict[str, Any]:
    """`induction_run` on the lab's corpus, recorded by the lab: one measurement an arm and seed."""

    def compute() -> dict[str, Any]:
        tokenizer = load_tokenizer(lab.profile.data.tokenizer)
        return induction_run(config, lab.corpus(), tokenizer, setting, seed)

    given = {"model": config.fingerprint(), "setting": setting.to_dict(), "seed": seed}
    return lab.measure("induction", compute, tokenizer=lab.profile.data.tokenizer, **given)


def induction_arms(depths: Sequence[int] = (1, 2), **changes: Any) -> dict[str, TransformerConfig]:
    """Transformers that differ in depth alone: 64 wide, 4 heads, ALiBi, so that nearness need not be learned."""
    base = TransformerConfig(block_size=96, n_embd=64, n_head=4, position="alibi").replace(**changes)
    return {f"{depth} layer{'s' * (depth > 1)}": base.replace(n_layer=depth) for depth in depths}


def induction_study(
    lab: Lab, arms: Mapping[str, TransformerConfig], setting: InductionSetting, seeds: Sequence[int]
) -> pd.DataFrame:
    """The rows of `induction_run` of every arm and seed under each other, with columns arm, seed and corpus."""
    parts = []
    for arm, config in arms.items():
        for seed in seeds:
            found = recorded_induction(lab, config, setting, seed)
            parts.append(pd.DataFrame(found["rows"]).assign(arm=arm, seed=seed, corpus=found["corpus"]))
    require(bool(parts), f"{len(arms)} arms and {len(seeds)} seeds; at least one of each is needed")
    return pd.concat(parts, ignore_index=True)


def _slope(own: pd.DataFrame, column: str, low: float, high: float) -> float:
    """Fall of a column per 100 updates between two steps, by the straight line between them."""
    steps, values = own["step"].to_numpy(float), own[column].to_numpy(float)
    start, end = np.interp([low, high], steps, values)
    return float((start - end) / (high - low) * 100)


def find_moment(rows: pd.DataFrame, window: int = 100) -> dict[str, float]:
    """When one run's induction head appeared, and what its losses did there; NaN where none did.

    `rows` are those of one run. `score` is the final induction score; `moment` the first step at which half of it is
    reached; `bump` the middle of the `window` of updates over which the gain of the second copy over the first grew
    fastest. `fall` and `fall_before` say by how many nats per 100 updates the training loss fell in that window and in
    the one before; `second_fall` is the fall of the second copy's loss in the first of them. A final score below
    LEAST_SCORE is no induction head. Raises ValueError for fewer than three rows.
    """
    require(len(rows) >= 3, f"{len(rows)} rows of a run; at least 3 are needed to see a change")
    own = rows.sort_values("step").reset_index(drop=True)
    score = float(own["induction"].iloc[-1])
    found = {"score": score, "gain": float(own["first"].iloc[-1] - own["second"].iloc[-1])}
    names = ("moment", "bump", "second_fall", "fall", "fall_before")
    if score < LEAST_SCORE:
        return found | dict.fromkeys(names, float("nan"))
    gain, half, last = own["first"] - own["second"], window / 2, float(own["step"].iloc[-1])
    middles = [step for step in own["step"] if half <= step <= last - half] or [last / 2]
    grown = [_slope(own.assign(gain=-gain), "gain", step - half, step + half) for step in middles]
    bump = float(middles[int(np.argmax(grown))])
    low, high = max(0.0, bump - half), min(last, bump + half)
    trained = own.dropna(subset=["loss"])
    values = (
        float(own.loc[own["induction"] >= score / 2, "step"].iloc[0]),
        bump,
        _slope(own, "second", low, high),
        _slope(trained, "loss", low, high),
        _slope(trained, "loss", low - window, low),
    )
    return found | dict(zip(names, values, strict=True))


def moments(table: pd.DataFrame, window: int = 100) -> pd.DataFrame:
    """`find_moment` of every arm and seed in a table of `induction_study`: one row each."""
    rows = [
        {"arm": arm, "seed": seed} | find_moment(own, window)
        for (arm, seed), own in table.groupby(["arm", "seed"], sort=False)
    ]
    return pd.DataFrame(rows)
