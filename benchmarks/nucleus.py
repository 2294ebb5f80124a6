"""Nucleus filter and draw over GPT-2's vocabulary, against the usual full sort."""

import torch
from torch import Tensor

from benchmarks.measuring import Row, Side, compare, in_turns, ratios
from picollm_core.nucleus import top_p_filter, top_p_filter_by_sorting
from picollm_core.sampling import draw

VOCAB_SIZE, P, VECTORS = 50_257, 0.95, 16


def peaked_logits() -> list[Tensor]:
    """Logits (1, V) of Zipf distributions, shuffled, exponents 1.5 to 2: as concentrated as a trained model's."""
    generator = torch.Generator().manual_seed(0)
    log_rank = torch.arange(1, VOCAB_SIZE + 1).float().log()
    exponents = torch.linspace(1.5, 2.0, VECTORS).tolist()
    return [(-s * log_rank)[torch.randperm(VOCAB_SIZE, generator=generator)].unsqueeze(0) for s in exponents]


def flat_logits() -> list[Tensor]:
    """Logits (1, V) of an untrained model, N(0, 0.02): the nucleus holds nearly every token, the worst case."""
    generator = torch.Generator().manual_seed(0)
    return [0.02 * torch.randn(1, VOCAB_SIZE, generator=generator) for _ in range(4)]


def sort_and_draw(logits: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """What most code does: sort everything, cumulate, mask, multinomial. The token that crosses p is inside."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    outside = probabilities.cumsum(-1) - probabilities >= p
    kept = logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
    return torch.multinomial(kept.softmax(-1), 1, generator=generator)


def measure_nucleus(name: str, repetitions: int) -> list[Row]:
    """Time of filter and draw for one vector of logits, in ten times `repetitions` turns: each lasts milliseconds."""
    vectors = peaked_logits() if name == "nucleus-peaked" else flat_logits()
    sizes = []
    for logits in vectors:
        ours, truth = top_p_filter(logits, P), top_p_filter_by_sorting(logits, P)
        if not torch.equal(ours, truth):
            raise RuntimeError("the fast nucleus differs from the sorted one: its time says nothing")
        sizes.append(int((ours > -torch.inf).sum()))
    generator = torch.Generator().manual_seed(0)

    def fast() -> None:
        for logits in vectors:
            draw(top_p_filter(logits, P), [generator])

    def sorting() -> None:
        for logits in vectors:
            sort_and_draw(logits, P, generator)

    sides = {"sort": Side(sorting, units=len(vectors)), "ours": Side(fast, units=len(vectors), calls=5)}
    seconds = in_turns(sides, 10 * repetitions, warm_up=5)
    return [
        compare(
            name,
            [1e3 * s for s in seconds["sort"]],
            [1e3 * s for s in seconds["ours"]],
            ratios(seconds["sort"], seconds["ours"]),
            unit="ms per token",
            peer_is="full sort, cumulative sum, multinomial",
            ours_is="sampling.top_p_filter and draw, in float64",
            notes=f"batch 1, V = {VOCAB_SIZE:,}, p = {P}; nuclei of {min(sizes):,} to {max(sizes):,} tokens",
        )
    ]
