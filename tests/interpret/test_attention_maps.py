"""Attention weights are those the layers use, and the scores say what they claim to say."""

import json
import math
from functools import partial

import pytest
import torch

from picollm_core.config import LINEAR_MIXERS, TransformerConfig
from picollm_core.interpret.attention_maps import (
    REPETITION_SCORES,
    attention_layers,
    attention_patterns,
    attention_study,
    first_tokens,
    head_scores,
    layer_inputs,
    repeated_tokens,
    repetition_loss,
    repetition_scores,
    uniform_patterns,
    untrained_highest,
)
from picollm_core.models import build_model
from picollm_core.tokenizers import load_tokenizer
from picollm_core.trainer import seeded
from tests.conftest import TINY, VOCAB

TRANSFORMERS = {name: config for name, config in TINY.items() if isinstance(config, TransformerConfig)}
LINEAR = {name: config for name, config in TRANSFORMERS.items() if set(config.mixers) <= set(LINEAR_MIXERS)}
SOFTMAX = {name: config for name, config in TRANSFORMERS.items() if not set(config.mixers) & set(LINEAR_MIXERS)}


def model_of(name: str):
    """A tiny Transformer with weights large enough that no pattern is close to uniform."""
    torch.manual_seed(0)
    model = build_model(TRANSFORMERS[name])
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


def ids(batch=2, time=9) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, time), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SOFTMAX)
def test_every_row_sums_to_one_and_no_weight_is_on_a_later_token(name):
    config = TRANSFORMERS[name]
    patterns = attention_patterns(model_of(name), ids())
    assert patterns.shape == (config.n_layer, 2, config.n_head, 9, 9)
    if config.sinks:  # a sink takes its part
        assert ((patterns.sum(-1) > 0) & (patterns.sum(-1) < 1)).all()
    else:
        torch.testing.assert_close(patterns.sum(-1), torch.ones_like(patterns[..., 0]), rtol=1e-12, atol=1e-12)
    for layer, weights in enumerate(patterns):
        window = config.window if config.mixer(layer) == "window" else 9
        assert torch.equal(weights > 0, torch.ones_like(weights).tril().triu(1 - window) > 0)
    assert (patterns - uniform_patterns(patterns)).abs().max() > 0.2


@pytest.mark.parametrize("name", SOFTMAX)
def test_weights_times_values_give_what_the_layer_itself_returns(name):
    model = model_of(name)
    calls = []

    def keep(layer, inputs, outputs):
        x, _, place = inputs
        calls.append((layer.project(x, place)[2], outputs[0]))

    patterns = attention_patterns(model, ids())
    for layer in attention_layers(model):
        layer.register_forward_hook(keep)
    model(ids())
    for layer, weights, (v, output) in zip(attention_layers(model), patterns, calls, strict=True):
        v = v.repeat_interleave(layer.n_head // layer.n_kv_head, dim=1)  # (B, H, T, D)
        mixed = (weights @ v).transpose(1, 2).flatten(-2)  # (B, T, C)
        torch.testing.assert_close(layer.proj(mixed), output, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LINEAR)
def test_the_implicit_map_of_a_linear_mixer_times_its_values_is_what_its_memory_returns(name):
    model = model_of(name)
    found = layer_inputs(model, ids())
    patterns = attention_patterns(model, ids())
    assert torch.equal(patterns, patterns.tril())
    for (layer, x, state, place), weights in zip(found, patterns, strict=True):
        (q, k, v, *gates), _ = layer.inputs(x, state.tail, place.resets)
        o, _ = layer.kernel(q, k, v, *gates, form="recurrent", state=state.memory, resets=None)
        torch.testing.assert_close(weights @ v, o, rtol=1e-9, atol=1e-9)


def test_a_hybrid_shows_the_maps_of_all_its_layers():
    patterns = attention_patterns(model_of("transformer-hybrid"), ids())
    assert patterns.shape == (4, 2, 2, 9, 9)
    sums = patterns.sum(-1)
    torch.testing.assert_close(sums[2:], torch.ones_like(sums[2:]))
    assert ((sums[:2] - 1).abs() > 0.1).any()


def test_looking_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    model = build_model(TRANSFORMERS["transformer"].replace(dropout=0.5)).train()
    first = attention_patterns(model, ids())
    assert torch.equal(first, attention_patterns(model, ids()))  # no dropout inside
    assert model.training
    assert not first.requires_grad
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_hooks_are_gone_after_ids_that_the_model_refuses():
    model = model_of("transformer")
    with pytest.raises(ValueError, match="token id"):
        attention_patterns(model, ids() + VOCAB)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["lstm", "kgram-learned"])
def test_a_model_without_attention_is_refused_by_the_name_of_its_family(family):
    with pytest.raises(ValueError, match=f"a {family.split('-')[0]} model has no attention"):
        attention_patterns(build_model(TINY[family]), ids())


def looking_at(offset: int, time: int) -> torch.Tensor:
    """A head (T, T) that puts everything on the token `offset` before, or on the first where there is none."""
    weights = torch.zeros(time, time)
    weights[torch.arange(time), (torch.arange(time) - offset).clamp(min=0)] = 1
    return weights


def test_scores_tell_previous_first_and_same_token_heads_apart():
    idx = torch.tensor([[1, 2, 3, 1, 2, 3]])
    heads = [looking_at(1, 6), looking_at(6, 6), looking_at(3, 6), looking_at(0, 6)]
    table = head_scores(torch.stack(heads)[None, None], idx)
    assert table[["layer", "head"]].to_numpy().tolist() == [[1, 1], [1, 2], [1, 3], [1, 4]]
    assert table.previous_token.tolist() == pytest.approx([1, 0, 0, 0])
    assert table.first_token.tolist() == pytest.approx([0, 1, 0.5, 0])  # the third looks there from t = 2 and t = 3
    assert table.same_token.tolist() == pytest.approx([0, 1 / 3, 1, 0])  # itself is no copy
    assert table.entropy.tolist() == pytest.approx([0, 0, 0, 0])


def test_uniform_attention_has_the_scores_that_arithmetic_gives():
    idx = torch.tensor([[4, 5, 4, 4, 6]])
    uniform = uniform_patterns(torch.rand(2, 1, 3, 5, 5))
    table = head_scores(uniform, idx)
    assert len(table) == 6
    share = (1 / 3 + 1 / 4 + 1 / 5) / 3
    assert table.previous_token.tolist() == pytest.approx([share] * 6)
    assert table.first_token.tolist() == pytest.approx([share] * 6)
    assert table.same_token.tolist() == pytest.approx([(1 / 3 + 2 / 4) / 2] * 6)
    assert table.entropy.tolist() == pytest.approx([(math.log2(3) + math.log2(4) + math.log2(5)) / 3] * 6)


def test_scores_are_means_over_rows_and_keep_layers_apart():
    idx = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    previous, first = looking_at(1, 4), looking_at(4, 4)
    layers = torch.stack([torch.stack([previous, previous]), torch.stack([previous, first])]).unsqueeze(2)
    table = head_scores(layers, idx)
    assert table.previous_token.tolist() == pytest.approx([1, 0.5])
    assert table.same_token.isna().all()  # no token occurs twice


def test_shapes_that_do_not_go_together_are_refused_with_both():
    with pytest.raises(ValueError, match=r"\(2, 9\)"):
        head_scores(torch.rand(1, 2, 1, 8, 8), ids())
    with pytest.raises(ValueError, match="do not go with"):
        head_scores(torch.rand(9, 9), ids())
    with pytest.raises(ValueError, match="at least 3"):
        head_scores(torch.rand(1, 1, 1, 2, 2), torch.tensor([[1, 2]]))


TOKENIZER = load_tokenizer("stories-4k")
TEXTS = ["Too short.", *(f"Tom and Lily had {n} red balls, and Tom gave Lily one of the balls." for n in range(2, 9))]


@pytest.fixture(scope="module")
def study():
    with seeded(1):
        model = build_model("transformer-pico", vocab_size=TOKENIZER.n_vocab, n_embd=16, n_head=2, n_layer=2)
        torch.nn.init.normal_(model.blocks[0].attention.qkv.weight, std=2)
    return model, attention_study(model, TOKENIZER, "Lily saw Lily.", TEXTS, length=12, most=3)


def test_texts_are_read_from_their_start_and_those_too_short_are_left_out():
    idx = first_tokens(TEXTS, TOKENIZER, 12, 3)
    expected = [[TOKENIZER.eot_token, *TOKENIZER.encode_ordinary(text)][:12] for text in TEXTS[1:4]]
    assert idx.tolist() == expected
    assert len(first_tokens(TEXTS, TOKENIZER, 12, 50)) == len(TEXTS) - 1
    with pytest.raises(ValueError, match="no text has 99 tokens"):
        first_tokens(TEXTS, TOKENIZER, 100, 3)


def test_a_study_holds_the_sentence_s_maps_and_every_head_s_scores_as_json(study):
    model, found = study
    assert json.loads(json.dumps(found)) == found
    assert found["tokens"][0] == "<start>"
    assert "".join(found["tokens"][1:]) == "Lily saw Lily."
    idx = torch.tensor([[TOKENIZER.eot_token, *TOKENIZER.encode_ordinary("Lily saw Lily.")]])
    exact = attention_patterns(model, idx)[:, 0]
    torch.testing.assert_close(torch.tensor(found["patterns"]), exact, rtol=0, atol=6e-4)
    rows = first_tokens(TEXTS, TOKENIZER, 12, 3)
    assert found["scores"] == head_scores(attention_patterns(model, rows), rows).to_dict("records")
    assert found["stories"] == 3


def test_a_study_s_controls_are_a_head_without_preference_and_fresh_weights(study):
    _, found = study
    by_chance = sum(1 / (t + 1) for t in range(2, 12)) / 10
    assert found["uniform"]["previous_token"] == pytest.approx(by_chance)
    assert found["untrained"]["previous_token"] == pytest.approx(by_chance, abs=0.02)  # small weights look everywhere
    assert found["untrained"]["entropy"] == pytest.approx(found["uniform"]["entropy"], abs=0.01)
    assert (
        min(row["entropy"] for row in found["scores"]) < found["untrained"]["entropy"] - 0.1
    )  # the model's own weights


def test_a_study_leaves_torch_s_generator_alone_and_wants_the_model_s_tokenizer(study):
    model, found = study
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert attention_study(model, TOKENIZER, "Lily saw Lily.", TEXTS, length=12, most=3) == found
    assert torch.equal(torch.rand(1), expected)
    with pytest.raises(ValueError, match="4096 tokens but the model has 61"):
        attention_study(build_model(TINY["transformer"]), TOKENIZER, "Lily", TEXTS)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_repeated_tokens_are_a_start_and_the_same_random_sequence_twice():
    idx = repeated_tokens(torch.arange(10, 40), 50, 12, start_token=7, generator=generator())
    assert idx.shape == (50, 25)
    assert idx.dtype == torch.int64
    assert set(idx[:, 0].tolist()) == {7}
    assert torch.equal(idx[:, 1:13], idx[:, 13:])
    assert all(len(set(row)) == 12 for row in idx[:, 1:13].tolist())  # so every token has one earlier copy
    assert set(idx[:, 1:].flatten().tolist()) == set(range(10, 40))
    assert len({tuple(row) for row in idx.tolist()}) == 50
    assert torch.equal(idx, repeated_tokens(list(range(10, 40)), 50, 12, 7, generator()))


def test_the_start_token_and_copies_in_the_pool_are_drawn_no_second_time():
    idx = repeated_tokens([1, 1, 1, 2, 3, 0, 0], 20, 3, start_token=0, generator=generator())
    assert {tuple(sorted(row)) for row in idx[:, 1:4].tolist()} == {(1, 2, 3)}
    with pytest.raises(ValueError, match="3 different tokens are too few for sequences of 4"):
        repeated_tokens([1, 1, 1, 2, 3, 0, 0], 20, 4, start_token=0)
    with pytest.raises(ValueError, match="n_rows is 0"):
        repeated_tokens([1, 2, 3], 0, 3, start_token=0)
    with pytest.raises(ValueError, match="length is 2"):
        repeated_tokens([1, 2, 3], 1, 2, start_token=0)


def test_a_hand_made_induction_head_scores_one_and_others_nothing():
    length = 5
    heads = [looking_at(offset, 1 + 2 * length) for offset in (1, length, length - 1, 1 + 2 * length, 0)]
    table = repetition_scores(torch.stack(heads)[None, None], length)
    assert table.columns.tolist() == ["layer", "head", *REPETITION_SCORES]
    assert table.previous_token.tolist() == pytest.approx([1, 0, 0, 0, 0])
    assert table.duplicate_token.tolist() == pytest.approx([0, 1, 0, 0, 0])
    assert table.induction.tolist() == pytest.approx([0, 0, 1, 0, 0])
    assert table.first_token.tolist() == pytest.approx([0, 0, 0, 1, 0])
    assert table.entropy.tolist() == pytest.approx([0] * 5)


def test_only_queries_of_the_second_half_are_scored_in_every_row_and_layer():
    length = 4
    induction, first = looking_at(length - 1, 9), looking_at(9, 9)
    late = torch.cat([first[: length + 1], induction[length + 1 :]])
    layers = torch.stack([torch.stack([late, first]), torch.stack([first, first])]).unsqueeze(2)  # two layers, two rows
    table = repetition_scores(layers, length)
    assert table[["layer", "head"]].to_numpy().tolist() == [[1, 1], [2, 1]]
    assert table.induction.tolist() == pytest.approx([0.5, 0])
    assert table.first_token.tolist() == pytest.approx([0.5, 1])


def test_the_hand_made_scores_find_the_tokens_that_their_names_say():
    idx = repeated_tokens(range(1, 40), 3, 6, start_token=0, generator=generator())
    query = 9
    copy = next(s for s in range(query) if idx[1, s] == idx[1, query])
    for column, place in (("duplicate_token", copy), ("induction", copy + 1), ("previous_token", query - 1)):
        patterns = torch.zeros(1, 3, 1, 13, 13)
        patterns[0, 1, 0, query, place] = 1
        found = repetition_scores(patterns, 6).iloc[0]
        assert found[column] == pytest.approx(1 / 18)  # of six queries in three rows
        assert found[list(REPETITION_SCORES[:4])].sum() == pytest.approx(1 / 18)


def test_uniform_attention_shows_what_repetition_scores_are_by_chance():
    table = repetition_scores(uniform_patterns(torch.rand(1, 1, 2, 9, 9)), 4)
    share = sum(1 / (t + 1) for t in range(5, 9)) / 4
    for name in REPETITION_SCORES[:4]:
        assert table[name].tolist() == pytest.approx([share] * 2)
    assert table.entropy.tolist() == pytest.approx([sum(math.log2(t + 1) for t in range(5, 9)) / 4] * 2)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_mixer_can_be_scored_and_entropy_is_only_where_weights_are_shares(name):
    idx = repeated_tokens(range(1, VOCAB), 2, 8, start_token=0, generator=generator())
    model, config = model_of(name), TRANSFORMERS[name]
    table = repetition_scores(attention_patterns(model, idx), 8)
    assert len(table) == config.n_layer * config.n_head
    assert table.drop(columns="entropy").notna().all(axis=None)
    shares = [config.mixer(layer - 1) in ("softmax", "window", "linear") for layer in table["layer"]]
    assert table.entropy.notna().tolist() == shares
    natural = head_scores(attention_patterns(model, idx), idx)
    assert natural.entropy.notna().tolist() == shares


def test_repetition_scores_want_patterns_of_the_length_they_are_told():
    with pytest.raises(ValueError, match=r"length 5; give \(L, B, H, T, T\)"):
        repetition_scores(torch.rand(1, 1, 1, 9, 9), 5)
    with pytest.raises(ValueError, match="length 2"):
        repetition_scores(torch.rand(1, 1, 1, 5, 5), 2)


@pytest.mark.parametrize("name", ["transformer", "lstm", "kgram-learned"])
def test_repetition_loss_is_the_mean_loss_of_each_half_without_the_turn(name):
    torch.manual_seed(0)
    model = build_model(TINY[name].replace(dropout=0.3))
    idx = repeated_tokens(range(1, VOCAB), 3, 5, start_token=0, generator=generator())
    first, second = repetition_loss(model, idx, 5)
    assert model.training
    log_p = model.eval()(idx).log_softmax(-1)
    loss = [[-log_p[b, t - 1, idx[b, t]].item() for t in range(1, 11)] for b in range(3)]
    assert first == pytest.approx(sum(sum(row[:5]) for row in loss) / 15, rel=1e-5)
    assert second == pytest.approx(sum(sum(row[6:]) for row in loss) / 12, rel=1e-5)
    with pytest.raises(ValueError, match=r"\(3, 11\) with length 4"):
        repetition_loss(model, idx, 4)


def test_the_control_is_the_highest_score_of_a_fresh_model_and_does_not_depend_on_the_weights():
    idx = repeated_tokens(range(1, VOCAB), 4, 8, start_token=0, generator=generator())
    score = partial(repetition_scores, length=8)
    model = model_of("transformer")
    before = torch.random.get_rng_state()
    found = untrained_highest(model, idx, score, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    with seeded(1):
        fresh = score(attention_patterns(build_model(model.config).double(), idx))
    assert found == fresh[list(REPETITION_SCORES)].max().to_dict()
    assert found["induction"] < 0.1 < score(attention_patterns(model, idx)).induction.max()
    assert found != untrained_highest(model, idx, score, seed=2)
    with pytest.raises(ValueError, match="a lstm model has no attention"):
        untrained_highest(build_model(TINY["lstm"]), idx, score)
