"""The feature browser: a model, a dictionary, a feature, what makes it fire, and what happens when it is turned up.

    from picollm_core.interpret.feature_browser import feature_browser

    feature_browser()                        # the models that ship with the project, stories of the default corpus
    feature_browser("lstm", texts=stories)   # one model, your own texts

Works with ipywidgets 7.7 and 8; only what both have is used. Nothing runs in a thread: the edit that steers a model
acts on the model itself, so two texts at once would steer each other.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from picollm_core import playground_html as page
from picollm_core.config import SamplingConfig
from picollm_core.interpret import feature_controls as controls
from picollm_core.interpret import feature_html
from picollm_core.interpret.feature_index import FeatureIndex
from picollm_core.interpret.feature_shelf import SAMPLING, DictionaryChoice, FeatureShelf, default_choice
from picollm_core.loading import SHIPPED_DIR, SavedModel
from picollm_core.playground import ModelChoice, find_models
from picollm_core.playground_controls import prompt_box, slider
from picollm_core.reporting_box import ReportingBox, reported
from picollm_core.runs import RUNS_DIR
from picollm_core.widgets import NO_MODEL

LISTED, IN_FALLBACK = 200, 12
WRITTEN_TOKENS = 60
ADVICE = "Point at a token for its activation. The slider adds the feature at every token, Ablate takes it away."
SAME = "The same text: at no token did it change what was drawn (a feature that never fires cannot)."
NO_AUTOENCODER = (
    "This model has no autoencoder, so its neurons are shown. To train one: train_sae of "
    "picollm_core.interpret.sae_training, then save_pretrained into autoencoders/ in the model's folder."
)


class FeatureBrowser(ReportingBox):
    """The widget that `feature_browser` returns. Its parts are attributes, so that a program can set and read them."""

    def __init__(self, offered: Sequence[SavedModel], chosen: SavedModel | None, shelf: FeatureShelf, prompt: str):
        self._shelf, self._quiet = shelf, True
        self._index: FeatureIndex | None = None
        self._feature: int | None = None
        self.model, self.dictionary = controls.model_choice(offered, chosen), controls.dictionary_choice()
        self.sort, self.search, self.number = controls.sort_choice(), controls.search_box(), controls.number_box()
        self.previous = widgets.Button(description="Previous", icon="arrow-left")
        self.next = widgets.Button(description="Next", icon="arrow-right")
        self.features, self.evidence = controls.feature_list(), controls.evidence_box()
        self.prompt, self.seed = prompt_box(prompt), slider("seed", 0)
        self.prompt.rows, self.prompt.continuous_update = 2, False
        self.amount, self.ablate = controls.amount_slider(), controls.ablate_button()
        self.plain, self.changed = controls.text_column(), controls.text_column()
        self.status = widgets.HTML()
        row = widgets.Layout(flex_flow="row wrap", width="100%", align_items="center")
        top = widgets.Layout(flex_flow="row wrap", width="100%", align_items="flex-start")
        super().__init__(
            [
                widgets.HTML(page.STYLE + feature_html.STYLE),
                widgets.Box([self.model, self.dictionary], layout=row),
                widgets.Box([self.sort, self.search, self.number, self.previous, self.next], layout=row),
                self.status,
                widgets.Box([self.features, self.evidence], layout=top),
                widgets.Box([self.prompt, self.amount, self.seed, self.ablate], layout=row),
                widgets.Box([self.plain, self.changed], layout=top),
            ]
        )
        self.add_class("pico-root")
        self._quiet = False
        self.model.observe(self._open_model, "value")
        self.dictionary.observe(self._open_dictionary, "value")
        for control in (self.sort, self.search):
            control.observe(self._list, "value")
        self.features.observe(self._pick, "value")
        self.number.observe(self._go_to, "value")
        self.previous.on_click(lambda _: self._step(-1))
        self.next.on_click(lambda _: self._step(1))
        for control in (self.prompt, self.amount, self.seed, self.ablate):
            control.observe(self._write, "value")
        self._open_model()

    @property
    def texts(self) -> tuple[str, str]:
        """The text as the model writes it, and as it does with the feature steered or ablated; "" until written."""
        return self._texts

    @property
    def _place(self) -> tuple[Path, DictionaryChoice]:
        return self.model.value.path, self.dictionary.value

    @reported
    def _open_model(self, _: Any = None) -> None:
        """Offer the dictionaries of the chosen model and open the first."""
        self._clear()
        if self.model.value is None:
            self.say(NO_MODEL, wrong=True)
            return
        with self.setting():
            self.dictionary.options = []
        choices = self._shelf.choices(self.model.value.path)
        with self.setting():
            self.dictionary.options = [(choice.label, choice) for choice in choices]
            self.dictionary.value = default_choice(choices)
        self._open_dictionary()

    @reported
    def _open_dictionary(self, _: Any = None) -> None:
        """Read the texts with the chosen dictionary and list its features."""
        self._clear()
        if self.dictionary.value is None:
            return
        self.say("Reading the stories ...")
        self._index = self._shelf.opened(*self._place)[1]
        self._list()

    def _clear(self) -> None:
        """Nothing to see, until a dictionary is open."""
        self._index = self._feature = None
        self._texts = "", ""
        self.evidence.value = self.plain.value = self.changed.value = ""
        with self.setting():
            self.features.options = []

    @reported
    def _list(self, _: Any = None) -> None:
        """List the features in the chosen order, those that the search finds, and show the first."""
        if self._index is None:
            return
        found = self._index.ranked(self.sort.value, self.search.value)
        labels = [(_label(self._index, feature, self.sort.value), feature) for feature in found[:LISTED]]
        with self.setting():
            self.features.options = labels
            self.features.value = None
        if not found:
            self.say(
                f"No feature of this dictionary has {self.search.value!r} in its concept or its tokens.", wrong=True
            )
            return
        self.show(found[0])
        more = f" of {len(found):,}" if len(found) > LISTED else ""
        words = f"{min(len(found), LISTED):,}{more} features listed, on {self._index.stories:,} stories"
        self.say(" ".join([f"{words}.", self._shelf.note, "" if self._trained else NO_AUTOENCODER]))

    @property
    def _trained(self) -> bool:
        return any(choice.folder is not None for _, choice in self.dictionary.options)

    @reported
    def _pick(self, _: Any = None) -> None:
        if self.features.value is not None:
            self.show(self.features.value)

    @reported
    def _go_to(self, _: Any = None) -> None:
        self.show(self.number.value)

    @reported
    def _step(self, by: int) -> None:
        """Go on in the list, round at its ends."""
        listed = [feature for _, feature in self.features.options]
        if listed:
            here = listed.index(self._feature) if self._feature in listed else (-1 if by > 0 else 0)
            self.show(listed[(here + by) % len(listed)])

    def show(self, feature: int) -> None:
        """Show a feature by its number. Raises ValueError when there is none of that number."""
        if self._index is None:
            raise ValueError("no dictionary is open, so there is no feature to show; choose a model first")
        evidence = self._index.evidence(feature)
        listed = [known for _, known in self.features.options]
        with self.setting():
            self.number.value = feature
            self.features.value = feature if feature in listed else None
            self.amount.value, self.ablate.value = 0.0, False
        self._feature = feature
        self.evidence.value = feature_html.evidence_html(evidence, self._title(), self._index.stories)
        self.say(ADVICE)
        self._write()

    def _title(self) -> str:
        assert self._index is not None
        return f"Feature {self._feature:,} of {self._index.dict_size:,} ({self.dictionary.value.label})"

    @reported
    def _write(self, change: Any = None) -> None:
        """Write what the model writes by itself and, beside it, what it does with the feature steered or ablated."""
        if self._index is None or self._feature is None:
            return
        with self.setting():  # one thing at a time: the control that was moved last rules
            if self.ablate.value and change is not None and change["owner"] is self.amount:
                self.ablate.value = False
            elif self.ablate.value:
                self.amount.value = 0.0
        self._texts, self.plain.value, self.changed.value = ("", ""), "", ""
        prompt, rest = self.prompt.value, (self.prompt.value, WRITTEN_TOKENS, self.seed.value)
        path, choice = self._place
        plain = self._shelf.plain_text(path, *rest)
        self._texts = plain, plain
        self.plain.value = feature_html.written_html("As the model is", prompt, plain)
        if self.ablate.value:
            title, changed = "Ablated", self._shelf.ablated_text(path, choice, self._feature, *rest)
        elif self.amount.value:
            size = self.amount.value * feature_html.scale_of(self._index.facts(self._feature))
            title = f"Steered: {self.amount.value:+g} x its maximum ({size:+.3g}) at every token"
            changed = self._shelf.steered_text(path, choice, self._feature, size, *rest)
        else:
            self.changed.value = page.status_html("Move the slider or ablate to see what the feature does to the text.")
            if change is not None:
                self.say(ADVICE)
            return
        self._texts = plain, changed
        self.changed.value = feature_html.written_html(title, prompt, changed, plain)
        self.say(SAME if plain == changed else "Same prompt, same seed; marked from where the text differs.")

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The live widget, and for pages without widgets (GitHub, nbconvert) the feature shown and a list."""
        if self._index is None or self._feature is None:
            return self.bundle(NO_MODEL, self.status.value)
        listed = [feature for _, feature in self.features.options][:IN_FALLBACK]
        rows = [self._index.facts(feature) for feature in listed]
        plain = "\n".join(f"feature {row['feature']}: {row['concept']}, {row['tokens']}" for row in rows)
        pictures = page.STYLE + feature_html.STYLE + self.evidence.value + feature_html.feature_list_html(rows)
        return self.bundle(plain, pictures)


def _label(index: FeatureIndex, feature: int, by: str) -> str:
    """A feature's line in the list: number, what the list is sorted by, concept, tokens."""
    facts = index.facts(feature)
    value = "" if by == "feature" else feature_html.number(facts[by])
    concept = facts["concept"] + (" (negative)" if facts["sign"] < 0 else "")
    parts = [f"{feature}", value, concept, facts["tokens"]]
    return " · ".join(part for part in parts if part)


def feature_browser(
    models: Sequence[ModelChoice] | ModelChoice | None = None,
    texts: Iterable[str] | None = None,
    *,
    prompt: str = "Once upon a time",
    sampling: SamplingConfig = SAMPLING,
    shipped: str | Path = SHIPPED_DIR,
    runs_dir: str | Path = RUNS_DIR,
) -> FeatureBrowser:
    """A widget that shows what the features of a model's autoencoders, or its neurons, stand for, and what they do.

    `models`: names, folders or runs; left out, everything on disk is offered. `texts` are the stories to look at; left
    out, a few hundred of the default corpus that training did not use. `sampling` is how texts are written; the same
    seed gives the same text where nothing is steered. Raises ValueError for a model that is not there. What goes wrong
    later stands as a sentence in the widget.
    """
    offered, chosen = find_models(models, Path(shipped), Path(runs_dir))
    best = [model for model in chosen if model.path.name == "transformer"] if models is None else []
    first = next(iter([*best, *chosen]), None)
    shelf = FeatureShelf(None if texts is None else list(texts), sampling)
    return FeatureBrowser(offered, first, shelf, prompt)
