"""Direct logit attribution: which parts of a model speak for and against a token, in sums that come out.

All that a Transformer's head reads is a sum: of the embedding, of what each attention head adds, of what each MLP adds
(Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"). Norms divide that sum by its size; with the
size held at its value in this run they are linear, and every part keeps its share. A part's share is what it says to
the head itself; what it says through later parts is counted as theirs.
K parts, B rows, C width, H heads of width D, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from picollm_core.config import require
from picollm_core.interpret.hooks import HIDDEN, INPUT, activations
from picollm_core.models import LanguageModel
from picollm_core.models.experts import MixtureOfExperts
from picollm_core.models.layers import RMSNorm
from picollm_core.models.transformer import Block, Transformer

Parts = dict[str, Tensor]  # a name and (B, C) each
BIASES = "biases"


@dataclass(frozen=True, eq=False)
class Attribution:
    """Shares of the parts `names` in what the head reads at one position: `hidden` (K, B, C), in float64.

    `head` is the head's weight (V, C).
    """

    names: tuple[str, ...]
    hidden: Tensor
    head: Tensor

    def contributions(self, tokens: Sequence[int] | None = None, centred: bool = False) -> Tensor:
        """Shares in the logits of `tokens` (n,), or of all: (K, B, n), whose sum over the parts is the logits (B, n).

        `centred` subtracts from each share its mean over the vocabulary: probabilities do not change, and a share says
        how far a part prefers this token to the average one. Raises ValueError for a token outside the vocabulary.
        """
        vocab_size = len(self.head)
        chosen = list(range(vocab_size)) if tokens is None else list(tokens)
        for token in chosen:
            require(0 <= token < vocab_size, f"token {token} is outside the vocabulary of {vocab_size}")
        weight = self.head[chosen].double()  # (n, C)
        if centred:
            weight = weight - self.head.double().mean(0)
        return self.hidden @ weight.T

    def logits(self) -> Tensor:
        """The logits (B, V) that the shares add up to."""
        return self.contributions().sum(0)


def _exact(x: Tensor) -> Tensor:
    """Sums of many parts are kept in float64, which not every device has."""
    return x.detach().cpu().double()


def _plus(first: Parts, second: Parts) -> Parts:
    """Both together; a part that is in both is the sum."""
    both = {name: first[name] + second[name] for name in first.keys() & second.keys()}
    return {**first, **second, **both}


def _through(norm: nn.Module, x: Tensor, parts: Parts) -> Parts:
    """Parts (B, C) of the sum x (B, C) through a norm of x, whose scale stays the one it has for x.

    A LayerNorm's bias joins the other biases.
    """
    assert isinstance(norm, RMSNorm | nn.LayerNorm)
    stacked = torch.stack(list(parts.values()))  # (K, B, C)
    if isinstance(norm, nn.LayerNorm):  # its variance is the mean square of x less the mean, which is linear in x
        x, stacked = x - x.mean(-1, keepdim=True), stacked - stacked.mean(-1, keepdim=True)
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)  # (B, 1)
    normed = dict(zip(parts, stacked * scale * _exact(norm.weight), strict=True))
    bias = getattr(norm, "bias", None)
    return normed if bias is None else _plus(normed, {BIASES: _exact(bias).expand_as(x)})


def _heads(block: Block, layer: int, outputs: Tensor) -> Parts:
    """What each head adds through its columns of the projection, for the heads' outputs (B, H D) side by side."""
    proj, n_head = block.attention.proj, block.attention.n_head
    columns = _exact(proj.weight).unflatten(1, (n_head, -1))  # (C, H, D)
    added = torch.einsum("bhd,chd->hbc", outputs.unflatten(1, (n_head, -1)), columns)  # (H, B, C)
    parts = {f"layer {layer + 1} head {head}": x for head, x in enumerate(added, 1)}
    return parts if proj.bias is None else {**parts, BIASES: _exact(proj.bias).expand_as(added[0])}


def _after_block(block: Block, layer: int, parts: Parts, at: Parts) -> Parts:
    """The parts of the residual stream after a block; `at` holds what passed at its sites."""
    heads = _heads(block, layer, at[f"attention.proj{INPUT}"])
    kind = "experts" if isinstance(block.mlp, MixtureOfExperts) else "MLP"
    mlp = {f"layer {layer + 1} {kind}": at["mlp"]}
    if block.place_of_norm == "post":
        parts = _through(block.norm_attention, at[f"norm_attention{INPUT}"], _plus(parts, heads))
        return _through(block.norm_mlp, at[f"norm_mlp{INPUT}"], _plus(parts, mlp))
    if block.place_of_norm == "sandwich":
        heads = _through(block.norm_attention_out, at[f"norm_attention_out{INPUT}"], heads)
        mlp = _through(block.norm_mlp_out, at[f"norm_mlp_out{INPUT}"], mlp)
    return _plus(parts, _plus(heads, mlp))


def _sites(model: Transformer) -> list[str]:
    """All that is read while the model runs: what parts add, and what norms are given."""
    names = [f"attention.proj{INPUT}", "mlp"]
    if model.config.norm == "post":
        names += [f"norm_attention{INPUT}", f"norm_mlp{INPUT}"]
    if model.config.norm == "sandwich":
        names += [f"norm_attention_out{INPUT}", f"norm_mlp_out{INPUT}"]
    in_blocks = [f"blocks.{layer}.{name}" for layer in range(len(model.blocks)) for name in names]
    return ["embedding", *in_blocks, f"norm{INPUT}"]


def _require_position(idx: Tensor, position: int) -> None:
    require(idx.ndim == 2, f"ids have shape {tuple(idx.shape)}; give (B, T), for one text (1, T)")
    length = idx.size(1)
    require(-length <= position < length, f"position is {position}, but the ids have {length} positions")


def direct_attribution(model: LanguageModel, idx: Tensor, position: int = -1) -> Attribution:
    """The parts of a Transformer that make its logits at `position` of ids `idx` (B, T), with their shares.

    Parts: "embedding"; "position" where positions are added to it; "layer i head h"; "layer i MLP", or "layer i
    experts" for a mixture as one; "biases", where there are any, of all projections and norms outside the MLPs. For
    every kind of norm, mixer and position; the scales of norms are those of this run. The shares sum to the logits,
    which float64 shows to 1e-12. Raises ValueError for a position that the ids have not, and for families whose state
    is no sum of parts (`neuron_attribution` is for them).
    """
    _require_position(idx, position)
    if not isinstance(model, Transformer):
        raise ValueError(
            f"a {model.config.family} model has no residual stream that its parts add to; "
            "neuron_attribution gives the share of each neuron that its head reads"
        )
    seen = {site: _exact(x[:, position]) for site, x in activations(model, idx, _sites(model)).items()}
    parts = {"embedding": seen["embedding"]}
    place = position % idx.size(1)
    if model.positions is not None:
        parts["position"] = _exact(model.positions.weight[place]).expand_as(parts["embedding"])
    if model.waves is not None:
        wave = model.waves.table(place, 1, model.head.weight)[0]
        parts["position"] = _exact(wave).expand_as(parts["embedding"])
    for layer, block in enumerate(model.blocks):
        prefix = f"blocks.{layer}."
        inside = {site.removeprefix(prefix): x for site, x in seen.items() if site.startswith(prefix)}
        parts = _after_block(block, layer, parts, inside)
    parts = _through(model.norm, seen[f"norm{INPUT}"], parts)
    if BIASES in parts:
        parts[BIASES] = parts.pop(BIASES)  # last
    return Attribution(tuple(parts), torch.stack(list(parts.values())), model.head.weight.detach().cpu())


def neuron_attribution(model: LanguageModel, idx: Tensor, position: int = -1) -> Attribution:
    """The share of each neuron that the head reads in the logits at `position` of ids `idx` (B, T), for any family.

    Parts "neuron 1" to "neuron C": a neuron's value times its column of the head. Raises ValueError for a position
    that the ids have not.
    """
    _require_position(idx, position)
    hidden = _exact(activations(model, idx, [HIDDEN])[HIDDEN][:, position])  # (B, C)
    names = tuple(f"neuron {i}" for i in range(1, hidden.size(1) + 1))
    return Attribution(names, hidden.diag_embed().movedim(1, 0), model.head.weight.detach().cpu())
