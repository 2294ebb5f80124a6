"""What every dictionary of features has, trained or not, and the check that it belongs to a model.

C width of the site, F size of the dictionary.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor, nn

from picollm_core.config_base import require
from picollm_core.inference import evaluation_mode
from picollm_core.interpret.hooks import require_site, site_width
from picollm_core.models import LanguageModel


class Dictionary(Protocol):
    """What is asked of anything that writes a site's values as features: a SparseAutoencoder and a Basis have it."""

    site: str
    dict_size: int
    activation_dim: int

    @property
    def directions(self) -> Tensor:
        """(F, C): what a code of 1 adds, in the model's own units."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Codes (..., F) of x (..., C)."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """The x^ (..., C) that codes (..., F) stand for."""
        ...


def require_width(model: LanguageModel, dictionary: Dictionary) -> None:
    """Raise ValueError when the model has not the dictionary's site, or another width there."""
    width, expected = site_width(model, require_site(model, dictionary.site)), dictionary.activation_dim
    require(
        width == expected,
        f"the dictionary reads width {expected}, but the {model.config.family} model has {width} at "
        f"{dictionary.site!r}; it was made for another model",
    )


def evaluated(dictionary: Dictionary) -> AbstractContextManager[None]:
    """Inside, an autoencoder is in evaluation mode: what a token's code is depends on no other token."""
    return evaluation_mode(dictionary) if isinstance(dictionary, nn.Module) else nullcontext()
