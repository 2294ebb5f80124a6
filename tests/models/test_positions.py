"""RoPE: rotations that only relative distance survives, with tables of each model's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm_core.config import TransformerConfig
from picollm_core.models import build_model
from picollm_core.models.positions import RotaryPositions, rotate

LIKE = torch.zeros(1, dtype=torch.float64)


def at(x: torch.Tensor, position: int, base: float = 10_000.0) -> torch.Tensor:
    """x (D,) rotated to a position."""
    cos, sin = RotaryPositions(x.numel(), base).angles(position, 1, x)
    return rotate(x.view(1, 1, 1, -1), cos, sin).flatten()


def vectors(width: int, seed: int, count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(width, generator=generator, dtype=torch.float64) for _ in range(count)]


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 32).map(lambda n: 2 * n),
    base=st.floats(2, 1e6),
    m=st.integers(0, 5_000),
    n=st.integers(0, 5_000),
    shift=st.integers(0, 5_000),
    seed=st.integers(0, 2**31),
)
def test_scores_depend_on_relative_distance_alone(width, base, m, n, shift, seed):
    q, k = vectors(width, seed)
    near, far = at(q, m, base) @ at(k, n, base), at(q, m + shift, base) @ at(k, n + shift, base)
    torch.testing.assert_close(near, far, rtol=0, atol=1e-9 * width)


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 32).map(lambda n: 2 * n), position=st.integers(0, 100_000), seed=st.integers(0, 2**31))
def test_rotation_keeps_the_norm(width, position, seed):
    (x,) = vectors(width, seed, 1)
    torch.testing.assert_close(at(x, position).norm(), x.norm(), rtol=1e-12, atol=0)


def test_position_zero_is_the_identity_and_others_are_not():
    (x,) = vectors(8, 0, 1)
    assert torch.equal(at(x, 0), x)
    assert (at(x, 1) != x).all()


def test_pairs_i_and_i_plus_half_turn_by_position_times_their_frequency():
    """Equation 34 of arXiv 2104.09864 as complex numbers: pair i is multiplied by exp(i m base^(-2i/D))."""
    (x,) = vectors(8, 1, 1)
    frequency = 500.0 ** (-2 * torch.arange(4, dtype=torch.float64) / 8)
    turned = torch.complex(x[:4], x[4:]) * torch.polar(torch.ones(4, dtype=torch.float64), 7 * frequency)
    torch.testing.assert_close(at(x, 7, 500.0), torch.cat([turned.real, turned.imag]), rtol=1e-12, atol=1e-12)


def test_angles_of_a_later_start_continue_those_of_the_beginning():
    rope = RotaryPositions(8, 10_000.0)
    whole = rope.angles(0, 12, LIKE)
    assert whole[0].shape == (12, 8)
    for part, later in zip(whole, rope.angles(5, 7, LIKE), strict=True):
        assert torch.equal(part[5:], later)


def test_far_positions_are_exact_after_a_change_of_type():
    """In bfloat16 a frequency has 8 bits: at position 10,000 a rounded one would be wrong by whole turns."""
    exact = RotaryPositions(64, 10_000.0).angles(10_000, 4, LIKE)
    moved = RotaryPositions(64, 10_000.0).to(torch.bfloat16).angles(10_000, 4, LIKE)
    assert all(torch.equal(a, b) for a, b in zip(exact, moved, strict=True))
    lowered = RotaryPositions(64, 10_000.0).angles(10_000, 4, LIKE.bfloat16())
    for a, b in zip(exact, lowered, strict=True):
        assert b.dtype == torch.bfloat16
        torch.testing.assert_close(a, b.double(), rtol=0, atol=2**-8)


def rope_model(**changes):
    torch.manual_seed(0)
    shape = {"vocab_size": 17, "block_size": 16, "n_embd": 16, "n_head": 2, "position": "rope"}
    return build_model(TransformerConfig(**(shape | changes))).double().eval()


def test_models_of_other_bases_and_widths_do_not_share_tables():
    idx = torch.randint(17, (2, 12), generator=torch.Generator().manual_seed(0))
    first = rope_model()
    before = first(idx)
    others = [rope_model(rope_base=100.0), rope_model(n_head=4), rope_model(n_embd=32)]
    for other in others:
        other(idx)
    assert torch.equal(first(idx), before)
    same_weights = rope_model(rope_base=100.0)
    same_weights.load_state_dict(first.state_dict())
    assert not torch.allclose(same_weights(idx), before)
    assert first.rope.state_dict() == {}


@pytest.mark.parametrize("position", ["rope", "absolute"])
def test_positions_continue_after_a_cache(position):
    """A token's hidden state after a prefix differs from the one at the start, and equals the full pass."""
    model = rope_model(position=position)
    idx = torch.randint(17, (1, 10), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, _ = model.hidden(idx)
        _, state = model.hidden(idx[:, :6])
        later, after = model.hidden(idx[:, 6:], state)
    assert (state.length, after.length) == (6, 10)
    torch.testing.assert_close(later, whole[:, 6:], rtol=1e-12, atol=1e-12)


def test_repeated_tokens_are_told_apart_by_position_only_where_there_is_one():
    idx = torch.full((1, 5), 3)
    same = rope_model(position="none")(idx)
    torch.testing.assert_close(same, same[:, :1].expand_as(same), rtol=1e-12, atol=1e-12)
    absolute = rope_model(position="absolute")(idx)
    assert not torch.allclose(absolute[:, 0], absolute[:, 1])
