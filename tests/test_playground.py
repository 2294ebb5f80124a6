"""Models on disk, cached logits and growing stories: the playground without its widgets."""

import threading

import pytest

from picollm_core import generate
from picollm_core.config import SamplingConfig
from picollm_core.playground import Generation, ModelShelf, Story, describe_sampling, explain, find_models
from picollm_core.playground_html import ShownToken
from tests.saved_models import save_families

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    return save_families(tmp_path_factory.mktemp("models"), n_embd=8, block_size=32)


@pytest.fixture(scope="module")
def shelf():
    return ModelShelf()


def story(source, length=5):
    return Story("a model", "Once", iter(source), length)


def drawn(text="x", ends=False):
    return ShownToken(text, 0, 0.5, 1, None, ends)


def endless(text="x"):
    while True:
        yield drawn(text)


def test_left_out_the_models_that_ship_are_offered_and_chosen(shipped, tmp_path):
    offered, chosen = find_models(None, shipped, tmp_path)
    assert [model.path.name for model in offered] == ["kgram", "lstm", "transformer"]
    assert chosen == offered


def test_without_any_model_nothing_is_offered(tmp_path):
    assert find_models(None, tmp_path, tmp_path) == ([], [])


def test_models_are_found_by_name_and_by_folder_and_shown_once(shipped, tmp_path):
    offered, chosen = find_models(["lstm", shipped / "kgram", str(shipped / "lstm")], shipped, tmp_path)
    assert [model.path.name for model in offered] == ["lstm", "kgram"]
    assert chosen == offered
    assert find_models("lstm", shipped, tmp_path)[0] == offered[:1]


def test_an_unknown_name_is_answered_with_the_known_ones(shipped, tmp_path):
    with pytest.raises(ValueError, match=r"no model is called 'gru'.*kgram, lstm, transformer.*picollm train"):
        find_models("gru", shipped, tmp_path)
    with pytest.raises(ValueError, match="models is empty"):
        find_models([], shipped, tmp_path)


def test_moving_a_slider_does_not_ask_the_model_again(shipped, monkeypatch):
    shelf = ModelShelf()
    path = shipped / "transformer"
    model, _ = shelf.load(path)
    calls = []
    original = model.hidden
    monkeypatch.setattr(model, "hidden", lambda *given: calls.append(1) or original(*given))
    kept = [shelf.next_token(path, PROMPT, SamplingConfig(top_p=p)).kept for p in (0.2, 0.5, 0.9)]
    assert len(calls) == 1
    assert kept == sorted(set(kept))
    shelf.next_token(path, PROMPT + " there", SamplingConfig())
    assert len(calls) == 2


@pytest.mark.parametrize("family", ["kgram", "lstm", "transformer"])
def test_a_story_is_what_generate_writes_past_the_window_too(shelf, shipped, family):
    sampling = SamplingConfig(top_p=0.8, temperature=0.9, top_k=50, min_p=0.01, repetition_penalty=1.2)
    path = shipped / family
    text = PROMPT + "".join(token.text for token in shelf.story(path, PROMPT, sampling, 40, seed=3))
    model, tokenizer = shelf.load(path)
    assert text == generate(model, tokenizer, PROMPT, sampling=sampling, max_new_tokens=40, seed=3)
    assert text != generate(model, tokenizer, PROMPT, sampling=sampling, max_new_tokens=40, seed=4)


def test_every_token_was_drawn_from_the_nucleus_it_shows(shelf, shipped):
    sampling = SamplingConfig(top_k=6, repetition_penalty=1.5)
    for token in shelf.story(shipped / "lstm", PROMPT, sampling, 20, seed=0):
        assert token.source.kept <= 6
        own = [candidate for candidate in token.source.candidates if candidate.id == token.id]
        assert own
        assert own[0].chance > 0
        assert own[0].probability == pytest.approx(token.probability)


def test_samples_show_a_models_problem_in_its_place(shelf, shipped, tmp_path):
    models = find_models(["lstm", "kgram"], shipped, tmp_path)[0]
    rows = shelf.samples(models, PROMPT, SamplingConfig(), 5, seed=0)
    assert [name for name, _ in rows] == ["greedy", "top-p 0.95"]
    assert all(text.startswith(PROMPT) for _, texts in rows for text in texts)
    (tmp_path / "broken").mkdir()
    broken = find_models(tmp_path / "broken", shipped, tmp_path)[0]
    assert "is not a saved model" in shelf.samples(broken, PROMPT, SamplingConfig(), 5, seed=0)[0][1][0]


def test_settings_are_named_where_they_differ_from_plain_sampling():
    assert describe_sampling(SamplingConfig()) == "top-p 0.95"
    assert describe_sampling(SamplingConfig(temperature=0)) == "greedy"
    everything = SamplingConfig(top_p=0.9, temperature=0.5, top_k=3, min_p=0.1, repetition_penalty=1.2)
    assert describe_sampling(everything) == "top-p 0.9, temperature 0.5, top-k 3, min-p 0.1, repetition penalty 1.2"


def test_a_story_ends_by_its_model_by_length_or_by_failing():
    def failing():
        yield drawn()
        raise ValueError("the logits are not finite")

    stories = [story([drawn("a"), drawn("", ends=True)]), story(endless(), length=3), story(failing())]
    Generation(stories, lambda final: 0).run()
    assert [one.stage for one in stories] == ["ended", "full", "failed"]
    assert [one.text for one in stories] == ["Oncea", "Oncexxx", "Oncex"]
    assert stories[0].note() == "2 tokens: the model ended the story (■)"
    assert "the logits are not finite" in stories[2].note()


def test_stories_grow_in_turn():
    order = []

    def source(name):
        while True:
            order.append(name)
            yield drawn()

    Generation([story(source("a"), 3), story(source("b"), 3)], lambda final: 0).run()
    assert order == ["a", "b"] * 3


def test_the_last_picture_is_always_painted_and_is_the_only_final_one():
    painted = []
    Generation([story(endless(), 3)], lambda final: painted.append(final) or 0).run()
    assert painted.count(True) == 1
    assert painted[-1]


def test_heavy_pictures_are_painted_less_often():
    light, heavy = [], []
    for painted, size in ((light, 0), (heavy, 10**9)):
        generation = Generation([story(endless(), 30)], lambda final, p=painted, s=size: p.append(final) or s, 0.01)
        generation.run()
    assert len(heavy) == 2  # the first and the final one
    assert len(light) > 2


def test_a_stopped_thread_ends_and_stopping_again_is_no_harm():
    one = story(endless(), 10**9)
    began = threading.Event()
    generation = Generation([one], lambda final: began.set() or 0)
    generation.stop()  # before it starts: nothing is drawn
    generation.start()
    generation.stop()
    assert (one.stage, one.tokens) == ("stopped", [])
    generation = Generation([story(endless(), 10**9)], lambda final: began.set() or 0, pace=10.0)
    generation.start()
    assert began.wait(10)
    generation.stop()
    generation.stop()
    assert not generation.running
    assert generation.stories[0].stage == "stopped"


def test_an_unforeseen_error_becomes_a_sentence_and_is_logged(caplog):
    assert explain(ValueError("what to do")) == "what to do"
    assert explain(ZeroDivisionError("by zero")).startswith("ZeroDivisionError: by zero; run the cell again")
    assert "unforeseen" in caplog.text
