"""Bases as dictionaries: complete ones lose nothing, and what is kept is the best that can be kept."""

import pytest
import torch

from picollm_core.interpret.baselines import Basis, neuron_basis, pca_basis


def values(rows=200, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator) @ torch.randn(width, width, generator=generator) + 3.0


@pytest.mark.parametrize("basis", [neuron_basis(values().mean(0), 6), pca_basis(values(), 6)])
def test_a_complete_basis_gives_everything_back(basis):
    x = values(9, seed=1)
    torch.testing.assert_close(basis(x), x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(basis(x), basis.decode(basis.encode(x)))
    assert (basis.dict_size, basis.activation_dim) == (6, 6)


def test_neurons_keep_the_coordinates_farthest_from_the_mean():
    basis = neuron_basis(torch.tensor([1.0, 1.0, 1.0]), 1, "hidden")
    assert basis.encode(torch.tensor([[2.0, 0.5, -4.0]])).tolist() == [[0, 0, -5]]
    assert basis(torch.tensor([[2.0, 0.5, -4.0]])).tolist() == [[1, 1, -4]]
    assert basis.site == "hidden"


def test_components_come_by_variance_and_no_other_plane_leaves_less():
    x = values()
    basis = pca_basis(x, 2, count=2)
    along = ((x - x.mean(0)) @ basis.directions.T).var(0)
    assert along[0] > along[1]
    left = (x - basis(x)).square().sum()
    expected = torch.linalg.svdvals((x - x.mean(0)).double())[2:].square().sum()
    torch.testing.assert_close(left.double(), expected, rtol=1e-3, atol=1e-3)


def test_signs_do_not_depend_on_the_order_of_the_rows():
    x = values()
    torch.testing.assert_close(pca_basis(x, 2).directions, pca_basis(x.flip(0), 2).directions, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: neuron_basis(torch.zeros(3), 4), "k is 4; it must lie in 1..3"),
        (lambda: Basis(torch.ones(2, 3), torch.zeros(3), 1), "not orthonormal"),
        (lambda: pca_basis(torch.randn(4, 3), 1, count=5), r"count is 5; \(4, 3\) values have 1 to 3 components"),
    ],
)
def test_what_is_no_basis_is_refused(act, words):
    with pytest.raises(ValueError, match=words):
        act()
