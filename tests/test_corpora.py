"""Corpora by name and by path: same split contents every time, disjoint, named by their content."""

import pickle
import tracemalloc
from collections import Counter
from itertools import chain
from types import SimpleNamespace

import pyarrow
import pytest
from pyarrow import parquet

from picollm_core import corpora, tinystories
from picollm_core.corpora import load_corpus
from picollm_core.splits import SPLITS, story_key


@pytest.fixture
def lines_file(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"line number {i} of the file\n" for i in range(400)))
    return path


@pytest.fixture
def no_tinystories(monkeypatch, tmp_path):
    monkeypatch.delenv("PICOLLM_TINYSTORIES", raising=False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(tinystories, "_hub_is_reachable", lambda: False)


@pytest.fixture
def small_tinystories(monkeypatch, tmp_path):
    """A folder whose training file holds a copy of a validation story."""
    folder = tmp_path / "tinystories"
    folder.mkdir()
    train = [f"Train story {i}." for i in range(300)] + ["Validation STORY 7"]
    for split, texts in {"train": train, "validation": [f"Validation story {i}." for i in range(40)]}.items():
        parquet.write_table(pyarrow.table({"text": texts}), folder / f"{split}.parquet")
    monkeypatch.setenv("PICOLLM_TINYSTORIES", str(folder))
    return folder


def everything(corpus):
    return {split: list(corpus.texts(split)) for split in SPLITS}


def test_a_text_file_gives_lines_in_disjoint_splits_that_hold_everything(lines_file):
    corpus = load_corpus(str(lines_file), splits=(60, 20, 20))
    texts = everything(corpus)
    assert (corpus.name, corpus.style) == ("lines.txt", "lines")
    assert sorted(chain.from_iterable(texts.values())) == sorted(lines_file.read_text().splitlines())
    keys = Counter(key for split in SPLITS for key in {story_key(text) for text in texts[split]})
    assert set(keys.values()) == {1}
    assert {split: corpus.count(split) for split in SPLITS} == {split: len(texts[split]) for split in SPLITS}
    assert min(map(len, texts.values())) > 40


def test_a_split_reads_the_same_every_time(lines_file):
    corpus = load_corpus(str(lines_file))
    assert everything(corpus) == everything(corpus) == everything(load_corpus(str(lines_file)))


def test_copies_of_a_line_stay_in_one_split(tmp_path):
    path = tmp_path / "copies.txt"
    path.write_text("".join(f"Line {i % 50}{'!' * (i // 50)}\n" for i in range(500)))
    texts = everything(load_corpus(str(path), splits=(50, 25, 25)))
    assert sum(len({story_key(t) for t in texts[split]}) for split in SPLITS) == 50
    assert sum(map(len, texts.values())) == 500


def test_content_hash_follows_text_splits_and_limit_but_not_the_place(lines_file, tmp_path):
    base = load_corpus(str(lines_file)).content_hash
    elsewhere = tmp_path / "copy.txt"
    elsewhere.write_text(lines_file.read_text())
    assert load_corpus(str(elsewhere)).content_hash == base
    others = [
        load_corpus(str(lines_file), splits=(60, 40, 0)).content_hash,
        load_corpus(str(lines_file), limit=399).content_hash,
    ]
    lines_file.write_text(lines_file.read_text().replace("line number 7 ", "line number 7, "))
    others.append(load_corpus(str(lines_file)).content_hash)
    assert len({base, *others}) == 4
    assert len(base) == 16


def test_limit_caps_the_examples_read(lines_file):
    corpus = load_corpus(str(lines_file), limit=30)
    assert sum(corpus.count(split) for split in SPLITS) == 30
    with pytest.raises(ValueError, match="limit is 0"):
        load_corpus(str(lines_file), limit=0)


def test_a_folder_is_one_corpus_and_separators_make_it_stories(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "a.txt").write_text("first\nsecond\nthird\n")
    assert load_corpus(str(tmp_path)).style == "lines"
    (tmp_path / "more" / "b.txt").write_text("a story\nof two lines<|endoftext|>another one<|endoftext|>")
    corpus = load_corpus(str(tmp_path))
    assert corpus.style == "stories"
    assert sum(corpus.count(split) for split in SPLITS) == 5


def test_a_parquet_file_is_a_corpus_of_stories(small_tinystories):
    corpus = load_corpus(str(small_tinystories / "validation.parquet"), splits=(0, 1, 0))
    assert (corpus.style, corpus.count("validation"), corpus.count("train")) == ("stories", 40, 0)


def test_missing_path_and_unknown_name_are_told_apart_from_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"no corpus or path.*absent\.txt.*auto, tinystories, storyworld"):
        load_corpus(str(tmp_path / "absent.txt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"ok\n\x00\x01", "line 2: a NUL byte"), (b"ok\nok\n\xff\n", "line 3: byte 0xff")],
)
def test_files_that_are_not_text_are_refused_when_the_corpus_is_opened(tmp_path, content, message):
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.txt.*{message}"):
        load_corpus(str(tmp_path))


def test_published_tinystories_split_is_kept_and_leaked_stories_are_dropped(small_tinystories):
    corpus = load_corpus("tinystories")
    texts = everything(corpus)
    assert (corpus.name, corpus.style, corpus.dropped, corpus.note) == ("tinystories", "stories", 1, "")
    assert {split: len(t) for split, t in texts.items()} == {"train": 300, "validation": 40, "test": 0}
    assert [corpus.count(split) for split in SPLITS] == [300, 40, 0]
    assert "Validation STORY 7" not in texts["train"]


def test_tinystories_with_splits_is_pooled_and_split_by_hash(small_tinystories):
    corpus = load_corpus("tinystories", splits=(60, 20, 20))
    texts = everything(corpus)
    assert sum(map(len, texts.values())) == 341
    assert any(text.startswith("Validation") for text in texts["train"])
    assert corpus.count("test") > 30


def test_limit_of_a_published_split_leaves_validation_whole(small_tinystories):
    corpus = load_corpus("tinystories", limit=10)
    assert [corpus.count(split) for split in SPLITS] == [10, 40, 0]


def test_tinystories_nowhere_is_an_error_that_names_the_variable(no_tinystories):
    with pytest.raises(ValueError, match=r"PICOLLM_TINYSTORIES is not set.*no network.*storyworld"):
        load_corpus("tinystories")


def test_auto_is_tinystories_where_it_is_at_hand(small_tinystories):
    assert load_corpus("auto").content_hash == load_corpus("tinystories").content_hash


def test_auto_falls_back_to_storyworld_and_says_so_in_one_line(no_tinystories, monkeypatch, tmp_path):
    corpus = load_corpus("auto", n_stories=200)
    assert corpus.name == "storyworld"
    assert "storyworld, because PICOLLM_TINYSTORIES is not set" in corpus.note
    monkeypatch.setenv("PICOLLM_TINYSTORIES", str(tmp_path / "gone"))
    again = load_corpus("auto", n_stories=200)
    assert "gone', which is not a folder" in again.note
    assert "\n" not in again.note
    assert again.content_hash == corpus.content_hash == load_corpus("storyworld", n_stories=200).content_hash


@pytest.mark.parametrize("n_stories", [300, corpora.SMALL_WORLD + 50])
def test_storyworld_is_split_by_hash_named_by_seed_and_complete(n_stories):
    corpus = load_corpus("storyworld", n_stories=n_stories, seed=3)
    texts = everything(corpus)
    assert sum(map(len, texts.values())) == n_stories
    assert min(map(len, texts.values())) > 0
    assert [corpus.count(split) for split in SPLITS] == [len(texts[split]) for split in SPLITS]
    assert corpus.content_hash == load_corpus("storyworld", n_stories=n_stories, seed=3).content_hash
    assert corpus.content_hash != load_corpus("storyworld", n_stories=n_stories, seed=4).content_hash
    assert corpus.content_hash != load_corpus("storyworld", n_stories=n_stories + 1, seed=3).content_hash
    assert not {story_key(t) for t in texts["train"]} & {story_key(t) for t in texts["validation"] + texts["test"]}


def test_three_sequences_come_from_the_file_or_the_generator(monkeypatch, tmp_path):
    shipped = load_corpus("three_sequences")
    monkeypatch.setattr(corpora, "DATA", tmp_path)
    generated = load_corpus("three_sequences")
    for corpus in (shipped, generated):
        assert (corpus.name, corpus.style) == ("three_sequences", "lines")
        assert all(word.isdigit() for word in next(corpus.texts("train")).split())
    assert load_corpus("three_sequences", limit=50).count("train") <= 50


def test_custom_is_the_folder_of_the_working_copy(monkeypatch, tmp_path):
    folder = tmp_path / "custom_corpus"
    folder.mkdir()
    (folder / "notes.txt").write_text("one\ntwo\nthree\nfour\n")
    monkeypatch.setattr(corpora, "DATA", tmp_path)
    assert load_corpus("custom").name == "custom"
    monkeypatch.setattr(corpora, "DATA", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"'custom'.*custom_corpus does not exist"):
        load_corpus("custom")


def test_unknown_split_is_refused(lines_file):
    with pytest.raises(ValueError, match=r"split is 'dev'.*'validation'"):
        load_corpus(str(lines_file)).texts("dev")


def test_generator_without_text_is_refused():
    with pytest.raises(ValueError, match="'nothing' holds no text"):
        corpora._pooled("nothing", "lines", lambda: iter(()), None)


def test_a_corpus_can_be_sent_to_another_process(lines_file):
    corpus = load_corpus(str(lines_file))
    assert everything(pickle.loads(pickle.dumps(corpus))) == everything(corpus)


def opening_peak(n_stories, published):
    """Most bytes that opening a corpus of so many stories holds at a time."""

    def stories():
        return (f"story number {i}" for i in range(n_stories))

    tracemalloc.start()
    try:
        if published:
            assert corpora._published("many", stories, lambda: iter(["held out"])).count("train") == n_stories
        else:
            corpora._pooled("many", "stories", stories, None)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("published", [True, False])
def test_opening_a_corpus_holds_nothing_of_each_story(monkeypatch, published):
    monkeypatch.setattr(corpora, "KEYS_AT_ONCE", 1_000)
    few, many = opening_peak(2_000, published), opening_peak(20_000, published)
    assert many < few + 18_000  # a byte a story more; a key of each would take eight


def test_splits_do_not_depend_on_how_many_keys_are_looked_at_together(monkeypatch, lines_file, small_tinystories):
    corpora_now = [load_corpus(str(lines_file), splits=(60, 20, 20)), load_corpus("tinystories")]
    monkeypatch.setattr(corpora, "KEYS_AT_ONCE", 7)
    for before, name, splits in zip(corpora_now, (str(lines_file), "tinystories"), ((60, 20, 20), None), strict=True):
        after = load_corpus(name, splits=splits)
        assert (after.content_hash, after.counts, after.dropped) == (before.content_hash, before.counts, before.dropped)
        assert everything(after) == everything(before)


def test_reading_is_lazy_so_memory_does_not_grow_with_the_corpus():
    produced = SimpleNamespace(count=0)

    def endless():
        while True:
            produced.count += 1
            yield f"story {produced.count}"

    texts = corpora._of_split(endless, (2**64, 2**64), 0)
    assert [next(texts) for _ in range(3)] == ["story 1", "story 2", "story 3"]
    assert produced.count == 3
