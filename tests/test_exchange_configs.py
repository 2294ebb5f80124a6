"""Which class of transformers a configuration goes to, and which settings of theirs are refused, by name and value."""

import contextlib

import pytest

from picollm_core.config import TransformerConfig
from picollm_core.exchange_configs import LAYOUTS, layout_for, layout_of
from tests.exchange_models import EXPORTABLE

GPT2, LLAMA, GPT_OSS = (EXPORTABLE[name] for name in ("gpt2", "llama3", "gpt-oss"))


def settings(config: TransformerConfig, **changes) -> dict:
    """What a config.json of transformers says of `config`, some of it changed."""
    layout = layout_for(config)
    written = layout.write(config) | {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tied}
    return {"model_type": layout.model_type} | written | changes


def read(found: dict) -> TransformerConfig:
    return layout_of(found).read(found)


@pytest.mark.parametrize("name", EXPORTABLE)
def test_a_configuration_comes_back_but_for_what_transformers_has_no_name_for(name):
    config = EXPORTABLE[name]
    back = read(settings(config))
    assert read(settings(back)) == back
    assert back.rope_pairs == "half"
    assert (back.n_kv_head, back.head_width, back.mixers) == (config.n_kv_head, config.head_width, config.mixers)
    assert (back.tied, back.activation, back.rope_base) == (config.tied, config.activation, config.rope_base)
    assert (back.yarn_factor, back.window) == (config.yarn_factor, config.window)


@pytest.mark.parametrize(
    ("config", "changes", "nearest"),
    [
        (GPT2, {"norm_kind": "rms", "bias": False}, "GPT2LMHeadModel"),
        (GPT2, {"position": "alibi"}, "GPT2LMHeadModel"),
        (GPT2, {"position": "sinusoidal"}, "GPT2LMHeadModel"),
        (GPT2, {"position": "none"}, "GPT2LMHeadModel"),
        (GPT2, {"norm": "post"}, "GPT2LMHeadModel"),
        (GPT2, {"norm": "sandwich"}, "GPT2LMHeadModel"),
        (GPT2, {"softcap": 30.0}, "GPT2LMHeadModel"),
        (GPT2, {"mixers": ("gla", "softmax")}, "GPT2LMHeadModel"),
        (GPT2, {"mixers": ("delta",)}, "GPT2LMHeadModel"),
        (GPT2, {"mixers": ("window",)}, "GPT2LMHeadModel"),
        (GPT2, {"n_kv_head": 2}, "GPT2LMHeadModel"),
        (GPT2, {"head_width": 5}, "GPT2LMHeadModel"),
        (GPT2, {"sinks": True}, "GPT2LMHeadModel"),
        (GPT2, {"activation": "swiglu"}, "GPT2LMHeadModel"),
        (GPT2, {"n_expert": 4}, "GPT2LMHeadModel"),
        (LLAMA, {"qk_norm": True}, "LlamaForCausalLM"),
        (LLAMA, {"activation": "gelu"}, "LlamaForCausalLM"),
        (LLAMA, {"activation": "swiglu_clamped"}, "LlamaForCausalLM"),
        (LLAMA, {"norm_kind": "layer"}, "LlamaForCausalLM"),
        (LLAMA, {"mixers": ("window", "softmax")}, "LlamaForCausalLM"),
        (LLAMA, {"mixers": ("linear",)}, "LlamaForCausalLM"),
        (GPT_OSS, {"n_expert": 0}, "GptOssForCausalLM"),
        (GPT_OSS, {"sinks": False}, "GptOssForCausalLM"),
        (GPT_OSS, {"activation": "swiglu"}, "GptOssForCausalLM"),
        (GPT_OSS, {"yarn_length": 3}, "GptOssForCausalLM"),
    ],
    ids=str,
)
def test_what_no_class_computes_is_refused_with_field_value_and_way_out(config, changes, nearest):
    with pytest.raises(ValueError, match="no class of transformers computes") as error:
        layout_for(config.replace(**changes))
    told = str(error.value)
    name, value = next(iter(changes.items()))
    assert f"{name}={value!r}" in told
    assert f"the nearest, {nearest}, needs" in told
    assert "gpt2, mingpt, llama3 and gpt-oss can be exported" in told


def test_llama_refuses_a_width_that_its_heads_do_not_divide():
    with pytest.raises(ValueError, match=r"n_embd=30; the nearest, Llama.* needs an n_embd that n_head=8 div"):
        layout_for(LLAMA.replace(n_embd=30, head_width=4))


def test_every_misfit_is_named_with_what_is_needed_instead():
    with pytest.raises(ValueError, match=r"norm='post', softcap=5\.0; .* needs norm='pre', softcap=None\."):
        layout_for(GPT2.replace(norm="post", softcap=5.0))


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (GPT2, {"model_type": "mistral"}, "model_type is 'mistral'; only gpt2, llama, gpt_oss can be read"),
        (GPT2, {"model_type": ["gpt2"]}, r"model_type is \['gpt2'\]"),
        (GPT_OSS, {"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config names 'mxfp4'"),
        (GPT2, {"layer_norm_epsilon": "small"}, "layer_norm_epsilon is 'small'"),
        (GPT2, {"layer_norm_epsilon": 0.0}, r"norm_eps is 0\.0; it must be positive"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        (GPT2, {"scale_attn_weights": False}, "scale_attn_weights is False"),
        (GPT2, {"add_cross_attention": True}, "add_cross_attention is True"),
        (GPT2, {"activation_function": "mish"}, "activation_function is 'mish'.*'gelu_new'"),
        (GPT2, {"activation_function": ["relu"]}, r"activation_function is \['relu'\]"),
        (GPT2, {"n_embd": "16"}, "n_embd is '16'; it must be a number"),
        (GPT2, {"n_layer": 0}, "n_layer is 0; it must be a whole number of at least 1"),
        (GPT2, {"n_head": 3}, "n_head=3 does not divide n_embd=16"),
        (GPT2, {"n_inner": "wide"}, r"mlp_width is 'wide'"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (LLAMA, {"rms_norm_eps": -1.0}, r"norm_eps is -1\.0"),
        (LLAMA, {"attention_bias": "yes"}, "attention_bias is 'yes'"),
        (LLAMA, {"num_attention_heads": None}, "num_attention_heads is None"),
        (LLAMA, {"num_key_value_heads": 3}, "n_kv_head=3 does not divide n_head=8"),
        (LLAMA, {"head_dim": {}}, r"head_width is \{\}"),
        (GPT_OSS, {"swiglu_limit": 5.0}, r"swiglu_limit is 5\.0"),
        (GPT_OSS, {"swiglu_alpha": 1.0}, r"swiglu_alpha is 1\.0"),
        (GPT_OSS, {"layer_types": ["full_attention"]}, "layer_types is .*each of 3 layers"),
        (GPT_OSS, {"layer_types": ["full_attention", "chunked_attention", {}]}, "layer_types is .*chunked_attention"),
        (GPT_OSS, {"sliding_window": 0}, "window is 0"),
        (GPT_OSS, {"num_experts_per_tok": 9}, "n_expert_active=9 of n_expert=6"),
    ],
    ids=str,
)
def test_settings_that_no_model_here_has_are_refused_with_key_and_value(config, changes, message):
    with pytest.raises(ValueError, match=message):
        read(settings(config, **changes))


def test_the_full_pattern_of_layers_is_read_as_its_shortest_period():
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    assert read(settings(GPT_OSS, layer_types=kinds)).mixers == ("window", "window", "softmax")
    assert read(settings(GPT_OSS, layer_types=None)).mixers == ("window", "softmax")


def test_absent_settings_mean_what_they_mean_to_transformers():
    transformers = pytest.importorskip("transformers")
    for model_type, layout in LAYOUTS.items():
        theirs = transformers.AutoConfig.for_model(model_type).to_dict()
        assert layout.read({}) == layout.read(theirs)


def test_other_spellings_of_an_activation_are_understood():
    spellings = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_python": "gelu", "swish": "silu"}
    for theirs, ours in spellings.items():
        assert read(settings(GPT2, activation_function=theirs)).activation == ours


@pytest.mark.parametrize("name", ["gpt2", "llama3", "gpt-oss"])
@pytest.mark.parametrize("value", [None, True, -1, 0, 2.5, float("nan"), "x", [], ["x"], {}], ids=repr)
def test_whatever_stands_in_a_setting_it_is_read_or_refused(name, value):
    found = settings(EXPORTABLE[name])
    for key in found:
        with contextlib.suppress(ValueError):
            assert isinstance(read(found | {key: value}), TransformerConfig)


@pytest.mark.parametrize(("config", "key"), [(GPT2, "layer_norm_epsilon"), (LLAMA, "rms_norm_eps")])
def test_the_epsilon_of_the_norms_goes_both_ways(config, key):
    assert settings(config.replace(norm_eps=1e-6))[key] == 1e-6
    assert read(settings(config, **{key: 1e-6})).norm_eps == 1e-6
