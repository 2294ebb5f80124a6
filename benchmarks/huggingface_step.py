"""A training step of transformers' GPT2LMHeadModel, as its users write it, against this package's on equal weights."""

import tempfile
from typing import Any

import torch
from torch import nn

from benchmarks.measuring import Row, Side, compare, in_turns, ratios
from benchmarks.training_steps import (
    BATCH_SIZE,
    BETAS,
    BLOCK_SIZE,
    GRAD_CLIP,
    LEARNING_RATE,
    TOKENS_PER_STEP,
    WEIGHT_DECAY,
    new_trainer,
    require_same_work,
    zipf_store,
)
from picollm_core.batches import Batches, PackedBatches
from picollm_core.config import ModelConfig
from picollm_core.exchange import to_transformers
from picollm_core.models import build_model
from picollm_core.presets import preset
from picollm_core.token_store import TokenStore
from picollm_core.trainer import seeded

PRECISIONS = ("float32", "bfloat16")
SMALL_REPETITIONS = 3  # a step takes seconds on each side


class HuggingFaceStep:
    """Forward with labels, backward, clipping, torch's default AdamW.

    The class shifts its labels itself, so the next token of every window's last position is left out there: it scores
    T - 1 of T positions, a little less work than ours.
    """

    def __init__(self, config: ModelConfig, batches: Batches) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        with seeded(0):
            ours = build_model(config, block_size=BLOCK_SIZE)
        with tempfile.TemporaryDirectory() as folder:
            architecture = to_transformers(ours, folder)
            self.model: Any = getattr(transformers, architecture).from_pretrained(folder, local_files_only=True).train()
        self.batches = batches
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY
        )

    def advance(self) -> float:
        """One update; returns its loss in nats per token."""
        idx, _ = self.batches.next_batch()
        loss = self.model(input_ids=idx, labels=idx).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def new_huggingface_step(config: ModelConfig, store: TokenStore) -> HuggingFaceStep:
    """The peer's side, from the same weights and data as `training_steps.new_trainer`."""
    return HuggingFaceStep(config, PackedBatches(store, BLOCK_SIZE, BATCH_SIZE))


def measure_huggingface_steps(size: str, repetitions: int) -> list[Row]:
    """Rows of one size in both precisions, dropout off on both sides."""
    config = preset(f"gpt2-{size}", dropout=0.0)
    store = zipf_store(config.vocab_size)
    peer = new_huggingface_step(config, store)
    trainers = {precision: new_trainer(config, precision, store) for precision in PRECISIONS}
    losses = {precision: trainer.advance()["loss"] for precision, trainer in trainers.items()}
    require_same_work({"transformers": peer.advance(), **losses})
    sides = {"peer": Side(peer.advance)} | {name: Side(trainer.advance) for name, trainer in trainers.items()}
    warm_up = 1
    if size == "small":
        warm_up, repetitions = 0, min(SMALL_REPETITIONS, repetitions)
    seconds = in_turns(sides, repetitions, warm_up)
    return [
        compare(
            f"step-gpt2-{size}-{precision}",
            seconds["peer"],
            seconds[precision],
            ratios(seconds["peer"], seconds[precision]),
            unit="s per step",
            peer_is="transformers' GPT2LMHeadModel in float32 with labels, default AdamW",
            ours_is=f"Trainer.advance in {precision}",
            notes=f"{BATCH_SIZE} x {BLOCK_SIZE} tokens, equal weights, dropout 0; "
            f"{TOKENS_PER_STEP / min(seconds[precision]):,.0f} tokens/s at best",
        )
        for precision in PRECISIONS
    ]
