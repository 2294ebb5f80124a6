"""How good a dictionary is: what it leaves out, what the model loses by it, and which features ever fire.

Works for a SparseAutoencoder and for a Basis alike. C width of the site, F size of the dictionary.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from picollm_core.config_base import require
from picollm_core.inference import evaluation_mode
from picollm_core.interpret.ablation import site_means
from picollm_core.interpret.dictionaries import Dictionary, evaluated, require_width
from picollm_core.interpret.hooks import Edit, activations, hooked
from picollm_core.losses import token_nll
from picollm_core.models import LanguageModel

TOKENS_AT_ONCE = 8_192


@dataclass(frozen=True)
class Quality:
    """Figures of one dictionary on one text. Losses are nats per token.

    l0: features that are not zero, a token. fvu: squared error over variance, pooled over all tokens. nll: the model's
    own loss; nll_spliced: with the site replaced by its reconstruction; nll_mean and nll_zero: by its mean, by zeros.
    recovered_* is (nll_* - nll_spliced) / (nll_* - nll); 1 is no loss at all, NaN where the ablation changes nothing.
    dead: share of features that never fired in `tokens`; density holds each feature's share of tokens.
    """

    tokens: int
    l0: float
    fvu: float
    nll: float
    nll_spliced: float
    nll_mean: float
    nll_zero: float
    dead: float
    density: list[float] = field(repr=False)

    @property
    def recovered_mean(self) -> float:
        return self._recovered(self.nll_mean)

    @property
    def recovered_zero(self) -> float:
        return self._recovered(self.nll_zero)

    def _recovered(self, ablated: float) -> float:
        lost = ablated - self.nll
        return (ablated - self.nll_spliced) / lost if lost else math.nan

    @property
    def added(self) -> float:
        """Nats per token that the reconstruction costs."""
        return self.nll_spliced - self.nll

    def to_dict(self) -> dict[str, Any]:
        """JSON values, the derived ones included, densities left out; None for a share that is NaN."""
        values = asdict(self)
        del values["density"]
        shares = {"recovered_mean": self.recovered_mean, "recovered_zero": self.recovered_zero}
        derived = {name: None if math.isnan(share) else share for name, share in shares.items()}
        return values | derived | {"added": self.added}


def row_batches(idx: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of ids (N, T) and their mask (N, T), TOKENS_AT_ONCE tokens at a time."""
    rows = max(1, TOKENS_AT_ONCE // idx.size(1))
    for start in range(0, len(idx), rows):
        yield idx[start : start + rows], mask[start : start + rows]


@torch.no_grad()
def mean_nll(model: LanguageModel, idx: Tensor, mask: Tensor, edit: dict[str, Edit] | None = None) -> float:
    """Mean loss in nats of the tokens idx[:, 1:] where mask (N, T) has them, with `edit` as in hooked.

    The first token of a row, the end-of-text token before a story, is read without the edit: it is no text.
    """
    total, count = 0.0, 0
    with evaluation_mode(model):
        for rows, kept in row_batches(idx, mask):
            first, state = model.hidden(rows[:, :1])
            with hooked(model, edit=edit):
                rest = model.hidden(rows[:, 1:-1], state)[0]
            scored = kept[:, 1:]
            h = torch.cat([first, rest], dim=1)[scored]  # (n, C)
            nll, _ = token_nll(h, model.head.weight, rows[:, 1:][scored])
            total, count = total + nll.double().sum().item(), count + len(nll)
    require(count > 0, "the mask has no token to be scored; give longer texts")
    return total / count


@torch.no_grad()
def measure_dictionary(model: LanguageModel, dictionary: Dictionary, idx: Tensor, mask: Tensor) -> Quality:
    """Figures of a dictionary on ids (N, T), rows that begin with an end-of-text token, over the tokens of mask (N, T).

    Whole rows are read at once, so they start where the model starts a story; the first token of a row is never
    replaced. An autoencoder is measured in evaluation mode. ValueError when the dictionary does not fit the model, or
    nothing is masked in.
    """
    require_width(model, dictionary)
    site = dictionary.site
    mean = site_means(model, [site], idx, mask)[site].to(idx.device)
    squared, variance, fired, count = 0.0, 0.0, torch.zeros(dictionary.dict_size, device=idx.device), 0
    with evaluated(dictionary):
        for rows, kept in row_batches(idx, mask):
            x = activations(model, rows, [site])[site][kept]  # (n, C)
            z = dictionary.encode(x)  # (n, F)
            squared += (x - dictionary.decode(z)).double().square().sum().item()
            variance += (x - mean).double().square().sum().item()
            fired += (z != 0).sum(0)
            count += len(x)
    replaced: dict[str, Edit] = {
        "nll_spliced": lambda x: dictionary.decode(dictionary.encode(x)),
        "nll_mean": lambda x: mean.expand_as(x),
        "nll_zero": torch.zeros_like,
    }
    with evaluated(dictionary):
        losses = {name: mean_nll(model, idx, mask, {site: edit}) for name, edit in replaced.items()}
    return Quality(
        tokens=count,
        l0=fired.sum().item() / count,
        fvu=squared / variance,
        nll=mean_nll(model, idx, mask),
        **losses,
        dead=(fired == 0).float().mean().item(),
        density=(fired / count).tolist(),
    )
