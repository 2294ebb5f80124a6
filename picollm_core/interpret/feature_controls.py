"""The feature browser's lists, boxes and sliders. Only what ipywidgets 7.7 and 8 both have is used."""

from collections.abc import Sequence

import ipywidgets as widgets

from picollm_core.loading import SavedModel
from picollm_core.playground_controls import DESCRIPTION

SORTED_BY = {
    "f1": "F1 of the nearest concept",
    "gain": "F1 above always saying yes",
    "precision": "precision",
    "recall": "recall",
    "max": "largest activation",
    "mean": "mean activation",
    "density": "density, commonest first",
    "stories": "number of stories",
    "feature": "number",
}
"""Columns of an index's table that features can be sorted by, in words."""
MOST_AMOUNT, AMOUNT_STEP = 3, 0.25
_WIDE = {"width": "46em", "max_width": "100%"}
_HALF = {"width": "31em", "max_width": "100%"}
_TALL = "560px"  # list and evidence stand side by side and scroll by themselves, so that the text below stays in view


def model_choice(offered: Sequence[SavedModel], chosen: SavedModel | None) -> widgets.Dropdown:
    """The models on disk, one of them chosen."""
    return widgets.Dropdown(
        options=[(model.label, model) for model in offered],
        value=chosen,
        description="model",
        style=DESCRIPTION,
        layout=widgets.Layout(**_WIDE),
    )


def dictionary_choice() -> widgets.Dropdown:
    """The dictionaries of a model; empty until one is open."""
    return widgets.Dropdown(options=[], description="features", style=DESCRIPTION, layout=widgets.Layout(**_WIDE))


def sort_choice() -> widgets.Dropdown:
    """What the list is sorted by."""
    return widgets.Dropdown(
        options=[(words, name) for name, words in SORTED_BY.items()],
        value="f1",
        description="sorted by",
        style=DESCRIPTION,
        layout=widgets.Layout(**_HALF),
    )


def search_box() -> widgets.Text:
    """What the listed features have to have in their concept or tokens."""
    return widgets.Text(
        description="search",
        placeholder="a concept or a token, then Enter",
        continuous_update=False,
        style=DESCRIPTION,
        layout=widgets.Layout(**_HALF),
    )


def number_box() -> widgets.IntText:
    """A feature by its number."""
    return widgets.IntText(
        description="feature",
        continuous_update=False,
        style=DESCRIPTION,
        layout=widgets.Layout(width="16em"),
    )


def feature_list() -> widgets.Select:
    """The features found; empty until a dictionary is open."""
    return widgets.Select(
        options=[], layout=widgets.Layout(flex="1 1 22em", min_width="17em", max_width="30em", height=_TALL)
    )


def evidence_box() -> widgets.HTML:
    """Where a feature's evidence is shown."""
    return widgets.HTML(layout=widgets.Layout(flex="3 1 36em", min_width="17em", height=_TALL, overflow="auto"))


def amount_slider() -> widgets.FloatSlider:
    """How much of the feature is added at every token, in units of its largest activation; reports when let go."""
    return widgets.FloatSlider(
        value=0.0,
        min=-MOST_AMOUNT,
        max=MOST_AMOUNT,
        step=AMOUNT_STEP,
        description="steer (x max)",
        continuous_update=False,
        readout_format="+.2f",
        style=DESCRIPTION,
        layout=widgets.Layout(**_HALF),
    )


def ablate_button() -> widgets.ToggleButton:
    """Down: the feature is taken away at every token."""
    return widgets.ToggleButton(description="Ablate", tooltip="take the feature away at every token")


def text_column() -> widgets.HTML:
    """Where a written text is shown, side by side with another."""
    return widgets.HTML(layout=widgets.Layout(flex="1 1 20em", min_width="17em", width="auto"))
