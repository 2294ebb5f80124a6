"""Presets: their exact sizes, and whole runs from flat settings."""

import warnings

import pytest
import torch

from picollm_core import tokenizers
from picollm_core.config import KGramConfig, LSTMConfig, ModelConfig, RunConfig, TransformerConfig
from picollm_core.models import MODELS, build_model
from picollm_core.named_transformers import NAMED_TRANSFORMERS
from picollm_core.presets import PRESETS, default_learning_rate, preset, run_config
from tests.test_trainer import BYTES

V = 50_257

COUNTS = {
    "kgram-pico": 3_220_608,
    "kgram-tiny": 6_457_728,
    "kgram-small": 26_257_408,
    "kgram-base": 111_321_088,
    "lstm-pico": 3_224_896,
    "lstm-tiny": 6_466_176,
    "lstm-small": 26_257_920,
    "lstm-base": 111_323_136,
    "transformer-pico": 3_282_176,
    "transformer-tiny": 6_859_520,
    "transformer-small": 30_018_816,
    "transformer-base": 109_588_992,
    "mingpt-pico": 6_499_392,
    "mingpt-tiny": 13_295_360,
    "mingpt-small": 49_343_232,
    "mingpt-course": 49_343_232,
    "gpt2-pico": 3_282_944,
    "gpt2-tiny": 6_862_464,
    "gpt2-small": 30_044_544,
    "gpt2-course": 95_498_496,
    "gpt-oss-pico": 6_851_169,
    "gpt-oss-tiny": 16_144_068,
    "gpt-oss-small": 125_901_924,
    "gpt-oss-course": 258_050_880,
    "llama3-pico": 6_498_624,
    "llama3-tiny": 13_357_952,
    "llama3-small": 47_744_640,
    "llama3-course": 193_121_280,
}


def expected_count(config: ModelConfig) -> int:
    """Parameters counted by hand from the architecture's description."""
    c, depth, v = config.n_embd, config.n_layer, config.vocab_size
    if isinstance(config, LSTMConfig):  # embedding, four gates with two weight matrices and two biases, head
        return v * c + depth * 4 * (2 * c * c + 2 * c) + (0 if config.tied else v * c)
    if isinstance(config, KGramConfig):
        inputs = {
            "onehot": config.k * v * c + c,
            "learned": v * c + config.k * c * c + c,
            "scaled": v * (c // config.k) + config.k * (c // config.k) * c + c,
            "conv": v * c + config.k * c + c,
        }
        return inputs[config.embedding] + depth * (c * c + c) + c * v
    assert isinstance(config, TransformerConfig)
    head_width = c // config.n_head
    grouped = 2 * head_width * (config.n_kv_head or config.n_head)  # keys and values
    attention = c * c + c * grouped + c * c + (2 * c + grouped if config.bias else 0)
    attention += config.n_head if config.sinks else 0
    gated = config.activation.startswith("swiglu")
    hidden = config.mlp_width or (8 * c // 3 if gated else 4 * c)
    outer = 2 * hidden if gated else hidden
    mlp = c * outer + hidden * c + (outer + c if config.bias else 0)
    if config.n_expert:
        mlp = config.n_expert * (mlp + c + (1 if config.bias else 0))  # each with its row of the router
    norm = 2 * c if config.bias and config.norm_kind == "layer" else c
    positions = config.block_size * c if config.position == "absolute" else 0
    norms = {"pre": 2, "post": 2, "sandwich": 4}[config.norm] * norm
    return v * c * (1 if config.tied else 2) + positions + depth * (attention + mlp + norms) + norm


def built_count(config: ModelConfig) -> int:
    with torch.device("meta"):
        return build_model(config).num_parameters()


def test_every_family_has_every_size():
    families = {f"{f}-{s}" for f in MODELS for s in ("pico", "tiny", "small", "base")}
    named = {f"{n}-{s}" for n in NAMED_TRANSFORMERS for s in ("pico", "tiny", "small", "course")}
    assert set(PRESETS) == set(COUNTS) == families | named


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_their_exact_number_of_parameters(name):
    assert PRESETS[name].vocab_size == V
    assert built_count(PRESETS[name]) == expected_count(PRESETS[name]) == COUNTS[name]


@pytest.mark.parametrize(("embedding", "count"), [("onehot", 6_433_984), ("scaled", 2_112_842), ("conv", 3_217_632)])
def test_kgram_embeddings_differ_in_size_as_counted(embedding, count):
    config = preset("kgram-pico", embedding=embedding)
    assert built_count(config) == expected_count(config) == count


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lstm-pico", {"tied": True, "n_layer": 3}),
        ("kgram-tiny", {"k": 7, "offset": 1}),
        ("transformer-tiny", {"tied": False, "position": "rope"}),
        ("transformer-tiny", {"n_head": 8, "n_kv_head": 2, "activation": "swiglu", "position": "none"}),
        ("transformer-tiny", {"norm": "post", "norm_kind": "layer", "block_size": 32}),
        ("transformer-tiny", {"norm": "sandwich", "norm_kind": "layer", "bias": True}),
        ("transformer-tiny", {"norm": "sandwich", "position": "sinusoidal", "bias": True, "mlp_width": 100}),
        ("gpt-oss-tiny", {"n_expert": 5, "sinks": False, "activation": "gelu"}),
    ],
)
def test_the_formulas_hold_for_other_choices_too(name, changes):
    config = preset(name, vocab_size=101, **changes)
    assert built_count(config) == expected_count(config)


def test_sizes_are_those_of_the_published_slides():
    shapes = {
        name: (config.n_embd, getattr(config, "n_head", None), config.n_layer) for name, config in PRESETS.items()
    }
    assert [shapes[f"lstm-{s}"][0] for s in ("pico", "tiny", "small")] == [32, 64, 256]
    assert [shapes[f"kgram-{s}"] for s in ("pico", "tiny", "small")] == [(32, None, 1), (64, None, 3), (256, None, 5)]
    assert [shapes[f"transformer-{s}"] for s in ("pico", "tiny", "small")] == [(64, 1, 1), (128, 2, 2), (384, 6, 6)]
    assert {(c.k, c.activation, c.offset) for c in PRESETS.values() if isinstance(c, KGramConfig)} == {(3, "silu", 0)}
    own = (c for name, c in PRESETS.items() if isinstance(c, TransformerConfig) and name.startswith("transformer"))
    plain = {(c.tied, c.norm, c.norm_kind, c.position) for c in own}
    assert plain == {(True, "pre", "rms", "absolute")}


@pytest.mark.parametrize("build", [preset, build_model, run_config])
def test_unknown_presets_are_refused_with_the_choices(build):
    with pytest.raises(ValueError, match=r"unknown preset 'lstm-pcio'; choose one of .*lstm-pico.*transformer-base"):
        build("lstm-pcio")


@pytest.mark.parametrize("build", [preset, build_model])
def test_unknown_fields_of_a_preset_are_refused_by_name(build):
    with pytest.raises(ValueError, match=r"LSTMConfig has no n_heads; known keys: .*n_embd"):
        build("lstm-pico", n_heads=2)


def test_more_layers_than_the_course_s_range_are_built_with_a_warning():
    for build in (preset, build_model, run_config):
        with pytest.warns(UserWarning, match=r"n_layer=12 is more than the 10 layers of the course's range"):
            build("gpt2-pico", n_layer=12, vocab_size=11)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preset("gpt2-pico", n_layer=10)
        preset("lstm-pico", n_layer=12)


def test_an_override_leaves_the_preset_as_it_was():
    assert preset("lstm-pico", vocab_size=10).vocab_size == 10
    assert PRESETS["lstm-pico"].vocab_size == V


@pytest.fixture(autouse=True)
def small_tokenizer(monkeypatch):
    """A tokenizer "bytes" of 257 tokens, so that no vocabulary file is needed."""
    monkeypatch.setitem(tokenizers.TOKENIZERS, "bytes", lambda: BYTES)


def test_run_config_gives_every_setting_to_the_part_that_has_it():
    config = run_config(
        "transformer-pico",
        n_embd=32,
        tokenizer="bytes",
        n_stories=500,
        learning_rate=0.5,
        max_steps=3,
        prompt="Hi",
        sample_tokens=9,
    )
    assert (config.model.n_embd, config.model.n_layer) == (32, 1)
    assert (config.data.tokenizer, config.data.n_stories) == ("bytes", 500)
    assert (config.train.learning_rate, config.train.max_steps, config.train.batch_size) == (0.5, 3, 16)
    assert (config.prompt, config.sample_tokens) == ("Hi", 9)


def test_run_config_takes_the_vocabulary_of_the_tokenizer_unless_one_is_given():
    assert run_config("lstm-pico", tokenizer="bytes").model.vocab_size == 257
    assert run_config(LSTMConfig(vocab_size=99), tokenizer="bytes").model.vocab_size == 257
    assert run_config("lstm-pico", tokenizer="bytes", vocab_size=99).model.vocab_size == 99


def test_run_config_takes_one_corpus_weight_and_limit_without_a_tuple():
    data = run_config("lstm-pico", tokenizer="bytes", corpus="custom", weights=2, limit=10).data
    assert (data.corpus, data.weights, data.limit) == (("custom",), (2.0,), (10,))
    data = run_config("lstm-pico", tokenizer="bytes", corpus=("custom", "storyworld"), weights=(1, 3), limit=10).data
    assert data.limit == (10, 10)


def test_run_config_changes_only_what_is_named_in_a_whole_run():
    base = run_config("kgram-pico", tokenizer="bytes", k=5, seed=3, prompt="A", n_stories=700)
    changed = run_config(base, seed=4)
    assert changed == base.replace(train=base.train.replace(seed=4))
    assert isinstance(changed, RunConfig)


def test_a_learning_rate_left_out_is_the_family_s_and_falls_with_the_width():
    rates = {name: run_config(name, tokenizer="bytes").train.learning_rate for name in PRESETS}
    assert rates["lstm-pico"] == rates["kgram-pico"] == 0.02
    assert rates["transformer-pico"] == 0.003
    for family in MODELS:
        sizes = [rates[f"{family}-{size}"] for size in ("pico", "tiny", "small", "base")]
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) == 4
    assert run_config("lstm-pico", tokenizer="bytes", n_embd=64).train.learning_rate == 0.01
    assert run_config("lstm-pico", tokenizer="bytes", learning_rate=0.5).train.learning_rate == 0.5
    assert default_learning_rate(TransformerConfig(n_embd=256)) == 0.0015


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 3}, "no part of a lstm run has a setting 'k'"),
        ({"learning_rte": 1.0}, "no part of a lstm run has a setting 'learning_rte'"),
        ({"data": "stories"}, "no part of a lstm run has a setting 'data'"),
        ({"corpus": ("a", "b")}, "2 corpora but 1 weights"),
        ({"tokenizer": "gpt3"}, "unknown tokenizer 'gpt3'; choose one of"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"prompt": ""}, "prompt is empty"),
    ],
    ids=str,
)
def test_run_config_refuses_what_no_part_can_take(settings, message):
    with pytest.raises(ValueError, match=message):
        run_config("lstm-pico", **({"tokenizer": "bytes"} | settings))
