"""The autoencoder: its formula, its constraints, its files, and what it refuses."""

import json

import pytest
import safetensors.torch
import torch

from picollm_core.interpret.sae import SparseAutoencoder, list_autoencoders
from picollm_core.interpret.sparsity import BatchTopK, JumpReLU, ReLU, TopK
from picollm_core.models import build_model
from tests.conftest import TINY

KINDS = {
    "topk": lambda: TopK(4),
    "batchtopk": lambda: BatchTopK(4),
    "relu": lambda: ReLU(0.1),
    "jumprelu": lambda: JumpReLU(4.0),
}


def build(kind="topk", width=16, features=40, site="blocks.0", seed=0):
    sae = SparseAutoencoder(width, features, KINDS[kind](), site, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed + 1)
        sae.b_enc.copy_(torch.randn(features, generator=generator))
        sae.b_dec.copy_(torch.randn(width, generator=generator))
        sae.scale.fill_(0.5)
        sae.W_enc.add_(0.1 * torch.randn(width, features, generator=generator))
    return sae


def values(rows=7, width=16, seed=5):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_forward_is_decode_of_encode(kind):
    sae, x = build(kind), values()
    sae(x)  # a BatchTopK takes its threshold from what it sees in training
    sae.eval()
    assert torch.equal(sae(x), sae.decode(sae.encode(x)))
    assert sae.encode(x).shape == (7, 40)
    assert (sae.encode(x) >= 0).all()


def test_codes_and_reconstructions_are_the_formula():
    sae, x = build().eval(), values()
    pre = ((x * 0.5 - sae.b_dec) @ sae.W_enc) + sae.b_enc
    torch.testing.assert_close(sae.pre_activations(x), pre)
    torch.testing.assert_close(sae.encode(x), TopK(4)(pre))
    z = sae.encode(x)
    torch.testing.assert_close(sae.decode(z), (z @ sae.W_dec + sae.b_dec) / 0.5)


def test_one_more_of_a_feature_moves_the_reconstruction_along_its_direction():
    sae = build().eval()
    z = sae.encode(values())
    more = z.clone()
    more[:, 3] += 2.0
    torch.testing.assert_close(sae.decode(more) - sae.decode(z), 2.0 * sae.directions[3].expand(7, 16))


def test_it_starts_with_unit_rows_and_the_encoder_as_their_transpose():
    sae = SparseAutoencoder(16, 40, TopK(4), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    again = SparseAutoencoder(16, 40, TopK(4), generator=torch.Generator().manual_seed(0))
    assert torch.equal(sae.W_dec, again.W_dec)


def test_the_gradient_that_only_stretches_a_row_is_removed():
    sae = build()
    (sae(values()) - values(seed=9)).square().mean().backward()
    sae.normalise_decoder()
    across = sae.W_dec.grad.clone()
    sae.remove_parallel_gradient()
    along = (sae.W_dec.grad * sae.W_dec).sum(-1)
    torch.testing.assert_close(along, torch.zeros(40), atol=1e-5, rtol=0)
    removed = across - sae.W_dec.grad
    torch.testing.assert_close(removed, (across * sae.W_dec).sum(-1, keepdim=True) * sae.W_dec, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_gives_the_same_codes_to_the_bit(kind, tmp_path):
    sae = build(kind)
    sae(values())
    sae.eval().save_pretrained(tmp_path / "a")
    again = SparseAutoencoder.from_pretrained(tmp_path / "a")
    assert not again.training
    assert (again.site, again.dict_size, again.activation_dim) == ("blocks.0", 40, 16)
    assert again.activation.settings() == sae.activation.settings()
    assert torch.equal(again.encode(values()), sae.encode(values()))
    assert torch.equal(again(values()), sae(values()))


def test_a_language_model_and_an_autoencoder_are_not_taken_for_each_other(tmp_path):
    model = build_model(TINY["lstm"])
    model.save_pretrained(tmp_path / "model")
    build().save_pretrained(tmp_path / "sae")
    with pytest.raises(ValueError, match="does not describe a sparse autoencoder"):
        SparseAutoencoder.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"config\.json is not a model configuration"):
        type(model).from_pretrained(tmp_path / "sae")


def test_damaged_files_are_refused_by_name(tmp_path):
    build().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be loaded"):
        SparseAutoencoder.from_pretrained(tmp_path)
    safetensors.torch.save_file({"W_dec": torch.zeros(2, 2)}, weights)
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be loaded"):
        SparseAutoencoder.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dict_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json is not a model configuration"):
        SparseAutoencoder.from_pretrained(tmp_path)


def test_autoencoders_beside_a_model_are_found_by_name(tmp_path):
    assert list_autoencoders(tmp_path) == []
    for name in ("hidden", "blocks.1"):
        build().save_pretrained(tmp_path / "autoencoders" / name)
    (tmp_path / "autoencoders" / "empty").mkdir()
    assert [folder.name for folder in list_autoencoders(tmp_path)] == ["blocks.1", "hidden"]


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: SparseAutoencoder(16, 3, TopK(4)), "dict_size is 3, smaller than the k=4"),
        (lambda: SparseAutoencoder(16, 20), "dict_size is 20, smaller than the k=32"),
        (lambda: SparseAutoencoder(0, 20), "activation_dim is 0"),
        (lambda: SparseAutoencoder(4, 0, ReLU()), "dict_size is 0"),
        (lambda: build().encode(values(width=8)), "x has width 8; this autoencoder reads width 16"),
        (
            lambda: build(width=8).require_fits(build_model(TINY["transformer"])),
            "reads width 8, but the transformer model has 16 at 'blocks.0'",
        ),
        (lambda: build().require_fits(build_model(TINY["transformer"]), "hidden"), "reads 'blocks.0', not 'hidden'"),
        (lambda: build().require_fits(build_model(TINY["lstm"])), "a lstm model has no site 'blocks.0'"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_values(act, words):
    with pytest.raises(ValueError, match=words):
        act()


def test_a_model_of_the_right_width_and_site_fits():
    assert build().require_fits(build_model(TINY["transformer"]), "blocks.0") is None
