"""Generation: one token at a time on the streaming state, batches, streams, windows, ends of text."""

import math

import pytest
import tiktoken
import torch
from torch import Tensor, nn

from picollm_core.config import KGramConfig, LSTMConfig, SamplingConfig, TransformerConfig
from picollm_core.models import LanguageModel, build_model
from picollm_core.sampling import generate, generate_batch, stream
from tests.conftest import TINY

EOT, V = 256, 257
BYTES = tiktoken.Encoding(
    "bytes",
    pat_str=r"[\s\S]",
    mergeable_ranks={bytes([i]): i for i in range(256)},
    special_tokens={"<|endoftext|>": EOT},
)


class Chain(LanguageModel):
    """A model whose next token depends on the last one alone, by a table of logits (V, V) that a test writes."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(KGramConfig(vocab_size=len(logits), k=1))
        self.table = nn.Embedding.from_pretrained(logits)
        self.head = nn.Linear(len(logits), len(logits), bias=False)
        nn.init.eye_(self.head.weight)
        self.fed: list[int] = []

    def init_state(self, batch_size: int) -> None:
        return None

    def hidden(self, idx: Tensor, state: None = None) -> tuple[Tensor, None]:
        self.fed.append(idx.size(1))
        return self.table(idx), None


def saying(text: str, then: int = EOT) -> Chain:
    """A chain that surely continues the last byte of the prompt ">" with the (all different) bytes of `text`."""
    logits = torch.full((V, V), -20.0)
    ids = [ord(">"), *text.encode()]
    assert len(set(ids)) == len(ids)
    for previous, following in zip(ids, [*ids[1:], then], strict=True):
        logits[previous, following] = 20.0
    return Chain(logits)


def tiny(name: str, **changes: object) -> LanguageModel:
    torch.manual_seed(0)
    model = build_model(TINY[name], vocab_size=V, **changes)
    for weight in model.parameters():  # confident and restless enough that truncation and state matter
        nn.init.normal_(weight, std=0.7)
    return model.eval()


def greedy_ids(model: LanguageModel, prompt: str, n: int) -> list[int]:
    """Greedy continuation by whole forward passes; past the window, as documented, again from its newest half."""
    ids, first = [EOT, *prompt.encode()], 0
    for _ in range(n):
        limit = model.context_limit
        if limit is not None and len(ids) - first > limit:
            first = len(ids) - limit // 2
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids[first:]]))[0, -1].argmax()))
    return ids[1 + len(prompt) :]


@pytest.mark.parametrize("name", TINY)
def test_generation_on_the_state_equals_the_full_forward_pass_past_the_window_too(name):
    model = tiny(name)
    tokens = stream(model, BYTES, "Once", max_new_tokens=60, temperature=0, stop_at_eot=False)
    assert [token.id for token in tokens] == greedy_ids(model, "Once", 60)


@pytest.mark.parametrize("name", TINY)
def test_a_batch_of_unequal_prompts_equals_single_generation_with_seed_plus_row(name):
    model = tiny(name)
    prompts = ["a", "abcde", "b", "Once upon", "abcdf", "a"]
    options = {"max_new_tokens": 40, "top_p": 0.9, "temperature": 0.8, "repetition_penalty": 1.2}
    together = generate_batch(model, BYTES, prompts, seed=7, **options)
    assert together == [generate(model, BYTES, p, seed=7 + row, **options) for row, p in enumerate(prompts)]
    assert together[0] != together[5]  # same prompt, other seed
    assert all(text.startswith(prompt) for text, prompt in zip(together, prompts, strict=True))


@pytest.mark.parametrize("name", ["lstm", "transformer", "kgram-learned"])
def test_a_stream_is_what_generate_returns(name):
    model = tiny(name)
    options = {"max_new_tokens": 50, "seed": 3, "top_p": 0.95}
    tokens = list(stream(model, BYTES, "Once", **options))
    assert "Once" + "".join(token.text for token in tokens) == generate(model, BYTES, "Once", **options)


def test_same_seed_same_text_and_other_seed_other_text():
    model = tiny("lstm")
    first, again, other = (generate(model, BYTES, "a", seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_the_prefix_is_never_computed_again():
    model = saying("bcdefgh")
    generate(model, BYTES, "x>", max_new_tokens=6)
    assert model.fed == [3, 1, 1, 1, 1, 1]


def test_a_state_never_holds_more_than_the_context_limit(monkeypatch):
    model, held = tiny("transformer", block_size=9), []
    hidden = model.hidden

    def spy(idx, state=None):
        held.append(state.length + idx.size(1))
        return hidden(idx, state)

    monkeypatch.setattr(model, "hidden", spy)
    generate(model, BYTES, "abcdefgh", max_new_tokens=12, stop_at_eot=False)
    assert held == [9, 4, 5, 6, 7, 8, 9, 4, 5, 6, 7, 8]


def test_a_window_of_one_token_still_generates():
    model = tiny("transformer", block_size=1)
    with pytest.raises(ValueError, match="2 tokens"):
        generate(model, BYTES, "a")
    model = tiny("transformer", block_size=2)
    assert len(list(stream(model, BYTES, "a", max_new_tokens=5, stop_at_eot=False))) == 5


def test_generation_stops_before_the_end_of_text():
    model = saying("once")
    assert generate(model, BYTES, ">", temperature=0) == ">once"
    tokens = list(stream(model, BYTES, ">", temperature=0))
    assert [(token.id, token.text) for token in tokens] == [*((ord(c), c) for c in "once"), (EOT, "")]


def test_rows_of_a_batch_end_where_they_end():
    model = saying("abc")
    assert generate_batch(model, BYTES, [">", ">ab", "c"], max_new_tokens=3, temperature=0) == [">abc", ">abc", "c"]


def test_generation_goes_on_past_the_end_of_text_when_asked_to():
    model = saying("ab", then=EOT)
    model.table.weight[EOT, ord(">")] = 30.0
    text = generate(model, BYTES, ">", temperature=0, max_new_tokens=6, stop_at_eot=False)
    assert text == ">ab<|endoftext|>>ab"


def test_a_prompt_begins_after_an_end_of_text_and_is_plain_text_itself():
    logits = torch.zeros(V, V)
    model = Chain(logits)
    seen = []
    model.table.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].tolist()))
    generate(model, BYTES, "<|endoftext|>", max_new_tokens=1)
    assert seen == [[[EOT, *b"<|endoftext|>"]]]


@pytest.mark.parametrize("text", ["é€😀", "aé", "😀b", "a\n "])
def test_streamed_text_waits_for_whole_characters(text):
    tokens = list(stream(saying(text), BYTES, ">", temperature=0))
    assert [token.text for token in tokens if token.text] == list(text)
    assert len(tokens) == len(text.encode()) + 1


@pytest.mark.parametrize("cut", range(1, 10))
def test_a_character_cut_by_the_token_limit_reads_alike_streamed_and_whole(cut):
    model = saying("é€😀")
    texts = [token.text for token in stream(model, BYTES, ">", temperature=0, max_new_tokens=cut)]
    assert ">" + "".join(texts) == generate(model, BYTES, ">", temperature=0, max_new_tokens=cut)


def test_a_character_cut_by_the_end_of_text_reads_alike_streamed_and_whole():
    model = saying("é€")
    model.table.weight[0xE2, EOT] = 40.0  # after the first of the three bytes of €
    texts = [token.text for token in stream(model, BYTES, ">", temperature=0)]
    assert ">" + "".join(texts) == generate(model, BYTES, ">", temperature=0) == ">é\N{REPLACEMENT CHARACTER}"


def test_tokens_carry_the_untruncated_probability_the_rank_and_the_size_of_the_nucleus():
    logits = torch.full((V, V), -60.0)
    logits[:, [97, 98, 99, 100]] = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    rank = {98: 1, 99: 2, 100: 3, 97: 4}
    tokens = list(stream(Chain(logits), BYTES, ">", max_new_tokens=50, top_p=0.85, temperature=0.9))
    assert {token.id for token in tokens} == {98, 99, 100}
    for token in tokens:
        assert token.rank == rank[token.id]
        assert token.probability == pytest.approx((5 - token.rank) / 10)
        assert token.nucleus_size == 3
    (greedy,) = stream(Chain(logits), BYTES, ">", max_new_tokens=1, temperature=0)
    assert (greedy.id, greedy.rank, greedy.nucleus_size) == (98, 1, 1)


def test_repetition_penalty_acts_on_prompt_and_continuation_but_not_on_the_leading_end_of_text():
    logits = torch.full((V, V), -9.0)
    logits[:, [97, 98, EOT]] = torch.tensor([3.0, 2.5, 2.0])
    options = {"temperature": 0, "repetition_penalty": 2.0}
    assert generate(Chain(logits), BYTES, "a", **options) == "ab"  # a -> 1.5, then b -> 1.25, then end of text at 2
    assert generate(Chain(logits), BYTES, "z", max_new_tokens=4, temperature=0) == "zaaaa"


@pytest.mark.parametrize("config", [LSTMConfig(dropout=0.5, n_layer=2), TransformerConfig(dropout=0.5)], ids=str)
def test_dropout_is_off_while_generating_and_every_module_gets_its_mode_back(config):
    torch.manual_seed(0)
    model = build_model(config.replace(vocab_size=V, block_size=64, n_embd=16))
    model.train()
    model.head.eval()
    modes = [module.training for module in model.modules()]
    text = generate(model, BYTES, "a", seed=1, max_new_tokens=30)
    assert "a" + "".join(t.text for t in stream(model, BYTES, "a", seed=1, max_new_tokens=30)) == text
    tokens = stream(model, BYTES, "a", seed=1, max_new_tokens=30)
    next(tokens)
    assert [module.training for module in model.modules()] == modes  # between two tokens
    tokens.close()
    assert [module.training for module in model.modules()] == modes
    assert generate(model.eval(), BYTES, "a", seed=1, max_new_tokens=30) == text


def test_the_mode_comes_back_after_an_error():
    model = Chain(torch.full((V, V), math.nan)).train()
    with pytest.raises(ValueError, match="diverged"):
        generate(model, BYTES, "a")
    with pytest.raises(ValueError, match="diverged"):
        next(stream(model, BYTES, "a", temperature=0))
    assert model.training


def test_generation_leaves_the_global_generator_and_gradients_alone():
    model, before = tiny("lstm").train(), torch.random.get_rng_state()
    for _ in stream(model, BYTES, "a", max_new_tokens=3):
        assert torch.is_grad_enabled()
    assert torch.equal(torch.random.get_rng_state(), before)
    model(torch.tensor([[1, 2]])).sum().backward()
    assert model.head.weight.grad is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"top_p": 0.0}, r"top_p is 0.0; it must lie in \(0, 1\]"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_q": 0.5}, "no top_q; known keys: .*top_p"),
        ({"prompt": "x" * 24}, r"25 tokens .* window holds 24; shorten the prompt.*block_size"),
    ],
)
def test_bad_input_is_refused_at_the_call_with_its_value_and_a_way_out(options, message):
    arguments = {"prompt": "a"} | options
    for start in (generate, stream):  # stream too: at the call, not at the first token
        with pytest.raises(ValueError, match=message):
            start(tiny("transformer"), BYTES, **arguments)


def test_a_prompt_that_just_fills_the_window_is_accepted():
    model = tiny("transformer")
    assert len(list(stream(model, BYTES, "x" * 23, max_new_tokens=3, stop_at_eot=False))) == 3


def test_a_tokenizer_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match="257 tokens but the model has 61"):
        generate(build_model(TINY["lstm"]), BYTES, "a")


def test_one_string_where_prompts_are_expected_is_refused_and_no_prompts_give_no_texts():
    with pytest.raises(ValueError, match="list of strings"):
        generate_batch(tiny("lstm"), BYTES, "abc")
    assert generate_batch(tiny("lstm"), BYTES, []) == []


def test_a_sampling_config_and_overrides_of_it_combine():
    model = saying("abc")
    greedy = SamplingConfig(temperature=0, top_p=0.5)
    assert generate(model, BYTES, ">", sampling=greedy) == ">abc"
    assert generate(model, BYTES, ">", sampling=greedy, max_new_tokens=1, top_k=1) == ">a"
