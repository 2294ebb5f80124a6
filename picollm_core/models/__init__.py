"""The registry of architectures: one file, one config class and one line here make a new one."""

from picollm_core.config import ModelConfig, require
from picollm_core.models.base import LanguageModel, seq_first
from picollm_core.models.kgram import KGramMLP
from picollm_core.models.lstm import LSTM
from picollm_core.models.transformer import Transformer
from picollm_core.presets import preset

MODELS: dict[str, type[LanguageModel]] = {"kgram": KGramMLP, "lstm": LSTM, "transformer": Transformer}


def build_model(name_or_config: str | ModelConfig, **overrides: object) -> LanguageModel:
    """A new model from a preset's name ("lstm-pico") or a configuration, with some fields replaced.

    The weights are drawn from torch's generator: seed it, or fork it, before building.
    Raises ValueError for an unknown name or field and for values that do not fit together.
    """
    if isinstance(name_or_config, str):
        config = preset(name_or_config, **overrides)
    else:
        config = name_or_config.replace(**overrides)
    require(config.family in MODELS, f"no model is registered for family {config.family!r}")
    return MODELS[config.family](config)


__all__ = ["MODELS", "LanguageModel", "build_model", "seq_first"]
