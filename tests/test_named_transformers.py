"""The four published Transformers: what makes each of them, at every size."""

import warnings

import pytest
import torch

from picollm_core.models import build_model
from picollm_core.named_transformers import COURSE_SIZES, NAMED_TRANSFORMERS, SIZES, gpt2, gpt_oss, llama3, mingpt
from picollm_core.presets import PRESETS, preset


def test_every_named_transformer_has_every_size_and_the_course_s_own():
    for name, build in NAMED_TRANSFORMERS.items():
        for size, shape in (SIZES | {"course": COURSE_SIZES[name]}).items():
            config = PRESETS[f"{name}-{size}"]
            assert config == build(*shape)
            assert (config.n_embd, config.n_head, config.n_layer) == shape
    assert COURSE_SIZES == {
        "mingpt": (384, 6, 6),
        "gpt2": (768, 12, 8),
        "gpt-oss": (512, 8, 8),
        "llama3": (1024, 16, 8),
    }


def test_gpt_2_is_mingpt_with_a_tied_head():
    assert gpt2(64, 2, 2).replace(tied=False) == mingpt(64, 2, 2)
    config = gpt2(64, 2, 2)
    assert (config.norm, config.norm_kind, config.bias, config.dropout) == ("pre", "layer", True, 0.1)
    assert (config.position, config.activation) == ("absolute", "gelu_tanh")


def test_gpt_2_at_its_published_size_has_its_published_124_million_parameters():
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = build_model(gpt2(768, 12, 12).replace(block_size=1024))
    assert model.num_parameters() == 124_439_808


def test_llama_3_at_its_published_shape_has_its_published_8_billion_parameters():
    published = llama3(4096, 32, 32).replace(vocab_size=128_256, mlp_width=14_336)
    with torch.device("meta"):
        assert build_model(published).num_parameters() == 8_030_261_248


def test_gpt_oss_at_its_published_shape_has_its_published_20_9_billion_parameters():
    published = gpt_oss(4096, 64, 24).replace(n_embd=2880, head_width=64, mlp_width=2880, vocab_size=201_088)
    with torch.device("meta"):
        assert build_model(published).num_parameters() == 20_914_757_184


@pytest.mark.parametrize(("width", "hidden"), [(64, 256), (384, 1024), (1024, 2816)])
def test_llama_3_s_mlp_is_8_thirds_of_the_width_rounded_up_to_256(width, hidden):
    assert llama3(width, 4, 1).mlp_width == hidden


def test_gpt_oss_alternates_windows_and_full_layers_from_a_window_on():
    config = preset("gpt-oss-course")
    assert [config.mixer(layer) for layer in range(4)] == ["window", "softmax", "window", "softmax"]
    assert gpt_oss(64, 1, 1).mixers == ("window",)
    assert (config.n_expert, config.n_expert_active, config.n_kv_head, config.sinks) == (32, 4, 1, True)


@pytest.mark.parametrize(("build", "heads", "groups"), [(llama3, 16, 4), (llama3, 2, 1), (gpt_oss, 16, 2)])
def test_key_heads_are_the_published_share_of_the_query_heads(build, heads, groups):
    assert build(16 * heads, heads, 1).n_kv_head == groups


def test_streaming_equals_the_full_pass_with_window_sinks_and_groups_together():
    torch.manual_seed(0)
    config = gpt_oss(64, 8, 4).replace(vocab_size=61, window=6, n_expert=4, block_size=64)
    model = build_model(config).double().eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.attention.sinks)
    idx = torch.randint(61, (2, 40))
    with torch.no_grad():
        whole, _ = model.hidden(idx)
        state, pieces = None, []
        for start, end in ((0, 15), (15, 16), (16, 25), *((t, t + 1) for t in range(25, 40))):
            hidden, state = model.hidden(idx[:, start:end], state)
            pieces.append(hidden)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-10, atol=1e-10)
