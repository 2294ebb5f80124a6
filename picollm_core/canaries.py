"""Canaries: random secrets planted in a training text, to measure what a model keeps of a text it saw r times.

Carlini et al. 2019 (arXiv 1802.08232). A canary is a fixed prefix and a secret of `length` words out of a pool; the
model ranks all R = pool ** length possible secrets by their probability, and exposure is log2 R - log2 rank: log2 R
for a secret that the model thinks the likeliest, about 1 / ln 2 = 1.44 for one that it knows nothing of. The space is
small enough here to rank all of it, so no exposure is estimated. R secrets, B batch, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from picollm_core.config import require
from picollm_core.inference import evaluation_mode
from picollm_core.models.base import LanguageModel

LARGEST_SPACE = 2**20
"""Secrets that are ranked one by one; more would take minutes on a processor."""


@dataclass(frozen=True)
class CanarySpace:
    """All canaries: token ids `prefix`, then `length` tokens, each one of the `pool`. Secret number i spells i in base
    len(pool). Raises ValueError for an empty prefix, a pool of fewer than two different tokens, and a space too large.
    """

    prefix: tuple[int, ...]
    pool: tuple[int, ...]
    length: int

    def __post_init__(self) -> None:
        require(len(self.prefix) > 0, "the prefix is empty; a canary needs at least one token before its secret")
        require(
            len(set(self.pool)) == len(self.pool) >= 2,
            f"the pool has {len(self.pool)} tokens, {len(set(self.pool))} different; give two or more, each once",
        )
        require(self.length >= 1, f"length is {self.length}; a secret has at least 1 token")
        require(
            self.size <= LARGEST_SPACE,
            f"{len(self.pool)} ** {self.length} = {self.size:,} secrets are more than {LARGEST_SPACE:,}; "
            "take a smaller pool or a shorter secret, so that all can be ranked",
        )

    @property
    def size(self) -> int:
        """|R|, the number of secrets."""
        return len(self.pool) ** self.length

    def secrets(self, numbers: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens of the secrets of these numbers, (n, length). Raises ValueError for a number outside the space."""
        places = np.asarray(numbers, dtype=np.int64)
        require(
            places.size == 0 or (places.min() >= 0 and places.max() < self.size),
            f"secrets are numbered from 0 to {self.size - 1}",
        )
        digits = np.stack(np.unravel_index(places, (len(self.pool),) * self.length), axis=-1)
        return np.asarray(self.pool, dtype=np.int64)[digits]

    def draw(self, count: int, seed: int) -> list[int]:
        """`count` different secrets' numbers at random. Raises ValueError for more than there are, and below 1."""
        require(1 <= count <= self.size, f"{count} canaries of a space of {self.size}; ask for 1 to {self.size}")
        return np.random.default_rng(seed).choice(self.size, count, replace=False).tolist()


def planted(
    stories: Sequence[Sequence[int]], space: CanarySpace, times: Mapping[int, int], seed: int
) -> list[Sequence[int]]:
    """The stories with every canary of `times` (number -> how often) among them, each copy at a random place.

    A copy is a story of its own. Copies of nothing (0 times) are allowed: canaries kept back as a control. The stories
    keep their order. Raises ValueError without canaries and for a negative number of copies.
    """
    require(len(times) > 0, "the list of canaries is empty; give at least one")
    require(min(times.values()) >= 0, f"a canary is to be planted {min(times.values())} times; give 0 or more")
    secrets = space.secrets(list(times)).tolist()
    copies = [
        [*space.prefix, *secret] for secret, count in zip(secrets, times.values(), strict=True) for _ in range(count)
    ]
    total = len(stories) + len(copies)
    generator = np.random.default_rng(seed)
    places = generator.choice(total, len(copies), replace=False).tolist()
    at = dict(zip(places, copies, strict=True))
    rest = iter(stories)
    return [at[i] if i in at else next(rest) for i in range(total)]


@torch.no_grad()
def secret_nats(model: LanguageModel, space: CanarySpace, start: int, *, batch_size: int = 512) -> NDArray[np.float64]:
    """Nats that the model pays for every secret after `start` (the end-of-text token) and the prefix, (R,).

    All canaries have one prefix and one length, so their order by this is that of their log-perplexities. Raises
    ValueError for a token outside the vocabulary, and where a canary exceeds the model's window.
    """
    limit, total = model.context_limit, len(space.prefix) + space.length
    require(limit is None or total <= limit, f"a canary has {total} tokens, the model's window holds {limit}")
    secrets = torch.from_numpy(space.secrets(np.arange(space.size)))  # (R, length)
    device, first = model.head.weight.device, len(space.prefix)
    nats = []
    with evaluation_mode(model):
        for part in secrets.to(device).split(batch_size):
            before = torch.tensor([start, *space.prefix], device=device).expand(len(part), -1)
            idx = torch.cat([before, part[:, :-1]], dim=1)  # (B, 1 + prefix + length - 1)
            h, _ = model.hidden(idx, model.init_state(len(idx)))
            logits = model.head(h[:, first:]).double()  # (B, length, V)
            nats.append(-logits.log_softmax(-1).gather(-1, part.unsqueeze(-1)).sum((1, 2)).cpu().numpy())
    return np.concatenate(nats)


def exposures(nats: NDArray[np.float64], numbers: Sequence[int]) -> NDArray[np.float64]:
    """Exposure in bits of the secrets of these numbers, given the nats of all (R,): log2 R - log2 rank.

    Rank 1 is the likeliest; of equal secrets each gets the middle of the ranks that they share. Raises ValueError
    without canaries and for numbers outside the space.
    """
    from scipy.stats import rankdata  # slow to import, and needed only here

    require(len(numbers) > 0, "the list of canaries is empty; give at least one")
    require(min(numbers) >= 0 and max(numbers) < nats.size, f"secrets are numbered from 0 to {nats.size - 1}")
    ranks = rankdata(nats)[np.asarray(numbers)]
    return math.log2(nats.size) - np.log2(ranks)


def chance_exposure(size: int) -> tuple[float, float]:
    """Mean and standard deviation in bits of the exposure of a secret that the model knows nothing of.

    Its rank is uniform on 1..size, so the mean is log2 size - log2(size!) / size, which rises to 1 / ln 2 = 1.4427 as
    the space grows. Raises ValueError for size < 1.
    """
    require(size >= 1, f"size is {size}; a space holds at least one secret")
    values = math.log2(size) - np.log2(np.arange(1, size + 1))
    return float(values.mean()), float(values.std())
