"""Mixture of experts: each token passes through a few of many MLPs. C width, E experts, K chosen ones, N tokens."""

import torch
from torch import Tensor, nn

from picollm_core.config import TransformerConfig
from picollm_core.models.layers import activate, linear, mlp_widths


class MixtureOfExperts(nn.Module):
    """Sum of the K experts with the largest router logits, each times its share of those logits' softmax.

    Takes and returns (..., C).
    The softmax is over the chosen logits, as in Mixtral (arXiv 2401.04088, section 2.1) and gpt-oss. `load` holds the
    share of all choices that fell on each expert in the last forward pass, (E,): 1 / E each is even.
    """

    load: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        (outer, inner), n, width = mlp_widths(config), config.n_expert, config.n_embd
        self.n_active, self.activation = config.n_expert_active, config.activation
        self.router = linear(width, n, config.bias)
        self.fc = nn.Parameter(torch.empty(n, width, outer))
        self.proj = nn.Parameter(torch.empty(n, inner, width))
        # biases of all experts lie in one vector, so that weight decay, which spares vectors, spares them
        self.fc_bias = nn.Parameter(torch.zeros(n * outer)) if config.bias else None
        self.proj_bias = nn.Parameter(torch.zeros(n * width)) if config.bias else None
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("load", torch.full((n,), 1 / n), persistent=False)

    def initialise(self, std: float, residual_std: float) -> None:
        """Normal weights of the given standard deviations."""
        nn.init.normal_(self.fc, std=std)
        nn.init.normal_(self.proj, std=residual_std)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (N, K), summing to 1, and numbers (N, K) of the experts of tokens x (N, C)."""
        logits = self.router(x)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        largest, chosen = logits.topk(self.n_active, dim=-1)
        return largest.softmax(dim=-1).to(x.dtype), chosen

    def experts(self) -> list[tuple[Tensor, Tensor | None, Tensor, Tensor | None]]:
        """First matrix and bias, second matrix and bias of every expert; unbound, so gradients are stacked once."""
        n = self.fc.size(0)
        first = [None] * n if self.fc_bias is None else self.fc_bias.view(n, -1).unbind()
        second = [None] * n if self.proj_bias is None else self.proj_bias.view(n, -1).unbind()
        return list(zip(self.fc.unbind(), first, self.proj.unbind(), second, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)  # (N, C)
        weights, chosen = self.route(tokens)
        counts = torch.bincount(chosen.flatten(), minlength=self.fc.size(0))  # (E,)
        self.load = counts / chosen.numel()
        order = chosen.flatten().argsort(stable=True)  # choices by expert
        rows = order // self.n_active  # the token of each choice
        pieces = tokens[rows].split(counts.tolist())
        outputs = []
        for piece, (fc, fc_bias, proj, proj_bias) in zip(pieces, self.experts(), strict=True):
            if len(piece):
                h = piece @ fc if fc_bias is None else piece @ fc + fc_bias  # (n, hidden), or (n, 2 hidden) if gated
                y = activate(h, self.activation) @ proj  # (n, C)
                outputs.append(y if proj_bias is None else y + proj_bias)
        out = torch.cat(outputs) * weights.flatten()[order].unsqueeze(-1)
        return self.dropout(torch.zeros_like(tokens, dtype=out.dtype).index_add(0, rows, out).view_as(x))
