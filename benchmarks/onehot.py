"""The k-gram's exact one-hot input: gathered rows against real one-hot vectors, and against learned embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measuring import Row, Side, compare, in_turns, ratios
from benchmarks.training_steps import (
    BATCH_SIZE,
    BLOCK_SIZE,
    TOKENS_PER_STEP,
    new_trainer,
    require_same_work,
    zipf_store,
)
from picollm_core.config import KGramConfig
from picollm_core.models.kgram import OneHotInput
from picollm_core.presets import preset

TENSOR_TOKENS = 512
LOOP_SHAPE = (2, 8)


def windows(batch: int, time: int, config: KGramConfig) -> Tensor:
    """Token ids (B, T, k) with frequencies falling like 1 / rank."""
    count = batch * time * config.k
    tokens = zipf_store(config.vocab_size, count).tokens.astype("int64")
    return torch.from_numpy(tokens).view(batch, time, config.k)


def onehot_tensor_layer(window: Tensor, layer: nn.Linear, vocab_size: int) -> Tensor:
    """The same layer on one-hot tensors: (B, T, k) -> (B, T, C) through (B, T, k V)."""
    return layer(F.one_hot(window, vocab_size).flatten(-2).float())


def python_loop_layer(window: Tensor, layer: nn.Linear, vocab_size: int) -> Tensor:
    """The same as the course's starter code goes about it: one position of one row after the other."""
    rows = []
    for t in range(window.size(1)):
        outputs = []
        for b in range(window.size(0)):
            context = F.one_hot(window[b, t], vocab_size).float().flatten()  # (k V,)
            outputs.append(layer(context.unsqueeze(0)))
        rows.append(torch.cat(outputs, dim=0))  # (B, C)
    return torch.stack(rows, dim=1)


def equal_layers(config: KGramConfig) -> tuple[OneHotInput, nn.Linear]:
    """The package's layer and a dense one with the same weights and biases."""
    layer = OneHotInput(config)
    dense = nn.Linear(config.k * config.vocab_size, config.n_embd)
    with torch.no_grad():
        dense.weight.copy_(layer.weight.T)
        dense.bias.copy_(layer.bias)
    return layer, dense


def _pass(module: nn.Module, output: Tensor) -> None:
    """Backward from a scalar, then gradients gone: what one training step asks of this layer."""
    output.sum().backward()
    module.zero_grad(set_to_none=True)


def measure_layers(repetitions: int) -> list[Row]:
    """Forward and backward of the input layer at k-gram pico, k = 3, per token."""
    config = preset("kgram-pico", embedding="onehot")
    assert isinstance(config, KGramConfig)
    layer, dense = equal_layers(config)
    whole = windows(BATCH_SIZE, BLOCK_SIZE, config)
    part, few = windows(1, TENSOR_TOKENS, config), windows(*LOOP_SHAPE, config)
    with torch.no_grad():
        for truth in (onehot_tensor_layer, python_loop_layer):
            torch.testing.assert_close(layer(few), truth(few, dense, config.vocab_size), rtol=1e-4, atol=1e-5)
    tensors = Side(lambda: _pass(dense, onehot_tensor_layer(part, dense, config.vocab_size)), units=TENSOR_TOKENS)
    loop = Side(lambda: _pass(dense, python_loop_layer(few, dense, config.vocab_size)), units=few[..., 0].numel())
    gathered = Side(lambda: _pass(layer, layer(whole)), units=TOKENS_PER_STEP, calls=5)
    seconds = in_turns({"tensors": tensors, "loop": loop, "gathered": gathered}, repetitions)
    what = f"; ours on {TOKENS_PER_STEP:,} tokens, forward and backward of the input layer, per token"
    peers = {
        "onehot-tensors": ("tensors", "F.one_hot(...).float() through nn.Linear", f"peer on {TENSOR_TOKENS} tokens"),
        "onehot-python-loop": (
            "loop",
            "Python loop over positions and rows, one-hot vectors through nn.Linear",
            f"peer on {few[..., 0].numel()} tokens",
        ),
    }
    return [
        compare(
            name,
            [1e6 * s for s in seconds[side]],
            [1e6 * s for s in seconds["gathered"]],
            ratios(seconds[side], seconds["gathered"]),
            unit="us per token",
            peer_is=peer_is,
            ours_is="OneHotInput, rows gathered",
            notes=sizes + what,
        )
        for name, (side, peer_is, sizes) in peers.items()
    ]


def measure_against_learned(repetitions: int) -> list[Row]:
    """A whole training step with one-hot input over one with a learned embedding of the same width, in float32."""
    config = preset("kgram-pico")
    store = zipf_store(config.vocab_size)
    trainers = {
        name: new_trainer(config.replace(embedding=name), "float32", store)  # type: ignore[arg-type]
        for name in ("learned", "onehot")
    }
    require_same_work({name: trainer.advance()["loss"] for name, trainer in trainers.items()})
    sides = {name: Side(trainer.advance, calls=3) for name, trainer in trainers.items()}
    seconds = in_turns(sides, repetitions)
    counts = {name: trainer.model.num_parameters() for name, trainer in trainers.items()}
    return [
        compare(
            "onehot-learned-step",
            seconds["learned"],
            seconds["onehot"],
            ratios(seconds["onehot"], seconds["learned"]),
            unit="s per step",
            peer_is=f"k-gram pico with a learned embedding ({counts['learned']:,} parameters)",
            ours_is=f"k-gram pico with one-hot input ({counts['onehot']:,} parameters)",
            notes="float32, whole training step, equal width",
        )
    ]
