"""Fast attention against the written-out softmax, with everything that can be added to it, and grouped heads."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm_core.config import TransformerConfig
from picollm_core.models.attention import (
    CausalSelfAttention,
    Scoring,
    causal_attention,
    causal_mask,
    reference_attention,
)
from picollm_core.models.positions import alibi_slopes

D = 4


def qkv(batch, n_head, n_kv_head, n_query, n_key, seed=0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, n_head, n_query, D), *[(batch, n_kv_head, n_key, D)] * 2)
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    n_kv_head=st.integers(1, 3),
    n_query=st.integers(1, 9),
    before=st.integers(0, 9),
    seed=st.integers(0, 2**31),
)
def test_fast_attention_equals_the_written_out_softmax(batch, groups, n_kv_head, n_query, before, seed):
    """Outputs and all gradients, for grouped heads, and for queries that follow `before` cached positions."""
    q, k, v = qkv(batch, groups * n_kv_head, n_kv_head, n_query, before + n_query, seed)
    fast, truth = causal_attention(q, k, v), reference_attention(q, k, v)
    torch.testing.assert_close(fast, truth, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(truth)
    wanted = torch.autograd.grad((truth * direction).sum(), (q, k, v))
    for a, b in zip(torch.autograd.grad((fast * direction).sum(), (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_truth_is_equation_1_position_by_position():
    q, k, v = (t.detach() for t in qkv(1, 2, 1, 5, 8))
    result = reference_attention(q, k, v)
    for head in range(2):
        for t in range(5):
            visible = 8 - 5 + t + 1
            scores = torch.stack([q[0, head, t] @ k[0, 0, j] / math.sqrt(D) for j in range(visible)])
            shares = scores.exp() / scores.exp().sum()
            expected = sum(share * v[0, 0, j] for j, share in enumerate(shares))
            torch.testing.assert_close(result[0, head, t], expected, rtol=1e-12, atol=1e-12)


def test_the_mask_lets_the_last_query_see_everything_and_the_first_everything_before():
    mask = causal_mask(3, 5, torch.device("cpu"))
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert torch.equal(causal_mask(4, 4, torch.device("cpu")), torch.ones(4, 4, dtype=torch.bool).tril())


def test_scores_far_from_zero_stay_finite_and_equal():
    q, k, v = qkv(1, 2, 2, 6, 6)
    fast, truth = causal_attention(q * 1e4, k, v), reference_attention(q * 1e4, k, v)
    assert fast.isfinite().all()
    torch.testing.assert_close(fast, truth, rtol=1e-10, atol=1e-10)


def test_dropout_drops_weights_and_keeps_their_mean():
    torch.manual_seed(0)
    q, k, v = (t.detach() for t in qkv(1, 1, 1, 1, 6))
    draws = torch.stack([causal_attention(q, k, v, dropout=0.5) for _ in range(2_000)])
    exact = causal_attention(q, k, v)
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - exact).abs() < 5 * error).all()
    assert (draws != exact).any()


def layer(mixer: str = "softmax", **changes) -> CausalSelfAttention:
    torch.manual_seed(0)
    config = TransformerConfig(**({"n_embd": 4 * D, "n_head": 4} | changes))
    return CausalSelfAttention(config, mixer).double().eval()


def test_as_many_key_value_heads_as_heads_is_plain_multi_head_attention():
    plain, grouped = layer(), layer(n_kv_head=4)
    x = torch.randn(2, 7, 4 * D, dtype=torch.float64)
    assert torch.equal(plain(x, plain.empty_state(2), None)[0], grouped(x, grouped.empty_state(2), None)[0])
    torch_s = torch.nn.MultiheadAttention(4 * D, 4, bias=False, batch_first=True, dtype=torch.float64)
    torch_s.load_state_dict({"in_proj_weight": plain.qkv.weight, "out_proj.weight": plain.proj.weight})
    expected, _ = torch_s(x, x, x, attn_mask=~causal_mask(7, 7, x.device), need_weights=False)
    torch.testing.assert_close(plain(x, plain.empty_state(2), None)[0], expected, rtol=1e-10, atol=1e-10)


def test_grouped_heads_equal_plain_heads_whose_keys_and_values_are_repeated():
    grouped, plain = layer(n_kv_head=2), layer()
    q, k, v = grouped.qkv.weight.detach().split([4 * D, 2 * D, 2 * D])
    repeated = [w.view(2, D, -1).repeat_interleave(2, dim=0).flatten(0, 1) for w in (k, v)]
    plain.load_state_dict({"qkv.weight": torch.cat([q, *repeated]), "proj.weight": grouped.proj.weight})
    x = torch.randn(2, 7, 4 * D, dtype=torch.float64)
    a, b = grouped(x, grouped.empty_state(2), None)[0], plain(x, plain.empty_state(2), None)[0]
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert grouped.empty_state(3).keys.shape == (3, 2, 0, D)


def test_a_prompt_computed_without_gradients_can_be_continued_with_them():
    module = layer()
    x = torch.randn(1, 6, 4 * D, dtype=torch.float64)
    with torch.no_grad():
        _, cache = module(x[:, :4], module.empty_state(1), None)
    y, _ = module(x[:, 4:], cache, None)
    y.sum().backward()
    assert module.qkv.weight.grad.abs().sum() > 0
    torch.testing.assert_close(y, module(x, module.empty_state(1), None)[0][:, 4:], rtol=1e-10, atol=1e-10)


def test_attention_dropout_acts_in_training_only():
    module = layer(dropout=0.5)
    x = torch.randn(1, 6, 4 * D, dtype=torch.float64)
    nothing = module.empty_state(1)
    assert torch.equal(module(x, nothing, None)[0], module(x, nothing, None)[0])
    module.train()
    assert not torch.equal(module(x, nothing, None)[0], module(x, nothing, None)[0])


@pytest.mark.parametrize("sizes", [(1, 1), (5, 5), (1, 9), (4, 9)], ids=str)
def test_no_query_sees_a_later_key(sizes):
    n_query, n_key = sizes
    q, k, v = qkv(1, 2, 2, n_query, n_key)
    seen = torch.autograd.grad(causal_attention(q, k, v)[0, :, 0].sum(), v)[0][0, 0].abs().sum(-1)
    assert (seen > 0).tolist() == [place <= n_key - n_query for place in range(n_key)]


scorings = st.builds(
    lambda window, alibi, sinks, softcap: (window, alibi, sinks, softcap),
    st.none() | st.integers(1, 12),
    st.booleans(),
    st.booleans(),
    st.none() | st.floats(0.5, 50),
)


@settings(max_examples=80, deadline=None)
@given(
    groups=st.integers(1, 3),
    n_kv_head=st.integers(1, 2),
    n_query=st.integers(1, 9),
    before=st.integers(0, 9),
    chosen=scorings,
    seed=st.integers(0, 2**31),
)
def test_fast_attention_with_window_alibi_sinks_and_softcap_equals_the_written_out_form(
    groups, n_kv_head, n_query, before, chosen, seed
):
    """Outputs and all gradients, that of the sinks' logits too."""
    window, alibi, sinks, softcap = chosen
    n_head = groups * n_kv_head
    inputs = qkv(1, n_head, n_kv_head, n_query, before + n_query, seed)
    logits = torch.randn(n_head, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
    inputs += [logits] if sinks else []
    scoring = Scoring(window, alibi_slopes(n_head) if alibi else None, logits if sinks else None, softcap)
    fast = causal_attention(*inputs[:3], scoring=scoring)
    truth = reference_attention(*inputs[:3], scoring)
    torch.testing.assert_close(fast, truth, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(truth)
    wanted = torch.autograd.grad((truth * direction).sum(), inputs)
    for a, b in zip(torch.autograd.grad((fast * direction).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_truth_with_everything_is_the_formula_position_by_position():
    q, k, v = (t.detach() for t in qkv(1, 2, 1, 7, 7))
    sinks, cap, window = torch.tensor([0.7, -1.0], dtype=torch.float64), 3.0, 4
    result = reference_attention(q, k, v, Scoring(window, alibi_slopes(2), sinks, cap))
    for head, slope in enumerate((2**-4, 2**-8)):
        for t in range(7):
            visible = range(max(0, t - window + 1), t + 1)
            scores = [q[0, head, t] @ k[0, 0, j] / math.sqrt(D) for j in visible]
            logits = [cap * torch.tanh(s / cap) - slope * (t - j) for s, j in zip(scores, visible, strict=True)]
            shares = torch.stack([*logits, sinks[head]]).softmax(0)[:-1]
            expected = sum(share * v[0, 0, j] for share, j in zip(shares, visible, strict=True))
            torch.testing.assert_close(result[0, head, t], expected, rtol=1e-12, atol=1e-12)


def test_reductions_sink_at_minus_infinity_wide_window_flat_slopes_and_high_cap_are_plain_softmax():
    q, k, v = (t.detach() for t in qkv(2, 2, 2, 6, 6))
    plain = causal_attention(q, k, v)
    nothing, flat = torch.full((2,), -math.inf, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for scoring in (Scoring(sinks=nothing), Scoring(window=6), Scoring(window=600), Scoring(slopes=flat)):
        torch.testing.assert_close(causal_attention(q, k, v, scoring=scoring), plain, rtol=1e-12, atol=1e-12)
    capped = causal_attention(q, k, v, scoring=Scoring(softcap=1e6))
    torch.testing.assert_close(capped, plain, rtol=1e-6, atol=1e-6)


def test_a_window_of_one_key_returns_the_query_s_own_value():
    q, k, v = (t.detach() for t in qkv(2, 2, 2, 6, 6))
    torch.testing.assert_close(causal_attention(q, k, v, scoring=Scoring(window=1)), v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scoring", [Scoring(softcap=5.0), Scoring(window=4)], ids=["written out", "kernel"])
def test_dropout_acts_on_the_weights_in_every_path(scoring):
    torch.manual_seed(0)
    q, k, v = (t.detach() for t in qkv(1, 1, 1, 6, 6))
    draws = torch.stack([causal_attention(q, k, v, dropout=0.5, scoring=scoring) for _ in range(2_000)])
    exact = causal_attention(q, k, v, scoring=scoring)
    assert ((draws.mean(0) - exact).abs() < 5 * draws.std(0) / math.sqrt(len(draws)) + 1e-12).all()


@torch.no_grad()
def test_streaming_with_window_sinks_and_groups_far_past_the_window_equals_the_full_pass():
    module = layer("window", n_kv_head=2, sinks=True, window=5, position="alibi")
    torch.nn.init.normal_(module.sinks)
    x = torch.randn(2, 40, 4 * D, dtype=torch.float64)
    whole, _ = module(x, module.empty_state(2), None)
    state, pieces = module.empty_state(2), []
    for start, end in ((0, 12), (12, 13), (13, 14), (14, 22), *((t, t + 1) for t in range(22, 40))):
        y, state = module(x[:, start:end], state, None)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-10, atol=1e-10)
    assert state.length == 5


SCORINGS = {
    "plain": Scoring(),
    "window": Scoring(window=5),
    "alibi": Scoring(slopes=alibi_slopes(4)),
    "sinks": Scoring(sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
    "window, alibi and sinks": Scoring(window=7, slopes=alibi_slopes(4), sinks=torch.zeros(4)),
}


@pytest.mark.parametrize("scoring", SCORINGS.values(), ids=SCORINGS.keys())
@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
def test_training_short_windows_in_bfloat16_equals_the_truth_to_its_precision(scoring, n_kv_head):
    """On a processor a path of its own; outputs and gradients within a few roundings of 2^-8 of the float64 truth."""
    q, k, v = (t.detach().float().requires_grad_() for t in qkv(2, 4, n_kv_head, 24, 24))
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    with torch.autocast("cpu", torch.bfloat16):
        fast = causal_attention(q, k, v, scoring=scoring)
    truth = reference_attention(*exact, scoring)
    assert fast.dtype == torch.bfloat16
    torch.testing.assert_close(fast.double(), truth, rtol=0.03, atol=0.03)
    direction = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad((truth * direction).sum(), exact)
    for a, b in zip(torch.autograd.grad((fast * direction).sum(), (q, k, v)), wanted, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()


def test_training_short_windows_in_bfloat16_sees_no_later_key():
    q, k, v = (t.detach().float().requires_grad_() for t in qkv(1, 2, 2, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        before = causal_attention(q, k, v)
        changed = causal_attention(q, k + torch.eye(8)[:, 6:7] * 50, v + torch.eye(8)[:, 6:7] * 50)
    assert torch.equal(before[:, :, :6], changed[:, :, :6])
    assert not torch.equal(before[:, :, 6:], changed[:, :, 6:])
