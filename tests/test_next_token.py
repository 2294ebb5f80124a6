"""The next token's distribution agrees with what sampling draws from, at every stage."""

import math

import pytest
import torch

from picollm_core import load_tokenizer
from picollm_core.config import SamplingConfig
from picollm_core.models import build_model
from picollm_core.next_token import next_token, prompt_logits, token_text
from picollm_core.sampling import stream

TOKENIZER = load_tokenizer("stories-4k")
NOBODY = torch.tensor([], dtype=torch.long)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("transformer-pico", vocab_size=4096, n_embd=16, block_size=24).eval()


def logits_of(*probabilities):
    """Logits (4096,) that give the first ids these probabilities and the rest next to nothing."""
    logits = torch.full((4096,), -40.0)
    logits[: len(probabilities)] = torch.tensor(probabilities).log()
    return logits


def test_the_nucleus_is_the_first_tokens_and_its_mass_what_they_hold():
    view = next_token(logits_of(0.2, 0.5, 0.3), TOKENIZER, SamplingConfig(top_p=0.75), NOBODY, 3)
    assert [candidate.id for candidate in view.candidates] == [1, 2, 0]
    assert (view.kept, view.vocab_size) == (2, 4096)
    assert view.mass == pytest.approx(0.8)
    assert [candidate.chance for candidate in view.candidates] == pytest.approx([0.625, 0.375, 0])


def test_temperature_shapes_and_leaves_the_models_own_probability():
    view = next_token(logits_of(0.2, 0.8), TOKENIZER, SamplingConfig(temperature=0.5, top_p=1), NOBODY, 2)
    assert view.candidates[0].probability == pytest.approx(0.8)
    assert view.candidates[0].shaped == pytest.approx(0.64 / 0.68)


def test_greedy_keeps_one_token_and_draws_it_for_certain():
    view = next_token(logits_of(0.4, 0.6), TOKENIZER, SamplingConfig(temperature=0), NOBODY, 2)
    assert view.kept == 1
    assert [candidate.chance for candidate in view.candidates] == [1, 0]
    assert view.candidates[0].shaped == pytest.approx(0.6)


def test_of_equal_logits_the_lower_ids_stay():
    view = next_token(torch.zeros(4096), TOKENIZER, SamplingConfig(top_k=2), NOBODY, 4)
    assert [(candidate.id, candidate.chance > 0) for candidate in view.candidates[:3]] == [
        (0, True),
        (1, True),
        (2, False),
    ]


def test_the_repetition_penalty_acts_on_what_came_before():
    logits = logits_of(0.6, 0.4)
    penalised = next_token(logits, TOKENIZER, SamplingConfig(repetition_penalty=2, top_p=1), [0, 5], 2)
    assert [candidate.id for candidate in penalised.candidates] == [1, 0]
    without = next_token(logits, TOKENIZER, SamplingConfig(repetition_penalty=2, top_p=1), NOBODY, 2)
    assert [candidate.id for candidate in without.candidates] == [0, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_of_a_diverged_model_are_refused(bad):
    with pytest.raises(ValueError, match="diverged"):
        next_token(torch.full((4096,), bad), TOKENIZER, SamplingConfig(), NOBODY, 2)


def test_the_prompts_view_is_what_the_first_token_is_drawn_from(model):
    sampling = SamplingConfig(top_p=0.9, temperature=0.7, repetition_penalty=1.3)
    seen = prompt_logits(model, TOKENIZER, "Once upon")
    view = next_token(seen.logits, TOKENIZER, sampling, seen.previous, 4096)
    first = next(stream(model, TOKENIZER, "Once upon", sampling=sampling))
    assert view.kept == first.nucleus_size
    assert torch.equal(seen.logits, first.logits)
    drawn = next(candidate for candidate in view.candidates if candidate.id == first.id)
    assert drawn.probability == pytest.approx(first.probability)
    assert drawn.chance > 0


@pytest.mark.parametrize(("prompt", "words"), [("", "prompt is empty"), ("one two " * 20, "window holds 24")])
def test_a_prompt_that_cannot_be_continued_is_refused(model, prompt, words):
    with pytest.raises(ValueError, match=words):
        prompt_logits(model, TOKENIZER, prompt)


def test_every_id_has_a_text():
    assert token_text(TOKENIZER, TOKENIZER.eot_token) == "<|endoftext|>"
    assert all(isinstance(token_text(TOKENIZER, token), str) for token in range(TOKENIZER.n_vocab))
    assert token_text(TOKENIZER, 10**6) == "<1000000>"
