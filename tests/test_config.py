"""Configurations: frozen, checked when built, equal after a trip through JSON, named by a stable fingerprint."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm_core.config import (
    MODEL_CONFIGS,
    Config,
    DataConfig,
    KGramConfig,
    LSTMConfig,
    ModelConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
    TransformerConfig,
    model_config_from_dict,
)

CLASSES = (*MODEL_CONFIGS.values(), DataConfig, SamplingConfig, TrainConfig, RunConfig)
PINNED = "4a79abb7b1c1f92b"  # every stored result is found by such a name: a change orphans them all

SIZES = st.integers(1, 10_000)
SHARES = st.floats(0, 1)
POSITIVE = st.floats(1e-6, 1e6)
SHAPE = {"vocab_size": SIZES, "block_size": SIZES, "n_layer": SIZES, "dropout": st.floats(0, 0.99)}
KGRAMS = st.builds(
    KGramConfig,
    **SHAPE,
    n_embd=st.integers(64, 10_000),
    k=st.integers(1, 64),
    embedding=st.sampled_from(["onehot", "learned", "scaled", "conv"]),
    activation=st.sampled_from(["gelu", "relu", "silu"]),
    offset=st.integers(0, 1),
)
LSTMS = st.builds(LSTMConfig, **SHAPE, n_embd=SIZES, tied=st.booleans())
TRANSFORMERS = st.builds(
    TransformerConfig,
    **SHAPE,
    n_embd=st.integers(1, 100).map(lambda n: 16 * n),
    n_head=st.sampled_from([2, 4, 8]),
    n_kv_head=st.sampled_from([None, 1, 2]),
    position=st.sampled_from(["absolute", "sinusoidal", "rope", "alibi", "none"]),
    rope_base=st.floats(1.5, 1e7),
    norm=st.sampled_from(["pre", "post", "sandwich"]),
    norm_kind=st.sampled_from(["rms", "layer"]),
    activation=st.sampled_from(["gelu", "gelu_tanh", "relu", "silu", "relu2", "swiglu", "swiglu_clamped"]),
    tied=st.booleans(),
    mixers=st.lists(st.sampled_from(["softmax", "window", "linear", "gla", "delta"]), min_size=1, max_size=1),
    window=SIZES,
    sinks=st.booleans(),
    softcap=st.none() | POSITIVE,
    rope_pairs=st.sampled_from(["half", "interleaved"]),
    yarn_factor=st.floats(1, 64),
    bias=st.booleans(),
    mlp_width=st.none() | SIZES,
    n_expert=st.sampled_from([0, 4, 8]),
    gate=st.sampled_from(["none", "fixed", "scalar", "vector"]),
    reset_token=st.none() | st.just(0),
)
CORPORA = st.lists(st.tuples(st.text(min_size=1), POSITIVE, st.none() | SIZES), min_size=1, max_size=4)
DATA = st.builds(
    lambda rows, limited, **rest: DataConfig(
        corpus=tuple(row[0] for row in rows),
        weights=tuple(row[1] for row in rows),
        limit=tuple(row[2] for row in rows) if limited else None,
        **rest,
    ),
    CORPORA,
    st.booleans(),
    tokenizer=st.text(),
    splits=st.none() | st.tuples(POSITIVE, SHARES, SHARES),
    n_stories=st.integers(100, 10**7),
)
SAMPLINGS = st.builds(
    SamplingConfig,
    temperature=st.floats(0, 100),
    top_p=st.floats(0, 1, exclude_min=True),
    top_k=st.none() | SIZES,
    min_p=SHARES,
    repetition_penalty=POSITIVE,
)
TRAINS = st.builds(
    TrainConfig,
    max_steps=st.none() | SIZES,
    epochs=POSITIVE,
    batch_size=SIZES,
    grad_accumulation=SIZES,
    optimizer=st.sampled_from(["adamw", "adam", "sgd", "muon"]),
    learning_rate=st.none() | POSITIVE,
    weight_decay=SHARES,
    beta1=st.floats(0, 0.999),
    schedule=st.sampled_from(["cosine", "constant", "linear"]),
    warmup_ratio=SHARES,
    grad_clip=POSITIVE | st.just(math.inf),
    precision=st.sampled_from(["auto", "float32", "bfloat16"]),
    compile=st.booleans(),
    device=st.text(),
    seed=st.integers(),
)
RUNS = st.builds(
    RunConfig,
    model=KGRAMS | LSTMS | TRANSFORMERS,
    data=DATA,
    train=TRAINS,
    prompt=st.text(min_size=1),
    sample_tokens=SIZES,
)


@settings(max_examples=120, deadline=None)
@given(KGRAMS | LSTMS | TRANSFORMERS | DATA | SAMPLINGS | TRAINS | RUNS)
def test_json_round_trip_gives_an_equal_config_with_the_same_fingerprint(config):
    values = json.loads(json.dumps(config.to_dict()))
    again = model_config_from_dict(values) if isinstance(config, ModelConfig) else type(config).from_dict(values)
    assert again == config
    assert type(again) is type(config)
    assert hash(again) == hash(config)
    assert again.fingerprint() == config.fingerprint()


@settings(max_examples=30, deadline=None)
@given(RUNS, RUNS)
def test_fingerprints_agree_exactly_when_the_configurations_do(a, b):
    assert (a.fingerprint() == b.fingerprint()) == (a == b)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_configs_cannot_be_changed_in_place(cls):
    config = cls()
    for f in dataclasses.fields(cls):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, f.name, getattr(config, f.name))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_unknown_keys_are_refused_by_name_with_the_known_ones(cls):
    known = dataclasses.fields(cls)[0].name
    for build in (cls.from_dict, lambda values: cls().replace(**values)):
        with pytest.raises(ValueError, match=rf"{cls.__name__} has no n_embdd, zzz; known keys: .*{known}"):
            build({"zzz": 1, "n_embdd": 2})


def test_unknown_keys_inside_a_nested_config_are_refused():
    values = RunConfig().to_dict()
    values["train"]["learning_rat"] = 1.0
    with pytest.raises(ValueError, match="TrainConfig has no learning_rat; known keys"):
        RunConfig.from_dict(values)


@pytest.mark.parametrize("family", [None, "transfomer"])
def test_unknown_family_is_refused_with_the_choices(family):
    values = TransformerConfig().to_dict() | {"family": family}
    with pytest.raises(ValueError, match=rf"unknown family {family!r}; choose one of kgram, lstm, transformer"):
        model_config_from_dict(values)


def other_value(config: Config, name: str) -> object:
    """A valid value of the field that differs from the one it has."""
    value = getattr(config, name)
    special = {
        "n_kv_head": 1, "top_k": 5, "max_steps": 7, "splits": (60, 40, 0), "limit": (3,), "weights": (2.0,),
        "final_stories": 9,
        "corpus": ("custom",), "dropout": 0.5, "top_p": 0.5, "offset": 1, "beta1": 0.5, "beta2": 0.5,
        "learning_rate": 0.5, "warmup_ratio": 0.5, "n_head": 2, "model": LSTMConfig(),
        "data": DataConfig(n_stories=101), "train": TrainConfig(seed=1), "embedding": "conv", "activation": "relu",
        "position": "rope", "norm": "post", "norm_kind": "layer", "optimizer": "sgd", "schedule": "linear",
        "precision": "float32", "mixers": ("gla",), "softcap": 30.0, "head_width": 16, "rope_pairs": "interleaved",
        "mlp_width": 8, "n_expert": 4, "norm_eps": 1e-6, "gate": "none", "expand_k": 1.0, "reset_token": 3,
    }  # fmt: skip
    if name in special:
        return special[name]
    return not value if isinstance(value, bool) else value + "x" if isinstance(value, str) else value + 1


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_fingerprint_differs_when_any_single_field_differs(cls):
    config = cls()
    prints = {config.fingerprint()}
    for f in dataclasses.fields(cls):
        prints.add(config.replace(**{f.name: other_value(config, f.name)}).fingerprint())
    assert len(prints) == 1 + len(dataclasses.fields(cls))


def test_fingerprint_depends_on_family_and_context():
    shape = {"n_embd": 64, "n_layer": 1}
    assert LSTMConfig(**shape).fingerprint() != KGramConfig(**shape).fingerprint()
    config = RunConfig()
    assert len({config.fingerprint(), config.fingerprint(corpora=["a"]), config.fingerprint(corpora=["b"])}) == 3


def test_fingerprint_is_pinned_and_independent_of_the_process():
    code = (
        "from picollm_core.config import LSTMConfig, RunConfig\n"
        "config = LSTMConfig(vocab_size=4096, block_size=256, n_embd=32, n_layer=1, dropout=0.0, tied=False)\n"
        "print(config.fingerprint(corpora=['0123456789abcdef']), RunConfig().fingerprint())"
    )
    for hash_seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert result.stdout.split() == [PINNED, RunConfig().fingerprint()]


def test_no_default_has_changed_since_the_results_were_measured():
    """A fingerprint leaves out what stands at its default, so a changed default needs a higher RESULTS_VERSION."""
    written_out = {
        KGramConfig: [50_257, 256, 64, 1, 0.0, 3, "learned", "silu", 0],
        LSTMConfig: [50_257, 256, 64, 1, 0.0, False],
        TransformerConfig: [
            *(50_257, 256, 64, 1, 0.0, 1, None, "absolute", 10_000.0, "pre", "rms", "gelu", True, False),
            *(("softmax",), 128, False, None, None, "half", 1.0, 4096, False, None, 0, 4, "vector", 0.5, 1.0),
            *(False, 64, None, 1e-5),
        ],
        DataConfig: [("auto",), (1.0,), None, "stories-4k", None, 6_000],
        TrainConfig: [
            *(None, 1.0, 16, 1, "adamw", None, 0.1, 0.9, 0.95, "cosine", 0.1, 0.0, 1.0, 200, 200, 200),
            *("auto", False, "auto", 0, None),
        ],
    }
    for cls, values in written_out.items():
        assert [getattr(cls(), f.name) for f in dataclasses.fields(cls)] == values


def test_any_kind_of_number_and_sequence_means_the_same_config():
    config = TrainConfig(epochs=2, learning_rate=np.float32(0.5), max_steps=np.int64(3))
    same = TrainConfig(epochs=2.0, learning_rate=0.5, max_steps=3)
    assert config.fingerprint() == same.fingerprint()
    data = DataConfig(corpus=["a", "b"], weights=[1, 2], splits=[60, 40, 0])
    assert data == DataConfig(corpus=("a", "b"), weights=(1.0, 2.0), splits=(60.0, 40.0, 0.0))
    assert hash(data) == hash(DataConfig.from_dict(data.to_dict()))


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (KGramConfig, {"vocab_size": 0}, "vocab_size is 0; it must be at least 1"),
        (LSTMConfig, {"block_size": -1}, "block_size is -1; it must be at least 1"),
        (LSTMConfig, {"n_embd": 0}, "n_embd is 0"),
        (TransformerConfig, {"n_layer": 0}, "n_layer is 0"),
        (LSTMConfig, {"dropout": 1.0}, r"dropout is 1.0; it must lie in \[0, 1\)"),
        (LSTMConfig, {"dropout": NAN}, "dropout is nan"),
        (LSTMConfig, {"n_embd": "64"}, "LSTMConfig.n_embd is '64'; it must be of type int"),
        (LSTMConfig, {"n_embd": 64.5}, "LSTMConfig.n_embd is 64.5; it must be of type int"),
        (LSTMConfig, {"n_embd": True}, "LSTMConfig.n_embd is True; it must be of type int"),
        (LSTMConfig, {"tied": 1}, "LSTMConfig.tied is 1; it must be of type bool"),
        (LSTMConfig, {"dropout": None}, "LSTMConfig.dropout is None; it must be of type float"),
        (KGramConfig, {"k": 0}, "k is 0; a k-gram needs at least its current token, so k >= 1"),
        (KGramConfig, {"offset": 2}, "offset is 2; 0 is right, 1 reproduces"),
        (KGramConfig, {"embedding": "scaled", "n_embd": 3, "k": 4}, "n_embd=3 leaves no width for each of k=4"),
        (KGramConfig, {"embedding": "one-hot"}, "embedding is 'one-hot'; choose one of 'onehot', 'learned'"),
        (KGramConfig, {"activation": "swiglu"}, "activation is 'swiglu'; choose one of 'gelu', 'relu', 'silu'"),
        (TransformerConfig, {"n_head": 3}, "n_head=3 does not divide n_embd=64; every head needs the same width"),
        (TransformerConfig, {"n_head": 0}, "n_head is 0; it must be at least 1"),
        (TransformerConfig, {"n_head": 4, "n_kv_head": 3}, "n_kv_head=3 does not divide n_head=4"),
        (TransformerConfig, {"n_kv_head": 0}, "n_kv_head=0 does not divide n_head=1"),
        (TransformerConfig, {"n_kv_head": "1"}, r"n_kv_head is '1'; it must be of type int \| None"),
        (TransformerConfig, {"position": "rope", "n_embd": 9, "n_head": 3}, "gives an odd head width, 3"),
        (TransformerConfig, {"rope_base": 1.0}, "rope_base is 1.0; it must exceed 1"),
        (TransformerConfig, {"position": "t5"}, "position is 't5'; choose one of 'absolute', 'sinusoidal', 'rope'"),
        (TransformerConfig, {"norm": "peri"}, "norm is 'peri'; choose one of 'pre', 'post', 'sandwich'"),
        (TransformerConfig, {"mixers": ("mamba",)}, r"mixers is \('mamba',\)"),
        (TransformerConfig, {"mixers": ()}, "mixers names 0 layers .* but n_layer is 1"),
        (TransformerConfig, {"mixers": ("gla", "gla", "softmax")}, r"3 layers \(gla, gla, softmax\) but n_layer is 1"),
        (TransformerConfig, {"window": 0}, "window is 0; it must be at least 1"),
        (TransformerConfig, {"chunk_size": 0}, "chunk_size is 0; it must be at least 1"),
        (TransformerConfig, {"head_width": 7, "position": "rope"}, "gives an odd head width, 7"),
        (TransformerConfig, {"mlp_width": 0}, "mlp_width is 0"),
        (TransformerConfig, {"n_embd": 15, "position": "sinusoidal"}, "pairs of sine and cosine, but n_embd=15 is odd"),
        (TransformerConfig, {"norm_eps": 0.0}, "norm_eps is 0.0; it must be positive"),
        (TransformerConfig, {"yarn_factor": 0.5}, "yarn_factor is 0.5; it must be at least 1"),
        (TransformerConfig, {"softcap": 0.0}, "softcap is 0.0; it must be positive"),
        (TrainConfig, {"final_stories": 0}, "final_stories is 0; it must be at least 1, or None for all"),
        (TransformerConfig, {"n_expert": 2}, "n_expert_active=4 of n_expert=2; a token cannot pass through more"),
        (TransformerConfig, {"n_expert": 2, "n_expert_active": 0}, "n_expert_active is 0"),
        (
            TransformerConfig,
            {"mixers": ("gla",), "n_head": 4, "expand_k": 0.3},
            "expand_k=0.3 of n_embd=64 is a width of 19",
        ),
        (TransformerConfig, {"mixers": ("delta",), "expand_v": 0.0}, "expand_v=0 of n_embd=64 is a width of 0"),
        (TransformerConfig, {"reset_token": 50_257}, "reset_token is 50257, outside the vocabulary of 50257"),
        (DataConfig, {"corpus": ("a", "b")}, "2 corpora but 1 weights; each corpus needs one weight"),
        (DataConfig, {"corpus": (), "weights": ()}, "0 corpora but 0 weights"),
        (DataConfig, {"corpus": "storyworld"}, "DataConfig.corpus is 'storyworld'; it must be of type tuple"),
        (DataConfig, {"weights": (0.0,)}, r"weights \(0.0,\) sum to 0; at least one corpus needs a positive"),
        (DataConfig, {"weights": (INF,)}, r"weights \(inf,\) sum to inf"),
        (DataConfig, {"corpus": ("a", "b"), "weights": (2.0, -1.0)}, r"weights \(2.0, -1.0\) contain a negative"),
        (DataConfig, {"splits": (0, 50, 50)}, r"splits are \(0.0, 50.0, 50.0\); give three shares"),
        (DataConfig, {"splits": (98, 2)}, r"splits are \(98.0, 2.0\); give three shares"),
        (DataConfig, {"limit": (0,)}, "limit is 0; it must be at least 1"),
        (DataConfig, {"limit": (1, 2)}, r"1 corpora but limit=\(1, 2\); each corpus needs one cap, or None"),
        (DataConfig, {"n_stories": 99}, "n_stories is 99; 100 is the least that can be split"),
        (SamplingConfig, {"temperature": -0.1}, "temperature is -0.1; it must be 0"),
        (SamplingConfig, {"top_p": 0.0}, r"top_p is 0.0; it must lie in \(0, 1\]"),
        (SamplingConfig, {"top_p": 1.01}, "top_p is 1.01"),
        (SamplingConfig, {"top_p": NAN}, "top_p is nan"),
        (SamplingConfig, {"top_k": 0}, "top_k is 0; it must be at least 1"),
        (SamplingConfig, {"min_p": 1.5}, r"min_p is 1.5; it must lie in \[0, 1\]"),
        (SamplingConfig, {"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be positive"),
        (TrainConfig, {"max_steps": 0}, "max_steps is 0; it must be at least 1"),
        (TrainConfig, {"batch_size": 0}, "batch_size is 0"),
        (TrainConfig, {"grad_accumulation": 0}, "grad_accumulation is 0"),
        (TrainConfig, {"epochs": 0.0}, "epochs is 0.0; it must be positive"),
        (TrainConfig, {"epochs": INF}, "epochs is inf; it must be finite"),
        (TrainConfig, {"learning_rate": 0}, "learning_rate is 0.0; it must be positive"),
        (TrainConfig, {"learning_rate": NAN}, "learning_rate is nan; it must be positive"),
        (TrainConfig, {"learning_rate": INF}, "learning_rate is inf; it must be finite"),
        (TrainConfig, {"warmup_ratio": 1.1}, r"warmup_ratio is 1.1; it must lie in \[0, 1\]"),
        (TrainConfig, {"min_lr_ratio": -0.1}, "min_lr_ratio is -0.1"),
        (TrainConfig, {"beta2": 1.0}, r"beta2 is 1.0; it must lie in \[0, 1\)"),
        (TrainConfig, {"weight_decay": -1.0}, "weight_decay is -1.0; it must not be negative"),
        (TrainConfig, {"optimizer": "lion"}, "optimizer is 'lion'; choose one of 'adamw', 'adam', 'sgd', 'muon'"),
        (TrainConfig, {"schedule": "step"}, "schedule is 'step'; choose one of"),
        (TrainConfig, {"precision": "fp16"}, "precision is 'fp16'; choose one of"),
        (RunConfig, {"prompt": ""}, "prompt is empty; give at least one character"),
        (RunConfig, {"sample_tokens": 0}, "sample_tokens is 0; it must be at least 1"),
        (RunConfig, {"model": "lstm-pico"}, "RunConfig.model is 'lstm-pico'; it must be of type ModelConfig"),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value),
)
def test_bad_values_are_refused_with_the_value_and_the_way_out(cls, values, message):
    with pytest.raises(ValueError, match=message):
        cls(**values)
    with pytest.raises(ValueError, match=message):
        cls().replace(**values)


@settings(max_examples=200, deadline=None)
@given(n_embd=st.integers(1, 64), n_head=st.integers(1, 16), n_kv_head=st.none() | st.integers(1, 16))
def test_a_transformer_is_accepted_exactly_when_its_heads_divide_evenly(n_embd, n_head, n_kv_head):
    fits = n_embd % n_head == 0 and (n_kv_head is None or n_head % n_kv_head == 0)
    values = {"n_embd": n_embd, "n_head": n_head, "n_kv_head": n_kv_head}
    if fits:
        assert TransformerConfig(**values).n_embd == n_embd
    else:
        with pytest.raises(ValueError, match="does not divide"):
            TransformerConfig(**values)
