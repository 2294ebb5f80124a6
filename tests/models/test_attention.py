"""Fast attention against the written-out softmax, grouped heads, and the key/value cache."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm_core.config import TransformerConfig
from picollm_core.models.attention import (
    CausalSelfAttention,
    KVCache,
    causal_attention,
    causal_mask,
    reference_attention,
)

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


def layer(**changes) -> CausalSelfAttention:
    torch.manual_seed(0)
    config = TransformerConfig(**({"n_embd": 4 * D, "n_head": 4} | changes))
    return CausalSelfAttention(config).double().eval()


def test_as_many_key_value_heads_as_heads_is_plain_multi_head_attention():
    plain, grouped = layer(), layer(n_kv_head=4)
    x = torch.randn(2, 7, 4 * D, dtype=torch.float64)
    assert torch.equal(plain(x, plain.empty_cache(2), None)[0], grouped(x, grouped.empty_cache(2), None)[0])
    torch_s = torch.nn.MultiheadAttention(4 * D, 4, bias=False, batch_first=True, dtype=torch.float64)
    torch_s.load_state_dict({"in_proj_weight": plain.qkv.weight, "out_proj.weight": plain.proj.weight})
    expected, _ = torch_s(x, x, x, attn_mask=~causal_mask(7, 7, x.device), need_weights=False)
    torch.testing.assert_close(plain(x, plain.empty_cache(2), None)[0], expected, rtol=1e-10, atol=1e-10)


def test_grouped_heads_equal_plain_heads_whose_keys_and_values_are_repeated():
    grouped, plain = layer(n_kv_head=2), layer()
    q, k, v = grouped.qkv.weight.detach().split([4 * D, 2 * D, 2 * D])
    repeated = [w.view(2, D, -1).repeat_interleave(2, dim=0).flatten(0, 1) for w in (k, v)]
    plain.load_state_dict({"qkv.weight": torch.cat([q, *repeated]), "proj.weight": grouped.proj.weight})
    x = torch.randn(2, 7, 4 * D, dtype=torch.float64)
    a, b = grouped(x, grouped.empty_cache(2), None)[0], plain(x, plain.empty_cache(2), None)[0]
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert grouped.empty_cache(3).keys.shape == (3, 2, 0, D)


EMPTY = KVCache(torch.empty(1, 1, 0, D), torch.empty(1, 1, 0, D), 0, [0])


def pair(time: int, value: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (1, 1, time, D) that hold value, value + 1, ... so that every position can be told."""
    k = (value + torch.arange(time, dtype=torch.float32)).view(1, 1, time, 1).expand(1, 1, time, D).clone()
    return k, -k


def content(cache: KVCache) -> list[float]:
    keys, values = cache.keys_seen, cache.values_seen
    assert keys.shape == values.shape == (1, 1, cache.length, D)
    assert torch.equal(keys, -values)
    return keys[0, 0, :, 0].tolist()


@torch.no_grad()
def test_a_branch_copies_before_it_would_overwrite_another_s_tokens():
    trunk = EMPTY.append(*pair(3, 0)).append(*pair(2, 3))
    left = trunk.append(*pair(2, 100))
    right = trunk.append(*pair(1, 200))
    left, right = left.append(*pair(1, 102)), right.append(*pair(3, 201))
    assert content(trunk) == [0, 1, 2, 3, 4]
    assert content(left) == [0, 1, 2, 3, 4, 100, 101, 102]
    assert content(right) == [0, 1, 2, 3, 4, 200, 201, 202, 203]
    assert left.keys.data_ptr() == trunk.keys.data_ptr()  # the first continuation writes in place
    assert right.keys.data_ptr() != trunk.keys.data_ptr()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40), st.booleans()), min_size=1, max_size=30))
def test_every_cache_of_a_tree_of_branches_keeps_its_own_tokens(steps):
    """Each step appends to an arbitrary earlier cache, with or without gradients, as plain lists would."""
    caches, lists, fresh = [EMPTY], [[]], 0.0
    for parent, time, with_gradient in steps:
        parent %= len(caches)
        k, v = pair(time, fresh)
        with torch.set_grad_enabled(with_gradient):
            caches.append(caches[parent].append(k.requires_grad_(with_gradient), v.requires_grad_(with_gradient)))
        lists.append(lists[parent] + [fresh + i for i in range(time)])
        fresh += time
    assert [content(cache) for cache in caches] == lists


@torch.no_grad()
def test_appending_one_token_at_a_time_reallocates_a_logarithmic_number_of_times(monkeypatch):
    copies = []
    roomier = KVCache._roomier
    monkeypatch.setattr(KVCache, "_roomier", lambda self, total: copies.append(self.length) or roomier(self, total))
    cache, n = EMPTY, 3_000
    for i in range(n):
        cache = cache.append(*pair(1, i))
    assert content(cache) == list(range(n))
    assert len(copies) <= math.log2(n / 64) + 2
    assert sum(copies) <= 2 * n  # tokens copied in all: linear, not quadratic
    assert cache.keys.size(2) <= max(64, 2 * n)


def test_with_gradients_earlier_keys_are_not_written_over():
    k, v = (t.requires_grad_() for t in pair(3, 0))
    cache = EMPTY.append(k, v)
    product = (cache.keys_seen**2).sum()
    cache.append(*(t.requires_grad_() for t in pair(2, 3)))
    product.backward()
    assert torch.equal(k.grad, 2 * k)


def test_a_prompt_computed_without_gradients_can_be_continued_with_them():
    module = layer()
    x = torch.randn(1, 6, 4 * D, dtype=torch.float64)
    with torch.no_grad():
        _, cache = module(x[:, :4], module.empty_cache(1), None)
    y, _ = module(x[:, 4:], cache, None)
    y.sum().backward()
    assert module.qkv.weight.grad.abs().sum() > 0
    torch.testing.assert_close(y, module(x, module.empty_cache(1), None)[0][:, 4:], rtol=1e-10, atol=1e-10)


def test_attention_dropout_acts_in_training_only():
    module = layer(dropout=0.5)
    x = torch.randn(1, 6, 4 * D, dtype=torch.float64)
    nothing = module.empty_cache(1)
    assert torch.equal(module(x, nothing, None)[0], module(x, nothing, None)[0])
    module.train()
    assert not torch.equal(module(x, nothing, None)[0], module(x, nothing, None)[0])


@pytest.mark.parametrize("sizes", [(1, 1), (5, 5), (1, 9), (4, 9)], ids=str)
def test_no_query_sees_a_later_key(sizes):
    n_query, n_key = sizes
    q, k, v = qkv(1, 2, 2, n_query, n_key)
    seen = torch.autograd.grad(causal_attention(q, k, v)[0, :, 0].sum(), v)[0][0, 0].abs().sum(-1)
    assert (seen > 0).tolist() == [place <= n_key - n_query for place in range(n_key)]
