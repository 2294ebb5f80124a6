"""Published Transformers, faithful to their papers and code, at any width and depth.

Training data, vocabulary and full size are not carried over. One thing differs on purpose: where a tied head would
start far above ln V, models start with a smaller gain of the final norm (models.transformer).
"""

from picollm_core.config import TransformerConfig

LLAMA_MULTIPLE = 256  # Llama's code rounds the hidden width of its MLP up to a multiple of this


def mingpt(n_embd: int, n_head: int, n_layer: int) -> TransformerConfig:
    """minGPT (Karpathy 2020): GPT-2's plan with an untied head. LayerNorm and biases, tanh-GELU, dropout 0.1."""
    return TransformerConfig(
        n_embd=n_embd,
        n_head=n_head,
        n_layer=n_layer,
        dropout=0.1,
        norm_kind="layer",
        activation="gelu_tanh",
        bias=True,
        tied=False,
    )


def gpt2(n_embd: int, n_head: int, n_layer: int) -> TransformerConfig:
    """GPT-2 (Radford et al. 2019): minGPT with a tied head; 768/12/12 is the smallest published size."""
    return mingpt(n_embd, n_head, n_layer).replace(tied=True)


def llama3(n_embd: int, n_head: int, n_layer: int) -> TransformerConfig:
    """Llama 3 (arXiv 2407.21783, section 3.2): RMSNorm, interleaved RoPE of base 500,000, 4 query heads a key head.

    SwiGLU of hidden width 8C/3, rounded up to a multiple of 256 as in its code; no biases, untied head, no dropout.
    """
    hidden = -(-(8 * n_embd // 3) // LLAMA_MULTIPLE) * LLAMA_MULTIPLE
    return TransformerConfig(
        n_embd=n_embd,
        n_head=n_head,
        n_layer=n_layer,
        n_kv_head=max(1, n_head // 4),
        position="rope",
        rope_base=500_000.0,
        rope_pairs="interleaved",
        activation="swiglu",
        mlp_width=hidden,
        tied=False,
    )


def gpt_oss(n_embd: int, n_head: int, n_layer: int) -> TransformerConfig:
    """gpt-oss-20b (arXiv 2508.10925, section 2): sinks, alternating windows of 128, 32 experts of which 4 are active.

    Layers 0, 2, ... see a window; 8 query heads a key head; RoPE of base 150,000 stretched by YaRN x32 from 4,096
    tokens; experts of clamped SwiGLU, each as wide as the model; RMSNorm, biases, untied head.
    """
    return TransformerConfig(
        n_embd=n_embd,
        n_head=n_head,
        n_layer=n_layer,
        n_kv_head=max(1, n_head // 8),
        mixers=("window", "softmax") if n_layer > 1 else ("window",),
        window=128,
        sinks=True,
        position="rope",
        rope_base=150_000.0,
        yarn_factor=32.0,
        yarn_length=4_096,
        activation="swiglu_clamped",
        mlp_width=n_embd,
        n_expert=32,
        n_expert_active=4,
        bias=True,
        tied=False,
    )


NAMED_TRANSFORMERS = {"mingpt": mingpt, "gpt2": gpt2, "gpt-oss": gpt_oss, "llama3": llama3}

SIZES = {"pico": (64, 1, 1), "tiny": (128, 2, 2), "small": (384, 6, 6)}
"""n_embd, n_head, n_layer."""

COURSE_SIZES = {"mingpt": (384, 6, 6), "gpt2": (768, 12, 8), "gpt-oss": (512, 8, 8), "llama3": (1024, 16, 8)}
"""The sizes at which a course team compared them; it shortened GPT-2 to 8 blocks."""
