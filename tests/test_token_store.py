"""Tokens on disk: equal to direct encoding, never half there, continued after a kill."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from picollm_core import token_store as module
from picollm_core.corpora import Corpus, load_corpus
from picollm_core.token_store import encode_stories, token_dtype, token_store
from picollm_core.tokenizers import END_OF_TEXT, load_tokenizer

ENCODING = load_tokenizer("stories-4k")

WRITER = """
import os, resource, signal, sys
from picollm_core import token_store as module
from picollm_core.corpora import load_corpus
from picollm_core.tokenizers import load_tokenizer

path, cache, how = sys.argv[1:]
module.CHUNK_STORIES = 8
written = module._write_json
def stop_after_ten_chunks(path, content):
    if content.get("stories") == 88 and how == "kill":  # data of chunk 11 are on disk, its record is not
        os.kill(os.getpid(), signal.SIGKILL)
    written(path, content)
    if content.get("stories") == 80 and how == "disk full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
module._write_json = stop_after_ten_chunks
module.token_store(load_corpus(path, splits=(1, 0, 0)), "train", load_tokenizer("stories-4k"), cache, threads=2)
"""


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"Line {i}: the cat {'ran ' * (i % 7)}home, naïve 🦊.\n" for i in range(300)))
    return load_corpus(str(path), splits=(1, 0, 0))


def direct(texts):
    return [[*ENCODING.encode_ordinary(text), ENCODING.eot_token] for text in texts]


def assert_equal(store, texts):
    assert [story.tolist() for story in map(store.story, range(store.n_stories))] == direct(texts)
    assert store.n_tokens == sum(map(len, direct(texts))) == store.offsets[-1]
    assert store.n_bytes == sum(len(text.encode()) for text in texts)


def test_store_equals_direct_encoding(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_STORIES", 16)
    texts = list(corpus.texts("train"))
    for threads in (1, 3):
        store = token_store(corpus, "train", ENCODING, tmp_path / str(threads), threads=threads)
        assert_equal(store, texts)
        assert isinstance(store.tokens, np.memmap)
        assert store.tokens.dtype == np.uint16


TEXTS = st.one_of(st.text(min_size=1), st.text(" \n\u3000'as漢7.", min_size=1), st.just(f"a {END_OF_TEXT}"))


@given(st.lists(TEXTS, min_size=1, max_size=8))
def test_joined_encoding_equals_story_by_story(texts):
    ids, ends = module._encode_chunk(ENCODING, texts)
    assert [part.tolist() for part in np.split(ids, ends[:-1])] == direct(texts)


def test_a_text_that_spells_the_special_token_stays_ordinary_text():
    texts = ["before", f"he wrote {END_OF_TEXT} here", "<|endoftext|", "after "]
    ids, ends = module._encode_chunk(ENCODING, texts)
    assert [part.tolist() for part in np.split(ids, ends[:-1])] == direct(texts)
    assert np.count_nonzero(ids == ENCODING.eot_token) == len(texts)


def test_wide_vocabularies_get_wide_integers(tmp_path, corpus):
    ranks = {bytes([b]): b for b in range(256)}
    wide = tiktoken.Encoding("wide", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 70_000})
    assert (token_dtype(ENCODING), token_dtype(wide)) == (np.uint16, np.uint32)
    store = token_store(corpus, "train", wide, tmp_path)
    assert store.story(0)[-1] == 70_000
    assert bytes(store.story(0)[:-1].tolist()).decode() == next(corpus.texts("train"))


def test_encoding_takes_in_no_more_text_than_a_few_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_STORIES", 4)
    taken = []

    def texts():
        for i in range(1000):
            taken.append(i)
            yield f"story {i}"

    first = next(encode_stories(texts(), ENCODING, threads=2))
    assert len(first[1]) == 4
    assert len(taken) <= 4 * (2 * 2 + 2)


def test_cached_store_is_opened_without_reading_the_corpus(corpus, tmp_path):
    token_store(corpus, "train", ENCODING, tmp_path)
    unreadable = Corpus(corpus.name, corpus.style, corpus.content_hash, readers={})
    assert_equal(token_store(unreadable, "train", ENCODING, tmp_path), list(corpus.texts("train")))


def test_cache_folder_comes_from_the_environment(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("PICOLLM_CACHE", str(tmp_path / "here"))
    token_store(corpus, "train", ENCODING)
    assert len(list((tmp_path / "here").rglob("tokens.bin"))) == 1


def run_writer(corpus_path, cache, how):
    command = [sys.executable, "-c", WRITER, str(corpus_path), str(cache), how]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals and limits")
@pytest.mark.parametrize("how", ["kill", "disk full"])
def test_interrupted_tokenising_leaves_no_readable_store_and_is_continued(corpus, tmp_path, monkeypatch, how):
    ended = run_writer(tmp_path / "lines.txt", tmp_path / "cache", how)
    assert ended.returncode != 0
    if how == "disk full":
        assert "cannot be written (File too large)" in ended.stderr
        assert "PICOLLM_CACHE" in ended.stderr
    folders = [path for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir()]
    assert [path.suffix for path in folders] == [".part"]
    assert json.loads((folders[0] / "progress.json").read_text())["stories"] == 80
    assert not module._is_complete(folders[0].with_suffix(""))

    encoded = []
    original = module._encode_chunk
    monkeypatch.setattr(module, "_encode_chunk", lambda enc, texts: encoded.extend(texts) or original(enc, texts))
    texts = list(corpus.texts("train"))
    assert_equal(token_store(corpus, "train", ENCODING, tmp_path / "cache", threads=1), texts)
    assert encoded == texts[80:]


def test_progress_that_the_data_does_not_bear_out_starts_again(corpus, tmp_path):
    store = token_store(corpus, "train", ENCODING, tmp_path / "a")
    folder = next((tmp_path / "a" / "tokens").glob("*[0-9]"))
    part = tmp_path / "b" / "tokens" / f"{folder.name}.part"
    part.mkdir(parents=True)
    (part / "progress.json").write_text(json.dumps({"stories": 50, "tokens": 500, "bytes": 2000}))
    (part / "tokens.bin").write_bytes(b"short")
    again = token_store(corpus, "train", ENCODING, tmp_path / "b")
    assert np.array_equal(again.tokens, store.tokens)


def test_a_store_cut_short_on_disk_is_written_anew(corpus, tmp_path):
    token_store(corpus, "train", ENCODING, tmp_path)
    data = next(tmp_path.rglob("tokens.bin"))
    data.write_bytes(data.read_bytes()[:-2])
    assert_equal(token_store(corpus, "train", ENCODING, tmp_path), list(corpus.texts("train")))


def test_two_processes_write_one_store(corpus, tmp_path):
    code = WRITER.replace("module._write_json = stop_after_ten_chunks", "")
    command = [sys.executable, "-c", code, str(tmp_path / "lines.txt"), str(tmp_path / "cache"), "run"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert_equal(token_store(corpus, "train", ENCODING, tmp_path / "cache"), list(corpus.texts("train")))


def test_changed_vocabulary_of_the_same_name_gets_its_own_store(corpus, tmp_path):
    ranks = {bytes([b]): b for b in range(256)}
    settings = {"pat_str": r"\S+|\s+", "special_tokens": {END_OF_TEXT: 300}}
    first = tiktoken.Encoding("same", mergeable_ranks=ranks, **settings)
    second = tiktoken.Encoding("same", mergeable_ranks=ranks | {b"th": 256}, **settings)
    assert (
        token_store(corpus, "train", first, tmp_path).n_tokens > token_store(corpus, "train", second, tmp_path).n_tokens
    )


def test_empty_split_names_corpus_and_way_out(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"split 'test' of corpus 'lines\.txt' is empty.*splits="):
        token_store(corpus, "test", ENCODING, tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_story_out_of_range_is_refused(corpus, tmp_path):
    store = token_store(corpus, "train", ENCODING, tmp_path)
    with pytest.raises(IndexError, match="story 300 of a store with 300 stories"):
        store.story(300)
