"""Sparse autoencoders: what passes at one site of a model, written as a sum of few directions of a large dictionary.

C width of the site, F size of the dictionary. With x scaled to a common size,

    z = activation(W_enc (x - b_dec) + b_enc),    x^ = W_dec z + b_dec,

columns of W_dec of length 1 (Bricken et al. 2023; Gao et al. 2024, arXiv 2406.04093, eq. 1-2).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from picollm_core.config_base import require
from picollm_core.interpret.dictionaries import require_width
from picollm_core.interpret.sparsity import SparseActivation, TopK, build_activation
from picollm_core.models import LanguageModel
from picollm_core.models.saving import CONFIG_FILE, SavedModule

FOLDER = "autoencoders"
"""Of a saved model: holds a folder for each of its autoencoders."""


class SparseAutoencoder(SavedModule):
    """`activation_dim` is the site's width, `dict_size` the number of features, `site` where it reads (see hooks).

    Parameters W_enc (C, F), b_enc (F,), W_dec (F, C) with rows of length 1, b_dec (C,). The encoder starts as the
    decoder's transpose. `scale` is what x is multiplied by before all else, 1 unless training sets it. The random
    start comes from `generator`, or torch's own. ValueError when the dictionary is smaller than the activation's k.
    """

    scale: Tensor

    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        activation: SparseActivation | None = None,
        site: str = "",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(activation_dim >= 1, f"activation_dim is {activation_dim}; it must be at least 1")
        require(dict_size >= 1, f"dict_size is {dict_size}; it must be at least 1")
        self.activation_dim, self.dict_size, self.site = activation_dim, dict_size, site
        self.activation = TopK(32) if activation is None else activation
        self.activation.attach(dict_size)
        rows = nn.functional.normalize(torch.randn(dict_size, activation_dim, generator=generator), dim=-1)
        self.W_dec = nn.Parameter(rows)
        self.W_enc = nn.Parameter(rows.T.clone().contiguous())
        self.b_enc = nn.Parameter(torch.zeros(dict_size))
        self.b_dec = nn.Parameter(torch.zeros(activation_dim))
        self.register_buffer("scale", torch.ones(()))

    @property
    def directions(self) -> Tensor:
        """(F, C): a code of 1 adds this to x, in the model's own units."""
        return self.W_dec / self.scale

    def pre_activations(self, x: Tensor) -> Tensor:
        """(..., F) of x (..., C), before the activation. ValueError when x has another width."""
        if x.size(-1) != self.activation_dim:
            raise ValueError(f"x has width {x.size(-1)}; this autoencoder reads width {self.activation_dim}")
        bias = self.b_enc - self.b_dec @ self.W_enc  # b_dec taken off x would cost a gradient of x's size
        return (x * self.scale) @ self.W_enc + bias

    def encode(self, x: Tensor) -> Tensor:
        """Codes z (..., F) >= 0 of x (..., C)."""
        return self.activation(self.pre_activations(x))

    def decode(self, z: Tensor) -> Tensor:
        """The x^ (..., C) that codes z (..., F) stand for."""
        return (z @ self.W_dec + self.b_dec) / self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Bring every row of W_dec back to length 1."""
        self.W_dec.copy_(nn.functional.normalize(self.W_dec, dim=-1))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take out of W_dec's gradient what would only change the rows' lengths."""
        if self.W_dec.grad is not None:
            along = (self.W_dec.grad * self.W_dec).sum(-1, keepdim=True)  # (F, 1)
            self.W_dec.grad.sub_(along * self.W_dec)

    def require_fits(self, model: LanguageModel, site: str | None = None) -> None:
        """Raise ValueError when it was made for another site than `site`, or the model's width there differs."""
        if site is not None and site != self.site:
            raise ValueError(f"this autoencoder reads {self.site!r}, not {site!r}; choose one made for {site!r}")
        require_width(model, self)

    def config_values(self) -> dict[str, Any]:
        return {
            "autoencoder": "sparse",
            "activation_dim": self.activation_dim,
            "dict_size": self.dict_size,
            "activation": self.activation.settings(),
            "site": self.site,
        }

    @classmethod
    def from_config_values(cls, values: dict[str, Any]) -> "SparseAutoencoder":
        require(values.get("autoencoder") == "sparse", "it does not describe a sparse autoencoder")
        built = build_activation(values["activation"])
        return cls(values["activation_dim"], values["dict_size"], built, values["site"])


def list_autoencoders(model_folder: str | Path) -> list[Path]:
    """Folders of the autoencoders that were saved beside a model, by name; none where there are none."""
    return sorted(path for path in (Path(model_folder) / FOLDER).glob("*") if (path / CONFIG_FILE).is_file())
