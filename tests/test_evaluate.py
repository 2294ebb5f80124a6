"""The evaluator: every token of every story once, whatever the batches, the order and the window."""

import json
import math

import numpy as np
import pytest
import tiktoken
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from picollm_core.config import TransformerConfig
from picollm_core.evaluate import encode_stories, evaluate, summarise
from picollm_core.models import LanguageModel, build_model
from tests.conftest import TINY

EOT, V, LIMIT = 256, 257, 24
BYTES = tiktoken.Encoding(
    "bytes",
    pat_str=r"[\s\S]",
    mergeable_ranks={bytes([i]): i for i in range(256)},
    special_tokens={"<|endoftext|>": EOT},
)
STORIES = ["a cat sat.", "é", "the dog ran to the big red barn and hid in the hay until noon.", "no", "Ω" * 20, ""]
WITHOUT_LIMIT = [name for name in TINY if not name.startswith("transformer")]


def tiny(name: str, **changes: object) -> LanguageModel:
    torch.manual_seed(0)
    model = build_model(TINY[name], vocab_size=V, **changes)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    return model.double().eval()


def one_by_one(model: LanguageModel, story: str, window: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Nats of each token and whether it was the likeliest, one forward pass for every token: the slow truth.

    `window` maps a target's place to the first place of the input that its forward pass reads.
    """
    ids = [EOT, *story.encode(), EOT]
    nats, correct = [], []
    for place in range(len(ids) - 1):
        first = 0 if window is None else first_seen(place, len(ids) - 1, window)
        with torch.no_grad():
            logits = model(torch.tensor([ids[first : place + 1]]))[0, -1]
        nats.append(float(F.cross_entropy(logits, torch.tensor(ids[place + 1]))))
        correct.append(int(logits.argmax()) == ids[place + 1])
    return np.array(nats), np.array(correct)


def first_seen(place: int, length: int, limit: int) -> int:
    """Windows end at limit, limit + limit // 2, ... and at the story's end; a place is scored by the first it is in."""
    end = min(length, limit)
    while place >= end:
        end = min(length, end + max(1, limit // 2))
    return max(0, end - limit)


@pytest.mark.parametrize("name", TINY)
def test_every_number_equals_scoring_token_by_token(name):
    model = tiny(name)
    result = evaluate(model, BYTES, STORIES, batch_size=4)
    scored = [one_by_one(model, story, model.context_limit) for story in STORIES]
    nats, correct = (np.concatenate(parts) for parts in zip(*scored, strict=True))
    eot = np.concatenate([[False] * len(story.encode()) + [True] for story in STORIES])
    n_bytes = sum(len(story.encode()) for story in STORIES)
    close = {"rel": 1e-12}
    assert result.nll == pytest.approx(nats.mean(), **close)
    assert result.perplexity == pytest.approx(math.exp(nats.mean()), **close)
    assert result.text_nll == pytest.approx(nats[~eot].mean(), **close)
    assert result.eot_nll == pytest.approx(nats[eot].mean(), **close)
    assert result.bits_per_byte == pytest.approx(nats[~eot].sum() / math.log(2) / n_bytes, **close)
    assert (result.accuracy, result.eot_accuracy) == (pytest.approx(correct.mean()), pytest.approx(correct[eot].mean()))
    assert (result.n_tokens, result.n_bytes, result.n_stories) == (nats.size, n_bytes, len(STORIES))
    third = np.mean([story[0][2] for story in scored if story[0].size > 2])
    assert result.per_position[2] == pytest.approx(third, **close)
    assert len(result.per_position) == max(story[0].size for story in scored)
    np.testing.assert_allclose(result.per_story.nats, [story[0].sum() for story in scored], rtol=1e-12)
    np.testing.assert_allclose(result.per_story.text_nats, [story[0][:-1].sum() for story in scored], rtol=1e-12)
    assert result.per_story.tokens.tolist() == [story[0].size for story in scored]
    assert result.per_story.bytes.tolist() == [len(story.encode()) for story in STORIES]


@settings(max_examples=25, deadline=None)
@given(st.permutations(STORIES), st.integers(1, 9), st.sampled_from(["lstm", "kgram-conv", "transformer"]))
def test_batch_size_and_order_change_nothing(order, batch_size, name):
    model = tiny(name)
    expected, result = evaluate(model, BYTES, STORIES), evaluate(model, BYTES, order, batch_size=batch_size)
    for field in ("nll", "perplexity", "bits_per_byte", "accuracy", "text_nll", "eot_nll", "eot_accuracy"):
        assert getattr(result, field) == pytest.approx(getattr(expected, field), rel=1e-12)
    assert result.per_position == pytest.approx(expected.per_position, rel=1e-12)


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_single_precision_agrees_to_a_millionth_over_batch_sizes(name):
    model = tiny(name).float()
    values = [evaluate(model, BYTES, STORIES, batch_size=size).nll for size in (1, 2, 6)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("length", [LIMIT - 2, LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT, 61])
def test_a_story_longer_than_the_window_is_read_in_windows_no_longer_than_it(length, monkeypatch):
    model, read = tiny("transformer"), []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda idx, state=None: read.append(idx.shape) or hidden(idx, state))
    result = evaluate(model, BYTES, ["x" * length, "y"], batch_size=1)
    assert result.n_tokens == length + 1 + 2
    assert max(time for _, time in read) == min(LIMIT, length + 1)


def test_a_window_of_one_token_can_still_be_scored():
    model = tiny("transformer", block_size=1)
    scored = one_by_one(model, "abc", 1)[0]
    assert evaluate(model, BYTES, ["abc"]).nll == pytest.approx(scored.mean(), rel=1e-12)


@pytest.mark.parametrize("name", WITHOUT_LIMIT)
def test_models_without_a_limit_read_a_long_story_whole(name, monkeypatch):
    model, read = tiny(name), []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda idx, state=None: read.append(idx.shape) or hidden(idx, state))
    evaluate(model, BYTES, ["x" * 99])
    assert read == [(1, 100)]


def test_an_end_of_text_in_a_story_is_plain_text():
    result = evaluate(tiny("lstm"), BYTES, ["<|endoftext|>"])
    assert (result.n_tokens, result.n_bytes) == (14, 13)


def test_perfect_and_uniform_predictions_have_the_numbers_they_must_have():
    stories = encode_stories(["abcd", "efgh"], BYTES)
    uniform = summarise(stories, np.full(10, math.log(V)))
    assert uniform.perplexity == pytest.approx(V)
    assert uniform.bits_per_byte == pytest.approx(math.log2(V))
    assert uniform.bits_per_byte_interval == pytest.approx((math.log2(V),) * 2)
    assert uniform.accuracy is None
    perfect = summarise(stories, np.zeros(10), np.ones(10, bool))
    assert (perfect.perplexity, perfect.bits_per_byte, perfect.accuracy, perfect.eot_accuracy) == (1, 0, 1, 1)


def test_bits_per_byte_does_not_depend_on_how_a_text_is_cut_into_tokens():
    """Two-byte tokens at twice the nats a token say the same about the text."""
    ranks = {bytes([i]): i for i in range(256)} | {b"ab": 256}
    pairs = tiktoken.Encoding("pairs", pat_str=r"..", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 257})
    by_pair, by_byte = encode_stories(["ababab"], pairs), encode_stories(["ababab"], BYTES)
    assert (by_pair.lengths.tolist(), by_byte.lengths.tolist()) == ([4], [7])
    two, one = summarise(by_pair, np.array([2.0, 2, 2, 9])), summarise(by_byte, np.array([1.0, 1, 1, 1, 1, 1, 5]))
    assert two.bits_per_byte == pytest.approx(one.bits_per_byte)
    assert two.nll != pytest.approx(one.nll)


def test_intervals_contain_the_estimate_and_repeat_with_their_seed():
    first, again, other = (evaluate(tiny("lstm"), BYTES, STORIES, seed=seed) for seed in (0, 0, 1))
    assert first.perplexity_interval[0] < first.perplexity < first.perplexity_interval[1]
    assert first.bits_per_byte_interval[0] < first.bits_per_byte < first.bits_per_byte_interval[1]
    assert first == again
    assert first.bits_per_byte == other.bits_per_byte
    assert first.bits_per_byte_interval != other.bits_per_byte_interval


def test_results_survive_json_and_leave_the_sums_per_story_out():
    values = evaluate(tiny("lstm"), BYTES, STORIES).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert "per_story" not in values
    assert isinstance(values["bits_per_byte_interval"], list)


def test_a_hopeless_model_has_an_infinite_perplexity_not_an_overflow():
    stories = encode_stories(["abcd"], BYTES)
    assert summarise(stories, np.full(5, 1e5)).perplexity == math.inf


def test_a_corpus_is_read_by_split_and_only_as_far_as_asked():
    class Texts:
        def texts(self, split: str):
            yield from {"validation": ["val"], "test": ["one", "two2", "three"]}[split]

    assert evaluate(tiny("lstm"), BYTES, Texts()).n_bytes == 3
    assert evaluate(tiny("lstm"), BYTES, Texts(), split="test", max_stories=2).n_bytes == 7


def test_dropout_is_off_while_scoring_and_the_mode_comes_back():
    config = TransformerConfig(vocab_size=V, block_size=LIMIT, n_embd=16, dropout=0.5)
    torch.manual_seed(0)
    model = build_model(config).train()
    first, again = evaluate(model, BYTES, STORIES), evaluate(model, BYTES, STORIES)
    assert first == again
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "0 stories"),
        (["", ""], {}, "2 stories with 0 bytes"),
        ("one string", {}, "one string"),
        (STORIES, {"batch_size": 0}, "batch_size is 0"),
        (STORIES, {"max_stories": 0}, "max_stories is 0"),
        (STORIES, {"n_bootstrap": 0}, "n_bootstrap is 0"),
    ],
)
def test_bad_input_is_refused_with_its_value(texts, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(tiny("lstm"), BYTES, texts, **options)


def test_a_tokenizer_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match="257 tokens but the model has 61"):
        evaluate(build_model(TINY["lstm"]), BYTES, STORIES)
