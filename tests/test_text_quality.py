"""Sampled text beside human text: what is scored, by whom, on which beginnings, and from which models."""

import dataclasses

import numpy as np
import pytest
import torch

from picollm_core.config import DataConfig, TrainConfig
from picollm_core.diversity import distinct_n
from picollm_core.evaluate import evaluate
from picollm_core.kneser_ney import KneserNey
from picollm_core.lab import Lab
from picollm_core.loading import save_model
from picollm_core.models import build_model
from picollm_core.presets import run_config
from picollm_core.profiles import PROFILES
from picollm_core.sampling import generate, stream
from picollm_core.text_quality import (
    NGRAM,
    QualityStudy,
    Source,
    beginnings,
    continuations,
    count_nats,
    follow_story,
    generators,
    judge_nats,
    next_tokens,
    nucleus_sizes,
    sample_texts,
    sampler_grid,
)
from picollm_core.tokenizers import load_tokenizer
from tests.conftest import TINY
from tests.test_sampling import BYTES, EOT, saying, tiny

STORY = "the cat sat on the mat and saw a dog run by the big red barn, "


@pytest.mark.parametrize("name", TINY)
def test_the_judge_scores_the_continuation_alone_and_given_the_prompt(name):
    model = tiny(name)
    prompts, texts = ["ab", "c", "abc"], [" def", " gh", ""]
    nats, tokens = judge_nats(model, BYTES, prompts, texts, length=10, batch_size=2)
    for prompt, text, found in zip(prompts, texts, nats, strict=True):
        idx = torch.tensor([[EOT, *(prompt + text).encode()]])
        with torch.no_grad():
            log_p = torch.log_softmax(model(idx)[0].double(), -1)
        places = range(len(prompt), len(prompt) + len(text))
        assert found == pytest.approx(-sum(float(log_p[t, idx[0, t + 1]]) for t in places), abs=1e-4)
    assert tokens.tolist() == [4, 3, 0]


def test_prompt_and_continuation_together_cost_what_the_evaluator_says():
    model, prompt, text = tiny("lstm"), "ab", " cd ef"
    given, _ = judge_nats(model, BYTES, [""], [prompt], length=99)
    added, _ = judge_nats(model, BYTES, [prompt], [text], length=99)
    assert given[0] + added[0] == pytest.approx(
        evaluate(model, BYTES, [prompt + text]).per_story.text_nats[0], abs=1e-4
    )


def test_no_more_than_length_tokens_are_scored_and_other_rows_change_nothing():
    model = tiny("transformer")
    alone, tokens = judge_nats(model, BYTES, ["ab"], [" cdefg"], length=3)
    cut, _ = judge_nats(model, BYTES, ["ab"], [" cd"], length=99)
    among, _ = judge_nats(model, BYTES, ["x", "ab"], [" a longer one", " cdefg"], length=3)
    assert tokens.tolist() == [3]
    assert alone[0] == pytest.approx(cut[0], abs=1e-5) == pytest.approx(among[1], abs=1e-5)


def test_a_text_that_does_not_fit_the_judge_and_lists_of_different_length_are_refused():
    model = tiny("transformer")
    assert judge_nats(model, BYTES, ["a" * 4], ["b" * 20], length=99)[1] == [20]
    with pytest.raises(ValueError, match="have 25 tokens but the judge's window holds 24"):
        judge_nats(model, BYTES, ["a" * 5], ["b" * 20], length=99)
    with pytest.raises(ValueError, match="2 prompts but 1 texts"):
        judge_nats(model, BYTES, ["a", "b"], ["c"], length=9)
    with pytest.raises(ValueError, match="use the tokenizer that the model was trained with"):
        judge_nats(model, load_tokenizer("stories-4k"), ["a"], ["c"], length=9)


def test_the_counting_judge_scores_the_same_tokens():
    tokens = [*b"abcabd", EOT, *b"abcabc", EOT]
    counts = KneserNey(3, 257).fit(tokens, [0, 7, 14])
    whole = counts.token_nats([*b"abcabd", EOT])
    found = count_nats(counts, BYTES, ["ab", "ab", ""], ["cabd", "cabd", "abcabd"], length=3)
    assert found == pytest.approx([whole[2:5].sum(), whole[2:5].sum(), whole[:3].sum()])


def test_beginnings_are_whole_words_of_the_first_stories_that_are_long_enough():
    texts = ["too short", "one two three four five six", "so it was an odd day ok", "abc def ghi jkl mno pqr"]
    found = beginnings(texts, BYTES, stories=2, prompt_tokens=7, length=10)
    assert found == [("one two", " three fou"), ("abc def", " ghi jkl m")], "'so it w' ends within a word"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stories": 3}, "3 stories of at least 3 . 4 tokens are needed but there are 2; ask for fewer or shorter"),
        ({"stories": 0}, "stories is 0"),
        ({"length": 0}, "length is 0"),
        ({"prompt_tokens": 0}, "prompt_tokens is 0"),
    ],
)
def test_beginnings_that_cannot_be_had_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        beginnings(["one two three", "two six"], BYTES, **{"stories": 2, "prompt_tokens": 3, "length": 4} | change)


def test_continuations_are_what_generation_adds_with_seeds_that_count_up():
    model = tiny("lstm")
    found = continuations(model, BYTES, ["ab", "cd"], length=8, seed=4, top_p=0.9)
    assert found == [
        generate(model, BYTES, p, max_new_tokens=8, seed=4 + row, top_p=0.9)[2:] for row, p in enumerate(["ab", "cd"])
    ]
    assert continuations(saying("abc"), BYTES, [">"], length=8) == ["abc"], "up to the end of text"


def test_sampler_grids_truncate_by_one_sampler_alone_and_zero_is_greedy():
    assert sampler_grid("top-p", (0, 0.5, 1)) == {
        "greedy": {"temperature": 0.0},
        "top-p 0.5": {"top_p": 0.5},
        "top-p 1": {"top_p": 1.0},
    }
    assert sampler_grid("top-k", (5,)) == {"top-k 5": {"top_p": 1.0, "top_k": 5}}
    assert sampler_grid("min-p", (0.1,)) == {"min-p 0.1": {"top_p": 1.0, "min_p": 0.1}}
    with pytest.raises(ValueError, match="sampler is 'beam'; choose top-p, top-k, min-p or temperature"):
        sampler_grid("beam", (1,))
    with pytest.raises(ValueError, match=r"top_p is 1\.5"):
        sampler_grid("top-p", (1.5,))


@pytest.mark.parametrize("name", TINY)
def test_nucleus_sizes_of_a_sampled_text_are_those_it_was_drawn_from(name):
    model = tiny(name)
    drawn = list(stream(model, BYTES, "ab", max_new_tokens=12, top_p=0.8, seed=1, stop_at_eot=False))
    sizes = nucleus_sizes(model, BYTES, "ab", [token.id for token in drawn], 0.8)
    assert sizes == [token.nucleus_size for token in drawn]
    assert len(set(sizes)) > 1


def test_next_tokens_come_likeliest_first_and_hold_the_whole_nucleus():
    model = tiny("lstm")
    head = next_tokens(model, BYTES, "ab", p=0.9, top=3)
    mass = np.cumsum(head["probabilities"])
    assert head["nucleus"] == len(head["tokens"]) > 3
    assert mass[-1] >= 0.9 - 1e-4 > mass[-2] - 2e-4
    assert head["probabilities"] == sorted(head["probabilities"], reverse=True)
    assert len(next_tokens(model, BYTES, "ab", p=0.01, top=5)["tokens"]) == 5


def source(model, family="lstm"):
    return Source(family, "id", "here", lambda: (model, BYTES))


def test_a_story_is_followed_by_every_source_along_the_writer_s_tokens():
    sources = {"lstm": source(tiny("lstm")), "kgram": source(tiny("kgram-learned"))}
    story = follow_story(sources, "lstm", "ab", p=0.7, tokens=6, seed=2)
    written = list(stream(tiny("lstm"), BYTES, "ab", max_new_tokens=6, top_p=0.7, seed=2))
    assert story["tokens"] == [BYTES.decode([token.id]) for token in written]
    assert story["sizes"]["lstm"] == [token.nucleus_size for token in written] != story["sizes"]["kgram"]
    with pytest.raises(ValueError, match="writer is 'rnn'; choose one of lstm, kgram"):
        follow_story(sources, "rnn", "ab", p=0.7, tokens=6)


def test_samples_of_one_prompt_differ_by_sampler_alone():
    texts = sample_texts(source(tiny("lstm")), "ab", sampler_grid("top-p", (0, 0.5)), length=9, seed=3)
    expected = {"greedy": {"temperature": 0.0}, "top-p 0.5": {"top_p": 0.5}}
    for label, fields in expected.items():
        assert "ab" + texts[label] == generate(tiny("lstm"), BYTES, "ab", max_new_tokens=9, seed=3, **fields)


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(f"{n} {STORY} {n} and {n + 1} and {n % 7} too" for n in range(400)))
    data = DataConfig(corpus=("text.txt",), splits=(90, 10, 0))
    train = TrainConfig(max_steps=3, eval_every=3, eval_stories=4)
    return Lab(dataclasses.replace(PROFILES["quick"], data=data, train=train, block_size=32))


def test_a_study_records_both_judges_tokens_repetition_and_variety(lab):
    judge = lab.train("kgram-pico", n_embd=8, seed=1)
    study = QualityStudy(judge, stories=5, prompt_tokens=3, length=12)
    human, tokenizer = study.human(), judge.load_tokenizer()
    assert human["tokens"] == [12] * 5
    assert len(human["nats"]) == len(human["count_nats"]) == len(human["repetition"]) == len(human["variety"]) == 5
    assert sum(human["count_nats"]) < sum(human["nats"]), "counts know this text better than three updates do"
    writer = Source("kgram", "id", "here", lambda: (judge.load_model(), tokenizer))
    records = study.measure(writer, sampler_grid("top-p", (0, 1)))
    assert list(records) == ["greedy", "top-p 1"]
    assert sum(records["greedy"]["nats"]) < sum(records["top-p 1"]["nats"])
    loops = study.describe([" and and and and and and and and and and and and"] * 5)
    assert loops["repetition"] == [pytest.approx(1 - 1 / (6 - NGRAM + 1), abs=1e-4)] * 5
    ids = tokenizer.encode_ordinary(" and" * 12)
    assert loops["distinct"][0] == distinct_n([ids[:12]] * 5, 1, 30)
    short = study.describe([" and"] * 5)
    assert short["repetition"] == short["variety"] == [None] * 5
    assert short["distinct"] is None


def test_the_key_of_a_study_changes_with_its_judge_and_its_sizes(lab):
    one, other = (lab.train("kgram-pico", n_embd=8, seed=seed) for seed in (0, 1))
    sizes = {"stories": 5, "prompt_tokens": 3, "length": 12}
    keys = [QualityStudy(run, **sizes).key for run in (one, other)]
    keys += [QualityStudy(one, **sizes | {name: 4}).key for name in sizes]
    assert all(a != b for i, a in enumerate(keys) for b in keys[:i])


def test_generators_are_the_profile_s_runs_until_all_three_models_ship_and_always_in_quick(lab, tmp_path):
    standard = Lab(dataclasses.replace(lab.profile, name="standard"))
    runs = generators(standard, "the", tmp_path / "models")
    assert [source.identity for source in runs.values()] == [
        lab.train(f"{family}-pico", prompt="the").fingerprint for family in runs
    ]
    for family in ("kgram", "lstm", "transformer"):
        assert generators(standard, "the", tmp_path / "models")["lstm"].identity == runs["lstm"].identity
        model = build_model(run_config(f"{family}-pico", n_embd=8).model)
        save_model(model, "stories-4k", tmp_path / "models" / family)
    shipped = generators(standard, "the", tmp_path / "models")
    assert all(shipped[family].identity != runs[family].identity for family in shipped)
    assert shipped["lstm"].load()[0].config.n_embd == 8
    assert generators(lab, "the", tmp_path / "models")["lstm"].identity == runs["lstm"].identity
    before = shipped["lstm"].identity
    torch.manual_seed(9)
    save_model(build_model(run_config("lstm-pico", n_embd=8).model), "stories-4k", tmp_path / "models" / "lstm")
    assert generators(standard, "the", tmp_path / "models")["lstm"].identity != before, "other weights, other identity"
