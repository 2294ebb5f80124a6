"""Which models can be built: one frozen, validated class for each family."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from picollm_core.config_base import Config, require


@dataclass(frozen=True)
class ModelConfig(Config):
    """What every language model has: vocabulary, the length it is trained at, width, depth, dropout."""

    family: ClassVar[str]
    vocab_size: int = 50_257
    block_size: int = 256
    n_embd: int = 64
    n_layer: int = 1
    dropout: float = 0.0

    def validate(self) -> None:
        for name in ("vocab_size", "block_size", "n_embd", "n_layer"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(0.0 <= self.dropout < 1.0, f"dropout is {self.dropout}; it must lie in [0, 1)")


@dataclass(frozen=True)
class KGramConfig(ModelConfig):
    """k-gram MLP: `n_layer` inner layers of width `n_embd` over the last k tokens, the current one included.

    `offset=1` reproduces the course's starter code, whose window ends one token too early.
    """

    family: ClassVar[str] = "kgram"
    k: int = 3
    embedding: Literal["onehot", "learned", "scaled", "conv"] = "learned"
    activation: Literal["gelu", "relu", "silu"] = "silu"
    offset: int = 0

    def validate(self) -> None:
        super().validate()
        require(self.k >= 1, f"k is {self.k}; a k-gram needs at least its current token, so k >= 1")
        require(self.offset in (0, 1), f"offset is {self.offset}; 0 is right, 1 reproduces the starter code's defect")
        require(
            self.embedding != "scaled" or self.n_embd >= self.k,
            f"n_embd={self.n_embd} leaves no width for each of k={self.k} scaled embeddings; n_embd must be at least k",
        )


@dataclass(frozen=True)
class LSTMConfig(ModelConfig):
    """LSTM whose embedding and hidden state share the width `n_embd`; optional tying of embedding and head."""

    family: ClassVar[str] = "lstm"
    tied: bool = False


Mixer = Literal["softmax", "window", "linear", "plain", "gla", "delta"]
LINEAR_MIXERS = ("linear", "plain", "gla", "delta")


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """Decoder-only Transformer: every block is a sequence mixer and a channel mixer (MLP)."""

    family: ClassVar[str] = "transformer"
    n_head: int = 1
    n_kv_head: int | None = None
    """Heads of keys and values, each shared by n_head / n_kv_head query heads; None: one for each."""
    position: Literal["absolute", "sinusoidal", "rope", "alibi", "none"] = "absolute"
    rope_base: float = 10_000.0
    norm: Literal["pre", "post", "sandwich"] = "pre"
    norm_kind: Literal["rms", "layer"] = "rms"
    activation: Literal["gelu", "gelu_tanh", "relu", "silu", "relu2", "swiglu", "swiglu_clamped"] = "gelu"
    tied: bool = True
    qk_norm: bool = False
    """Queries and keys normalised to unit RMS before their product (Henry et al. 2020, arXiv 2010.04245)."""
    mixers: tuple[Mixer, ...] = ("softmax",)
    """Sequence mixers of the layers from the input up, repeated as a pattern: ("gla", "gla", "gla", "softmax")."""
    window: int = 128
    """Keys that a "window" layer sees, the query's own included."""
    sinks: bool = False
    """A learned logit a head in the softmax's denominator, so a head may attend to nothing."""
    softcap: float | None = None
    """Attention logits pass through softcap * tanh(logit / softcap)."""
    head_width: int | None = None
    """Width of a head of softmax attention; None: n_embd / n_head."""
    rope_pairs: Literal["half", "interleaved"] = "half"
    """RoPE turns pairs (i, i + D/2) or (2i, 2i + 1)."""
    yarn_factor: float = 1.0
    """How much longer than yarn_length RoPE is stretched (YaRN); 1 is plain RoPE."""
    yarn_length: int = 4096
    bias: bool = False
    """Biases in the linear layers of the blocks, and in LayerNorm."""
    mlp_width: int | None = None
    """Hidden width of an MLP, or of one expert; None: 4 n_embd, or 8/3 n_embd where it is gated."""
    n_expert: int = 0
    """Experts of a mixture; 0 is one MLP for all tokens."""
    n_expert_active: int = 4
    """Experts that a token passes through."""
    gate: Literal["none", "fixed", "scalar", "vector"] = "vector"
    """What decays the state of a "gla" layer: nothing, a constant a head, one number a token and head, or a vector."""
    expand_k: float = 0.5
    """Total width of the keys of linear mixers, as a share of n_embd."""
    expand_v: float = 1.0
    """Total width of the values of linear mixers, as a share of n_embd."""
    negative_eigenvalues: bool = False
    """Layers of kind "delta" may write with strength up to 2, which lets a state change its sign (arXiv 2411.12537)."""
    chunk_size: int = 64
    """Tokens that linear mixers take at once in training; changes speed, not results."""
    reset_token: int | None = None
    """Linear mixers forget what came before this token; None: stories in one window share their state."""
    norm_eps: float = 1e-5
    """Added to the variance in every norm of the residual stream."""

    def validate(self) -> None:
        super().validate()
        for name in ("n_head", "window", "chunk_size", "yarn_length", "n_expert_active"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("head_width", "mlp_width"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}; it must be at least 1")
        require(
            self.head_width is not None or self.n_embd % self.n_head == 0,
            f"n_head={self.n_head} does not divide n_embd={self.n_embd}; every head needs the same width",
        )
        require(
            self.n_kv_head is None or (self.n_kv_head >= 1 and self.n_head % self.n_kv_head == 0),
            f"n_kv_head={self.n_kv_head} does not divide n_head={self.n_head}",
        )
        require(
            1 <= len(self.mixers) <= self.n_layer,
            f"mixers names {len(self.mixers)} layers ({', '.join(self.mixers)}) but n_layer is {self.n_layer}; "
            "the pattern must have at least one and at most n_layer",
        )
        self._validate_positions()
        self._validate_experts()
        self._validate_linear()

    def _validate_positions(self) -> None:
        width = self.head_width or self.n_embd // self.n_head
        require(
            self.position != "rope" or width % 2 == 0,
            f"rope rotates pairs, but n_embd={self.n_embd} over n_head={self.n_head} gives an odd head width, {width}",
        )
        require(
            self.position != "sinusoidal" or self.n_embd % 2 == 0,
            f"sinusoidal positions are pairs of sine and cosine, but n_embd={self.n_embd} is odd",
        )
        require(self.norm_eps > 0, f"norm_eps is {self.norm_eps}; it must be positive")
        require(self.rope_base > 1.0, f"rope_base is {self.rope_base}; it must exceed 1")
        require(self.yarn_factor >= 1.0, f"yarn_factor is {self.yarn_factor}; it must be at least 1, which is no YaRN")
        require(self.softcap is None or self.softcap > 0, f"softcap is {self.softcap}; it must be positive, or None")

    def _validate_experts(self) -> None:
        require(self.n_expert >= 0, f"n_expert is {self.n_expert}; it must be 0 (one MLP) or more")
        require(
            self.n_expert == 0 or self.n_expert_active <= self.n_expert,
            f"n_expert_active={self.n_expert_active} of n_expert={self.n_expert}; "
            "a token cannot pass through more experts than there are",
        )

    def _validate_linear(self) -> None:
        linear = [mixer for mixer in self.mixers if mixer in LINEAR_MIXERS]
        for name in ("expand_k", "expand_v"):
            share = getattr(self, name)
            total = round(share * self.n_embd)
            require(
                not linear or (share > 0 and total >= self.n_head and total % self.n_head == 0),
                f"{name}={share:g} of n_embd={self.n_embd} is a width of {total}, which n_head={self.n_head} "
                f"does not divide; {linear[0] if linear else ''} layers need heads of equal width",
            )
        require(
            self.reset_token is None or 0 <= self.reset_token < self.vocab_size,
            f"reset_token is {self.reset_token}, outside the vocabulary of {self.vocab_size}",
        )

    def mixer(self, layer: int) -> str:
        """The sequence mixer of layer `layer`, counted from 0."""
        return self.mixers[layer % len(self.mixers)]


MODEL_CONFIGS: dict[str, type[ModelConfig]] = {c.family: c for c in (KGramConfig, LSTMConfig, TransformerConfig)}


def model_config_from_dict(values: dict[str, Any]) -> ModelConfig:
    """Rebuild the configuration of any family from to_dict()'s output; the key "family" chooses the class."""
    rest = dict(values)
    family = rest.pop("family", None)
    require(family in MODEL_CONFIGS, f"unknown family {family!r}; choose one of {', '.join(MODEL_CONFIGS)}")
    return MODEL_CONFIGS[family].from_dict(rest)
