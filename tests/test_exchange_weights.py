"""Every tensor has its place on the other side, and what does not fit is named."""

import pytest
import torch

from picollm_core.exchange_configs import layout_for
from picollm_core.exchange_weights import weights_here, weights_there
from tests.exchange_models import EXPORTABLE, random_model


def travelled(name: str, **changes) -> tuple:
    """A model's weights there, its configuration with the biases that are there, and its model_type."""
    config = EXPORTABLE[name].replace(**changes)
    model_type = layout_for(config).model_type
    return weights_there(random_model(config), model_type), config.replace(bias=True), model_type


@pytest.mark.parametrize("name", [name for name, config in EXPORTABLE.items() if config.bias])
def test_weights_come_back_as_they_were(name):
    there, config, model_type = travelled(name)
    here = weights_here(there, config, model_type)
    own = dict(random_model(EXPORTABLE[name]).named_parameters())
    assert own.keys() == here.keys()
    assert all(torch.equal(own[name], here[name]) for name in own)


@pytest.mark.parametrize("name", EXPORTABLE)
def test_no_number_is_lost_and_no_memory_is_shared(name):
    there, _, _ = travelled(name)
    model = random_model(EXPORTABLE[name])
    assert sum(x.count_nonzero() for x in there.values()) == sum(p.count_nonzero() for p in model.parameters())
    memory = {x.untyped_storage().data_ptr() for x in there.values()}
    assert len(memory) == len(there)
    assert not memory & {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert all(x.is_contiguous() and not x.requires_grad for x in there.values())


def test_gates_and_values_of_experts_take_turns_there():
    there, config, _ = travelled("gpt-oss")
    mlp = random_model(config).blocks[1].mlp
    half = config.mlp_width
    fused = there["model.layers.1.mlp.experts.gate_up_proj"]
    assert torch.equal(fused[..., ::2], mlp.fc[..., :half])
    assert torch.equal(fused[..., 1::2], mlp.fc[..., half:])
    bias = there["model.layers.1.mlp.experts.gate_up_proj_bias"]
    assert torch.equal(bias[2, 1::2], mlp.fc_bias.view(6, -1)[2, half:])


def test_pairs_of_rope_change_places_within_a_head_of_queries_and_keys_only():
    there, config, _ = travelled("llama3")
    half = random_model(config.replace(rope_pairs="half", bias=False))
    q, k, v = half.blocks[0].attention.qkv.weight.split([32, 8, 8])
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    order = [0, 2, 1, 3]  # pairs (0, 1), (2, 3) of a head of width 4 as (0, 2), (1, 3)
    assert torch.equal(there[names[0]], q.view(8, 4, -1)[:, order].reshape(32, -1))
    assert torch.equal(there[names[1]], k.view(2, 4, -1)[:, order].reshape(8, -1))
    assert torch.equal(there[names[2]], v)


def test_biases_that_a_class_cannot_leave_out_are_zeros_there():
    there, _, _ = travelled("gpt2-no-bias-narrow")
    biases = {name: x for name, x in there.items() if name.endswith("bias")}
    assert len(biases) == 13
    assert not any(x.any() for x in biases.values())


def test_missing_unexpected_and_misshapen_tensors_are_named():
    there, config, model_type = travelled("gpt2")
    with pytest.raises(ValueError, match=r"h\.0\.attn\.c_attn\.weight, .* and 1 more are missing"):
        weights_here({k: v for k, v in there.items() if "c_attn" not in k}, config, model_type)
    with pytest.raises(ValueError, match=r"transformer\.adapter is not part of a gpt2 model"):
        weights_here(there | {"transformer.adapter": torch.ones(1)}, config, model_type)
    with pytest.raises(ValueError, match=r"wpe\.weight has shape \(48, 16\), .* makes it \(32, 16\)"):
        weights_here(there, config.replace(block_size=32), model_type)


def test_biases_that_the_settings_deny_are_unexpected():
    there, config, model_type = travelled("llama-bias-wide-heads")
    with pytest.raises(ValueError, match=r"o_proj\.bias, .* not part of a llama model"):
        weights_here(there, config, model_type, absent=["o_proj.bias"])


def test_a_tied_head_may_be_there_but_must_agree():
    there, config, model_type = travelled("gpt2")
    same = there | {"lm_head.weight": there["transformer.wte.weight"]}
    assert "head.weight" not in weights_here(same, config, model_type)
    with pytest.raises(ValueError, match=r"tie_word_embeddings is true, but lm_head\.weight differs"):
        weights_here(there | {"lm_head.weight": torch.zeros(61, 16)}, config, model_type)
    there.pop("transformer.wte.weight")
    with pytest.raises(ValueError, match=r"transformer\.wte\.weight is missing"):
        weights_here(there, config, model_type)
