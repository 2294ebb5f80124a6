"""The key/value cache: branches keep their own tokens, appending is cheap, a window forgets the rest."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm_core.models.kv_cache import KVCache

D = 4

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


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_a_window_keeps_what_the_first_new_token_sees_and_all_new_ones(window, with_gradient):
    cache, n = EMPTY, 0
    with torch.set_grad_enabled(with_gradient):
        for time in (3, 1, 1, 4, 1, 1, 1, 7, 1):
            k, v = pair(time, n)
            kept = n if n == 0 else min(window - 1, cache.length)
            cache = cache.append(k.requires_grad_(with_gradient), v.requires_grad_(with_gradient), window)
            n += time
            assert content(cache) == list(range(n - time - kept, n))


@torch.no_grad()
def test_with_a_window_the_buffer_stays_small_and_copies_stay_few(monkeypatch):
    copies = []
    roomier = KVCache._roomier
    monkeypatch.setattr(KVCache, "_roomier", lambda self, total: copies.append(self.length) or roomier(self, total))
    cache, window, n = EMPTY, 100, 5_000
    for i in range(n):
        cache = cache.append(*pair(1, i), window)
        assert cache.keys.size(2) <= 2 * window
    assert content(cache) == list(range(n - window, n))
    assert sum(copies) <= 2 * n


@torch.no_grad()
def test_an_older_state_still_has_its_window_after_newer_ones_went_on():
    old = EMPTY.append(*pair(10, 0), 4).append(*pair(1, 10), 4)
    newer = old
    for i in range(500):
        newer = newer.append(*pair(1, 11 + i), 4)
    assert content(old) == [7, 8, 9, 10]
    assert content(old.append(*pair(1, 900), 4)) == [8, 9, 10, 900]
    assert content(newer) == [507, 508, 509, 510]
