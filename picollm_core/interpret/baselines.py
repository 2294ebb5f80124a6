"""What an autoencoder has to beat: the neurons themselves, and principal components, read as dictionaries.

Both are orthonormal bases of a site, C wide. A code keeps the k coordinates of x - mean that are largest in size, with
their signs: for an orthonormal basis no other k coordinates leave a smaller error.
"""

import torch
from torch import Tensor

from picollm_core.config_base import require


class Basis:
    """A dictionary of orthonormal rows `directions` (F, C) around `mean` (C,), k coordinates of which are kept.

    It has what is used of a SparseAutoencoder: encode, decode, calling it, directions, activation_dim, dict_size, site;
    codes are signed. With k of the dictionary's size a complete basis gives x back.
    """

    def __init__(self, directions: Tensor, mean: Tensor, k: int, site: str = "") -> None:
        gram = directions @ directions.T
        eye = torch.eye(len(directions), dtype=gram.dtype, device=gram.device)
        require(bool(torch.allclose(gram, eye, atol=1e-3)), "the directions are not orthonormal; rows must be")
        require(1 <= k <= len(directions), f"k is {k}; it must lie in 1..{len(directions)}, the number of directions")
        self.directions, self.mean, self.k, self.site = directions, mean, k, site
        self.dict_size, self.activation_dim = directions.shape

    def encode(self, x: Tensor) -> Tensor:
        """Signed codes (..., F) of x (..., C), at most k of them other than zero."""
        coordinates = (x - self.mean) @ self.directions.T
        kept = coordinates.abs().topk(self.k, dim=-1).indices
        return torch.zeros_like(coordinates).scatter(-1, kept, coordinates.gather(-1, kept))

    def decode(self, z: Tensor) -> Tensor:
        """The x^ (..., C) that codes (..., F) stand for."""
        return z @ self.directions + self.mean

    def __call__(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def neuron_basis(mean: Tensor, k: int, site: str = "") -> Basis:
    """Every coordinate of the site is a feature; `mean` (C,) is what counts as nothing."""
    return Basis(torch.eye(len(mean), dtype=mean.dtype, device=mean.device), mean, k, site)


def pca_basis(x: Tensor, k: int, site: str = "", count: int | None = None) -> Basis:
    """The first `count` principal components of x (N, C), or all of them, by falling variance.

    Each has the sign that makes its largest entry positive. With k = count every code uses the same components.
    ValueError when x has fewer rows than that.
    """
    count = x.size(1) if count is None else count
    require(
        1 <= count <= min(x.shape), f"count is {count}; {tuple(x.shape)} values have 1 to {min(x.shape)} components"
    )
    mean = x.mean(0)
    centred = (x - mean).double()
    components = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :count].T  # (count, C)
    peaks = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    return Basis((components * peaks.sign()).to(x.dtype), mean, k, site)
