"""Tiny real models, one of every kind that the registry can build."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a network; read when the hub's package is imported
# Tiny models gain nothing from a second thread, whose waiting costs much beside other load; read with torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from picollm_core.config import KGramConfig, LSTMConfig, ModelConfig, TransformerConfig
from picollm_core.models import LanguageModel, build_model

VOCAB, BLOCK = 61, 24
_SHAPE = {"vocab_size": VOCAB, "block_size": BLOCK, "n_embd": 16}

TINY: dict[str, ModelConfig] = {
    **{
        f"kgram-{embedding}": KGramConfig(**_SHAPE, n_layer=2, k=3, embedding=embedding)
        for embedding in ("onehot", "learned", "scaled", "conv")
    },
    "kgram-k1": KGramConfig(**_SHAPE, k=1),
    "lstm": LSTMConfig(**_SHAPE, n_layer=2),
    "lstm-tied": LSTMConfig(**_SHAPE, tied=True),
    "transformer": TransformerConfig(**_SHAPE, n_layer=2, n_head=2),
    "transformer-rope-gqa": TransformerConfig(
        **_SHAPE, n_layer=2, n_head=4, n_kv_head=2, position="rope", activation="swiglu", tied=False
    ),
    "transformer-nope-post": TransformerConfig(
        **_SHAPE, n_layer=2, n_head=2, position="none", norm="post", norm_kind="layer", activation="relu"
    ),
    "transformer-qk-norm": TransformerConfig(
        **_SHAPE, n_layer=2, n_head=2, position="rope", activation="relu2", qk_norm=True
    ),
    "transformer-gpt-oss": TransformerConfig(
        **_SHAPE,
        n_layer=2,
        n_head=4,
        n_kv_head=2,
        mixers=("window", "softmax"),
        window=5,
        sinks=True,
        position="rope",
        yarn_factor=8.0,
        yarn_length=16,
        activation="swiglu_clamped",
        mlp_width=8,
        n_expert=4,
        n_expert_active=2,
        bias=True,
        tied=False,
    ),
    **{
        f"transformer-{name}": TransformerConfig(
            **_SHAPE, n_layer=2, n_head=2, position="none", activation="swiglu", chunk_size=7, **settings
        )
        for name, settings in {
            "linear": {"mixers": ("linear",)},
            "plain": {"mixers": ("plain",)},
            "gla": {"mixers": ("gla",)},
            "gla-scalar": {"mixers": ("gla",), "gate": "scalar"},
            "retention": {"mixers": ("gla",), "gate": "fixed", "bias": True},
            "delta": {"mixers": ("delta",)},
            "delta-negative": {"mixers": ("delta",), "negative_eigenvalues": True, "qk_norm": True},
        }.items()
    },
    "transformer-hybrid": TransformerConfig(
        **_SHAPE, n_layer=4, n_head=2, mixers=("gla", "delta", "window", "softmax"), window=5, position="rope"
    ),
    "transformer-window": TransformerConfig(
        **_SHAPE,
        n_layer=2,
        n_head=2,
        mixers=("window",),
        window=4,
        position="rope",
        rope_pairs="interleaved",
        head_width=6,
    ),
    "transformer-alibi-sandwich": TransformerConfig(
        **_SHAPE, n_layer=2, n_head=4, position="alibi", norm="sandwich", activation="gelu_tanh", softcap=20.0
    ),
    "transformer-sinusoidal": TransformerConfig(
        **_SHAPE, n_layer=2, n_head=2, position="sinusoidal", norm_kind="layer", bias=True, tied=False
    ),
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models gain nothing from a second thread, and lose much when another process wants the core."""
    torch.set_num_threads(1)


@pytest.fixture(params=TINY, ids=str)
def tiny_config(request: pytest.FixtureRequest) -> ModelConfig:
    """One configuration of every kind of model, each under its own test id."""
    return TINY[request.param]


@pytest.fixture
def tiny_model(tiny_config: ModelConfig) -> LanguageModel:
    """A model of `tiny_config` with seeded weights, in evaluation mode."""
    torch.manual_seed(0)
    return build_model(tiny_config).eval()
