"""What every widget of the package is: a box with a status line that says what goes wrong, and a substitute for pages
that have no widgets. Only what ipywidgets 7.7 and 8 both have is used."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import ipywidgets as widgets

from picollm_core import playground_html as page
from picollm_core.notebook_cleaning import WIDGET_VIEW
from picollm_core.playground import explain


class ReportingBox(widgets.VBox):
    """A column of controls; whoever derives from it makes `status`, an HTML widget, and puts it on show."""

    _ipython_display_ = None  # ipywidgets 7 would show itself without the substitute for pages that have no widgets
    _quiet = False
    status: widgets.HTML

    def say(self, sentence: str, wrong: bool = False) -> None:
        """Write the status line."""
        self.status.value = page.status_html(sentence, wrong)

    @contextmanager
    def setting(self) -> Iterator[None]:
        """Inside, controls are set without what they would set off."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def close(self) -> None:
        """Take the widget, with all its parts, off the page."""
        for part in self._descendants(self.children):
            part.close()
        super().close()

    @classmethod
    def _descendants(cls, parts: Sequence[Any]) -> list[Any]:
        return [x for part in parts for x in (part, *cls._descendants(getattr(part, "children", ())))]

    def bundle(self, plain: str, substitute: str) -> dict[str, Any]:
        """What a notebook keeps: the live widget, and plain text and HTML for pages without (GitHub, nbconvert)."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {"text/plain": plain, "text/html": substitute, WIDGET_VIEW: view}


def reported(method: Callable[..., None]) -> Callable[..., None]:
    """A callback of a ReportingBox whose failure becomes a sentence in the status line: a traceback there would be seen
    by nobody. Inside `setting` it does nothing."""

    @wraps(method)
    def guarded(self: ReportingBox, *arguments: Any) -> None:
        if self._quiet:
            return
        try:
            method(self, *arguments)
        except Exception as error:  # noqa: BLE001  (explain() logs what is unforeseen, with its traceback)
            self.say(explain(error), wrong=True)

    return guarded
