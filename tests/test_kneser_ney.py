"""Kneser-Ney: a probability distribution everywhere, equal to the definition written with dictionaries."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm_core.kneser_ney import KneserNey, estimate_discounts

EOT, V = 5, 6
stories_of_ids = st.lists(st.lists(st.integers(0, EOT), max_size=12), min_size=1, max_size=8)
orders = st.integers(1, 5)


def store(stories: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and offsets as a token store holds them."""
    tokens = np.concatenate([[*story, EOT] for story in stories]).astype(np.uint16)
    return tokens, np.cumsum([0, *(len(story) + 1 for story in stories)])


def fitted(stories: Sequence[Sequence[int]], order: int) -> KneserNey:
    return KneserNey(order, V).fit(*store(stories))


class SlowKneserNey:
    """The definition with dictionaries of tuples and a recursion."""

    def __init__(self, order: int, stories: Sequence[Sequence[int]]) -> None:
        self.order = order
        seen = Counter()
        for story in stories:
            ids = (EOT, *story, EOT)
            seen.update(
                ids[max(0, end - n) : end] for end in range(2, len(ids) + 1) for n in range(1, min(order, end) + 1)
            )
        self.counts = {}
        for ngram, occurrences in seen.items():
            ways = sum(longer[1:] == ngram for longer in seen if len(longer) == len(ngram) + 1)
            self.counts[ngram] = ways if ways and len(ngram) < order else occurrences
        self.discounts = {
            n: estimate_discounts(np.array([c for ngram, c in self.counts.items() if len(ngram) == n] or [1]))
            for n in range(1, order + 1)
        }

    def probability(self, token: int, context: tuple[int, ...]) -> float:
        context = context[max(0, len(context) - self.order + 1) :]
        lower = self.probability(token, context[1:]) if context else 1 / V
        after = {ngram[-1]: c for ngram, c in self.counts.items() if ngram[:-1] == context}
        if not after:
            return lower
        discount = self.discounts[len(context) + 1]
        left_over = sum(discount[min(c, 3)] for c in after.values())
        count = after.get(token, 0)
        return (count - discount[min(count, 3)] + left_over * lower) / sum(after.values())


@settings(max_examples=60, deadline=None)
@given(stories_of_ids, st.lists(st.integers(0, EOT - 1), max_size=8), orders)
def test_probabilities_are_those_of_the_definition(stories, held_out, order):
    slow, story = SlowKneserNey(order, stories), (EOT, *held_out, EOT)
    expected = [-math.log(slow.probability(story[place], story[:place])) for place in range(1, len(story))]
    np.testing.assert_allclose(fitted(stories, order).token_nats(story[1:]), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(stories_of_ids, st.lists(st.integers(0, EOT - 1), max_size=8), orders)
def test_probabilities_sum_to_one_and_none_is_zero_after_any_context(stories, context, order):
    distribution = fitted(stories, order).distribution(context)
    assert distribution.shape == (V,)
    assert distribution.sum() == pytest.approx(1, abs=1e-12)
    assert distribution.min() > 0


@settings(deadline=None)
@given(stories_of_ids, st.lists(st.integers(0, EOT - 1), max_size=6), orders)
def test_nats_of_a_story_are_those_of_the_distributions_along_it(stories, held_out, order):
    model, story = fitted(stories, order), [*held_out, EOT]
    expected = [-math.log(model.distribution(story[:place])[token]) for place, token in enumerate(story)]
    np.testing.assert_allclose(model.token_nats(story), expected, rtol=1e-12)


@settings(deadline=None)
@given(st.permutations([[1, 2, 3], [1, 2], [4, 4, 4, 1], [], [3, 1, 2]]))
def test_ngrams_never_reach_from_one_story_into_the_next(order_of_stories):
    expected = fitted([[1, 2, 3], [1, 2], [4, 4, 4, 1], [], [3, 1, 2]], 4).token_nats([1, 2, 3, EOT])
    np.testing.assert_allclose(fitted(order_of_stories, 4).token_nats([1, 2, 3, EOT]), expected, rtol=1e-12)


def test_a_lower_order_counts_ways_not_occurrences():
    """ "san francisco": 1 follows only 0 but does so often; 2 is rarer but follows everything."""
    stories = [[0, 1]] * 20 + [[3, 2], [4, 2], [0, 2]]
    unseen = fitted(stories, 2).distribution([2])  # nothing but the end ever followed 2
    assert unseen[2] > unseen[1]
    assert fitted(stories, 1).distribution([])[1] > fitted(stories, 1).distribution([])[2]


def test_discounts_follow_the_published_estimates():
    counts = np.repeat([1, 2, 3, 4, 9], [40, 15, 8, 5, 3])
    y = 40 / (40 + 2 * 15)
    expected = [0, 1 - 2 * y * 15 / 40, 2 - 3 * y * 8 / 15, 3 - 4 * y * 5 / 8]
    assert estimate_discounts(counts) == pytest.approx(expected)


def test_discounts_fall_back_to_one_where_three_are_not_defined_and_to_a_half_where_none_is():
    assert estimate_discounts(np.array([1, 1, 1, 2])) == pytest.approx([0, 0.6, 0.6, 0.6])
    assert estimate_discounts(np.array([1, 1])).tolist() == [0, 0.5, 0.5, 0.5]
    assert estimate_discounts(np.array([7, 9])).tolist() == [0, 0.5, 0.5, 0.5]


def test_sixteen_bit_vocabularies_of_order_four_fit_and_larger_ones_are_refused_with_a_way_out():
    tokens, offsets = np.array([65_534, 65_533, 65_534, 65_535]), np.array([0, 4])
    model = KneserNey(4, 65_536).fit(tokens, offsets)
    assert model.distribution([65_534, 65_533]).argmax() == 65_534
    assert model.distribution([65_534]).sum() == pytest.approx(1)
    with pytest.raises(ValueError, match=r"order=4 at vocab_size=65537 needs 68 bits.*order <= 3"):
        KneserNey(4, 65_537)


def byte_tokenizer() -> tiktoken.Encoding:
    ranks = {bytes([i]): i for i in range(256)}
    return tiktoken.Encoding("b", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 256})


def test_it_stands_in_the_same_table_as_a_model():
    texts, held_out = ["the cat sat", "the dog sat", "a cat ran"] * 5, ["the cat ran", "é"]
    ids = [[*text.encode(), 256] for text in texts]
    model = KneserNey(3, 257).fit(np.concatenate(ids), np.cumsum([0, *map(len, ids)]))
    result = model.evaluate(held_out, byte_tokenizer())
    nats = [model.token_nats([*text.encode(), 256]) for text in held_out]
    assert result.nll == pytest.approx(np.concatenate(nats).mean())
    assert result.bits_per_byte == pytest.approx(sum(n[:-1].sum() for n in nats) / math.log(2) / 13)
    assert (result.n_tokens, result.n_bytes, result.n_stories, result.accuracy) == (15, 13, 2, None)
    assert result.bits_per_byte_interval[0] <= result.bits_per_byte <= result.bits_per_byte_interval[1]


def test_higher_orders_predict_repetitive_text_better():
    generator = np.random.default_rng(0)
    phrases = [[0, 1, 2, 3], [4, 1, 2, 0], [3, 3, 1, 4]]
    stories = [[token for i in generator.integers(0, 3, 6) for token in phrases[i]] for _ in range(60)]
    losses = [
        np.mean([fitted(stories[:50], n).token_nats([*s, EOT]).mean() for s in stories[50:]]) for n in (1, 2, 3, 4)
    ]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: KneserNey(0, V), "order is 0"),
        (lambda: KneserNey(2, 0), "vocab_size is 0"),
        (lambda: KneserNey(2, V).fit([1, 6, 5], [0, 3]), "token id 6 is outside the vocabulary of 6"),
        (lambda: KneserNey(2, V).fit([1, 5, 5], [0, 2, 2, 3]), "empty"),
        (lambda: KneserNey(2, V).fit([], [0]), "no story"),
        (lambda: KneserNey(2, V).fit([1, 5, 2, 4], [0, 2, 4]), "2 different ids"),
        (lambda: KneserNey(2, V).fit([1, 5, 2, 5], [0, 2]), r"\(0, 2\) but there are 4 tokens"),
        (lambda: KneserNey(2, V).distribution([1]), "call fit first"),
        (lambda: fitted([[1]], 2).token_nats([1, 2]), "end in the end-of-text token 5"),
        (lambda: fitted([[1]], 2).evaluate(["a"], byte_tokenizer()), r"\(6, 5\) but the tokenizer has \(257, 256\)"),
    ],
)
def test_bad_input_is_refused_with_its_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.skipif("PICOLLM_TINYSTORIES" not in os.environ, reason="PICOLLM_TINYSTORIES names no TinyStories folder")
def test_floors_on_real_stories_are_near_the_published_ones():
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = Path(os.environ["PICOLLM_TINYSTORIES"])
    texts = {s: parquet.read_table(folder / f"{s}.parquet")["text"].to_pylist() for s in ("train", "validation")}
    try:
        tokenizer = tiktoken.get_encoding("gpt2")
    except Exception as error:  # noqa: BLE001 - no network and no cache, under whatever exception that comes
        pytest.skip(f"GPT-2's tokenizer is not here: {error}")
    ids = [[*story, tokenizer.eot_token] for story in tokenizer.encode_ordinary_batch(texts["train"][:5500])]
    tokens, offsets = np.concatenate(ids), np.cumsum([0, *map(len, ids)])
    found = [
        KneserNey(n, tokenizer.n_vocab).fit(tokens, offsets).evaluate(texts["validation"], tokenizer)
        for n in (1, 2, 3, 4)
    ]
    assert [result.perplexity for result in found] == pytest.approx([356, 41, 26, 24], rel=0.05)
    assert [result.bits_per_byte for result in found] == pytest.approx([2.09, 1.32, 1.16, 1.13], rel=0.02)
