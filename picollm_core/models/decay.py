"""What happens to the memory of a linear mixer inside a chunk: decay by gates, and forgetting at resets.

Symbols as in linear_attention. Decays enter as exp of a sum of log decays between two tokens, which is never positive,
or bounded where it is split into two factors, so nothing overflows. Each sum is added up from nothing rather than taken
as the difference of two long ones, so gates that forget at once cost no precision in what comes after them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SAFE_EXPONENT = 30.0  # e^30 is far from float32's limit, e^88, and 30 is still exact to 2e-6


class Reach(NamedTuple):
    """Whose writing is still in the memory inside one chunk, given causality and resets.

    `pairs`, (C, C) or (B, 1, N, C, C), is true where row i still holds what column j wrote. `entering` and `leaving`,
    (B, 1, N, C, 1) or None for "all", are 1 where a token still sees the state that enters the chunk, and where what it
    writes is part of the state that leaves.
    """

    pairs: Tensor
    entering: Tensor | None = None
    leaving: Tensor | None = None

    @classmethod
    def of(cls, resets: Tensor | None, chunk: int, like: Tensor) -> "Reach":
        """From resets (B, N, C) or None."""
        causal = torch.ones(chunk, chunk, dtype=torch.bool, device=like.device).tril()
        if resets is None:
            return cls(causal)
        piece = resets.cumsum(dim=-1)  # (B, N, C): how often the memory was emptied since the chunk began
        same = (piece.unsqueeze(-1) == piece.unsqueeze(-2)).unsqueeze(1)  # (B, 1, N, C, C)
        entering, leaving = ((piece == other)[:, None, ..., None].to(like) for other in (0, piece[..., -1:]))
        return cls(same & causal, entering, leaving)

    def seen(self, x: Tensor) -> Tensor:
        """x (B, H, N, C, D) without the rows that no longer see the entering state."""
        return x if self.entering is None else x * self.entering

    def kept(self, x: Tensor) -> Tensor:
        """x (B, H, N, C, D) without the rows that are forgotten before the chunk ends."""
        return x if self.leaving is None else x * self.leaving

    def survival(self, decay: Tensor) -> Tensor:
        """The decay (B, H, N, 1, D) of the state over the whole chunk, 0 where a reset empties it."""
        return decay if self.entering is None else decay * self.entering[..., -1:, :]


class Decayed(NamedTuple):
    """Queries and keys of one chunk after decay: q_i k_j e^(g_{j+1} + ... + g_i), and what state updates need."""

    scores: Tensor  # (B, H, N, C, C), right where i >= j
    queries: Tensor  # (B, H, N, C, Dk), decayed since the chunk began
    keys: Tensor  # (B, H, N, C, Dk), decayed until the chunk ends
    whole: Tensor  # (B, H, N, 1, Dk) or (B, H, N, 1, 1), decay over the whole chunk


def sums_between(g: Tensor) -> Tensor:
    """Sums of g (..., C) from behind token j to token i as (..., C, C) with row i and column j; 0 where i <= j."""
    chunk = g.size(-1)
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=g.device).tril(-1)  # row m, column j: m > j
    return torch.where(later, g.unsqueeze(-1), 0.0).cumsum(dim=-2)


def without_decay(q: Tensor, k: Tensor) -> Decayed:
    """For memories that hold what they hold."""
    return Decayed(q @ k.mT, q, k, q.new_ones(1, 1, 1, 1, 1))


def scalar_decay(q: Tensor, k: Tensor, g: Tensor) -> Decayed:
    """For g (B, H, N, C, 1): one decay for all channels, so that it multiplies finished scores."""
    g = g.squeeze(-1)
    since = g.cumsum(dim=-1).unsqueeze(-1).exp()  # (B, H, N, C, 1)
    between = sums_between(g).exp()  # (B, H, N, C, C)
    until = between[..., -1, :].unsqueeze(-1)  # (B, H, N, C, 1)
    return Decayed(q @ k.mT * between, q * since, k * until, since[..., -1:, :])


def vector_decay(q: Tensor, k: Tensor, g: Tensor) -> Decayed:
    """For g (B, H, N, C, Dk), C a power of 2: scores of blocks, each then made of two of half its size.

    Between a block and the block before it, the sum of g splits at the border into the query's part and the key's part,
    neither above 0, so that one matrix product of (Q e^since) and (K e^until) gives the scores: the secondary chunking
    of Yang et al. 2024 (arXiv 2312.06635, section 4.3). The smallest blocks are as long as the gates allow: inside them
    both parts begin at the block's first token, and the key's part is at most SAFE_EXPONENT. Under gates so strong that
    this is one token, which does not decay at all, no block of C x C x Dk exponents is left to be written out.
    """
    chunk, strongest = q.size(-2), -g.detach().amin().item()
    block = chunk
    while block > 1 and block * strongest > SAFE_EXPONENT:
        block //= 2
    since = g.unflatten(-2, (-1, block)).cumsum(dim=-2)  # (B, H, N, blocks, tokens, Dk)
    whole = since[..., -1:, :]
    until = torch.zeros_like(since)
    early, late = (x.unflatten(-2, (-1, block)) for x in (k, q))
    if block > 1:
        until = whole - since
        since_first = since - since[..., :1, :]
        early, late = early * (-since_first).exp(), late * since_first.exp()
    scores = late @ early.mT  # (B, H, N, blocks, tokens, tokens)
    while block < chunk:
        early, late = (x.unflatten(-2, (-1, 2, block))[..., part, :, :] for part, x in enumerate((k, q)))
        (since_old, since_new), (until_old, until_new), (old, new) = _halves(since), _halves(until), _halves(whole)
        across = (late * since_new.exp()) @ (early * until_old.exp()).mT
        first, second = _halves(scores)
        scores = torch.cat([F.pad(first, (0, block)), torch.cat([across, second], dim=-1)], dim=-2)
        since = torch.cat([since_old, since_new + old], dim=-2)
        until = torch.cat([until_old + new, until_new], dim=-2)
        whole = old + new
        block *= 2
    since, until, whole, scores = (x.squeeze(3) for x in (since, until, whole, scores))
    return Decayed(scores, q * since.exp(), k * until.exp(), whole.exp())


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks (..., 2 n, c, D) as the first and the second of each pair, (..., n, c, D)."""
    first, second = x.unflatten(-3, (-1, 2)).unbind(-3)
    return first, second
