"""Models whose every weight is random, none at its start of zero or one, for tests of the exchange."""

from typing import Any

import torch

from picollm_core.config import TransformerConfig
from picollm_core.models import build_model
from picollm_core.models.transformer import Transformer
from picollm_core.named_transformers import gpt2, gpt_oss, llama3, mingpt

_SHAPE: dict[str, Any] = {"vocab_size": 61, "block_size": 48}
_GPT2 = gpt2(16, 4, 2).replace(**_SHAPE)
_LLAMA = llama3(32, 8, 2).replace(**_SHAPE, mlp_width=24)
_GPT_OSS = gpt_oss(32, 8, 3).replace(
    **_SHAPE, n_kv_head=2, window=7, n_expert=6, n_expert_active=2, yarn_factor=8.0, yarn_length=16
)

EXPORTABLE: dict[str, TransformerConfig] = {
    "gpt2": _GPT2,
    "mingpt": mingpt(16, 4, 2).replace(**_SHAPE),
    "llama3": _LLAMA,
    "gpt-oss": _GPT_OSS,
    "gpt2-no-bias-narrow": _GPT2.replace(bias=False, mlp_width=20, activation="relu"),
    "gpt2-gelu": _GPT2.replace(activation="gelu", tied=False, bias=False),
    "gpt2-silu": _GPT2.replace(activation="silu"),
    "gpt2-relu2": _GPT2.replace(activation="relu2"),
    "llama-tied-half": _LLAMA.replace(tied=True, rope_pairs="half", n_kv_head=None, mlp_width=None),
    "llama-bias-wide-heads": _LLAMA.replace(bias=True, head_width=6, rope_base=100.0),
    "llama-yarn": _LLAMA.replace(yarn_factor=4.0, yarn_length=16, rope_base=50.0, head_width=8),
    "gpt-oss-one-kv": _GPT_OSS.replace(n_kv_head=1, head_width=6, mlp_width=12, tied=True, bias=False),
    "gpt-oss-interleaved": _GPT_OSS.replace(rope_pairs="interleaved", yarn_factor=1.0, mixers=("softmax",)),
}


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Draw every parameter: matrices and biases around 0, gains of norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (1.0 if gain else 0.0))


def random_model(config: TransformerConfig) -> Transformer:
    """A Transformer of `config` in evaluation mode."""
    model = build_model(config).eval()
    assert isinstance(model, Transformer)
    randomise(model)
    return model


def random_ids(n_row: int = 2, n_token: int = 48, vocab_size: int = 61) -> torch.Tensor:
    """Token ids (n_row, n_token), always the same."""
    return torch.randint(0, vocab_size, (n_row, n_token), generator=torch.Generator().manual_seed(1))
