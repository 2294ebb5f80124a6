"""What goes wrong in a widget stands in its status line, and nothing of it stays on the page once it is closed."""

import ipywidgets as widgets
import pytest

from picollm_core.notebook_cleaning import WIDGET_VIEW
from picollm_core.reporting_box import ReportingBox, reported


class Divider(ReportingBox):
    def __init__(self):
        self.status, self.number, self.result = widgets.HTML(), widgets.IntText(1), None
        super().__init__([self.status, widgets.HBox([self.number])])
        self.number.observe(self.divide, "value")

    @reported
    def divide(self, _=None):
        if self.number.value < 0:
            raise ValueError("choose a number above 0")
        self.result = 12 / self.number.value


@pytest.fixture
def box():
    box = Divider()
    yield box
    box.close()


def test_a_callback_works_and_its_failure_becomes_a_sentence(box, caplog):
    box.number.value = 3
    assert (box.result, box.status.value) == (4, "")
    box.number.value = -1
    assert "choose a number above 0" in box.status.value
    assert not caplog.records  # foreseen
    box.number.value = 0
    assert "ZeroDivisionError" in box.status.value
    assert "unforeseen" in caplog.text


def test_controls_can_be_set_without_what_they_would_set_off_also_after_an_error(box):
    def set_and_fail(number):
        with box.setting():
            box.number.value = number
            raise KeyError

    with pytest.raises(KeyError):
        set_and_fail(4)
    assert box.result is None
    box.number.value = 6
    assert box.result == 2


def test_what_is_said_is_text_and_not_markup(box):
    box.say("<b>5 < 6</b>")
    assert "<b>" not in box.status.value


def test_a_notebook_keeps_the_live_widget_and_its_substitutes(box):
    kept = box.bundle("plain", "<p>table</p>")
    assert (kept["text/plain"], kept["text/html"]) == ("plain", "<p>table</p>")
    assert kept[WIDGET_VIEW]["model_id"] == box.model_id
    assert box._ipython_display_ is None


def test_closing_takes_every_part_off_the_page():
    box = Divider()
    box.close()
    assert box.comm is None
    assert box.number.comm is None
