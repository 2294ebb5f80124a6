"""How far the fast forms of the linear mixers are from the recurrence: `python -m benchmarks.mixer_equivalence`.

Prints the largest relative error (largest difference over largest value of a tensor) of outputs, final states and all
gradients against the recurrence in float64, for every mixer, form and precision, over lengths, chunks and resets; then
the same in float32 on inputs that break careless implementations. Runs in seconds.
"""

import math
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from picollm_core.models.linear_attention import (
    FORMS,
    Form,
    gated_delta_rule,
    gated_linear_attention,
    linear_attention,
    positive_features,
)

LENGTHS = (1, 17, 63, 64, 65, 203)
CHUNKS = (1, 16, 64)
BATCH, HEADS, KEY_WIDTH, VALUE_WIDTH = 2, 2, 6, 10
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5}
ADVERSARIAL_BOUND = 1e-4
FORGET_AT_ONCE = -50.0

Kernel = Callable[..., tuple[Tensor, Tensor]]


class Case(NamedTuple):
    """Arguments of a kernel, float64: the tensors in order, the state and the resets."""

    tensors: tuple[Tensor, ...]
    state: Tensor
    resets: Tensor | None = None


class Errors(NamedTuple):
    """Largest relative errors, inf where anything is not finite."""

    outputs: float
    states: float
    gradients: float


def normalised_linear_attention(q: Tensor, k: Tensor, v: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    """The layer's use of linear_attention: features elu + 1, outputs divided by the sum of their weights."""
    return linear_attention(positive_features(q), positive_features(k), v, normalised=True, **options)  # type: ignore[arg-type]


KERNELS: dict[str, Kernel] = {
    "linear": normalised_linear_attention,
    "plain": linear_attention,
    "gla-scalar": gated_linear_attention,
    "gla-vector": gated_linear_attention,
    "delta": gated_delta_rule,
    "delta-negative": gated_delta_rule,
}


def random_case(name: str, length: int, seed: int = 0, with_resets: bool = False) -> Case:
    """Inputs as a layer makes them: gates logsigmoid / 16 for GLA; unit keys and gates of all strengths for delta."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(BATCH, HEADS, *shape, generator=generator, dtype=torch.float64)

    q, k, v = normal(length, KEY_WIDTH), normal(length, KEY_WIDTH), normal(length, VALUE_WIDTH)
    state = normal(KEY_WIDTH, VALUE_WIDTH)
    tensors: tuple[Tensor, ...] = (q, k, v)
    if name == "linear":
        state = F.pad(state, (0, 1), value=1.0)
    if name.startswith("gla"):
        tensors = (q, k, v, F.logsigmoid(normal(length, 1 if name == "gla-scalar" else KEY_WIDTH)) / 16)
    if name.startswith("delta"):
        greatest = 2.0 if name == "delta-negative" else 1.0
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        tensors = (q, k, v, F.logsigmoid(4 * normal(length)), greatest * normal(length).sigmoid())
    resets = torch.rand(BATCH, length, generator=generator) < 0.1 if with_resets else None
    return Case(tensors, state, resets)


def adversarial_cases(length: int = 203) -> dict[str, tuple[str, Case]]:
    """Name of the inputs to the kernel that gets them and the case."""
    linear, gla, delta = (random_case(name, length) for name in ("linear", "gla-vector", "delta-negative"))
    q, k, v, g = gla.tensors
    unit_q, unit_k, _, scalar, beta = delta.tensors
    forget, hold = torch.full_like(g, FORGET_AT_ONCE), torch.full_like(g, -1e-3)
    at_times = (torch.arange(length) % 5 == 0).view(-1, 1)
    same = unit_k[:, :, :1].expand_as(unit_k).clone()
    two, none = torch.full_like(beta, 2.0), torch.zeros_like(scalar)

    def of_gla(*tensors: Tensor) -> Case:
        return gla._replace(tensors=tensors)

    def of_delta(*tensors: Tensor) -> Case:
        return delta._replace(tensors=tensors)

    return {
        "gates of -50 at every token": ("gla-vector", of_gla(q, k, v, forget)),
        "gates of -50 at every fifth token": ("gla-vector", of_gla(q, k, v, torch.where(at_times, forget, hold))),
        "gates of -50 in every second channel": (
            "gla-vector",
            of_gla(q, k, v, torch.where(torch.arange(KEY_WIDTH) % 2 == 0, forget, hold)),
        ),
        "scalar gates of -50 at every fifth token": (
            "gla-scalar",
            of_gla(q, k, v, torch.where(at_times, forget, hold)[..., :1].clone()),
        ),
        "zero keys": ("delta-negative", of_delta(unit_q, torch.zeros_like(k), v, scalar, beta)),
        "one key, written with beta = 2, no decay": ("delta-negative", of_delta(unit_q, same, v, none, two)),
        "one key, beta = 1, no decay": ("delta", of_delta(unit_q, same, v, none, two / 2)),
        "opposite keys in turn, beta = 2": (
            "delta-negative",
            of_delta(unit_q, same * torch.where(torch.arange(length) % 2 == 0, 1.0, -1.0).view(-1, 1), v, none, two),
        ),
        "delta: gates of -50 at every token": ("delta-negative", of_delta(unit_q, unit_k, v, forget[..., 0], beta)),
        "delta: gates of -50 at every fifth token": (
            "delta-negative",
            of_delta(unit_q, unit_k, v, torch.where(at_times, forget, hold)[..., 0].clone(), two),
        ),
        "a reset at every token": ("delta", delta._replace(resets=torch.ones(BATCH, length, dtype=torch.bool))),
        "features that have underflowed": (
            "linear",
            linear._replace(tensors=(q - 200, k - 200, v), state=torch.zeros_like(linear.state)),
        ),
    }


class Results(NamedTuple):
    """Outputs, final state, and gradients of a fixed random projection of both by every input and by the state."""

    outputs: Tensor
    state: Tensor
    gradients: tuple[Tensor, ...]


def everything(
    kernel: Kernel, case: Case, form: Form, chunk_size: int = 64, dtype: torch.dtype = torch.float64
) -> Results:
    """What one form in one precision makes of the case."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in (*case.tensors, case.state)]
    *tensors, state = inputs
    o, after = kernel(*tensors, form=form, chunk_size=chunk_size, state=state, resets=case.resets)
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype) for x in (o, after)]
    return Results(o.detach(), after.detach(), torch.autograd.grad((o, after), inputs, directions))


def relative_error(found: Tensor, truth: Tensor) -> float:
    """max |found - truth| / max |truth|; truths below the precision of `found` count as its smallest number."""
    if not found.isfinite().all():
        return math.inf
    scale = max(truth.abs().max().item(), torch.finfo(found.dtype).tiny)
    return (found.double() - truth).abs().max().item() / scale


def errors(found: Results, truth: Results) -> Errors:
    """Of one form in one precision, against the recurrence in float64."""
    worst = max(relative_error(*pair) for pair in zip(found.gradients, truth.gradients, strict=True))
    return Errors(relative_error(found.outputs, truth.outputs), relative_error(found.state, truth.state), worst)


def worst_of(found: list[Errors]) -> Errors:
    """The largest of each."""
    return Errors(*(max(column) for column in zip(*found, strict=True)))


def regular_rows(lengths: tuple[int, ...] = LENGTHS) -> Iterator[tuple[str, Errors, float]]:
    """Name, errors and bound of every mixer x form x precision."""
    for name, kernel in KERNELS.items():
        cases = [random_case(name, length, with_resets=resets) for length in lengths for resets in (False, True)]
        truths = [everything(kernel, case, "recurrent") for case in cases]
        for form in FORMS:
            chunks = CHUNKS if form == "chunked" else (64,)
            for dtype, bound in BOUNDS.items():
                found = [
                    errors(everything(kernel, case, form, chunk, dtype), truth)
                    for case, truth in zip(cases, truths, strict=True)
                    for chunk in chunks
                ]
                yield f"{name:<15} {form:<10} {str(dtype).removeprefix('torch.')}", worst_of(found), bound


def adversarial_rows(forms: tuple[Form, ...] = FORMS) -> Iterator[tuple[str, Errors, float]]:
    """Name, worst errors of all forms, and bound of every adversarial input, float32."""
    for inputs, (name, case) in adversarial_cases().items():
        truth = everything(KERNELS[name], case, "recurrent")
        found = [errors(everything(KERNELS[name], case, form, dtype=torch.float32), truth) for form in forms]
        yield inputs, worst_of(found), ADVERSARIAL_BOUND


def line(name: str, found: Errors, bound: float) -> str:
    """One row of the printed table."""
    verdict = "kept" if max(found) <= bound else "BROKEN"
    return f"{name:<42} {found.outputs:>9.1e} {found.states:>9.1e} {found.gradients:>9.1e}   <= {bound:.0e} {verdict}"


def main() -> int:
    """Print the table; 1 when a bound is broken."""
    print(f"{'against the recurrence in float64':<42} {'outputs':>9} {'states':>9} {'gradients':>9}   bound")
    broken = 0
    for rows in (regular_rows(), adversarial_rows()):
        for row in rows:
            print(line(*row), flush=True)
            broken += max(row[1]) > row[2]
        print()
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
