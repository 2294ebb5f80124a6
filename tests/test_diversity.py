"""distinct-n at a fixed budget, and repetition."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm_core.diversity import distinct_n, distinct_table, repetition_rate

samples = st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=6)


def test_distinct_n_counts_different_over_all_ngrams():
    assert distinct_n([[1, 2, 1, 2, 3]], 1, 5) == 3 / 5
    assert distinct_n([[1, 2, 1, 2, 3]], 2, 5) == 3 / 4
    assert distinct_n([[1, 1], [1, 1]], 2, 4) == 1 / 2


def test_ngrams_never_reach_across_samples_so_their_order_makes_none():
    assert distinct_n([[1, 2], [3, 4]], 2, 4) == 1.0
    assert distinct_n([[1, 2], [1, 2]], 2, 4) == distinct_n([[1, 2], [1, 2]][::-1], 2, 4) == 1 / 2


@settings(deadline=None)
@given(samples.filter(lambda s: sum(map(len, s)) > 0), st.data())
def test_exactly_the_budget_is_counted(lists, data):
    budget = data.draw(st.integers(1, sum(map(len, lists))))
    seen, left = [], budget
    for sample in lists:
        seen.append(sample[:left])
        left -= len(seen[-1])
    assert sum(map(len, seen)) == budget
    tokens = [token for sample in seen for token in sample]
    assert distinct_n(lists, 1, budget) == len(set(tokens)) / budget
    pairs = [pair for sample in seen for pair in pairwise(sample)]
    if pairs:
        assert distinct_n(lists, 2, budget) == len(set(pairs)) / len(pairs)


def test_a_longer_text_does_not_look_less_diverse_at_the_same_budget():
    short, long = [[1, 2, 3, 4]], [[1, 2, 3, 4] * 10]
    assert distinct_n(short, 1, 4) == distinct_n(long, 1, 4) == 1.0
    assert distinct_n(long, 1, 40) == 0.1


def test_the_table_holds_orders_one_to_five_at_one_budget():
    text = [[1, 2, 3, 1, 2, 3, 1, 2, 3]]
    assert distinct_table(text, 9) == {n: distinct_n(text, n, 9) for n in (1, 2, 3, 4, 5)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1, 2], [3]], 1, 4), "budget is 4 tokens but the samples hold 3"),
        (([[1, 2], [3]], 3, 3), "no sample holds 3 tokens"),
        (([[1, 2]], 0, 2), "n is 0"),
        (([[1, 2]], 1, 0), "budget is 0"),
        (([], 1, 1), "the samples hold 0"),
    ],
)
def test_distinct_n_refuses_what_it_cannot_count(arguments, message):
    with pytest.raises(ValueError, match=message):
        distinct_n(*arguments)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=20))
def test_repetition_is_the_share_of_ngrams_that_occurred_before_in_the_sample(tokens):
    pairs = list(pairwise(tokens))
    repeated = sum(pair in pairs[:place] for place, pair in enumerate(pairs))
    assert repetition_rate([tokens], 2) == pytest.approx(repeated / len(pairs))


def test_repetition_between_samples_is_not_repetition_and_samples_count_alike():
    assert repetition_rate([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]], 4) == 0.0
    assert repetition_rate([[1] * 12, [1, 2, 3, 4]], 4) == pytest.approx((8 / 9 + 0) / 2)


def test_length_cuts_all_samples_alike():
    looping = [1, 2, 3, 4] * 5
    assert repetition_rate([looping], 4, length=7) == 0.0
    assert repetition_rate([looping], 4, length=8) == pytest.approx(1 / 5)
    assert repetition_rate([looping, looping[:8]], 4, length=8) == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1, 2, 3]], 4), "shortest sample has 3 tokens but 4 are needed"),
        (([[1] * 9, [1] * 5], 2, 6), "shortest sample has 5 tokens but 6 are needed"),
        (([[1] * 9], 4, 3), "length is 3"),
        (([], 2), "0 samples"),
        (([[1]], 0), "n is 0"),
    ],
)
def test_repetition_refuses_what_it_cannot_compare(arguments, message):
    with pytest.raises(ValueError, match=message):
        repetition_rate(*arguments)
