"""Decay inside a chunk against sums written out, and what resets hide."""

import pytest
import torch

from picollm_core.models.decay import SAFE_EXPONENT, Reach, scalar_decay, sums_between, vector_decay


def chunk_of(gate: float, length: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and log decays (1, 1, 1, C, 3) with gates around `gate`."""
    generator = torch.Generator().manual_seed(0)
    q, k, noise = (torch.randn(1, 1, 1, length, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    return q, k, gate * noise.sigmoid()


def test_sums_between_two_tokens_leave_out_the_first_and_count_the_second():
    g = torch.tensor([5.0, -1.0, -2.0, -4.0])
    expected = [[0, 0, 0, 0], [-1, 0, 0, 0], [-3, -2, 0, 0], [-7, -6, -4, 0]]
    assert sums_between(g).tolist() == expected


def test_sums_between_do_not_suffer_from_strong_gates_elsewhere():
    g = torch.full((64,), -1e-3)
    g[:32] = -1e4
    assert sums_between(g)[63, 32].item() == pytest.approx(-31e-3, rel=1e-5)


@pytest.mark.parametrize("gate", [-0.01, -1.0, -5.0, -12.0, -30.0, -200.0])
@pytest.mark.parametrize("length", [1, 2, 16])
def test_scores_of_any_gate_are_the_sums_written_out(gate, length):
    """Gates from those that fit one block to those that halve blocks down to single tokens."""
    q, k, g = chunk_of(gate, length)
    found = vector_decay(q, k, g)
    for i in range(length):
        for j in range(i + 1):
            between = g[0, 0, 0, j + 1 : i + 1].sum(dim=0)
            expected = (q[0, 0, 0, i] * k[0, 0, 0, j] * between.exp()).sum()
            torch.testing.assert_close(found.scores[0, 0, 0, i, j], expected, rtol=1e-11, atol=1e-12)
    summed = g.cumsum(dim=-2)
    torch.testing.assert_close(found.queries, q * summed.exp())
    torch.testing.assert_close(found.keys, k * (summed[..., -1:, :] - summed).exp())
    torch.testing.assert_close(found.whole, summed[..., -1:, :].exp())


def test_no_exponent_exceeds_what_float32_holds(monkeypatch):
    """Of every exp that is taken, for gates just below and far above the limit of a block."""
    largest = []
    exp = torch.Tensor.exp
    monkeypatch.setattr(torch.Tensor, "exp", lambda x: largest.append(x.max().item()) or exp(x))
    for gate in (-SAFE_EXPONENT / 16, -SAFE_EXPONENT / 15, -SAFE_EXPONENT, -1e5):
        q, k, _ = chunk_of(0.0)
        found = vector_decay(q.float(), k.float(), torch.full_like(q, gate).float())
        assert all(part.isfinite().all() for part in found)
    assert max(largest) <= SAFE_EXPONENT + 1e-3


def test_a_scalar_decay_is_a_vector_of_equal_ones():
    q, k, g = chunk_of(-2.0)
    scalar, vector = scalar_decay(q, k, g[..., :1]), vector_decay(q, k, g[..., :1].expand_as(q))
    for found, expected in zip(scalar, vector, strict=True):
        found, expected = torch.broadcast_tensors(found, expected)
        if found.size(-1) == found.size(-2):
            found, expected = found.tril(), expected.tril()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_without_resets_everything_earlier_is_in_reach():
    reach = Reach.of(None, 4, torch.zeros(1))
    assert torch.equal(reach.pairs, torch.ones(4, 4, dtype=torch.bool).tril())
    x = torch.randn(2, 3)
    assert reach.seen(x) is x
    assert reach.kept(x) is x
    assert reach.survival(x) is x


def test_resets_hide_what_was_written_before_them():
    resets = torch.tensor([[[False, True, False, True], [False, False, False, False]]])  # (1, 2, 4)
    reach = Reach.of(resets, 4, torch.zeros(1))
    first = torch.block_diag(torch.ones(1, 1), torch.ones(2, 2).tril(), torch.ones(1, 1)).bool()
    assert torch.equal(reach.pairs[0, 0, 0], first)
    assert torch.equal(reach.pairs[0, 0, 1], torch.ones(4, 4, dtype=torch.bool).tril())
    ones = torch.ones(1, 1, 2, 4, 1)
    assert reach.seen(ones).flatten(2).tolist() == [[[1, 0, 0, 0, 1, 1, 1, 1]]]
    assert reach.kept(ones).flatten(2).tolist() == [[[0, 0, 0, 1, 1, 1, 1, 1]]]
    assert reach.survival(ones[..., -1:, :]).flatten(2).tolist() == [[[0, 1]]]


def test_gates_of_minus_50_leave_their_tiny_gradients_intact():
    """In float32: what reaches such a gate is e^-50 of the rest, and is not lost beside larger terms that cancel."""
    q, k, _ = chunk_of(0.0)
    g = torch.full_like(q, -50.0)

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        gate = g.to(dtype).requires_grad_()
        total = sum(
            part.tril().sum() if i == 0 else part.sum()
            for i, part in enumerate(vector_decay(q.to(dtype), k.to(dtype), gate))
        )
        return torch.autograd.grad(total, gate)[0]

    truth = gradient(torch.float64)
    assert 0 < truth.abs().max() < 1e-18
    torch.testing.assert_close(gradient(torch.float32).double(), truth, rtol=1e-4, atol=1e-4 * truth.abs().max().item())
