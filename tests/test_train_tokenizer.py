"""The script that trains a vocabulary, against Hugging Face's own encoder."""

import hashlib

import pytest

from picollm_core import tokenizers, train_tokenizer

STORIES = ["The cat sat on the mat.", "A cat and the other cat ran.", "Then the mat was theirs, and it's warm."] * 5


def test_trained_vocabulary_encodes_as_hugging_face_does(tmp_path):
    pytest.importorskip("tokenizers")
    trained = train_tokenizer.train_bpe(STORIES, vocab_size=280)
    ranks = train_tokenizer.to_ranks(trained)
    assert list(ranks)[:256] == [bytes([b]) for b in range(256)]
    path = tmp_path / "small.tiktoken"
    sha256 = train_tokenizer.write_ranks(ranks, path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    encoding = tokenizers.build_encoding("small", tokenizers._parse_tiktoken(path.read_bytes()))
    assert encoding.n_vocab == 280
    alphabet = tokenizers.byte_alphabet()
    for text in STORIES[:3]:
        pieces = [bytes(alphabet[c] for c in token) for token in trained.encode(text).tokens]
        assert encoding.decode_tokens_bytes(encoding.encode_ordinary(text)) == pieces


def test_training_a_vocabulary_too_small_for_the_bytes_is_refused():
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match="vocab_size is 256"):
        train_tokenizer.train_bpe(STORIES, vocab_size=256)
