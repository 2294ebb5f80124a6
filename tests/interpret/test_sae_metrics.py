"""The figures of a dictionary, against cases that can be worked out by hand."""

import math

import pytest
import torch

from picollm_core.interpret.ablation import site_means
from picollm_core.interpret.baselines import neuron_basis, pca_basis
from picollm_core.interpret.hooks import activations, hooked
from picollm_core.interpret.sae import SparseAutoencoder
from picollm_core.interpret.sae_metrics import Quality, mean_nll, measure_dictionary
from picollm_core.interpret.sparsity import TopK
from picollm_core.models import build_model
from tests.conftest import TINY, VOCAB

SITE = "blocks.0"


def model(name="transformer"):
    torch.manual_seed(0)
    network = build_model(TINY[name]).eval()
    with torch.no_grad():
        network.head.weight.mul_(20)  # so that what is taken out matters
    return network


def rows(n=6, time=14, seed=0):
    generator = torch.Generator().manual_seed(seed)
    idx = torch.randint(VOCAB, (n, time), generator=generator)
    mask = torch.arange(time) < torch.randint(6, time, (n, 1), generator=generator)
    mask[:, 0] = False
    return idx, mask


class Fixed:
    """A dictionary that writes the same for every token, with chosen codes."""

    def __init__(self, value, codes):
        self.value, self.codes = value, codes
        self.site, self.activation_dim, self.dict_size = SITE, len(value), len(codes)
        self.directions = torch.zeros(len(codes), len(value))

    def encode(self, x):
        return self.codes.expand(*x.shape[:-1], -1)

    def decode(self, z):
        return self.value.expand(*z.shape[:-1], -1)


def test_a_perfect_dictionary_loses_nothing():
    idx, mask = rows()
    network = model()
    q = measure_dictionary(network, neuron_basis(torch.zeros(16), 16, SITE), idx, mask)
    assert q.fvu == pytest.approx(0.0, abs=1e-10)
    assert q.added == pytest.approx(0.0, abs=1e-6)
    assert q.recovered_mean == pytest.approx(1.0, abs=1e-5)
    assert q.l0 == 16
    assert q.tokens == int(mask.sum())
    assert q.dead == 0


def test_the_mean_alone_explains_nothing_and_recovers_nothing():
    idx, mask = rows()
    network = model()
    mean = site_means(network, [SITE], idx, mask)[SITE]
    q = measure_dictionary(network, Fixed(mean, torch.tensor([1.0, 0.0])), idx, mask)
    assert q.fvu == pytest.approx(1.0)
    assert q.recovered_mean == pytest.approx(0.0, abs=1e-9)
    assert (q.l0, q.dead, q.density) == (1.0, 0.5, [1.0, 0.0])


def test_zeros_recover_nothing_of_the_zero_ablation():
    idx, mask = rows()
    q = measure_dictionary(model(), Fixed(torch.zeros(16), torch.zeros(3)), idx, mask)
    assert q.recovered_zero == pytest.approx(0.0, abs=1e-9)
    assert (q.l0, q.dead) == (0, 1)


def test_error_over_variance_is_pooled_over_all_tokens():
    idx, mask = rows()
    network = model()
    x = activations(network, idx, [SITE])[SITE][mask]
    sae = SparseAutoencoder(16, 40, TopK(3), SITE, torch.Generator().manual_seed(0)).eval()
    q = measure_dictionary(network, sae, idx, mask)
    pooled = (x - sae(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert q.fvu == pytest.approx(pooled.item(), rel=1e-5)
    fired = (sae.encode(x) > 0).float()
    assert q.l0 == pytest.approx(fired.sum(1).mean().item())
    assert q.density == pytest.approx(fired.mean(0).tolist())
    assert q.dead == pytest.approx((fired.sum(0) == 0).float().mean().item())


def test_losses_are_those_of_the_edited_model_over_the_masked_tokens_alone():
    idx, mask = rows()
    network = model()
    sae = SparseAutoencoder(16, 40, TopK(3), SITE, torch.Generator().manual_seed(0)).eval()

    def splice(x):
        return torch.cat([x[:, :1], sae(x[:, 1:])], dim=1)  # the end-of-text token in front stays

    with torch.no_grad(), hooked(network, edit={SITE: splice}):
        logits = network(idx)
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), idx[:, 1:], reduction="none")
    expected = nll[mask[:, 1:]].mean().item()
    q = measure_dictionary(network, sae, idx, mask)
    assert q.nll_spliced == pytest.approx(expected, rel=1e-5)
    assert q.nll == pytest.approx(mean_nll(network, idx, mask))
    padded = torch.cat([idx, torch.full((len(idx), 5), 3)], dim=1)
    longer = torch.cat([mask, torch.zeros(len(idx), 5, dtype=torch.bool)], dim=1)
    assert mean_nll(network, padded, longer) == pytest.approx(q.nll, rel=1e-6)


@pytest.mark.parametrize(("name", "site"), [("lstm", "rnn.h.0"), ("lstm", "rnn.c.1"), ("kgram-conv", "hidden")])
def test_every_family_loses_by_its_mean_and_nothing_by_itself(name, site):
    network, (idx, mask) = model(name), rows()
    q = measure_dictionary(network, neuron_basis(torch.zeros(16), 16, site), idx, mask)
    assert q.recovered_mean == pytest.approx(1.0, abs=1e-3)
    assert abs(q.nll_mean - q.nll) > 1e-3


def test_an_edited_lstm_state_goes_on_to_later_tokens_and_the_first_token_is_spared():
    network, (idx, mask) = model("lstm"), rows(n=1)
    zeroed = mean_nll(network, idx, mask, {"rnn.h.0": torch.zeros_like})
    h = []
    with torch.no_grad():
        x, state = network.hidden(idx[:, :1])
        h.append(x)
        for token in idx[:, 1:-1].split(1, dim=1):
            with hooked(network, edit={"rnn.h.0": torch.zeros_like}):
                x, state = network.hidden(token, state)
            h.append(x)
        logits = network.head(torch.cat(h, dim=1))
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), idx[:, 1:], reduction="none")
    assert zeroed == pytest.approx(nll[mask[:, 1:]].mean().item(), rel=1e-5)


def test_shares_recovered_are_the_definition():
    q = measure_dictionary(model(), pca_basis(torch.randn(40, 16), 2, SITE), *rows())
    values = q.to_dict()
    assert values["recovered_mean"] == pytest.approx((q.nll_mean - q.nll_spliced) / (q.nll_mean - q.nll))
    assert values["recovered_zero"] == pytest.approx((q.nll_zero - q.nll_spliced) / (q.nll_zero - q.nll))
    assert values["added"] == pytest.approx(q.nll_spliced - q.nll)
    assert "density" not in values
    assert all(math.isfinite(value) for value in values.values())


def test_a_share_of_nothing_is_not_a_number_and_none_in_json():
    q = Quality(tokens=5, l0=1.0, fvu=0.5, nll=2.0, nll_spliced=2.25, nll_mean=2.0, nll_zero=3.0, dead=0.0, density=[])
    assert math.isnan(q.recovered_mean)
    assert q.recovered_zero == 0.75
    values = q.to_dict()
    assert (values["recovered_mean"], values["recovered_zero"], values["added"]) == (None, 0.75, 0.25)


def test_a_site_that_nothing_comes_of_has_no_share_to_recover():
    network = model()
    with torch.no_grad():
        network.blocks[1].mlp.proj.weight.zero_()
    neurons = neuron_basis(torch.zeros(64), 64, "blocks.1.mlp.proj:in")
    q = measure_dictionary(network, neurons, *rows())
    assert math.isnan(q.recovered_mean)
    assert math.isnan(q.recovered_zero)
    assert q.added == 0


def test_no_token_and_another_width_are_refused():
    idx, mask = rows()
    with pytest.raises(ValueError, match="the mask leaves no target"):
        measure_dictionary(model(), neuron_basis(torch.zeros(16), 2, SITE), idx, mask & False)
    with pytest.raises(ValueError, match="reads width 8, but the transformer model has 16 at"):
        measure_dictionary(model(), neuron_basis(torch.zeros(8), 2, SITE), idx, mask)
    with pytest.raises(ValueError, match="no site 'blocks.7'"):  # noqa: RUF043
        measure_dictionary(model(), neuron_basis(torch.zeros(8), 2, "blocks.7"), idx, mask)
