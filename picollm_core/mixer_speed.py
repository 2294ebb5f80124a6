"""What sequence mixers cost against length: time and memory of training, and the size of the state in generation."""

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from picollm_core.config import TransformerConfig, require
from picollm_core.decoding_speed import timed
from picollm_core.models.positions import Place, RotaryPositions
from picollm_core.models.transformer import build_mixer


def _step(mixer: nn.Module, x: Tensor, place: Place) -> None:
    """Forward and backward from a scalar; gradients gone afterwards."""
    y, _ = mixer(x, mixer.empty_state(x.size(0)), place)  # type: ignore[operator]
    y.sum().backward()
    mixer.zero_grad(set_to_none=True)
    x.grad = None


def _megabytes_kept(mixer: nn.Module, x: Tensor, place: Place) -> float:
    """Memory that the forward pass leaves for the backward pass; tensors that share memory count once."""
    weights_and_input = {tensor.untyped_storage().data_ptr() for tensor in (*mixer.parameters(), x)}
    kept: dict[int, int] = {}  # all of it stays alive in the graph of y, so no address comes twice

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights_and_input:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        y, _ = mixer(x, mixer.empty_state(x.size(0)), place)  # type: ignore[operator]
    del y
    return sum(kept.values()) / 1e6


def training_costs(
    config: TransformerConfig,
    kinds: Sequence[str],
    lengths: Sequence[int],
    repetitions: int = 5,
    batch_size: int = 1,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Milliseconds of forward and backward of one layer's mixer, projections included, and what it keeps in between.

    One row a length and kind (as in `config.mixers`): length, mixer, milliseconds (the median over `repetitions`,
    all kinds of one length in turn), low and high (the quartiles), megabytes (activations that wait for the backward
    pass, weights and input not counted). float32, random weights and input: neither matters for the time. ValueError
    when lengths or kinds are empty or below 1, or repetitions below 2.
    """
    require(bool(kinds), "kinds is empty; give at least one mixer")
    require(bool(lengths) and min(lengths) >= 1, f"lengths are {tuple(lengths)}; give at least one, each at least 1")
    require(repetitions >= 2, f"repetitions is {repetitions}; quartiles need at least 2")
    mixers = {kind: build_mixer(config, kind).to(device) for kind in kinds}
    rotary = RotaryPositions(config.head_width or config.n_embd // config.n_head, config.rope_base, config.rope_pairs)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in lengths:
        x = torch.randn(batch_size, length, config.n_embd, generator=generator).to(device).requires_grad_()
        place = Place(0, rotary.angles(0, length, x) if config.position == "rope" else None, None)
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for repetition in range(repetitions + 1):
            for kind, mixer in mixers.items():
                _, milliseconds = timed(partial(_step, mixer, x, place), x.device)
                if repetition > 0:  # the first one warms up
                    times[kind].append(milliseconds)
        for kind, mixer in mixers.items():
            low, middle, high = statistics.quantiles(times[kind], n=4, method="inclusive")
            kept = _megabytes_kept(mixer, x, place)
            rows.append(
                {"length": length, "mixer": kind, "milliseconds": middle, "low": low, "high": high, "megabytes": kept}
            )
    return rows


def crossover(
    rows: Sequence[dict[str, Any]], mixer: str, against: str = "softmax", column: str = "milliseconds"
) -> float | None:
    """The length from which on `mixer` costs less than `against` at every longer measured length.

    Between the last measured length where it does not and the next one, costs are taken as powers of the length. The
    shortest measured length when it is cheaper throughout, None when it is not cheaper at the longest. ValueError when
    the two were not measured at the same lengths.
    """
    costs = {name: {row["length"]: row[column] for row in rows if row["mixer"] == name} for name in (mixer, against)}
    lengths = sorted(costs[mixer])
    require(
        bool(lengths) and lengths == sorted(costs[against]),
        f"{mixer!r} was measured at {lengths} and {against!r} at {sorted(costs[against])}; measure both at the same",
    )
    excess = [torch.tensor(costs[mixer][n] / costs[against][n]).log().item() for n in lengths]
    if excess[-1] >= 0:
        return None
    dearer = [index for index, value in enumerate(excess) if value >= 0]
    if not dearer:
        return float(lengths[0])
    last = dearer[-1]
    share = excess[last] / (excess[last] - excess[last + 1])
    return float(lengths[last] * (lengths[last + 1] / lengths[last]) ** share)


def state_megabytes(state: Any) -> float:
    """Size of all tensors in a streaming state, nested tuples and lists looked into; other values count nothing."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size() / 1e6
    return sum(state_megabytes(part) for part in state) if isinstance(state, tuple | list) else 0.0
