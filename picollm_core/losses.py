"""Next-token loss without ever holding a (tokens x vocabulary) matrix of logits.

At V = 50,257 the logits of one batch are larger than everything else in a training step. Here the head, the softmax
and both gradients are computed for a few rows at a time, in a buffer that fits the processor's cache, and only the
(N, C) and (V, C) gradients are kept. Shape legend: N scored tokens, C width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from picollm_core.models.base import LanguageModel

IGNORE = -100  # a target that is not scored, as in torch.nn.functional.cross_entropy
_CHUNK_BYTES = 16_000_000  # measured: smaller chunks waste the matrix product, larger ones fall out of the cache
_WIDE, _WIDE_FACTOR, _WIDE_FACTOR_LOW = (
    128,
    4,
    8,
)  # above this width the products outweigh the softmax and want more rows at a time
_GPU_FACTOR = 16  # a GPU wants larger products and has no such cache; not measured
_LANES = 32  # products in 16 bits want a multiple of this many rows
_PIECE = 4096  # rows of the weight's gradient added up at a time, so that their copy in its type stays in the cache
_UNDERFLOW = 1e-20  # below this a probability in low precision says too little about its logarithm


def full_logits_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of hidden (N, C) @ weight.T (V, C) against targets (N,): the truth for the chunked path."""
    return F.cross_entropy(hidden @ weight.T, targets)


def _chunk_rows(weight: Tensor) -> int:
    """How many rows of logits to hold at a time for a head `weight` (V, C)."""
    low, wide = weight.element_size() == 2, weight.size(1) > _WIDE
    factor = (_WIDE_FACTOR_LOW if low else _WIDE_FACTOR) if wide else 1
    rows = _CHUNK_BYTES * (_GPU_FACTOR if weight.device.type == "cuda" else factor)
    rows //= weight.size(0) * weight.element_size()
    return max(1, (low and rows // _LANES * _LANES) or rows)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy whose gradients are computed with the loss, chunk by chunk.

    d loss / d logits = (softmax(logits) - onehot(target)) / N, so each chunk's logits can be overwritten by their
    softmax, multiplied into the two results and forgotten. The one-hot part is a single row a token in each result and
    needs no chunk. Matrix products take the type of `hidden` and `weight`; sums over chunks are kept in the type of
    `master_weight`.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, master_weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        n, weight, rounded = targets.numel(), master_weight.to(dtype), hidden.to(dtype)
        rows, lowered = _chunk_rows(weight), dtype != master_weight.dtype
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(master_weight)
        nll = torch.zeros((), dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=hidden.device)
        buffer = weight.new_empty(min(rows, n), weight.size(0))
        product = torch.empty_like(weight) if lowered else weight  # one buffer for all chunks: fresh memory is slow
        for start in range(0, n, rows):
            h, target = rounded[start : start + rows], targets[start : start + rows, None]
            logits = torch.mm(h, weight.T, out=buffer[: len(h)])  # (rows, V)
            p = torch.softmax(logits, dim=-1, out=logits)
            likelihood = p.gather(1, target).to(nll.dtype)
            nll -= likelihood.clamp_min(_UNDERFLOW).log().sum()
            lost = (likelihood < _UNDERFLOW).squeeze(1)
            if lost.any():
                exact = F.cross_entropy((h[lost] @ weight.T).to(nll.dtype), target[lost, 0], reduction="sum")
                nll += exact + likelihood[lost].clamp_min(_UNDERFLOW).log().sum()
            grad_hidden[start : start + rows] = p @ weight
            if lowered:
                torch.mm(p.T, h, out=product)
                for total, part in zip(grad_weight.split(_PIECE), product.split(_PIECE), strict=True):
                    total += part
            else:
                grad_weight.addmm_(p.T, h)
        grad_hidden -= weight[targets]
        grad_weight.index_add_(0, targets, rounded.to(grad_weight.dtype), alpha=-1)
        ctx.gradients = grad_hidden.div_(n), grad_weight.div_(n)
        return (nll / n).to(hidden.dtype if dtype == torch.float64 else torch.float32)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("the chunked loss was already differentiated; compute the loss again")
        (grad_hidden, grad_weight), ctx.gradients = ctx.gradients, None  # scaled in place, so they are given once
        return grad_hidden.mul_(grad_loss), grad_weight.mul_(grad_loss), None, None


def chunked_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of hidden (N, C) under the head `weight` (V, C) against targets (N,).

    Equals `full_logits_loss` without its logits. Under autocast the matrix products run in the autocast type, and
    gradients agree to that type's precision; the sums stay in the weights' own type. Not twice differentiable.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
            return _ChunkedCrossEntropy.apply(hidden, weight, targets, dtype)
        return token_nll(hidden, weight, targets)[0].mean()


def next_token_loss(model: LanguageModel, idx: Tensor, targets: Tensor) -> Tensor:
    """Mean loss in nats over the targets other than -100; idx and targets are (B, T).

    Raises ValueError when the shapes differ, an id is outside the vocabulary, or nothing is to be scored.
    """
    if idx.shape != targets.shape:
        raise ValueError(f"idx has shape {tuple(idx.shape)} but targets have {tuple(targets.shape)}")
    hidden, _ = model.hidden(idx)
    hidden, targets = hidden.flatten(0, 1), targets.flatten()  # (B T, C), (B T,)
    scored = targets != IGNORE
    if not scored.all():
        hidden, targets = hidden[scored], targets[scored]
    if targets.numel() == 0:
        raise ValueError(f"all {scored.numel()} targets are {IGNORE} (not scored); a loss needs at least one")
    low, high = (int(v) for v in torch.aminmax(targets))
    if low < 0 or high >= model.config.vocab_size:
        raise ValueError(f"target {low if low < 0 else high} is outside the vocabulary of {model.config.vocab_size}")
    return chunked_loss(hidden, model.head.weight, targets)


@torch.no_grad()
def token_nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss in nats of each token (N,) and whether the most likely token was right (N,), for hidden (N, C).

    `weight` is the head's (V, C). Computed in float32, or float64 for float64 weights, under autocast too, a few rows
    at a time.
    """
    weight = weight if weight.dtype == torch.float64 else weight.float()
    rows = _chunk_rows(weight)
    nll = torch.empty(targets.shape, dtype=weight.dtype, device=hidden.device)
    correct = torch.empty_like(targets, dtype=torch.bool)
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, targets.numel(), rows):
            logits = hidden[start : start + rows].to(weight.dtype) @ weight.T  # (rows, V)
            target = targets[start : start + rows]
            nll[start : start + rows] = F.cross_entropy(logits, target, reduction="none")
            correct[start : start + rows] = logits.argmax(dim=-1) == target
    return nll, correct
