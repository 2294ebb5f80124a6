"""Filters over logits and the draw: exact definitions, ties, and what no draw may ever return."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm_core.config import SamplingConfig
from picollm_core.nucleus import NUCLEUS_WIDTHS, top_p_filter, top_p_filter_by_sorting
from picollm_core.sampling import (
    apply_temperature,
    draw,
    min_p_filter,
    repetition_penalty,
    top_k_filter,
    truncate,
)

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


@pytest.mark.parametrize("size", [1, *NUCLEUS_WIDTHS, *(w + 1 for w in NUCLEUS_WIDTHS), 5000])
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


@settings(deadline=None)
@given(rows, st.integers(1, 45), dtypes)
def test_top_k_keeps_exactly_the_k_largest_lower_ids_first(row, k, dtype):
    logits = torch.tensor(row, dtype=dtype)
    values = logits.tolist()
    expected = sorted(sorted(range(len(row)), key=lambda i: (-values[i], i))[:k])
    assert kept(top_k_filter(logits, k)) == [i for i in expected if values[i] > -INF]


@settings(deadline=None)
@given(rows, st.floats(0.01, 1))
def test_min_p_keeps_what_is_at_least_that_share_of_the_likeliest(row, min_p):
    logits = torch.tensor(row, dtype=torch.float64)
    ratios = (logits - logits.max()).exp()
    clear = (ratios - min_p).abs() > 1e-12  # at the limit itself either side is right
    assert torch.equal((min_p_filter(logits, min_p) > -INF)[clear], (ratios >= min_p)[clear])


def test_min_p_of_zero_changes_nothing_and_of_one_leaves_the_likeliest():
    logits = torch.tensor([1.0, 3.0, -INF, 3.0])
    assert torch.equal(min_p_filter(logits, 0), logits)
    assert kept(min_p_filter(logits, 1)) == [1, 3]


@pytest.mark.parametrize(("filter_", "value"), [(top_k_filter, 0), (min_p_filter, -0.1), (min_p_filter, 1.1)])
def test_other_filters_refuse_values_outside_their_range(filter_, value):
    with pytest.raises(ValueError, match=str(value)):
        filter_(torch.zeros(3), value)


def test_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones_once():
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.0]])
    penalised = repetition_penalty(logits, torch.tensor([[0, 1, 0, 3]]), 2.0)
    assert penalised.tolist() == [[1.0, -4.0, 1.0, 0.0]]
    assert logits.tolist() == [[2.0, -2.0, 1.0, 0.0]]
    with pytest.raises(ValueError, match="repetition_penalty is 0"):
        repetition_penalty(logits, torch.tensor([[0]]), 0)


def test_temperature_scales_differences_and_neither_overflows_nor_divides_by_zero():
    logits = torch.tensor([10.0, 30.0, 20.0])
    torch.testing.assert_close(apply_temperature(logits, 0.5).softmax(-1), (logits / 0.5).softmax(-1))
    for smallest in (1e-30, 5e-324):
        assert apply_temperature(logits, smallest).softmax(-1).tolist() == [0.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="temperature is 0"):
        apply_temperature(logits, 0)


def test_truncation_acts_in_the_documented_order():
    logits, previous = torch.tensor([[3.0, 2.6, 2.5, 0.0, -1.0]]), torch.tensor([[0]])
    sampling = SamplingConfig(temperature=0.5, top_k=3, top_p=0.6, min_p=0.8, repetition_penalty=2.0)
    steps = apply_temperature(repetition_penalty(logits, previous, 2.0), 0.5)
    steps = min_p_filter(top_p_filter(top_k_filter(steps, 3), 0.6), 0.8)
    assert torch.equal(truncate(logits, sampling, previous), steps)
    assert kept(truncate(logits[0], SamplingConfig(temperature=1.0, top_p=0.65))) == [0, 1]
    assert kept(truncate(logits[0], SamplingConfig(temperature=2.0, top_p=0.65))) == [0, 1, 2]
    assert kept(truncate(logits[0], SamplingConfig(temperature=0.0))) == [0]


def test_filters_agree_with_the_warpers_of_transformers_away_from_ties():
    warpers = pytest.importorskip("transformers.generation.logits_process")
    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(3)) * 3
    previous = torch.randint(300, (8, 20), generator=torch.Generator().manual_seed(4))
    for p in (0.1, 0.5, 0.9, 0.99):
        assert torch.equal(top_p_filter(logits, p), warpers.TopPLogitsWarper(p)(None, logits))
    for k in (1, 7, 300):
        assert torch.equal(top_k_filter(logits, k), warpers.TopKLogitsWarper(k)(None, logits))
    for min_p in (0.01, 0.3):
        assert torch.equal(min_p_filter(logits, min_p), warpers.MinPLogitsWarper(min_p)(None, logits))
    penalised = warpers.RepetitionPenaltyLogitsProcessor(1.3)(previous, logits)
    torch.testing.assert_close(repetition_penalty(logits, previous, 1.3), penalised)
    warm = warpers.TemperatureLogitsWarper(0.7)(None, logits)
    torch.testing.assert_close(apply_temperature(logits, 0.7).softmax(-1), warm.softmax(-1))


def chi_square_excess(observed: np.ndarray, expected: np.ndarray) -> float:
    """How many standard deviations the chi-square statistic lies above its mean."""
    used = expected > 0
    assert observed[~used].sum() == 0
    freedom = used.sum() - 1
    statistic = ((observed[used] - expected[used]) ** 2 / expected[used]).sum()
    return float((statistic - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(top_p=1.0),
        SamplingConfig(top_p=0.8),
        SamplingConfig(top_p=0.9, temperature=0.7),
        SamplingConfig(top_p=1.0, top_k=5),
        SamplingConfig(top_p=1.0, min_p=0.2),
    ],
    ids=str,
)
def test_draws_follow_the_exact_truncated_distribution(sampling):
    raw = torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scaled = (raw / sampling.temperature).tolist()
    inside = set(range(20)) if sampling.top_p == 1 else set(nucleus_by_definition(scaled, sampling.top_p))
    if sampling.top_k:
        inside = set(sorted(inside, key=lambda i: -scaled[i])[: sampling.top_k])
    weights = np.array([math.exp(x) if i in inside else 0.0 for i, x in enumerate(scaled)])
    weights[weights < sampling.min_p * weights.max()] = 0
    n, generator = 20_000, torch.Generator().manual_seed(0)
    ids = draw(truncate(raw.expand(n, 20), sampling), [generator] * n)
    observed = np.bincount(ids.numpy(), minlength=20)
    assert chi_square_excess(observed, n * weights / weights.sum()) < 4


def test_first_draws_of_neighbouring_seeds_are_independent():
    logits = torch.zeros(4000, 10)
    ids = draw(logits, [torch.Generator().manual_seed(seed) for seed in range(4000)]).numpy()
    pairs = np.bincount(ids[:-1] * 10 + ids[1:], minlength=100)
    assert chi_square_excess(pairs, np.full(100, 39.99)) < 4


def test_tokens_at_minus_infinity_are_never_drawn_and_every_other_token_can_be():
    logits = torch.full((3000, 7), -INF)
    logits[:, [2, 5, 6]] = torch.tensor([-1e4, -1e4 + 1, -1e4])
    ids = draw(logits, [torch.Generator().manual_seed(seed) for seed in range(3000)])
    assert set(ids.tolist()) == {2, 5, 6}


def test_a_token_whose_weight_underflows_is_not_drawn_even_at_the_edge(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *size, generator, dtype: torch.zeros(*size, dtype=dtype))
    assert draw(torch.tensor([[-1e9, 0.0, 0.0]]), [torch.Generator()]).tolist() == [1]


def test_a_row_is_drawn_alike_alone_and_in_a_batch():
    logits = torch.randn(6, 400, generator=torch.Generator().manual_seed(2)) * 3
    logits = torch.stack([top_p_filter(row, p) for row, p in zip(logits, (0.1, 0.3, 0.5, 0.9, 0.99, 1), strict=True)])
    together = draw(logits, [torch.Generator().manual_seed(r) for r in range(6)])
    alone = [int(draw(logits[r : r + 1], [torch.Generator().manual_seed(r)])) for r in range(6)]
    assert together.tolist() == alone


@pytest.mark.parametrize("broken", [math.nan, INF, -INF])
def test_a_diverged_model_is_an_error_not_a_token(broken):
    with pytest.raises(ValueError, match="diverged"):
        draw(torch.full((1, 4), broken), [torch.Generator()])


def test_every_row_needs_its_own_generator():
    with pytest.raises(ValueError, match="2 rows but 1 generators"):
        draw(torch.zeros(2, 4), [torch.Generator()])
