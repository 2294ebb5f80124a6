"""A dictionary belongs to one site of one width, and is read without what training adds."""

import pytest
import torch

from picollm_core.interpret.baselines import neuron_basis
from picollm_core.interpret.dictionaries import evaluated, require_width
from picollm_core.interpret.sae import SparseAutoencoder
from picollm_core.interpret.sparsity import BatchTopK
from picollm_core.models import build_model
from tests.conftest import TINY


def dictionaries(width, site):
    yield neuron_basis(torch.zeros(width), 2, site)
    yield SparseAutoencoder(width, 40, BatchTopK(2), site).train()


@pytest.mark.parametrize(
    ("name", "site", "width"), [("lstm", "rnn.c.1", 16), ("transformer", "blocks.1.mlp.proj:in", 64)]
)
def test_it_fits_where_the_model_has_its_site_and_width(name, site, width):
    model = build_model(TINY[name])
    for found in dictionaries(width, site):
        require_width(model, found)
    for found in dictionaries(5, site):
        with pytest.raises(ValueError, match=f"reads width 5, but the {name} model has {width} at '{site}'; it was"):
            require_width(model, found)
    for found in dictionaries(width, "blocks.9"):
        with pytest.raises(ValueError, match=r"has no site 'blocks\.9'"):
            require_width(model, found)


def test_inside_a_code_depends_on_its_own_token_alone_and_training_goes_on_afterwards():
    basis, autoencoder = dictionaries(16, "hidden")
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    for found in (basis, autoencoder):
        with evaluated(found):
            torch.testing.assert_close(found.encode(x)[:1], found.encode(x[:1]))
    assert not torch.equal(autoencoder.encode(x)[:1], autoencoder.encode(x[:1]))
    assert autoencoder.training
