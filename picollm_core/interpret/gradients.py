"""What a prediction depends on: gradients with respect to the vectors of the tokens that were read."""

import torch
from torch import Tensor, nn

from picollm_core.config import require
from picollm_core.inference import evaluation_mode
from picollm_core.models import LanguageModel


def input_gradients(model: LanguageModel, idx: Tensor, row: int = 0) -> Tensor:
    """How much each token vector moves each prediction of one row: (T, B, T) for ids `idx` (B, T).

    Entry [t, b, s] is the length of d(largest logit at position t of `row`) / d(embedding of token s of row b); it is
    exactly zero wherever nothing of that token reaches that prediction. The model's weights get no gradient.
    Raises ValueError for a row that idx does not have, and for a model without one embedding vector a token (k-gram).
    """
    table = getattr(model, "embedding", None)
    family = model.config.family
    require(isinstance(table, nn.Embedding), f"a {family} model has no embedding vector for each token read")
    require(0 <= row < len(idx), f"row is {row}, but the ids have {len(idx)} rows")
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())  # (B, T, C)
        return seen[-1]

    assert isinstance(table, nn.Embedding)
    hook = table.register_forward_hook(keep)
    try:
        with torch.enable_grad(), evaluation_mode(model):
            top = model(idx)[row].amax(-1)  # (T,)
            grads = [torch.autograd.grad(logit, seen[0], retain_graph=True)[0] for logit in top]
    finally:
        hook.remove()
    return torch.stack([grad.norm(dim=-1) for grad in grads])  # (T, B, T)
