"""Named model configurations, the sizes of the three families, and whole runs built from them."""

import math
import warnings
from typing import Any

from picollm_core.config import KGramConfig, LSTMConfig, ModelConfig, RunConfig, TransformerConfig, require
from picollm_core.named_transformers import COURSE_SIZES, NAMED_TRANSFORMERS, SIZES
from picollm_core.tokenizers import load_tokenizer

_LSTM_WIDTHS = {"pico": 32, "tiny": 64, "small": 256, "base": 1024}
_KGRAM_SIZES = {"pico": (32, 1), "tiny": (64, 3), "small": (256, 5), "base": (1024, 5)}  # width, inner layers
_TRANSFORMER_SIZES = SIZES | {"base": (768, 12, 10)}
MOST_LAYERS = 10

PRESETS: dict[str, ModelConfig] = {
    **{f"lstm-{size}": LSTMConfig(n_embd=width) for size, width in _LSTM_WIDTHS.items()},
    **{f"kgram-{size}": KGramConfig(n_embd=width, n_layer=depth) for size, (width, depth) in _KGRAM_SIZES.items()},
    **{
        f"transformer-{size}": TransformerConfig(n_embd=width, n_head=heads, n_layer=depth)
        for size, (width, heads, depth) in _TRANSFORMER_SIZES.items()
    },
    **{
        f"{name}-{size}": build(*shape)
        for name, build in NAMED_TRANSFORMERS.items()
        for size, shape in (SIZES | {"course": COURSE_SIZES[name]}).items()
    },
}
"""Name -> configuration at GPT-2's vocabulary, sizes as in the published slides; base is about 110M parameters.

mingpt, gpt2, gpt-oss and llama3 are those of named_transformers; "-course" is the size at which a team compared them.
"""


def warn_of_depth(config: ModelConfig) -> ModelConfig:
    """The configuration as it is, with a warning when a Transformer has more layers than the course's range of 10."""
    if config.family == "transformer" and config.n_layer > MOST_LAYERS:
        message = f"n_layer={config.n_layer} is more than the {MOST_LAYERS} layers of the course's range"
        warnings.warn(message, stacklevel=3)
    return config


def preset(name: str, **overrides: object) -> ModelConfig:
    """The configuration called `name`, with some fields replaced. ValueError lists the names when there is none.

    Warns when a Transformer gets more than 10 layers, which is the range of the course.
    """
    require(name in PRESETS, f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return warn_of_depth(PRESETS[name].replace(**overrides))


def default_learning_rate(config: ModelConfig) -> float:
    """Peak learning rate for AdamW: measured at pico on TinyStories, lower for wider models.

    k-gram and LSTM: 0.02 at width 32, as 1 / width. Transformer: 0.003 at width 64, as 1 / sqrt(width); learned
    positions get a gradient from every row and outgrow the tokens at more than that.
    """
    if config.family == "transformer":
        return 0.003 * math.sqrt(64 / config.n_embd)
    return 0.02 * 32 / config.n_embd


def run_config(model: str | ModelConfig | RunConfig, **settings: Any) -> RunConfig:
    """A whole run's configuration from a preset's name and flat settings of model, data and training.

    `run_config("lstm-pico", corpus="storyworld", tokenizer="gpt2", max_steps=300)`. The vocabulary is the
    tokenizer's, and a learning rate that is left out becomes the family's. Raises ValueError for a setting that no
    part of the configuration has.
    """
    base = (
        model if isinstance(model, RunConfig) else RunConfig(model=preset(model) if isinstance(model, str) else model)
    )
    for name in ("corpus", "weights"):
        if isinstance(settings.get(name), str | int | float):
            settings[name] = (settings[name],)
    if isinstance(settings.get("limit"), int):
        settings["limit"] = (settings["limit"],) * len(settings.get("corpus", base.data.corpus))
    parts: dict[str, Any] = {"model": base.model, "data": base.data, "train": base.train}
    changes: dict[str, dict[str, Any]] = {"model": {}, "data": {}, "train": {}, "run": {}}
    for name, value in settings.items():
        owners = [part for part, config in parts.items() if name in config.__dataclass_fields__]
        owners = owners or (["run"] if name in ("prompt", "sample_tokens") else [])
        require(bool(owners), f"no part of a {base.model.family} run has a setting {name!r}")
        changes[owners[0]][name] = value
    data = base.data.replace(**changes["data"])
    changes["model"].setdefault("vocab_size", load_tokenizer(data.tokenizer).n_vocab)
    model_config = base.model.replace(**changes["model"])
    if changes["model"].get("n_layer") is not None:
        warn_of_depth(model_config)
    train = base.train.replace(**changes["train"])
    if train.learning_rate is None:
        train = train.replace(learning_rate=default_learning_rate(model_config))
    return base.replace(model=model_config, data=data, train=train, **changes["run"])
