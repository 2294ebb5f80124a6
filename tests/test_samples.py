"""Samples up to a token budget, and the diversity of models and of people measured on them."""

import pytest

from picollm_core.config import SamplingConfig
from picollm_core.diversity import distinct_n, repetition_rate
from picollm_core.samples import REPETITION_LENGTH, diversity, human_diversity, sample_tokens
from picollm_core.sampling import continue_batch, generate_batch
from tests.conftest import TINY
from tests.test_sampling import BYTES, EOT, saying, tiny

ALL_TOKENS = SamplingConfig(top_p=1.0)


@pytest.mark.parametrize("name", TINY)
def test_continuations_are_those_of_generation_with_seeds_that_count_up(name):
    model = tiny(name)
    samples = sample_tokens(model, BYTES, prompt="ab", budget=100, max_new_tokens=12, seed=5, batch_size=8)
    again = continue_batch(model, BYTES, ["ab"] * len(samples), max_new_tokens=12, seed=5)
    assert samples == again
    assert len({tuple(sample) for sample in samples}) > len(samples) / 2, "every continuation has a seed of its own"


def test_budget_is_met_by_whole_batches_and_not_by_one_more():
    samples = sample_tokens(tiny("lstm"), BYTES, prompt="a", budget=100, max_new_tokens=10, batch_size=4)
    assert len(samples) % 4 == 0
    assert sum(map(len, samples[:-4])) < 100 <= sum(map(len, samples))
    assert max(map(len, samples)) == 10


def test_no_more_is_drawn_than_texts_of_full_length_would_need():
    samples = sample_tokens(saying("abcdef", then=ord("a")), BYTES, prompt=">", budget=25, max_new_tokens=10)
    assert [len(sample) for sample in samples] == [10, 10, 10]


def test_prompt_and_end_of_text_are_left_out():
    samples = sample_tokens(saying("ab"), BYTES, prompt=">", budget=7, batch_size=2)
    assert samples == [[*b"ab"]] * 4
    assert all(EOT not in sample for sample in samples)


def test_text_of_a_batch_is_its_ids_decoded_after_the_prompt():
    model = tiny("kgram-learned")
    ids = continue_batch(model, BYTES, ["ab", "c"], max_new_tokens=9, seed=3)
    texts = generate_batch(model, BYTES, ["ab", "c"], max_new_tokens=9, seed=3)
    assert texts == [prompt + BYTES.decode(own) for prompt, own in zip(["ab", "c"], ids, strict=True)]


def test_model_that_ends_every_story_at_once_is_an_error_and_no_endless_loop():
    with pytest.raises(ValueError, match="40 continuations of '>' hold 0 tokens together, the budget is 40: the model"):
        sample_tokens(saying(""), BYTES, prompt=">", budget=40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0}, "budget is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"prompt": ""}, "prompt is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_impossible_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_tokens(tiny("lstm"), BYTES, **{"prompt": "a", "budget": 10} | arguments)


def test_diversity_is_distinct_n_at_the_budget_and_repetition_at_one_length():
    model = tiny("transformer-nope-post")
    found = diversity(model, BYTES, prompt="ab", budget=300, sampling=ALL_TOKENS, max_new_tokens=60, seed=1)
    samples = sample_tokens(model, BYTES, prompt="ab", budget=300, sampling=ALL_TOKENS, max_new_tokens=60, seed=1)
    assert list(found) == [*(f"distinct_{n}" for n in range(1, 6)), "repetition_4"]
    assert all(found[f"distinct_{n}"] == distinct_n(samples, n, 300) for n in range(1, 6))
    long = [sample for sample in samples if len(sample) >= REPETITION_LENGTH]
    assert len(long) > 0
    assert found["repetition_4"] == repetition_rate(long, 4, REPETITION_LENGTH)


def test_one_text_over_and_over_is_less_distinct_and_more_repetitive_than_drawn_text():
    model = tiny("lstm")
    greedy, drawn = (
        diversity(model, BYTES, prompt="a", budget=400, sampling=sampling, max_new_tokens=60)
        for sampling in (SamplingConfig(temperature=0), ALL_TOKENS)
    )
    assert all(greedy[name] < drawn[name] for name in greedy if name.startswith("distinct"))
    assert greedy["repetition_4"] > drawn["repetition_4"]


def test_fields_of_the_sampling_can_be_given_by_name():
    by_name = diversity(tiny("lstm"), BYTES, prompt="a", budget=200, max_new_tokens=20, temperature=0.5, top_p=1.0)
    config = SamplingConfig(temperature=0.5, top_p=1.0)
    assert by_name == diversity(tiny("lstm"), BYTES, prompt="a", budget=200, max_new_tokens=20, sampling=config)
    with pytest.raises(ValueError, match="top_q"):
        diversity(tiny("lstm"), BYTES, prompt="a", budget=200, top_q=0.5)


def test_repetition_is_missing_where_no_text_is_long_enough():
    assert diversity(saying("abcdef"), BYTES, prompt=">", budget=20)["repetition_4"] is None


def test_human_text_is_measured_without_openings_and_up_to_the_same_length():
    stories = ["Once " + letter * 6 for letter in "abcdefgh"]
    found = human_diversity(stories, BYTES, 15, skip=5, max_tokens=5)
    assert found["distinct_1"] == 3 / 15  # aaaaa bbbbb ccccc


def test_human_stories_are_read_only_as_far_as_the_budget_asks():
    def endless():
        yield "abcdefgh"
        yield "abcdefgh"
        raise AssertionError("read too far")

    assert human_diversity(endless(), BYTES, 12)["distinct_1"] == 8 / 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 100}, "budget is 100 tokens but the samples hold 6"),
        ({"budget": 5, "skip": -1}, "skip is -1"),
        ({"budget": 5, "max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_human_text_that_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        human_diversity(["abc", "def"], BYTES, **arguments)
