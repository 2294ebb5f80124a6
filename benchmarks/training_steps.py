"""Whole training steps: this package's trainer against the plain step that nanoGPT's training script makes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measuring import Row, Side, compare, in_turns, ratios
from picollm_core.batches import Batches, PackedBatches
from picollm_core.config import ModelConfig, TrainConfig, TransformerConfig
from picollm_core.models import LanguageModel, build_model
from picollm_core.performance_curves import PEAK_SIZE, matrix_peak
from picollm_core.presets import preset
from picollm_core.token_store import TokenStore
from picollm_core.trainer import Trainer, seeded

BATCH_SIZE, BLOCK_SIZE = 16, 256
TOKENS_PER_STEP = BATCH_SIZE * BLOCK_SIZE
LEARNING_RATE, BETAS, WEIGHT_DECAY, GRAD_CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0
SAME_LOSS = 0.02  # nats; rounding to bfloat16 moves a loss near ln V by less


def zipf_store(vocab_size: int, n_tokens: int = 500_000, folder: Path | None = None) -> TokenStore:
    """Tokens whose frequencies fall like 1 / rank, as words' do; memory-mapped from a file when `folder` is given."""
    weights = 1 / np.arange(1, vocab_size + 1)
    ids = np.random.default_rng(0).choice(vocab_size, n_tokens, p=weights / weights.sum()).astype(np.uint16)
    if folder is not None:
        ids.tofile(folder / "tokens.bin")
        ids = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r")
    return TokenStore(ids, np.array([0, n_tokens]), n_bytes=4 * n_tokens)


def train_config(precision: str) -> TrainConfig:
    """The same update as the plain step's."""
    return TrainConfig(
        max_steps=1_000_000,
        batch_size=BATCH_SIZE,
        optimizer="adamw",
        learning_rate=LEARNING_RATE,
        beta1=BETAS[0],
        beta2=BETAS[1],
        weight_decay=WEIGHT_DECAY,
        grad_clip=GRAD_CLIP,
        schedule="constant",
        warmup_ratio=0.0,
        precision=precision,  # type: ignore[arg-type]
        device="cpu",
    )


class PlainStep:
    """nanoGPT's update on a CPU: all logits in float32, F.cross_entropy, clipping, torch's default AdamW.

    nanoGPT asks for the fused AdamW on CUDA only, and decays matrices only. The model is this package's own module.
    """

    def __init__(self, model: LanguageModel, batches: Batches) -> None:
        self.model, self.batches = model.train(), batches
        parameters = list(model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=LEARNING_RATE, betas=BETAS)

    def advance(self) -> float:
        """One update; returns its loss in nats per token."""
        idx, targets = self.batches.next_batch()
        logits = self.model(idx)  # (B, T, V)
        loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-100)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def new_trainer(config: ModelConfig, precision: str, store: TokenStore) -> Trainer:
    """This package's side, from the same weights and data as `new_plain_step`."""
    with seeded(0):
        model = build_model(config, block_size=BLOCK_SIZE)
    return Trainer(model, PackedBatches(store, BLOCK_SIZE, BATCH_SIZE), train_config(precision))


def new_plain_step(config: ModelConfig, store: TokenStore) -> PlainStep:
    """The peer's side."""
    with seeded(0):
        model = build_model(config, block_size=BLOCK_SIZE)
    return PlainStep(model, PackedBatches(store, BLOCK_SIZE, BATCH_SIZE))


def require_same_work(losses: dict[str, float]) -> None:
    """Raise RuntimeError unless all sides start from the same loss: else their times say nothing."""
    if max(losses.values()) - min(losses.values()) > SAME_LOSS:
        raise RuntimeError(f"the sides do not compute the same loss: {losses}")


def matmul_flops(model: LanguageModel, batch_size: int, block_size: int) -> float:
    """Floating-point operations that a Transformer's training step needs in matrix products.

    Two for each weight and token forward and four backward (a tied head counts as the product it is), and for the
    two products of causal attention the half of T x T that is looked at. Lookups, norms and softmax count nothing.
    """
    config = model.config
    if not isinstance(config, TransformerConfig):
        raise ValueError(f"operations are counted for Transformers, not for family {config.family!r}")
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    pairs = block_size * (block_size + 1) / 2
    attention = config.n_layer * config.n_embd * 2 * pairs  # multiply-adds of one row: scores, and weighted values
    return 6 * batch_size * (weights * block_size + attention)


def _speed_row(name: str, precision: str, seconds: dict[str, list[float]]) -> Row:
    plain, ours = seconds["plain"], seconds[precision]
    return compare(
        f"step-{name}-{precision}",
        plain,
        ours,
        ratios(plain, ours),
        unit="s per step",
        peer_is="plain PyTorch float32: full logits, cross_entropy, default AdamW",
        ours_is=f"Trainer.advance in {precision}",
        notes=f"{BATCH_SIZE} x {BLOCK_SIZE} tokens; {TOKENS_PER_STEP / min(ours):,.0f} tokens/s at best",
    )


def _peak_row(name: str, precision: str, seconds: Sequence[float], peaks: Sequence[float], flops: float) -> Row:
    reached = [flops / s for s in seconds]
    return compare(
        f"peak-{name}-{precision}",
        [p / 1e9 for p in peaks],
        [r / 1e9 for r in reached],
        ratios(reached, peaks),
        unit="GFLOP/s",
        peer_is=f"{precision} matrix product of {PEAK_SIZE} x {PEAK_SIZE}, best of 5, beside each step",
        ours_is="matrix products of the model over the time of a whole step",
        notes=f"{flops / 1e9:,.0f} GFLOP a step",
    )


def measure_steps(name: str, repetitions: int) -> list[Row]:
    """Rows of one preset: speed in both precisions, and for a Transformer its share of the matrix-product peak."""
    config = preset(name)
    store = zipf_store(config.vocab_size)
    plain = new_plain_step(config, store)
    trainers = {precision: new_trainer(config, precision, store) for precision in ("float32", "bfloat16")}
    losses = {precision: trainer.advance()["loss"] for precision, trainer in trainers.items()}
    require_same_work({"plain": plain.advance(), **losses})
    calls = 1 if name.endswith("-small") else 2
    seconds: dict[str, list[float]] = {"plain": [], "float32": [], "bfloat16": []}
    peaks: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    sides = {"plain": Side(plain.advance, calls=calls)}
    sides |= {precision: Side(trainer.advance, calls=calls) for precision, trainer in trainers.items()}
    is_transformer = isinstance(config, TransformerConfig)
    for repetition in range(repetitions):
        turn = in_turns(sides, repetitions=1, warm_up=0 if repetition else 1)
        for side, measured in turn.items():
            seconds[side] += measured
        for precision in peaks if is_transformer else ():
            peaks[precision].append(matrix_peak(getattr(torch, precision)))
    rows = [_speed_row(name, precision, seconds) for precision in trainers]
    if is_transformer:
        flops = matmul_flops(plain.model, BATCH_SIZE, BLOCK_SIZE)
        rows += [_peak_row(name, p, seconds[p], peaks[p], flops) for p in trainers]
    return rows
