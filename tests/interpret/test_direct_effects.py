"""The straight path from a site to the logits: exact where it is linear, refused where there is none."""

import pytest
import torch

from picollm_core.interpret.direct_effects import STREAM, direct_effect, direct_path, stream_scale
from picollm_core.interpret.hooks import activations, hooked
from picollm_core.models import build_model
from tests.conftest import TINY


def tiny(name):
    torch.manual_seed(0)
    return build_model(TINY[name]).eval()


def idx():
    return torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(1))


def logit_change(model, site, direction):
    """What adding the direction at a site really does to the logits, less the mean over the vocabulary."""
    with torch.no_grad(), hooked(model, edit={site: lambda x: x + direction}):
        after = model(idx())
    change = after - model(idx())
    return change - change.mean(-1, keepdim=True)


@pytest.mark.parametrize(
    ("name", "site"), [("transformer", "hidden"), ("lstm", "hidden"), ("lstm", "rnn.h.1"), ("kgram-learned", "hidden")]
)
@torch.no_grad()
def test_where_only_the_head_follows_the_effect_is_the_true_one(name, site):
    model, direction = tiny(name), torch.randn(16) * 0.1
    effect = direct_effect(model, site, direction)
    if site == "rnn.h.1":  # later tokens also remember it, so only the first is untouched by anything else
        assert torch.allclose(logit_change(model, site, direction)[:, 0], effect.expand(2, -1), atol=1e-5)
    else:
        assert torch.allclose(logit_change(model, site, direction), effect.expand(2, 12, -1), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "site", "width"),
    [
        ("transformer", "blocks.1", 16),
        ("transformer", "blocks.1.mlp", 16),
        ("transformer", "blocks.1.mlp.proj:in", 64),
        ("transformer-sinusoidal", "blocks.1", 16),
        ("transformer-nope-post", "blocks.1", 16),
        ("transformer-alibi-sandwich", "blocks.1", 16),
        ("transformer-alibi-sandwich", "blocks.1.norm_mlp_out", 16),
    ],
)
@torch.no_grad()
def test_a_small_step_moves_the_logits_as_foretold_but_for_the_norm_that_it_changes(name, site, width):
    model, ids = tiny(name).double(), idx()
    direction = 1e-6 * torch.randn(width, dtype=torch.float64)
    stream = activations(model, ids, [STREAM])[STREAM][0, -1]  # (C,), at one token
    into = direction
    for layer in direct_path(model, site)[0]:
        into = layer.weight @ into
    centred = stream - stream.mean() if isinstance(model.norm, torch.nn.LayerNorm) else stream
    square = centred @ centred + 16 * model.norm.eps
    along = (into @ centred) / square  # what of it lies along the stream only changes the norm's scale
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, -1] = True
    scale = stream_scale(model, ids, mask)
    foretold = direct_effect(model, site, direction, scale) - effect_of_stream(model, centred * along * scale)
    assert torch.allclose(logit_change(model, site, direction)[0, -1], foretold, atol=1e-9, rtol=1e-3)


def effect_of_stream(model, stream):
    effect = model.head.weight @ (stream * model.norm.weight)
    return effect - effect.mean()


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("transformer", "blocks.0.norm_mlp"),
        ("transformer", "blocks.0.mlp.fc"),
        ("transformer-nope-post", "blocks.0"),
        ("transformer-alibi-sandwich", "blocks.1.mlp"),
        ("transformer-alibi-sandwich", "blocks.1.norm_mlp_out:in"),
        ("lstm", "rnn.c.1"),
        ("lstm", "rnn.h.0"),
        ("kgram-learned", "layers.0:in"),
    ],
)
def test_a_site_behind_other_layers_is_said_to_have_no_direct_effect(name, site):
    with pytest.raises(ValueError, match="no direct effect"):
        direct_path(tiny(name), site)


def test_an_unknown_site_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"has no site 'blocks\.7'"):
        direct_effect(tiny("transformer"), "blocks.7", torch.ones(16))


def test_the_mean_over_the_vocabulary_is_taken_off():
    assert direct_effect(tiny("transformer"), "hidden", torch.ones(16)).mean().abs() < 1e-6
