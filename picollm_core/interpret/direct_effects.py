"""What a direction at a site says to the head by the straight path, past every layer that comes after it.

C width of the site, V vocabulary.
"""

import torch
from torch import Tensor, nn

from picollm_core.interpret.hooks import HIDDEN, INPUT, activations, require_site
from picollm_core.models import LanguageModel
from picollm_core.models.layers import RMSNorm
from picollm_core.models.lstm import LSTM
from picollm_core.models.transformer import Transformer

STREAM = "norm" + INPUT
"""Where a Transformer's residual stream enters its final norm."""


def _into_stream(model: Transformer, site: str) -> list[nn.Linear] | None:
    """The linear maps from a site to the residual stream; None where something else stands between."""
    parts = site.removesuffix(INPUT).split(".")
    if site == "embedding":
        return [] if model.config.norm != "post" else None
    if parts[0] != "blocks" or len(parts) == 1:
        return None
    last = int(parts[1]) == model.config.n_layer - 1
    if len(parts) == 2:
        return [] if not site.endswith(INPUT) and (model.config.norm != "post" or last) else None
    if model.config.norm == "sandwich" and parts[2:] in (["norm_attention_out"], ["norm_mlp_out"]):
        return [] if not site.endswith(INPUT) else None
    if model.config.norm != "pre":
        return None  # what a layer gives is normed before or after it is added, so it has no fixed effect
    if parts[2:] in (["attention"], ["mlp"]):
        return [] if not site.endswith(INPUT) else None
    if parts[2:] in (["attention", "proj"], ["mlp", "proj"]):
        proj = model.get_submodule(".".join(parts))
        assert isinstance(proj, nn.Linear)
        return [proj] if site.endswith(INPUT) else []
    return None


def direct_path(model: LanguageModel, site: str) -> tuple[list[nn.Linear], bool]:
    """The linear maps that a direction at `site` passes on its way to the head, and whether the final norm follows.

    In a Transformer everything that is added to the residual stream has such a path; in other families what the head
    reads has one. Raises ValueError for a site that the model has not, and saying why for one without such a path.
    """
    require_site(model, site)
    if site == HIDDEN or (isinstance(model, LSTM) and site == f"rnn.h.{model.rnn.num_layers - 1}"):
        return [], False
    maps = _into_stream(model, site) if isinstance(model, Transformer) else None
    if maps is None:
        raise ValueError(
            f"{site} of this {model.config.family} model reaches the logits through later layers alone, "
            "so a feature there has no direct effect on tokens that one could list"
        )
    return maps, True


@torch.no_grad()
def stream_scale(model: Transformer, idx: Tensor, mask: Tensor) -> float:
    """By how much a Transformer's final norm scales the residual stream at the tokens `mask` of ids `idx`, both (B, T).

    The mean over these tokens of 1 / RMS(x), of 1 / standard deviation for LayerNorm, as the norm computes them; its
    gain is not in it.
    """
    x = activations(model, idx, [STREAM])[STREAM][mask]  # (M, C)
    norm = model.norm
    assert isinstance(norm, (RMSNorm, nn.LayerNorm))
    x = x if isinstance(norm, RMSNorm) else x - x.mean(-1, keepdim=True)
    return float((x.square().mean(-1) + norm.eps).rsqrt().mean())


@torch.no_grad()
def direct_effect(model: LanguageModel, site: str, direction: Tensor, scale: float = 1.0) -> Tensor:
    """Change of the logits (V,), in nats, when `direction` (C,) is added at `site` and no later layer takes notice.

    The final norm is held at a fixed `scale` (see `stream_scale`) with its gain folded in, as in the logit lens
    (nostalgebraist 2020; for one neuron: Elhage et al. 2021, "A mathematical framework for transformer circuits").
    The mean over the vocabulary, which no probability depends on, is taken off. Errors as in `direct_path`.
    """
    maps, normed = direct_path(model, site)
    for layer in maps:
        direction = layer.weight @ direction
    if normed:
        norm = model.get_submodule("norm")
        direction = direction if isinstance(norm, RMSNorm) else direction - direction.mean()
        direction = direction * norm.get_parameter("weight") * scale
    effect = model.head.weight @ direction
    return effect - effect.mean()
