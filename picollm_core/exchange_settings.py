"""Single settings in a config.json of Hugging Face's transformers: numbers, choices, and those of RoPE with YaRN."""

import math
from collections.abc import Mapping
from typing import Any

from picollm_core.config import TransformerConfig, require
from picollm_core.models.positions import YARN_BETAS

Settings = Mapping[str, Any]


def expect(settings: Settings, default: Any, key: str, *choices: Any) -> Any:
    """settings[key], or the default of transformers, if it is one of `choices`. ValueError with key and value."""
    value = settings.get(key, default)
    wanted = " or ".join(map(repr, choices))
    require(value in choices, f"{key} is {value!r}, which no model of this package has; it can be read with {wanted}")
    return value


def number(settings: Settings, key: str, default: Any) -> Any:
    """settings[key] or the default. ValueError with key and value unless it is a number."""
    value = settings.get(key, default)
    require(isinstance(value, int | float) and not isinstance(value, bool), f"{key} is {value!r}; it must be a number")
    return value


def whole(settings: Settings, key: str, default: int | None) -> Any:
    """settings[key] or the default. ValueError with key and value unless it is a whole number of at least 1."""
    value = number(settings, key, default)
    require(isinstance(value, int) and value >= 1, f"{key} is {value!r}; it must be a whole number of at least 1")
    return value


def _yarn_is_defined(head_width: int, base: float, length: int) -> bool:
    """Whether some pairs lie between YaRN's two limits, where all implementations agree."""
    fast, slow = (head_width * math.log(length / (2 * math.pi * t)) / (2 * math.log(base)) for t in YARN_BETAS)
    return min(slow, head_width - 1) - max(fast, 0.0) >= 1e-3


def rope_misfits(config: TransformerConfig) -> dict[str, str]:
    """What of the YaRN of `config` transformers computes in another way -> what it needs; empty when nothing."""
    width = config.head_width or config.n_embd // config.n_head
    if config.position != "rope" or config.yarn_factor == 1:
        return {}
    defined = _yarn_is_defined(width, config.rope_base, config.yarn_length)
    return {} if defined else {"yarn_length": "a yarn_length at which YaRN's two limits lie within a head"}


def write_rope(config: TransformerConfig) -> dict[str, Any]:
    """RoPE's settings under the names of transformers 5 (rope_parameters) and 4 (rope_theta, rope_scaling)."""
    scaling: dict[str, Any] | None = None
    longest = config.block_size
    if config.yarn_factor > 1:
        scaling = {
            "rope_type": "yarn",
            "factor": config.yarn_factor,
            "original_max_position_embeddings": config.yarn_length,
            "beta_fast": YARN_BETAS[0],
            "beta_slow": YARN_BETAS[1],
            "truncate": False,
        }
        longest = max(longest, round(config.yarn_factor * config.yarn_length))
    return {
        "max_position_embeddings": longest,
        "rope_theta": config.rope_base,
        "rope_scaling": scaling,
        "rope_parameters": (scaling or {"rope_type": "default"}) | {"rope_theta": config.rope_base},
    }


def read_rope(settings: Settings, base: float, longest: int, default: Settings) -> dict[str, Any]:
    """position, block_size and RoPE's fields; `base`, `longest` and `default` are what absent settings mean.

    ValueError with key and value for other kinds of RoPE, and for a YaRN with other constants than ours.
    """
    rope = settings.get("rope_scaling") or settings.get("rope_parameters") or default
    require(isinstance(rope, Mapping), f"rope_parameters is {rope!r}; it must be a table of settings")
    nested = [key for key, value in rope.items() if isinstance(value, Mapping)]
    require(not nested, f"rope_parameters has settings of its own for {', '.join(nested)}; one set for all can be read")
    expect(rope, settings.get("partial_rotary_factor", 1.0), "partial_rotary_factor", 1, None)
    block_size = whole(settings, "max_position_embeddings", longest)
    theta = rope.get("rope_theta")
    base = number(settings, "rope_theta", base) if theta is None else number(rope, "rope_theta", base)
    fields = {"position": "rope", "block_size": block_size, "rope_base": base}
    kind = expect(rope, rope.get("type", "default"), "rope_type", "default", "yarn")
    if kind == "default":
        return fields
    factor = number(rope, "factor", None)
    expect(rope, True, "truncate", False)
    for key, value in zip(("beta_fast", "beta_slow"), YARN_BETAS, strict=True):
        expect(rope, value, key, value, None)
    for key in ("mscale", "mscale_all_dim"):
        expect(rope, None, key, None)
    stretch = None if rope.get("attention_factor") is None else number(rope, "attention_factor", None)
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    require(
        stretch is None or math.isclose(stretch, usual),
        f"attention_factor is {stretch!r}; only YaRN's own, {usual:g} for factor={factor:g}, can be read",
    )
    length = settings.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    return fields | {"yarn_factor": factor, "yarn_length": length or block_size}


def require_equal_yarn(config: TransformerConfig) -> TransformerConfig:
    """`config`. ValueError when its YaRN is one that transformers computes in another way."""
    require(
        not rope_misfits(config),
        f"original_max_position_embeddings is {config.yarn_length}, too short or too long for YaRN's two limits "
        f"to lie within a head at rope_theta={config.rope_base:g}",
    )
    return config
