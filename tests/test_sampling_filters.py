"""Filters over logits and the draw: exact definitions, ties, and what no draw may ever return."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm_core.config import SamplingConfig
from picollm_core.nucleus import top_p_filter
from picollm_core.sampling import (
    apply_temperature,
    draw,
    min_p_filter,
    repetition_penalty,
    top_k_filter,
    truncate,
)
from tests.test_nucleus import INF, dtypes, kept, nucleus_by_definition, rows


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
