"""What can be asked for: models, text, training, sampling, and whole runs."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from picollm_core.config_base import RESULTS_VERSION, Config, require
from picollm_core.model_configs import (
    LINEAR_MIXERS,
    MODEL_CONFIGS,
    KGramConfig,
    LSTMConfig,
    Mixer,
    ModelConfig,
    TransformerConfig,
    model_config_from_dict,
)

__all__ = [
    "LINEAR_MIXERS",
    "MODEL_CONFIGS",
    "RESULTS_VERSION",
    "Config",
    "DataConfig",
    "KGramConfig",
    "LSTMConfig",
    "Mixer",
    "ModelConfig",
    "RunConfig",
    "SamplingConfig",
    "TrainConfig",
    "TransformerConfig",
    "model_config_from_dict",
    "require",
]


@dataclass(frozen=True)
class DataConfig(Config):
    """Which text, which tokens."""

    corpus: tuple[str, ...] = ("auto",)
    """Names of corpora, files or folders."""
    weights: tuple[float, ...] = (1.0,)
    """One weight a corpus: the share of training rows drawn from it."""
    limit: tuple[int | None, ...] | None = None
    """One cap a corpus on its number of examples, None where there is none."""
    tokenizer: str = "stories-4k"
    splits: tuple[float, float, float] | None = None
    """Shares of train, validation and test; None keeps a published split and else means (98, 1, 1)."""
    n_stories: int = 6_000
    """Size of the storyworld."""

    def validate(self) -> None:
        require(
            len(self.corpus) == len(self.weights) > 0,
            f"{len(self.corpus)} corpora but {len(self.weights)} weights; each corpus needs one weight",
        )
        require(min(self.weights) >= 0, f"weights {self.weights} contain a negative number")
        require(
            0 < sum(self.weights) < math.inf,
            f"weights {self.weights} sum to {sum(self.weights):g}; at least one corpus needs a positive, finite weight",
        )
        require(
            self.limit is None or len(self.limit) == len(self.corpus),
            f"{len(self.corpus)} corpora but limit={self.limit}; each corpus needs one cap, or None",
        )
        for limit in self.limit or ():
            require(limit is None or limit >= 1, f"limit is {limit}; it must be at least 1")
        require(
            self.splits is None or (len(self.splits) == 3 and min(self.splits) >= 0 and self.splits[0] > 0),
            f"splits are {self.splits}; give three shares (train, validation, test) with a positive first one",
        )
        require(self.n_stories >= 100, f"n_stories is {self.n_stories}; 100 is the least that can be split")


@dataclass(frozen=True)
class SamplingConfig(Config):
    """How the next token is drawn: repetition penalty, temperature, then the truncations."""

    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_p: float = 0.95
    """Nucleus: the fewest tokens that hold this much probability; 1 keeps all."""
    top_k: int | None = None
    """Only the k most likely tokens."""
    min_p: float = 0.0
    """Only tokens at least this fraction as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that have occurred become less likely."""

    def validate(self) -> None:
        require(self.temperature >= 0, f"temperature is {self.temperature}; it must be 0 (greedy) or positive")
        require(0 < self.top_p <= 1, f"top_p is {self.top_p}; it must lie in (0, 1], where 1 keeps every token")
        require(self.top_k is None or self.top_k >= 1, f"top_k is {self.top_k}; it must be at least 1")
        require(0 <= self.min_p <= 1, f"min_p is {self.min_p}; it must lie in [0, 1], where 0 keeps every token")
        require(
            self.repetition_penalty > 0,
            f"repetition_penalty is {self.repetition_penalty}; it must be positive, where 1 changes nothing",
        )


@dataclass(frozen=True)
class TrainConfig(Config):
    """One training run."""

    max_steps: int | None = None
    """Number of updates; left out, it follows from --epochs."""
    epochs: float = 1.0
    """Passes over every training window."""
    batch_size: int = 16
    """Windows in a batch."""
    grad_accumulation: int = 1
    """Batches in one update."""
    optimizer: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    learning_rate: float | None = None
    """The peak of the schedule; left out, the one measured for the family, lower for wider models."""
    weight_decay: float = 0.1
    """On matrices only."""
    beta1: float = 0.9
    """First moment's decay; the momentum of sgd."""
    beta2: float = 0.95
    """Second moment's decay."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    warmup_ratio: float = 0.1
    """Share of the updates in which the learning rate rises linearly."""
    min_lr_ratio: float = 0.0
    """Where cosine and linear end, as a share of the peak."""
    grad_clip: float = 1.0
    """Longest gradient, as a Euclidean norm over all weights."""
    eval_every: int = 200
    """Updates between evaluations."""
    eval_stories: int = 200
    """Held-out stories in those."""
    checkpoint_every: int = 200
    """Updates between checkpoints."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Matrix products; auto takes bfloat16 where the processor has it."""
    compile: bool = False
    """Run the model through torch.compile."""
    device: str = "auto"
    """cpu, cuda, cuda:0, mps; auto takes the fastest there is."""
    seed: int = 0
    """Of the weights and of the order of the data."""
    final_stories: int | None = None
    """Held-out stories in the final evaluation; left out, all."""

    def validate(self) -> None:
        require(self.max_steps is None or self.max_steps >= 1, f"max_steps is {self.max_steps}; it must be at least 1")
        final = self.final_stories
        require(final is None or final >= 1, f"final_stories is {final}; it must be at least 1, or None for all")
        for name in ("batch_size", "grad_accumulation", "eval_every", "eval_stories", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("epochs", "learning_rate", "grad_clip"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} is {value}; it must be positive")
        for name in ("epochs", "learning_rate"):
            value = getattr(self, name)
            require(value is None or value < math.inf, f"{name} is {value}; it must be finite")
        for name in ("warmup_ratio", "min_lr_ratio"):
            require(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}; it must lie in [0, 1]")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        require(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}; it must not be negative")


@dataclass(frozen=True)
class RunConfig(Config):
    """A whole run: model, data, training, and the prompts and samplers whose texts are kept with the run."""

    model: ModelConfig = field(default_factory=TransformerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    prompt: str = "Once upon a time"
    sample_tokens: int = 60

    def validate(self) -> None:
        require(self.prompt != "", "prompt is empty; give at least one character to continue from")
        require(self.sample_tokens >= 1, f"sample_tokens is {self.sample_tokens}; it must be at least 1")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        parts = dict(values)
        readers = {"model": model_config_from_dict, "data": DataConfig.from_dict, "train": TrainConfig.from_dict}
        for name in readers.keys() & parts.keys():
            parts[name] = readers[name](parts[name])
        return super().from_dict(parts)
