"""Well-known mistakes, made on purpose so that they can be measured: none is a setting, so none is reached by accident.

Here are the mistakes in models and their training: attention over the batch axis, an activation on the output logits,
padding scored as text. The k-gram window that ends a token too early is `KGramConfig(offset=1)`; mistakes of measuring
are in defect_measures.py. B batch, T time, C width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from picollm_core.batches import Batches, LineBatches, make_batches
from picollm_core.config import ModelConfig, RunConfig, TrainConfig, require
from picollm_core.corpora import Corpus, load_corpus
from picollm_core.defect_measures import DrawnRows
from picollm_core.evaluate import EncodedStories, encode_stories, evaluate, summarise
from picollm_core.inference import evaluation_mode
from picollm_core.lab import Lab
from picollm_core.losses import IGNORE
from picollm_core.models import LanguageModel, build_model
from picollm_core.models.attention import CausalSelfAttention
from picollm_core.models.layers import ACTIVATIONS
from picollm_core.models.positions import Place
from picollm_core.models.transformer import Transformer
from picollm_core.sampling import generate
from picollm_core.token_store import token_store
from picollm_core.tokenizers import load_tokenizer
from picollm_core.train import load_data, validation_texts
from picollm_core.trainer import Trainer, seeded

HELD_OUT_BATCHES = 10
"""Batches of held-out windows over which a script with a defect reports its validation loss."""
REPORTING_SEED = 1_000_000


@contextmanager
def batch_axis_attention(model: LanguageModel) -> Iterator[LanguageModel]:
    """Inside the block every attention layer runs over the batch axis, so of its own row it sees the current token.

    So it goes when (T, B, C) is given to attention that takes (B, T, C): place t of row b attends to place t of rows
    0..b, which are other stories. Learned and sinusoidal positions are added before and still tell the place t; RoPE
    and ALiBi count along the axis that attention runs over, so they tell the row b. A row alone sees its current token
    and nothing else, as if every layer had a window of one token. Nothing is carried from call to call. Raises
    ValueError for a model without softmax attention in every layer; after the block the model is as it was.
    """
    require(
        isinstance(model, Transformer)
        and all(isinstance(block.attention, CausalSelfAttention) for block in model.blocks),
        f"{type(model).__name__} has layers without softmax attention; give a Transformer of mixers softmax or window",
    )
    assert isinstance(model, Transformer)
    rope = model.rope

    def over_rows(
        right: Callable[..., Any], empty: Callable[[int], Any], x: Tensor, cache: Any, _: Any
    ) -> tuple[Tensor, Any]:
        angles = None if rope is None else rope.angles(0, x.size(0), x)
        y, _ = right(x.transpose(0, 1), empty(x.size(1)), Place(0, angles))  # (T, B, C): the rows are the sequence
        return y.transpose(0, 1), cache

    layers = [block.attention for block in model.blocks]
    try:
        for layer in layers:
            layer.forward = partial(over_rows, layer.forward, layer.empty_state)  # type: ignore[method-assign]
        yield model
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


@contextmanager
def activated_logits(model: LanguageModel, activation: str = "relu") -> Iterator[LanguageModel]:
    """Inside the block model(idx) applies an activation to its logits: ReLU leaves no token less than exp(0).

    `model.hidden` is what it was, so only what works on model(idx) has the defect. Raises ValueError for an activation
    that layers.ACTIVATIONS does not have.
    """
    require(activation in ACTIVATIONS, f"unknown activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    bend, right = ACTIVATIONS[activation], model.forward
    try:
        model.forward = lambda idx: bend(right(idx))  # type: ignore[method-assign]
        yield model
    finally:
        model.__dict__.pop("forward", None)


DEFECTS: dict[str, Callable[[LanguageModel], AbstractContextManager[Any]]] = {
    "none": nullcontext,
    "batch axis": batch_axis_attention,
    "relu on logits": partial(activated_logits, activation="relu"),
    "gelu on logits": partial(activated_logits, activation="gelu"),
}
"""Defects of models, by the name that `train_with` takes; "none" is the model as it should be."""
ROW_DEFECTS = ("padding scored", "drawn rows")
"""Defects of training rows, which it takes too: stories padded with id 0 to the block, rows drawn with replacement."""


class LogitsTrainer(Trainer):
    """A trainer whose loss is that of model(idx): what is done to logits counts, which the package's loss never has."""

    def _accumulate(self) -> tuple[float, int]:
        require(self.config.grad_accumulation == 1, f"grad_accumulation is {self.config.grad_accumulation}; choose 1")
        idx, targets = (t.to(self.device) for t in self.batches.next_batch())
        with self._autocast():
            logits = self.model(idx)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        loss.backward()
        return loss.item(), int((targets != IGNORE).sum())


@torch.no_grad()
def logits_loss(model: LanguageModel, stories: EncodedStories) -> float:
    """Nats per token of model(idx), each story read alone, in pieces of context_limit tokens; its end is scored too."""
    ends = stories.lengths.cumsum()
    nats = torch.empty(len(stories.targets), dtype=torch.float64)
    limit = model.context_limit
    with evaluation_mode(model):
        for start, end in zip((ends - stories.lengths).tolist(), ends.tolist(), strict=True):
            size = end - start if limit is None else limit
            for first in range(start, end, size):
                part = slice(first, min(first + size, end))
                idx, targets = (torch.from_numpy(ids[part]) for ids in (stories.inputs, stories.targets))
                logits = model(idx.to(model.head.weight.device)[None])[0].float().cpu()
                nats[part] = F.cross_entropy(logits, targets, reduction="none").double()
    return summarise(stories, nats.numpy(), n_bootstrap=1).nll


@torch.no_grad()
def reported_scores(model: LanguageModel, batches: Batches, count: int) -> tuple[float, float]:
    """Mean nats per token and accuracy over `count` batches: what a script prints that scores as it trains.

    Raises ValueError for a count below 1.
    """
    require(count >= 1, f"count is {count}; it must be at least 1 batch")
    losses, right = [], []
    with evaluation_mode(model):
        for _ in range(count):
            idx, targets = (t.to(model.head.weight.device) for t in batches.next_batch())
            logits, targets = model(idx).float().flatten(0, 1), targets.flatten()
            losses.append(F.cross_entropy(logits, targets, ignore_index=IGNORE).item())
            right.append((logits.argmax(-1) == targets)[targets != IGNORE].double().mean().item())
    return sum(losses) / count, sum(right) / count


def _rows(defect: str, corpora: Sequence[Corpus], config: RunConfig, seed: int, split: str) -> Batches:
    """The batches that a script with the defect trains on, or scores: those of `train` unless the defect is theirs."""
    data, tokenizer = config.data, load_tokenizer(config.data.tokenizer)
    size, rows = config.model.block_size, config.train.batch_size
    if defect not in ROW_DEFECTS or (defect == "drawn rows" and split != "train"):
        return make_batches(corpora, data.weights, tokenizer, size, rows, seed, split)
    require(len(corpora) == 1, f"{len(corpora)} corpora; the defect {defect!r} is shown on one")
    store = token_store(corpora[0], split, tokenizer)
    if defect == "drawn rows":
        return DrawnRows(store, size, rows, seed)
    return ScoredPadding(LineBatches(store, size, rows, seed), size)


def train_with(defect: str, config: RunConfig, corpora: Sequence[Corpus] | None = None) -> dict[str, Any]:
    """Train and judge with one defect of DEFECTS or ROW_DEFECTS throughout; JSON values, losses in nats per token.

    The weights, the order of the data and the optimizer are those of `train` with the same configuration. "reported"
    and "reported_accuracy" are what a script with the defect prints, from batches of held-out text made as in training,
    "reported_text" is the loss of the same rows without padding;
    "alone" is the loss on whole held-out stories, each read by itself with the defect of the model, as in generation;
    "repaired" that of the same weights without it. "history" has step, loss (mean over the updates since the row
    before) and reported. `corpora` are the configuration's where they are open already. Raises ValueError for an
    unknown defect and as `batch_axis_attention`.
    """
    known = (*DEFECTS, *ROW_DEFECTS)
    require(defect in known, f"unknown defect {defect!r}; choose one of {', '.join(known)}")
    train, tokenizer = config.train, load_tokenizer(config.data.tokenizer)
    corpora = load_data(config.data) if corpora is None else corpora
    texts = validation_texts(list(corpora))[: train.final_stories]
    kind = LogitsTrainer if defect.endswith("logits") else Trainer
    history: list[dict[str, float]] = []
    with seeded(train.seed):
        model = build_model(config.model)
        with DEFECTS.get(defect, nullcontext)(model):
            trainer = kind(model, _rows(defect, corpora, config, train.seed, "train"), train)
            losses: list[float] = []
            while trainer.step < trainer.total_steps:
                losses.append(trainer.advance()["loss"])
                if trainer.step % train.eval_every == 0 or trainer.step == trainer.total_steps:
                    held_out = _rows(defect, corpora, config, REPORTING_SEED, "validation")
                    reported, accuracy = reported_scores(model, held_out, HELD_OUT_BATCHES)
                    seen = {"loss": round(sum(losses) / len(losses), 4), "reported": round(reported, 4)}
                    history.append({"step": trainer.step} | seen)
                    losses = []
            if kind is LogitsTrainer:
                alone = logits_loss(model, encode_stories(texts, tokenizer))
            else:
                alone = evaluate(model, tokenizer, texts, batch_size=1, n_bootstrap=1).nll
            fresh = _rows(defect, corpora, config, REPORTING_SEED, "validation")
            unpadded = fresh.batches if isinstance(fresh, ScoredPadding) else fresh
            text, _ = reported_scores(model, unpadded, HELD_OUT_BATCHES)
    repaired = evaluate(model, tokenizer, texts, n_bootstrap=1).nll
    return {
        "reported": history[-1]["reported"],
        "reported_accuracy": round(accuracy, 4),
        "reported_text": round(text, 4),
        "alone": round(alone, 4),
        "repaired": round(repaired, 4),
        "parameters": model.num_parameters(),
        "train_seconds": round(trainer.seconds, 1),
        "corpus": corpora[0].name,
        "history": history,
    }


def recorded_defect(lab: Lab, defect: str, model: str | ModelConfig | RunConfig, **settings: Any) -> dict[str, Any]:
    """`train_with` of the lab's configuration for a model and settings (as Lab.train), recorded by the lab."""
    config = lab.config(model, **settings)
    given = {"defect": defect, "run": config.fingerprint(), "batches": HELD_OUT_BATCHES}
    return lab.measure(f"defect {defect}", lambda: train_with(defect, config, lab.texts.open(config.data)), **given)


@dataclass
class ScoredPadding:
    """Batches as the defect makes them: every row padded with id 0 to `block_size`, and the padding is a target.

    In GPT-2's vocabulary id 0 is the exclamation mark.
    """

    batches: Batches
    block_size: int

    @property
    def epoch(self) -> float:
        return self.batches.epoch

    @property
    def steps_per_epoch(self) -> int:
        return self.batches.steps_per_epoch

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """idx and targets, both (B, block_size)."""
        idx, targets = self.batches.next_batch()
        room = self.block_size - idx.size(1)
        unscored = targets == IGNORE
        after_the_end = unscored & F.pad(unscored[:, :-1], (1, 0))  # the first unscored input is the end of text itself
        return F.pad(idx.masked_fill(after_the_end, 0), (0, room)), F.pad(targets.masked_fill(unscored, 0), (0, room))

    def state_dict(self) -> dict[str, Any]:
        return self.batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches.load_state_dict(state)


def padding_experiment(steps: int, block_size: int, preset: str = "transformer-pico", seed: int = 0) -> dict[str, Any]:
    """Train one model twice on the custom corpus, padded lines of GPT-2 tokens: padding left out, and padding scored.

    For "right" and "defect": `reported_loss`, the mean training loss of the last 10 updates, which is what a script
    prints; `true_loss`, the evaluator's nats per real token on held-out lines; `after_the_end`, what greedy choice
    adds to a complete held-out line. `padding_share` is the share of the defect's targets that are padding.
    """
    tokenizer, corpus = load_tokenizer("gpt2"), load_corpus("custom", splits=(80, 20, 0))
    held_out = list(corpus.texts("validation"))
    config = TrainConfig(max_steps=steps, batch_size=8, seed=seed)
    found: dict[str, Any] = {}
    for arm in ("right", "defect"):
        batches = make_batches([corpus], (1.0,), tokenizer, block_size, config.batch_size, seed)
        with seeded(seed):
            model = build_model(preset, vocab_size=tokenizer.n_vocab, block_size=block_size)
            trainer = Trainer(model, ScoredPadding(batches, block_size) if arm == "defect" else batches, config)
            losses = [trainer.advance()["loss"] for _ in range(steps)]
        line = held_out[0]
        text = generate(model, tokenizer, line, max_new_tokens=12, temperature=0.0, stop_at_eot=False)
        found[arm] = {
            "reported_loss": sum(losses[-10:]) / len(losses[-10:]),
            "true_loss": evaluate(model, tokenizer, held_out, n_bootstrap=1).nll,
            "after_the_end": text[len(line) :],
        }
    padded = ScoredPadding(make_batches([corpus], (1.0,), tokenizer, block_size, config.batch_size, seed), block_size)
    targets = torch.cat([padded.next_batch()[1].flatten() for _ in range(20)])
    return found | {"padding_share": (targets == 0).float().mean().item()}
