"""The linear mixers: chunked form against the recurrence, and a layer of each against softmax attention."""

import torch
from torch import Tensor

from benchmarks.measuring import Row, Side, compare, in_turns, ratios
from picollm_core.config import TransformerConfig
from picollm_core.mixer_speed import crossover, training_costs
from picollm_core.models.linear_attention import Form, gated_delta_rule, gated_linear_attention
from picollm_core.models.transformer import build_mixer
from picollm_core.trainer import seeded

LENGTH = 1024
LAYER = TransformerConfig(n_embd=128, n_head=4, n_layer=1, position="none")
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)


def head_inputs(kind: str) -> list[Tensor]:
    """What an untrained layer of LAYER gives its kernel for one sequence: 4 heads, keys of 16 and values of 32."""
    with seeded(0), torch.no_grad():
        mixer = build_mixer(LAYER, kind)
        inputs, _ = mixer.inputs(torch.randn(1, LENGTH, LAYER.n_embd), mixer.empty_state(1).tail, None)
    return [x.contiguous().requires_grad_() for x in inputs]


def forward_and_backward(kind: str, inputs: list[Tensor], form: Form) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs, and the gradients of their sum by every input."""
    kernel = gated_linear_attention if kind == "gla" else gated_delta_rule
    o, _ = kernel(*inputs, form=form)
    return o.detach(), torch.autograd.grad(o.sum(), inputs)


def measure_forms(kind: str, repetitions: int) -> list[Row]:
    """Forward and backward of one sequence: what the chunked form gains over the recurrence."""
    inputs = head_inputs(kind)
    fast, truth = (forward_and_backward(kind, inputs, form) for form in ("chunked", "recurrent"))
    for found, expected in zip((fast[0], *fast[1]), (truth[0], *truth[1]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    sides = {
        "recurrent": Side(lambda: forward_and_backward(kind, inputs, "recurrent")),
        "chunked": Side(lambda: forward_and_backward(kind, inputs, "chunked"), calls=5),
    }
    seconds = in_turns(sides, repetitions)
    return [
        compare(
            f"chunked-{kind}",
            [1e3 * s for s in seconds["recurrent"]],
            [1e3 * s for s in seconds["chunked"]],
            ratios(seconds["recurrent"], seconds["chunked"]),
            unit="ms per pass",
            peer_is="the recurrence, token by token",
            ours_is="chunks of 64 (gla) or 32 (delta) tokens",
            notes=f"forward and backward, float32, batch 1, T = {LENGTH:,}, 4 heads, keys of 16, values of 32",
        )
    ]


def measure_against_softmax(repetitions: int) -> list[Row]:
    """A whole layer of each kind, forward and backward, over lengths; the ratio is that at the longest."""
    kinds = ("softmax", "linear", "gla", "delta")
    runs = [training_costs(LAYER, kinds, LENGTHS, repetitions=2) for _ in range(repetitions)]

    def at_longest(kind: str) -> list[float]:
        return [
            row["milliseconds"] for run in runs for row in run if (row["mixer"], row["length"]) == (kind, LENGTHS[-1])
        ]

    rows = []
    for kind in kinds[1:]:
        crossings = [crossover(run, kind) for run in runs]
        found = sorted(length for length in crossings if length is not None)
        where = f"cheaper from T = {found[len(found) // 2]:,.0f} on" if found else "never cheaper"
        rows.append(
            compare(
                f"softmax-{kind}",
                at_longest("softmax"),
                at_longest(kind),
                ratios(at_longest("softmax"), at_longest(kind)),
                unit="ms per pass",
                peer_is="layer of softmax attention (scaled_dot_product_attention)",
                ours_is=f"layer of kind {kind}",
                notes=f"{where}; forward and backward at T = {LENGTHS[-1]:,}, float32, batch 1, width 128, 4 heads",
            )
        )
    return rows
