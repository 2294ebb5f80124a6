"""The nucleus: its definition, ties, edges of the partial selection, and wide ones found by bins."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm_core.nucleus import BINS, NARROW, top_p_filter, top_p_filter_by_sorting

INF = math.inf
few_levels = st.sampled_from([-INF, -3.0, -0.5, 0.0, -0.0, 0.5, 2.0])
anything = st.floats(-30, 30, width=16)
rows = st.lists(few_levels | anything, min_size=1, max_size=40).filter(lambda row: max(row) > -INF)
shares = st.floats(0, 1, exclude_min=True)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


def kept(logits: torch.Tensor) -> list[int]:
    return (logits > -INF).nonzero().flatten().tolist()


def nucleus_by_definition(logits: list[float], p: float) -> list[int]:
    """The definition in plain Python: add the likeliest tokens, lower ids first, until their mass reaches p."""
    probabilities = torch.tensor(logits, dtype=torch.float64).softmax(-1).tolist()
    inside, mass = [], 0.0
    for token in sorted(range(len(logits)), key=lambda i: (-logits[i], i)):
        inside.append(token)
        mass += probabilities[token]
        if mass >= p:
            break
    return sorted(i for i in inside if logits[i] > -INF)


@settings(deadline=None)
@given(rows, shares)
def test_nucleus_is_the_smallest_set_whose_mass_reaches_p(row, p):
    expected = kept(torch.tensor(row)) if p == 1 else nucleus_by_definition(row, p)
    assert kept(top_p_filter(torch.tensor(row, dtype=torch.float64), p)) == expected


@settings(deadline=None)
@given(st.lists(rows, min_size=1, max_size=4), shares, dtypes)
def test_partial_selection_equals_sorting_on_short_rows_with_ties(batch, p, dtype):
    width = max(map(len, batch))
    logits = torch.tensor([row + [-INF] * (width - len(row)) for row in batch], dtype=dtype)
    fast = top_p_filter(logits, p)
    assert torch.equal(fast, top_p_filter_by_sorting(logits, p))
    assert fast.dtype == dtype


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([50, 65, 700, 6000]), st.sampled_from([0.1, 1, 4]), shares, dtypes)
def test_partial_selection_equals_sorting_whatever_width_the_nucleus_needs(seed, vocab_size, scale, p, dtype):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 2, vocab_size, generator=generator) * scale
    logits = (logits * 4).round().div(4).to(dtype)  # many ties
    assert torch.equal(top_p_filter(logits, p), top_p_filter_by_sorting(logits, p))


@pytest.mark.parametrize("size", [1, NARROW, NARROW + 1, 512, 5000])
def test_nuclei_at_the_edges_of_the_selection_have_exactly_the_size_asked_for(size):
    logits = torch.zeros(5000, dtype=torch.float64)
    assert kept(top_p_filter(logits, (size - 0.5) / 5000)) == list(range(size))


@settings(deadline=None)
@given(rows, st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_mass_of_k_reaches_p_and_mass_of_k_minus_one_does_not(row, p):
    logits = torch.tensor(row, dtype=torch.float64)
    inside = kept(top_p_filter(logits, p))
    ordered = logits.softmax(-1)[inside].sort(descending=True).values
    assert float(ordered[:-1].sum()) < p + 1e-15
    assert float(ordered.sum()) >= p - 1e-15


def test_p_of_one_changes_nothing_and_p_near_zero_leaves_the_first_argmax():
    logits = torch.tensor([[0.3, 2.0, 2.0, -INF], [5.0, 1.0, 1.0, 1.0]])
    assert torch.equal(top_p_filter(logits, 1.0), logits)
    assert [kept(row) for row in top_p_filter(logits, 1e-12)] == [[1], [0]]


def test_the_token_that_crosses_p_is_inside():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    assert kept(top_p_filter(logits, 0.45)) == [0, 1]
    assert kept(top_p_filter(logits, 0.71)) == [0, 1, 2]


def test_a_mass_of_exactly_p_is_enough():
    assert [len(kept(top_p_filter(torch.zeros(4), p))) for p in (0.25, 0.5, 0.75)] == [1, 2, 3]
    assert [len(kept(top_p_filter_by_sorting(torch.zeros(4), p))) for p in (0.25, 0.5, 0.75)] == [1, 2, 3]


@pytest.mark.parametrize("p", [0, -0.1, 1.0001, math.nan])
def test_p_outside_its_range_is_refused_with_its_value(p):
    for top_p in (top_p_filter, top_p_filter_by_sorting):
        with pytest.raises(ValueError, match=r"top_p is .*\(0, 1\]"):
            top_p(torch.zeros(3), p)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.001, 0.3, 3]), st.floats(0.3, 0.999), st.sampled_from([None, 700]))
def test_wide_nuclei_without_ties_equal_sorting(seed, scale, p, top_k):
    """Far outliers above and far below, and -inf where another filter was first."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3 * BINS, generator=generator) * scale
    logits[0, 5], logits[1, 7], logits[1, 9] = 2.0, -40.0, -1e9
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -INF)
    assert torch.equal(top_p_filter(logits, p), top_p_filter_by_sorting(logits, p))


def test_a_row_with_a_small_nucleus_beside_one_with_a_wide_nucleus_is_filtered_alike():
    flat, peaked = torch.randn(5000, generator=torch.Generator().manual_seed(0)), torch.zeros(5000)
    peaked[17] = 30.0
    both = top_p_filter(torch.stack([flat, peaked]), 0.9)
    assert torch.equal(both[0], top_p_filter_by_sorting(flat, 0.9))
    assert kept(both[1]) == [17]
