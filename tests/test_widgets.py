"""The playground's widget, headless: values are set, buttons clicked, the HTML is read."""

import html
import shutil
import sys
import threading

import pytest

from picollm_core import generate
from picollm_core.config import SamplingConfig
from picollm_core.notebook_cleaning import WIDGET_VIEW
from picollm_core.widgets import IN_STEP_TOKENS, SIDE_BY_SIDE, playground
from tests.saved_models import DECIDED, save_families

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    return save_families(tmp_path_factory.mktemp("models"), n_embd=8, block_size=64, scale=DECIDED)


@pytest.fixture
def view(shipped, tmp_path):
    widget = playground(shipped=shipped, runs_dir=tmp_path, length=30)
    widget.speed.value = 300
    yield widget
    widget.close()


def bars(view):
    return [column[1].value for column in view._columns]


def stories(view):
    return [column[2].value for column in view._columns]


def finish(view):
    view.generate.click()
    view.wait()


def workers():
    return [thread for thread in threading.enumerate() if thread.name == "picollm-playground"]


def test_it_opens_with_the_shipped_models_their_next_token_and_no_story(view):
    assert len(bars(view)) == 3
    assert all("tokens stay" in source for source in bars(view))
    assert stories(view) == ["", "", ""]
    assert "Sampling: top-p 0.95" in view.status.value


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_p", 0.3), ("temperature", 0.2), ("top_k", 3), ("min_p", 0.9), ("repetition_penalty", 1.9)],
)
def test_every_sampling_slider_moves_the_bars_before_anything_is_generated(view, name, value):
    likeliest = view._shelf.next_token(view._columns[0][0].path, "Once upon a time", SamplingConfig()).candidates[0]
    view.prompt.value = f"{likeliest.text} Once upon a time"  # for the k-gram now also a repetition
    before = bars(view)
    view.filters[name].value = value
    assert bars(view)[0] != before[0]
    assert stories(view) == ["", "", ""]


def test_the_prompt_moves_the_bars(view):
    before = bars(view)
    view.prompt.value = "The cat"
    assert all(old != new for old, new in zip(before, bars(view), strict=True))


def test_the_stories_are_those_of_generate_and_the_same_seed_gives_the_same_text(view):
    view.filters["top_p"].value, view.seed.value = 0.8, 5
    finish(view)
    first = view.texts
    for model, _, _ in view._columns:
        net, tokenizer = view._shelf.load(model.path)
        sampling = SamplingConfig(top_p=0.8)
        expected = generate(net, tokenizer, "Once upon a time", sampling=sampling, seed=5, max_new_tokens=30)
        assert first[model.label] == expected
    finish(view)
    assert view.texts == first
    view.seed.value = 6
    finish(view)
    assert view.texts != first
    assert all("pico-tip" in source for source in stories(view))
    assert "Done." in view.status.value
    assert html.escape(next(iter(view.texts.values()))) in view.copy.value


def test_generate_twice_leaves_one_thread_and_stop_twice_none(view):
    view.speed.value, view.length.value = 5, 500
    view.generate.click()
    view.generate.click()
    assert len(workers()) == 1
    assert not view.stop.disabled
    view.filters["top_p"].value = 0.5  # the next-token view goes on answering
    assert "Sampling" not in view.status.value
    view.stop.click()
    view.stop.click()
    assert workers() == []
    assert view.stop.disabled
    assert all("stopped" in source for source in stories(view))
    assert "Stopped." in view.status.value


def test_sliders_report_where_they_are_let_go_while_stories_are_written(view):
    assert view.filters["top_p"].continuous_update
    view.speed.value = 5
    view.generate.click()
    assert not view.filters["top_p"].continuous_update
    view.stop.click()
    assert view.filters["top_p"].continuous_update
    assert not view.length.continuous_update
    assert not view.seed.continuous_update


def test_closing_and_choosing_other_models_end_the_thread(view):
    view.speed.value = 5
    view.generate.click()
    view.models.value = view.models.value[:1]
    assert workers() == []
    assert len(bars(view)) == 1
    view.generate.click()
    view.close()
    assert workers() == []
    view.generate.click()  # a click that was on its way
    view.stop.click()
    assert workers() == []


def test_markup_in_a_prompt_is_text_everywhere(view):
    view.prompt.value = HOSTILE
    finish(view)
    everything = [
        *bars(view),
        *stories(view),
        view.copy.value,
        view.status.value,
        *view._repr_mimebundle_()["text/html"],
    ]
    assert not any("<script" in source or "<img" in source for source in everything)
    assert all(html.escape(HOSTILE) in source for source in stories(view))


@pytest.mark.parametrize(
    ("prompt", "words"), [("", "the prompt is empty"), ("one two three " * 40, "the window holds 64")]
)
def test_a_prompt_that_cannot_be_continued_is_explained_and_the_others_go_on(view, prompt, words):
    view.prompt.value = prompt
    assert words in view.status.value
    finish(view)
    assert words in view.status.value
    expected = 0 if prompt == "" else 2  # k-gram and LSTM have no window
    assert sum("pico-token" in source for source in stories(view)) == expected
    view.prompt.value = "Once"
    finish(view)
    assert "Done." in view.status.value


def test_without_a_model_on_disk_it_says_what_to_do(tmp_path):
    view = playground(shipped=tmp_path, runs_dir=tmp_path)
    assert "picollm train" in view.status.value
    view.generate.click()
    assert "picollm train" in view.status.value
    assert "picollm train" in view._repr_mimebundle_()["text/html"]


def test_a_model_whose_tokenizer_is_missing_is_explained_beside_the_others(shipped, tmp_path):
    shutil.copytree(shipped / "lstm", tmp_path / "orphan")
    (tmp_path / "orphan" / "tokenizer.json").unlink()
    view = playground([tmp_path / "orphan", shipped / "kgram"], length=5)
    assert "has no tokenizer.json" in view.status.value
    assert "has no tokenizer.json" in bars(view)[0]
    finish(view)
    assert list(map(bool, stories(view))) == [False, True]
    assert "has no tokenizer.json" in view.status.value
    assert "has no tokenizer.json" in view._repr_mimebundle_()["text/plain"]


def test_no_model_chosen_is_explained(view):
    view.models.value = ()
    assert "Choose a model" in view.status.value
    view.generate.click()
    assert "Choose a model" in view.status.value


def test_an_unforeseen_failure_in_a_callback_is_read_in_the_status_line(view, monkeypatch):
    monkeypatch.setattr(view._shelf, "story", lambda *given: 1 / 0)
    view.generate.click()
    assert "ZeroDivisionError" in view.status.value
    monkeypatch.undo()
    monkeypatch.setattr("picollm_core.playground_html.story_html", lambda *given, **more: 1 / 0)
    finish(view)
    assert "ZeroDivisionError" in view.status.value


def test_more_models_than_fit_are_cut_to_those_that_do(shipped, tmp_path):
    for number in range(SIDE_BY_SIDE + 1):
        shutil.copytree(shipped / "kgram", tmp_path / f"model{number}")
    view = playground([tmp_path / f"model{number}" for number in range(SIDE_BY_SIDE + 1)])
    assert len(bars(view)) == SIDE_BY_SIDE
    view.models.value = tuple(model for _, model in view.models.options)
    assert len(bars(view)) == SIDE_BY_SIDE
    assert f"the first {SIDE_BY_SIDE} are shown" in view.status.value


def test_in_colab_it_writes_in_step_with_a_cap(shipped, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    view = playground("kgram", shipped=shipped, runs_dir=tmp_path, length=500)
    view.generate.click()
    assert workers() == []
    assert f"{IN_STEP_TOKENS} tokens" in stories(view)[0]
    assert f"stories end after {IN_STEP_TOKENS} tokens" in view.status.value


def test_a_page_without_widgets_gets_a_table_of_samples(view):
    bundle = view._repr_mimebundle_()
    assert bundle[WIDGET_VIEW]["model_id"] == view.model_id
    assert bundle["text/html"].count("<td>Once upon a time") == 6
    assert "greedy" in bundle["text/plain"]
    assert all(model.label in bundle["text/plain"] for model, _, _ in view._columns)


def test_names_and_starts_that_are_not_possible_are_refused_at_the_call(shipped):
    with pytest.raises(ValueError, match="no model is called 'gru'"):
        playground("gru", shipped=shipped)
    with pytest.raises(ValueError, match="length is 9000"):
        playground("lstm", shipped=shipped, length=9000)
