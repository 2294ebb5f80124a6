"""RoPE that only relative distance survives, in both conventions; YaRN, waves, ALiBi; tables of each model's own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm_core.config import TransformerConfig
from picollm_core.models import build_model
from picollm_core.models.positions import RotaryPositions, SinusoidalPositions, alibi_slopes, rotate

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


def interleave(x: torch.Tensor) -> torch.Tensor:
    """x (..., D) with the elements of pair (i, i + D/2) put at (2i, 2i + 1)."""
    return torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 16).map(lambda n: 2 * n), position=st.integers(0, 5_000), seed=st.integers(0, 2**31))
def test_the_two_conventions_are_equal_up_to_the_permutation_of_a_head(width, position, seed):
    (x,) = vectors(width, seed, 1)
    cos, sin = RotaryPositions(width, 10_000.0, "interleaved").angles(position, 1, x)
    turned = rotate(interleave(x).view(1, 1, 1, -1), cos, sin, "interleaved").flatten()
    torch.testing.assert_close(turned, interleave(at(x, position)), rtol=1e-12, atol=1e-12)


def test_interleaved_pairs_are_neighbours_as_equation_34_has_them():
    (x,) = vectors(6, 2, 1)
    cos, sin = RotaryPositions(6, 100.0, "interleaved").angles(3, 1, x)
    frequency = 100.0 ** (-2 * torch.arange(3, dtype=torch.float64) / 6)
    turned = torch.view_as_complex(x.view(3, 2)) * torch.polar(torch.ones(3, dtype=torch.float64), 3 * frequency)
    torch.testing.assert_close(
        rotate(x.view(1, 1, 1, -1), cos, sin, "interleaved").flatten(), torch.view_as_real(turned).flatten()
    )


def test_a_model_of_either_convention_becomes_the_other_by_permuting_the_rows_of_queries_and_keys():
    half, pairs = rope_model(), rope_model(rope_pairs="interleaved")
    idx = torch.randint(17, (2, 12), generator=torch.Generator().manual_seed(0))
    pairs.load_state_dict(half.state_dict())
    assert not torch.allclose(half(idx), pairs(idx))
    for block in pairs.blocks:
        q, k, v = block.attention.qkv.weight.detach().split(16)
        moved = [interleave(w.view(2, 8, 16).transpose(1, 2)).transpose(1, 2).reshape(16, 16) for w in (q, k)]
        block.attention.qkv.weight.data = torch.cat([*moved, v])
    torch.testing.assert_close(half(idx), pairs(idx), rtol=1e-10, atol=1e-10)


def test_yarn_keeps_fast_pairs_stretches_slow_ones_and_raises_the_scale():
    """Section 3.2 of arXiv 2309.00071: more than 32 turns within the length are kept, less than one is stretched."""
    plain, yarn = RotaryPositions(64, 150_000.0), RotaryPositions(64, 150_000.0, yarn_factor=32.0, yarn_length=4096)
    turns = 4096 * plain.inverse_frequency / (2 * math.pi)
    ratio = yarn.inverse_frequency / plain.inverse_frequency
    torch.testing.assert_close(ratio[turns > 32], torch.ones_like(ratio[turns > 32]))
    torch.testing.assert_close(ratio[turns < 1], torch.full_like(ratio[turns < 1], 1 / 32))
    between = ratio[(turns > 1) & (turns < 32)]
    assert (between.diff() < 0).all()
    assert ((between > 1 / 32) & (between < 1)).all()
    cos, sin = yarn.angles(7, 1, LIKE)
    torch.testing.assert_close((cos**2 + sin**2).sqrt(), torch.full_like(cos, 0.1 * math.log(32) + 1))


def test_yarn_of_factor_one_is_plain_rope():
    a, b = RotaryPositions(8, 100.0), RotaryPositions(8, 100.0, yarn_factor=1.0, yarn_length=3)
    assert all(torch.equal(x, y) for x, y in zip(a.angles(5, 3, LIKE), b.angles(5, 3, LIKE), strict=True))


def test_waves_are_those_of_section_3_5_times_the_scale():
    table = SinusoidalPositions(8, 0.5).table(3, 4, LIKE)
    for t in range(4):
        for i in range(4):
            angle = (3 + t) / 10_000 ** (2 * i / 8)
            assert table[t, 2 * i].item() == pytest.approx(0.5 * math.sin(angle), abs=1e-12)
            assert table[t, 2 * i + 1].item() == pytest.approx(0.5 * math.cos(angle), abs=1e-12)


@pytest.mark.parametrize(
    ("n_head", "slopes"),
    [
        (1, [2**-8]),
        (2, [2**-4, 2**-8]),
        (8, [2**-i for i in range(1, 9)]),
        (3, [2**-4, 2**-8, 2**-2]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
    ],
)
def test_alibi_slopes_are_the_published_geometric_sequences(n_head, slopes):
    assert alibi_slopes(n_head).tolist() == slopes


@pytest.mark.parametrize("position", ["sinusoidal", "rope", "alibi", "none"])
def test_schemes_without_a_table_take_any_length_and_save_nothing(position):
    model = rope_model(position=position)
    assert model(torch.zeros(1, 40, dtype=torch.long)).shape == (1, 40, 17)
    assert not any("position" in name or "rope" in name or "waves" in name for name in model.state_dict())
