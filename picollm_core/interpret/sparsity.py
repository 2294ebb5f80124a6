"""What makes a code sparse: TopK, BatchTopK, ReLU with an L1 penalty, JumpReLU. Passed to SparseAutoencoder.

Each maps pre-activations (..., F) to codes (..., F) >= 0 and says what it adds to the training loss. N tokens, F
dictionary entries.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from picollm_core.config_base import require

STARTING_L0 = 32
"""Active features a token that a ReLU begins with."""


class SparseActivation(nn.Module, ABC):
    """Base of all kinds. `attach` is called once, by the autoencoder that takes it."""

    kind: str

    def attach(self, dict_size: int) -> None:
        """Fit to a dictionary of this size. ValueError when it cannot be."""

    @abstractmethod
    def forward(self, pre: Tensor) -> Tensor:
        """Codes of pre-activations, both (..., F)."""

    def start(self, pre: Tensor) -> Tensor:
        """Called once with the first pre-activations (N, F); what to add to the encoder's bias (F,), or zeros.

        Without it, kinds that have no k would begin with half of the features active, and spend their training on that.
        """
        return pre.new_zeros(pre.size(-1))

    def penalty(self, pre: Tensor, z: Tensor) -> Tensor:
        """What sparsity costs in the training loss: a scalar, from pre-activations and codes (N, F)."""
        return z.new_zeros(())

    def settings(self) -> dict[str, Any]:
        """What `build_activation` makes the same kind from."""
        return {"kind": self.kind}


def _require_count(k: int, dict_size: int) -> None:
    require(dict_size >= k, f"dict_size is {dict_size}, smaller than the k={k} of its activation; take a larger one")


def _exceeded_by(pre: Tensor, count: float) -> Tensor:
    """Values (F,) that pre-activations (N, F) exceed so often that `count` features a token do, at least 0.01."""
    share = min(count / pre.size(-1), 1.0)
    place = min(max(1, round((1 - share) * len(pre))), len(pre))
    return pre.kthvalue(place, dim=0).values.clamp(min=0.01)


class TopK(SparseActivation):
    """The k largest pre-activations of each token, as far as they are positive (Gao et al. 2024, arXiv 2406.04093)."""

    kind = "topk"

    def __init__(self, k: int = 32) -> None:
        super().__init__()
        require(k >= 1, f"k is {k}; a code needs at least 1 active feature")
        self.k = k

    def attach(self, dict_size: int) -> None:
        _require_count(self.k, dict_size)

    def forward(self, pre: Tensor) -> Tensor:
        top = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, top.indices, F.relu(top.values))

    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "k": self.k}


class BatchTopK(SparseActivation):
    """In training the N k largest of a batch of N tokens; afterwards all above a fixed threshold, token by token.

    The threshold is the running mean of the smallest value that was kept (Bussmann et al. 2024, arXiv 2412.06410,
    eq. 6), so that what a token's code is does not depend on its neighbours in a batch.
    """

    kind = "batchtopk"
    threshold: Tensor

    def __init__(self, k: int = 32, momentum: float = 0.95) -> None:
        super().__init__()
        require(k >= 1, f"k is {k}; a code needs at least 1 active feature")
        require(0 <= momentum < 1, f"momentum is {momentum}; it must lie in [0, 1)")
        self.k, self.momentum = k, momentum
        self.register_buffer("threshold", torch.tensor(-1.0))  # below 0: nothing has been seen yet

    def attach(self, dict_size: int) -> None:
        _require_count(self.k, dict_size)

    def forward(self, pre: Tensor) -> Tensor:
        positive = F.relu(pre)
        if not self.training:
            return positive * (positive > self.threshold)
        count = self.k * (pre.numel() // pre.size(-1))
        least = positive.detach().flatten().kthvalue(pre.numel() - count + 1).values
        with torch.no_grad():
            seen = self.threshold >= 0
            self.threshold.copy_(torch.where(seen, torch.lerp(least, self.threshold, self.momentum), least))
        return positive * (positive >= least)

    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "k": self.k, "momentum": self.momentum}


class ReLU(SparseActivation):
    """max(pre, 0), with the mean L1 norm of a token's code as its price (Bricken et al. 2023)."""

    kind = "relu"

    def __init__(self, l1: float = 0.02) -> None:
        super().__init__()
        require(l1 >= 0, f"l1 is {l1}; a price cannot be negative")
        self.l1 = l1

    def forward(self, pre: Tensor) -> Tensor:
        return F.relu(pre)

    def start(self, pre: Tensor) -> Tensor:
        return -_exceeded_by(pre, STARTING_L0)

    def penalty(self, pre: Tensor, z: Tensor) -> Tensor:
        return self.l1 * z.abs().sum(-1).mean()

    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "l1": self.l1}


class _Jump(torch.autograd.Function):
    """pre * 1[pre > theta] and 1[pre > theta], with the pseudo-derivatives for theta of arXiv 2407.14435, eq. 11-12.

    A kernel of height 1 and width `bandwidth` around the jump stands for its derivative, which is zero or infinite.
    """

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        above = (pre > theta).to(pre.dtype)
        ctx.save_for_backward(pre, theta, above)
        ctx.bandwidth = bandwidth
        return pre * above, above

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_z: Tensor, grad_above: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, theta, above = ctx.saved_tensors
        near = ((pre - theta).abs() < ctx.bandwidth / 2).to(pre.dtype) / ctx.bandwidth
        grad_theta = -(near * (theta * grad_z + grad_above)).flatten(0, -2).sum(0)
        return grad_z * above, grad_theta, None


class JumpReLU(SparseActivation):
    """pre where it exceeds the feature's own trained threshold, else 0 (Rajamanoharan et al. 2024, arXiv 2407.14435).

    The price is the squared distance of the mean number of active features from `target`, relative to `target`
    (section 5 of that paper), so that kinds can be compared at an equal number.
    """

    kind = "jumprelu"
    log_threshold: nn.Parameter

    def __init__(self, target: float = 32.0, weight: float = 1.0, bandwidth: float = 0.3) -> None:
        super().__init__()
        for name, value in (("target", target), ("bandwidth", bandwidth)):
            require(value > 0, f"{name} is {value}; it must be above 0")
        require(weight >= 0, f"weight is {weight}; a price cannot be negative")
        self.target, self.weight, self.bandwidth = target, weight, bandwidth

    def attach(self, dict_size: int) -> None:
        _require_count(int(self.target), dict_size)
        self.log_threshold = nn.Parameter(torch.zeros(dict_size))  # 1, until start() has seen data

    def forward(self, pre: Tensor) -> Tensor:
        return _Jump.apply(F.relu(pre), self.log_threshold.exp(), self.bandwidth)[0]

    @torch.no_grad()
    def start(self, pre: Tensor) -> Tensor:
        self.log_threshold.copy_(_exceeded_by(pre, self.target).log())
        return super().start(pre)

    def penalty(self, pre: Tensor, z: Tensor) -> Tensor:
        above = _Jump.apply(F.relu(pre), self.log_threshold.exp(), self.bandwidth)[1]
        return self.weight * (above.sum(-1).mean() / self.target - 1).square()

    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "target": self.target, "weight": self.weight, "bandwidth": self.bandwidth}


ACTIVATION_KINDS: dict[str, type[SparseActivation]] = {c.kind: c for c in (TopK, BatchTopK, ReLU, JumpReLU)}


def build_activation(settings: dict[str, Any]) -> SparseActivation:
    """The activation that `settings()` describes. ValueError for an unknown kind or field."""
    values = dict(settings)
    kind = values.pop("kind", None)
    require(
        kind in ACTIVATION_KINDS, f"activation kind {kind!r} is unknown; choose one of {', '.join(ACTIVATION_KINDS)}"
    )
    try:
        return ACTIVATION_KINDS[kind](**values)
    except TypeError as error:
        raise ValueError(f"activation {kind!r} cannot be built from {values}: {error}") from error
