"""The playground: a prompt, sliders, several models side by side, their next token and their stories, live.

    from picollm_core.widgets import playground

    playground()                                        # the models that ship with the project
    playground(["transformer", run, "path/to/model"])   # any models or runs on disk

Works with ipywidgets 7.7 and 8; only what both have is used.
"""

import html
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from picollm_core import playground_html as page
from picollm_core.config import SamplingConfig
from picollm_core.loading import SHIPPED_DIR, SavedModel
from picollm_core.playground import Generation, ModelChoice, ModelShelf, Story, describe_sampling, explain, find_models
from picollm_core.playground_controls import model_list, prompt_box, sampling_of, sampling_sliders, slider
from picollm_core.reporting_box import ReportingBox, reported
from picollm_core.runs import RUNS_DIR

SIDE_BY_SIDE = 4
IN_STEP_TOKENS = 100
"""Longest story where the page only moves between cells' steps (Colab): about as long as a reader waits."""
SAMPLE_TOKENS = 60
NO_MODEL = (
    "There is no trained model on disk. The project ships some in artefacts/models; or train one with `picollm train`, "
    "then run this cell again."
)


def updates_render_in_background() -> bool:
    """False in Colab, where what a background thread writes to a widget appears only after the next cell."""
    return "google.colab" not in sys.modules


class Playground(ReportingBox):
    """The widget that `playground` returns. Its parts are attributes, so that a program can set and read them."""

    def __init__(
        self,
        offered: Sequence[SavedModel],
        chosen: Sequence[SavedModel],
        prompt: str,
        sampling: SamplingConfig,
        length: int,
        seed: int,
        background: bool,
    ) -> None:
        self._offered, self._background = list(offered), background
        self._shelf = ModelShelf()
        self._generation: Generation | None = None
        self._columns: list[tuple[SavedModel, widgets.HTML, widgets.HTML]] = []
        self.prompt, self.filters = prompt_box(prompt), sampling_sliders(sampling)
        self.length, self.seed = slider("length", length), slider("seed", seed)
        self.speed = slider("speed", 40)
        self.generate = widgets.Button(description="Generate", button_style="primary", icon="play")
        self.stop = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.models = model_list(offered, chosen[:SIDE_BY_SIDE])
        self.status, self.copy = widgets.HTML(), widgets.HTML(page.copy_html(""))
        self._body = widgets.Box(layout=widgets.Layout(flex_flow="row wrap", align_items="flex-start", width="100%"))
        row = widgets.Layout(flex_flow="row wrap", width="100%", align_items="center")
        super().__init__(
            [
                widgets.HTML(page.STYLE),
                widgets.Box([self.models, self.prompt], layout=row),
                widgets.Box([*self.filters.values(), self.length, self.seed, self.speed], layout=row),
                widgets.Box([self.generate, self.stop, self.copy], layout=row),
                self.status,
                widgets.HTML(page.colour_key()),
                self._body,
            ]
        )
        self.add_class("pico-root")
        for control in (self.prompt, *self.filters.values()):
            control.observe(self._look, "value")
        self.models.observe(self._choose, "value")
        self.generate.on_click(self._generate)
        self.stop.on_click(self._stop)
        self._choose()

    @property
    def sampling(self) -> SamplingConfig:
        """How the sliders stand."""
        return sampling_of(self.filters)

    @property
    def texts(self) -> dict[str, str]:
        """The stories as they stand, by model: prompt and continuation."""
        return {} if self._generation is None else {story.title: story.text for story in self._generation.stories}

    def wait(self, seconds: float = 60.0) -> None:
        """Until the stories being written have ended. For programs; a notebook that waits shows nothing meanwhile."""
        generation = self._generation
        if generation is not None and generation.thread is not None:
            generation.thread.join(seconds)

    def close(self) -> None:
        """Stop what runs and take the widget, with all its parts, off the page."""
        self._halt()
        super().close()

    def _halt(self) -> None:
        generation, self._generation = self._generation, None  # what it paints from now on is dropped
        if generation is not None:
            generation.stop()

    @reported
    def _choose(self, _: Any = None) -> None:
        """Show the chosen models, a column each, as they are before anything is generated."""
        self._halt()
        self._idle(True)
        chosen = self.models.value[:SIDE_BY_SIDE]
        old = self._body.children
        layout = widgets.Layout(flex="1 1 20em", min_width="17em", width="auto")
        self._columns = [(model, widgets.HTML(), widgets.HTML()) for model in chosen]
        self._body.children = [widgets.VBox([bars, story], layout=layout) for _, bars, story in self._columns]
        for part in self._descendants(old):
            part.close()
        self._look()

    @reported
    def _look(self, _: Any = None) -> None:
        """Draw the next-token view of every chosen model; from cached logits unless the prompt or a model is new."""
        views, problems = {}, {}
        for model, _bars, _story in self._columns:
            try:
                views[model] = self._shelf.next_token(model.path, self.prompt.value, self.sampling)
            except Exception as error:  # noqa: BLE001  (one model's problem is shown in its column and the status)
                problems[model] = explain(error)
        scale = page.bar_scale(list(views.values()))
        for model, bars, _story in self._columns:
            if model in views:
                bars.value = page.next_token_html(model.label, views[model], scale)
            else:
                bars.value = page.sentence_html(model.label, problems[model])
        if problems:
            self.say(next(iter(problems.values())), wrong=True)
        elif self._generation is None or not self._generation.running:
            self.say(*self._advice())

    def _advice(self) -> tuple[str, bool]:
        if not self._offered:
            return NO_MODEL, True
        if not self._columns:
            return "Choose a model; with Ctrl (Cmd on a Mac) or Shift several, to see them side by side.", True
        if len(self.models.value) > SIDE_BY_SIDE:
            return (
                f"{len(self.models.value)} models are chosen; the first {SIDE_BY_SIDE} are shown side by side.",
                False,
            )
        return f"Sampling: {describe_sampling(self.sampling)}. The bars follow every slider; Generate writes.", False

    @reported
    def _generate(self, _: Any = None) -> None:
        """Begin new stories, in place of those being written."""
        self._halt()
        self._idle(True)
        if not self._columns:
            self.say(*self._advice())
            return
        length = self.length.value if self._background else min(self.length.value, IN_STEP_TOKENS)
        stories, shown, problems = [], [], []
        for model, _bars, box in self._columns:
            try:
                tokens = self._shelf.story(model.path, self.prompt.value, self.sampling, length, self.seed.value)
            except Exception as error:  # noqa: BLE001  (as in _look)
                problems.append(explain(error))
                box.value = ""
            else:
                stories.append(Story(model.label, self.prompt.value, tokens, length))
                shown.append(box)
        if not stories:
            self.say(problems[0], wrong=True)
            return
        pace = 1 / self.speed.value if self._background else 0.0
        generation = Generation(stories, lambda final: self._paint(generation, shown, final, problems), pace)
        self._generation = generation
        self._idle(False)
        self.copy.value = page.copy_html("")
        self.say("Writing ...")
        if self._background:
            generation.start()
        else:
            generation.run()

    @reported
    def _stop(self, _: Any = None) -> None:
        if self._generation is not None:
            self._generation.stop()

    def _paint(self, generation: Generation, boxes: Sequence[widgets.HTML], final: bool, problems: list[str]) -> int:
        """Show the stories; the number of characters sent. Called from the generation's thread."""
        if self._generation is not generation:  # replaced or closed meanwhile
            return 0
        try:
            return self._show(generation, boxes, final, problems)
        except Exception as error:  # noqa: BLE001  (nobody reads what a thread raises)
            self.say(explain(error), wrong=True)
            return 0

    def _show(self, generation: Generation, boxes: Sequence[widgets.HTML], final: bool, problems: list[str]) -> int:
        sent = 0
        for story, box in zip(generation.stories, boxes, strict=True):
            picture = page.story_html(story.prompt, story.tokens, story.note(), details=final)
            box.value = picture
            sent += len(picture)
        if final:
            self.copy.value = page.copy_html(_together(generation.stories))
            self._idle(True)
            failed = problems + [story.problem for story in generation.stories if story.problem]
            self.say(failed[0] if failed else self._outcome(generation), wrong=bool(failed))
        return sent

    def _outcome(self, generation: Generation) -> str:
        words = "Stopped." if any(story.stage == "stopped" for story in generation.stories) else "Done."
        if not self._background and self.length.value > IN_STEP_TOKENS:
            words += f" This page cannot show text while it is written, so stories end after {IN_STEP_TOKENS} tokens."
        return f"{words} Point at a token, or go through them with Tab, to see what it was drawn from."

    def _idle(self, idle: bool) -> None:
        """While stories are written, Stop works and sliders report only where they are let go, so that a row of slider
        positions is never ahead of a click on Stop; else the bars follow the hand."""
        self.stop.disabled = idle
        for control in (self.prompt, *self.filters.values()):
            control.continuous_update = idle

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The live widget, and for pages without widgets (GitHub, nbconvert) a table of samples."""
        chosen = [model for model, _bars, _story in self._columns]
        if not chosen:
            table, plain = f"<p>{html.escape(NO_MODEL)}</p>", NO_MODEL
        else:
            try:
                rows = self._shelf.samples(chosen, self.prompt.value, self.sampling, SAMPLE_TOKENS, self.seed.value)
            except Exception as error:  # noqa: BLE001  (the live widget must appear whatever its substitute does)
                rows = [(explain(error), [""] * len(chosen))]
            table = page.samples_html([model.label for model in chosen], rows)
            plain = "\n\n".join(
                f"{model.label}, {name}:\n{text}"
                for name, texts in rows
                for model, text in zip(chosen, texts, strict=True)
            )
        return self.bundle(plain, table)


def _together(stories: Sequence[Story]) -> str:
    """The stories as one text to copy: alone as it is, several under their models' names."""
    if len(stories) == 1:
        return stories[0].text
    return "\n\n".join(f"{story.title}\n{story.text}" for story in stories)


def playground(
    models: Sequence[ModelChoice] | ModelChoice | None = None,
    *,
    prompt: str = "Once upon a time",
    sampling: SamplingConfig | None = None,
    length: int = 150,
    seed: int = 0,
    background: bool | None = None,
    shipped: str | Path = SHIPPED_DIR,
    runs_dir: str | Path = RUNS_DIR,
) -> Playground:
    """A widget that shows what models think comes next and writes stories with them, side by side.

    `models`: names, folders or runs; left out, everything on disk is offered and what ships with the project chosen.
    `sampling`, `length` (tokens) and `seed` are where the sliders start; the same seed gives the same text, that of
    `sampling.generate`. `background` says whether to write from a thread, so that the page stays live: by default
    everywhere but in Colab. Raises ValueError for a model that is not there and for a start outside the sliders' range.
    What goes wrong later stands as a sentence in the widget.
    """
    offered, chosen = find_models(models, Path(shipped), Path(runs_dir))
    live = updates_render_in_background() if background is None else background
    return Playground(offered, chosen, prompt, sampling or SamplingConfig(), length, seed, live)
