"""TransformerConfig and the config.json of three classes of Hugging Face's transformers, in both directions.

GPT2LMHeadModel computes what `gpt2` and `mingpt` compute, LlamaForCausalLM what `llama3` does, GptOssForCausalLM what
`gpt-oss` does. Nothing here imports transformers: the keys are those of its version 5, with the older names of RoPE's
settings written beside the newer ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from picollm_core.config import TransformerConfig, require
from picollm_core.exchange_settings import (
    Settings,
    expect,
    number,
    read_rope,
    require_equal_yarn,
    rope_misfits,
    whole,
    write_rope,
)
from picollm_core.models.layers import mlp_widths

GPT2_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "silu": "silu", "relu2": "relu2"}
"""Our name -> theirs."""
_OTHER_NAMES = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
    "swish": "silu",
}  # theirs -> ours: other spellings of the same functions
_YARN_OF_GPT_OSS = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}
_NOT_SIZES = ("num_key_value_heads", "head_dim", "rms_norm_eps")  # may be null, or are no sizes


@dataclass(frozen=True)
class Layout:
    """One class of transformers: what it cannot compute, and how its configuration is written and read."""

    model_type: str
    architecture: str
    misfits: Callable[[TransformerConfig], dict[str, str]]
    """Fields whose values the class cannot express -> what it needs in their place; empty when it can."""
    write: Callable[[TransformerConfig], dict[str, Any]]
    read: Callable[[Settings], TransformerConfig]


def layout_for(config: TransformerConfig) -> Layout:
    """The class of transformers that computes what `config` describes.

    ValueError names each field and value for which there is none, and what the nearest class has in its place.
    """
    found = {layout.model_type: layout.misfits(config) for layout in LAYOUTS.values()}
    nearest = LAYOUTS[min(found, key=lambda name: len(found[name]))]
    misfits = found[nearest.model_type]
    values = ", ".join(f"{name}={getattr(config, name)!r}" for name in misfits)
    require(
        not misfits,
        f"no class of transformers computes {values}; the nearest, {nearest.architecture}, needs "
        f"{', '.join(misfits.values())}. Models like the presets gpt2, mingpt, llama3 and gpt-oss can be exported",
    )
    return nearest


def layout_of(settings: Settings) -> Layout:
    """The layout that a config.json of transformers names. ValueError when it is none of the three, or is quantised."""
    name = settings.get("model_type")
    require(
        isinstance(name, str) and name in LAYOUTS,
        f"model_type is {name!r}; only {', '.join(LAYOUTS)} can be read",
    )
    quantised = settings.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
    require(not quantised, f"quantization_config names {method!r}; only unquantised weights can be read")
    return LAYOUTS[str(name)]


def _misfits(config: TransformerConfig, **allowed: tuple[Any, ...]) -> dict[str, str]:
    """The fields of `config` whose value is not among the allowed ones, each with what is."""
    allowed = {"norm": ("pre",), "qk_norm": (False,), "softcap": (None,)} | allowed
    found = {}
    for name, choices in allowed.items():
        value = getattr(config, name)
        if not (set(value) <= set(choices) if isinstance(value, tuple) else value in choices):
            found[name] = f"{name}=" + " or ".join(dict.fromkeys(map(repr, choices)))
    return found


def _gpt2_misfits(config: TransformerConfig) -> dict[str, str]:
    even = config.n_embd // config.n_head if config.n_embd % config.n_head == 0 else None
    return _misfits(
        config,
        norm_kind=("layer",),
        position=("absolute",),
        mixers=("softmax",),
        n_kv_head=(None, config.n_head),
        head_width=(None, even),
        sinks=(False,),
        activation=tuple(GPT2_ACTIVATIONS),
        n_expert=(0,),
    )


def _write_gpt2(config: TransformerConfig) -> dict[str, Any]:
    return {
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.mlp_width,
        "activation_function": GPT2_ACTIVATIONS[config.activation],
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
    }


def _read_gpt2(settings: Settings) -> TransformerConfig:
    expect(settings, True, "scale_attn_weights", True)
    expect(settings, False, "scale_attn_by_inverse_layer_idx", False)
    expect(settings, False, "add_cross_attention", False)
    ours = {theirs: name for name, theirs in GPT2_ACTIVATIONS.items()} | _OTHER_NAMES
    activation = expect(settings, "gelu_new", "activation_function", *ours)
    return TransformerConfig(
        vocab_size=whole(settings, "vocab_size", 50_257),
        block_size=whole(settings, "n_positions", 1024),
        n_embd=whole(settings, "n_embd", 768),
        n_layer=whole(settings, "n_layer", 12),
        n_head=whole(settings, "n_head", 12),
        mlp_width=settings.get("n_inner"),
        activation=ours[activation],  # type: ignore[arg-type]
        dropout=number(settings, "resid_pdrop", 0.1),
        norm_kind="layer",
        norm_eps=number(settings, "layer_norm_epsilon", 1e-5),
        bias=True,
        tied=settings.get("tie_word_embeddings", True),
    )


def _write_common(config: TransformerConfig) -> dict[str, Any]:
    """What Llama and gpt-oss have in common."""
    return write_rope(config) | {
        "hidden_size": config.n_embd,
        "intermediate_size": mlp_widths(config)[1],
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head or config.n_head,
        "head_dim": config.head_width or config.n_embd // config.n_head,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "attention_dropout": config.dropout,
    }


def _read_common(settings: Settings, **defaults: Any) -> dict[str, Any]:
    """The fields of TransformerConfig that Llama and gpt-oss have in common."""
    expect(settings, "silu", "hidden_act", "silu", "swish")
    size = {key: whole(settings, key, default) for key, default in defaults.items() if key not in _NOT_SIZES}
    heads, width = size["num_attention_heads"], size["hidden_size"]
    kv_heads, head_dim = (settings.get(key, defaults[key]) for key in ("num_key_value_heads", "head_dim"))
    return {
        "vocab_size": size["vocab_size"],
        "n_embd": width,
        "n_head": heads,
        "n_layer": size["num_hidden_layers"],
        "mlp_width": size["intermediate_size"],
        "n_kv_head": None if kv_heads == heads else kv_heads,
        "head_width": None if isinstance(head_dim, int) and head_dim * heads == width else head_dim,
        "dropout": settings.get("attention_dropout") or 0.0,
        "tied": settings.get("tie_word_embeddings", False),
        "norm_eps": number(settings, "rms_norm_eps", defaults["rms_norm_eps"]),
    }


def _llama_misfits(config: TransformerConfig) -> dict[str, str]:
    found = _misfits(
        config,
        norm_kind=("rms",),
        position=("rope",),
        mixers=("softmax",),
        sinks=(False,),
        activation=("swiglu",),
        n_expert=(0,),
    )
    uneven = {"n_embd": f"an n_embd that n_head={config.n_head} divides"} if config.n_embd % config.n_head else {}
    return found | uneven | rope_misfits(config)


def _write_llama(config: TransformerConfig) -> dict[str, Any]:
    return _write_common(config) | {"attention_bias": config.bias, "mlp_bias": config.bias}


def _read_llama(settings: Settings) -> TransformerConfig:
    common = _read_common(
        settings,
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=None,
        head_dim=None,
        rms_norm_eps=1e-6,
    )
    bias = any(expect(settings, False, key, False, True) for key in ("attention_bias", "mlp_bias"))
    rope = read_rope(settings, 10_000.0, 2048, {})
    return require_equal_yarn(TransformerConfig(**common, **rope, activation="swiglu", bias=bias))


def _gpt_oss_misfits(config: TransformerConfig) -> dict[str, str]:
    found = _misfits(
        config,
        norm_kind=("rms",),
        position=("rope",),
        mixers=("softmax", "window"),
        sinks=(True,),
        activation=("swiglu_clamped",),
    )
    experts = {} if config.n_expert else {"n_expert": "n_expert of at least 1"}
    return found | experts | rope_misfits(config)


def _write_gpt_oss(config: TransformerConfig) -> dict[str, Any]:
    windowed = [config.mixer(layer) == "window" for layer in range(config.n_layer)]
    return _write_common(config) | {
        "num_local_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_active,
        "sliding_window": config.window,
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windowed],
        "attention_bias": True,
    }


def _read_gpt_oss(settings: Settings) -> TransformerConfig:
    expect(settings, 1.702, "swiglu_alpha", 1.702)
    expect(settings, 7.0, "swiglu_limit", 7.0)
    expect(settings, True, "attention_bias", True, False)
    common = _read_common(
        settings,
        vocab_size=201_088,
        hidden_size=2880,
        intermediate_size=2880,
        num_hidden_layers=36,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        rms_norm_eps=1e-5,
    )
    n_layer = common["n_layer"]
    kinds = settings.get("layer_types") or ["full_attention" if i % 2 else "sliding_attention" for i in range(n_layer)]
    ours = {"sliding_attention": "window", "full_attention": "softmax"}
    require(
        isinstance(kinds, list) and len(kinds) == n_layer and all(kind in list(ours) for kind in kinds),
        f"layer_types is {kinds!r}; it must name sliding_attention or full_attention for each of {n_layer} layers",
    )
    period = next(p for p in range(1, n_layer + 1) if all(kind == kinds[i % p] for i, kind in enumerate(kinds)))
    window = settings.get("sliding_window", 128)
    return require_equal_yarn(
        TransformerConfig(
            **common,
            **read_rope(settings, 150_000.0, 131_072, _YARN_OF_GPT_OSS),
            mixers=tuple(ours[kind] for kind in kinds[:period]),  # type: ignore[misc]
            window=128 if window is None and "sliding_attention" not in kinds else window,
            sinks=True,
            activation="swiglu_clamped",
            n_expert=whole(settings, "num_local_experts", 128),
            n_expert_active=whole(settings, "num_experts_per_tok", 4),
            bias=True,
        )
    )


LAYOUTS = {
    layout.model_type: layout
    for layout in (
        Layout("gpt2", "GPT2LMHeadModel", _gpt2_misfits, _write_gpt2, _read_gpt2),
        Layout("llama", "LlamaForCausalLM", _llama_misfits, _write_llama, _read_llama),
        Layout("gpt_oss", "GptOssForCausalLM", _gpt_oss_misfits, _write_gpt_oss, _read_gpt_oss),
    )
}
