"""The Transformer's blocks written out from their parts, and its initialisation."""

import math

import pytest
import torch

from picollm_core.config import TransformerConfig
from picollm_core.losses import next_token_loss
from picollm_core.models import build_model
from picollm_core.models.layers import head_std
from picollm_core.models.positions import Place
from picollm_core.models.transformer import INIT_STD, Transformer

V, C, T, LAYERS = 19, 16, 9, 3


def transformer(**changes) -> Transformer:
    """A Transformer whose norm gains are not one, so that a skipped or swapped norm shows."""
    torch.manual_seed(0)
    shape = {"vocab_size": V, "block_size": 12, "n_embd": C, "n_head": 2, "n_layer": LAYERS}
    model = build_model(TransformerConfig(**(shape | changes)))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def tokens(batch=2, time=T):
    return torch.randint(V, (batch, time), generator=torch.Generator().manual_seed(0))


def written_out(model: Transformer, idx: torch.Tensor) -> torch.Tensor:
    """Logits from the model's own parts, put together as figure 1 of arXiv 2002.04745 has them."""
    config = model.config
    x = model.embedding.weight[idx]
    if config.position == "absolute":
        x = x + model.positions.weight[: idx.size(1)]
    if config.position == "sinusoidal":
        x = x + model.waves.table(0, idx.size(1), x)
    place = Place(0, model.rope.angles(0, idx.size(1), x) if config.position == "rope" else None)
    for block in model.blocks:

        def attend(y, block=block):
            return block.attention(y, block.attention.empty_state(len(y)), place)[0]

        if config.norm == "pre":
            x = x + attend(block.norm_attention(x))
            x = x + block.mlp(block.norm_mlp(x))
        elif config.norm == "sandwich":
            x = x + block.norm_attention_out(attend(block.norm_attention(x)))
            x = x + block.norm_mlp_out(block.mlp(block.norm_mlp(x)))
        else:
            x = block.norm_attention(x + attend(x))
            x = block.norm_mlp(x + block.mlp(x))
    return model.norm(x) @ model.head.weight.T


@pytest.mark.parametrize("norm_kind", ["rms", "layer"])
@pytest.mark.parametrize("position", ["absolute", "sinusoidal", "rope", "alibi", "none"])
@pytest.mark.parametrize("norm", ["pre", "post", "sandwich"])
def test_logits_equal_the_written_out_formula(norm, position, norm_kind):
    model, idx = transformer(norm=norm, position=position, norm_kind=norm_kind), tokens()
    torch.testing.assert_close(model(idx), written_out(model, idx), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("norm_kind", ["rms", "layer"])
def test_pre_and_post_norm_have_the_same_parameters_and_differ_in_what_they_compute(norm_kind):
    pre, post = (transformer(norm=norm, norm_kind=norm_kind) for norm in ("pre", "post"))
    assert pre.num_parameters() == post.num_parameters()
    post.load_state_dict(pre.state_dict())
    assert not torch.allclose(pre(tokens()), post(tokens()))


def fresh(**changes) -> Transformer:
    torch.manual_seed(0)
    return build_model(TransformerConfig(vocab_size=2_000, n_embd=128, n_head=2, **changes))


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("n_layer", [1, 8])
def test_residual_projections_start_smaller_with_depth_and_everything_else_at_gpt_2_s_scale(n_layer, activation):
    model = fresh(n_layer=n_layer, activation=activation)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            wanted = INIT_STD / math.sqrt(2 * n_layer) if name.endswith("proj.weight") else INIT_STD
            assert parameter.std().item() == pytest.approx(wanted, rel=0.03), name
            assert abs(parameter.mean().item()) < 0.05 * wanted, name
        elif name != "norm.weight":
            assert (parameter == 1).all(), name


def test_every_block_has_two_residual_projections():
    names = [name for name, _ in fresh(n_layer=2).named_parameters() if name.endswith("proj.weight")]
    assert names == [f"blocks.{i}.{part}.proj.weight" for i in (0, 1) for part in ("attention", "mlp")]


def test_a_tied_head_is_one_parameter_and_stays_so_in_training():
    model, free = fresh(), fresh(tied=False)
    assert model.head.weight is model.embedding.weight
    assert free.num_parameters() - model.num_parameters() == 2_000 * 128
    idx = torch.randint(2_000, (2, 9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    next_token_loss(model, idx[:, :-1], idx[:, 1:]).backward()
    optimizer.step()
    assert model.head.weight is model.embedding.weight
    assert model.embedding.weight.grad is not None


@pytest.mark.parametrize(("width", "heads"), [(64, 1), (384, 6), (768, 12)])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_initial_loss_is_within_five_hundredths_of_ln_v_at_any_width(width, heads, tied, norm):
    torch.manual_seed(0)
    model = build_model(TransformerConfig(vocab_size=2_000, n_embd=width, n_head=heads, tied=tied, norm=norm))
    idx = torch.randint(2_000, (4, 65))
    with torch.no_grad():
        loss = next_token_loss(model, idx[:, :-1], idx[:, 1:]).item()
    assert loss == pytest.approx(math.log(2_000), abs=0.05)
    if not tied:
        assert model.head.weight.std().item() == pytest.approx(head_std(width), rel=0.02)


def test_the_state_counts_tokens_and_has_one_cache_a_layer():
    model = transformer()
    state = model.init_state(4)
    assert (state.length, len(state.caches)) == (0, LAYERS)
    _, state = model.hidden(tokens(4), state)
    assert state.length == T
    assert {cache.length for cache in state.caches} == {T}
    assert model.context_limit == 12


def test_learned_positions_run_out_with_a_state_too():
    model = transformer()
    _, state = model.hidden(tokens())
    with pytest.raises(
        ValueError, match=r"13 tokens exceed the 12 learned positions \(block_size\); shorten the input"
    ):
        model.hidden(tokens(time=4), state)


@pytest.mark.parametrize("position", ["absolute", "rope", "none"])
def test_only_the_model_with_learned_positions_has_a_table_of_them(position):
    names = {name.split(".")[0] for name in transformer(position=position).state_dict()}
    assert ("positions" in names) == (position == "absolute")


def test_dropout_acts_in_training_only():
    model, idx = transformer(dropout=0.3), tokens()
    assert torch.equal(model(idx), model(idx))
    model.train()
    assert not torch.equal(model(idx), model(idx))


def test_grouped_key_value_heads_save_exactly_their_rows():
    plain, grouped = transformer(n_head=4), transformer(n_head=4, n_kv_head=1)
    assert plain.num_parameters() - grouped.num_parameters() == LAYERS * 2 * 3 * (C // 4) * C


def test_normalised_queries_and_keys_make_attention_independent_of_their_scale():
    """With qk_norm, scaling all query and key projections changes nothing; without, it does."""
    for qk_norm in (True, False):
        model = transformer(position="rope", qk_norm=qk_norm).double()
        before = model(tokens())
        with torch.no_grad():
            for block in model.blocks:
                block.attention.qkv.weight[: 2 * C] *= 30
        assert torch.allclose(model(tokens()), before, atol=1e-3) == qk_norm
