"""The playground's sliders and boxes, with their ranges. Only what ipywidgets 7.7 and 8 both have is used."""

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from picollm_core.config import SamplingConfig, require
from picollm_core.loading import SavedModel

RANGES: dict[str, tuple[float, float, float]] = {
    "top_p": (0.01, 1, 0.01),
    "temperature": (0, 2, 0.05),
    "top_k": (0, 100, 1),
    "min_p": (0, 1, 0.01),
    "repetition_penalty": (1, 2, 0.05),
    "length": (1, 500, 1),
    "seed": (0, 99, 1),
    "speed": (5, 300, 5),
}
"""Least, greatest and step of each slider; length in tokens, speed in tokens a second."""

NAMES = {
    "top_p": "top-p",
    "temperature": "temperature",
    "top_k": "top-k (0: off)",
    "min_p": "min-p",
    "repetition_penalty": "repetition penalty",
    "length": "length in tokens",
    "seed": "seed",
    "speed": "tokens a second",
}
SAMPLING = ("top_p", "temperature", "top_k", "min_p", "repetition_penalty")
WHOLE = ("top_k", "length", "seed", "speed")
DESCRIPTION = {"description_width": "9.5em"}


def require_in_range(name: str, value: float) -> None:
    """Raise ValueError when a slider could not stand at `value`."""
    low, high, _ = RANGES[name]
    require(low <= value <= high, f"{name} is {value}; the playground's slider goes from {low} to {high}")


def slider(name: str, value: float) -> Any:
    """The slider called `name` at `value`. The sampling sliders report while they move, the others when let go."""
    require_in_range(name, value)
    low, high, step = RANGES[name]
    kind = widgets.IntSlider if name in WHOLE else widgets.FloatSlider
    return kind(
        value=value,
        min=low,
        max=high,
        step=step,
        description=NAMES[name],
        continuous_update=name in SAMPLING,
        style=DESCRIPTION,
        layout=widgets.Layout(width="31em", max_width="100%"),
    )


def sampling_sliders(sampling: SamplingConfig) -> dict[str, Any]:
    """One slider for each field of a SamplingConfig, by its name."""
    return {name: slider(name, getattr(sampling, name) or 0) for name in SAMPLING}


def sampling_of(sliders: dict[str, Any]) -> SamplingConfig:
    """How `sampling_sliders` stand now."""
    values = {name: control.value for name, control in sliders.items()}
    return SamplingConfig(**values | {"top_k": values["top_k"] or None})


def prompt_box(prompt: str) -> widgets.Textarea:
    """Where the beginning of the story is written."""
    return widgets.Textarea(
        value=prompt,
        description="prompt",
        rows=3,
        placeholder="the beginning of a story",
        style=DESCRIPTION,
        layout=widgets.Layout(width="46em", max_width="100%"),
    )


def model_list(offered: Sequence[SavedModel], chosen: Sequence[SavedModel]) -> widgets.SelectMultiple:
    """The models on disk, one or several to be chosen."""
    return widgets.SelectMultiple(
        options=[(model.label, model) for model in offered],
        value=tuple(chosen),
        rows=min(6, max(3, len(offered))),
        description="models",
        style=DESCRIPTION,
        layout=widgets.Layout(width="46em", max_width="100%"),
    )
