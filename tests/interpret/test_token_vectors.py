"""Every family has one vector a token for reading and one for predicting; words find their tokens."""

import numpy as np
import pytest
import torch

from picollm_core.interpret.token_vectors import (
    single_token,
    token_counts,
    token_id,
    token_vectors,
    unit_rows,
    written_tokens,
)
from picollm_core.models import LanguageModel, build_model
from tests.conftest import TINY, VOCAB
from tests.word_tokens import words_tokenizer


def build(name: str = "transformer") -> LanguageModel:
    torch.manual_seed(0)
    return build_model(TINY[name]).eval()


def test_vectors_are_the_rows_that_a_token_selects_in_every_family(tiny_model):
    vectors, head = token_vectors(tiny_model), token_vectors(tiny_model, "unembedding")
    assert len(vectors) == len(head) == VOCAB
    assert torch.equal(head, tiny_model.head.weight)
    assert not vectors.requires_grad
    assert vectors.dtype == torch.float32
    assert token_vectors(tiny_model.double()).dtype == torch.float64


@torch.no_grad()
def test_a_one_hot_tokens_vector_is_what_it_adds_as_the_newest_token():
    model = build("kgram-onehot")
    vectors = token_vectors(model)
    window = torch.tensor([[[5, 9, 3], [5, 9, 7]]])
    third, seventh = model.input(window)[0]
    torch.testing.assert_close(seventh - third, vectors[7] - vectors[3])


def test_half_precision_becomes_single_and_an_unknown_table_is_refused():
    assert token_vectors(build().half()).dtype == torch.float32
    with pytest.raises(ValueError, match="which is 'hidden'; choose 'embedding' or 'unembedding'"):
        token_vectors(build(), "hidden")


def test_a_word_is_its_token_inside_a_sentence_and_else_as_written():
    tokenizer = words_tokenizer()
    assert tokenizer.decode([token_id("cat", tokenizer)]) == " cat"
    assert tokenizer.decode([token_id("M", tokenizer)]) == "M"
    assert token_id(7, tokenizer) == token_id(np.int64(7), tokenizer) == 7
    for bad, message in (("zebra", "not one token of 'words', but 5"), ("", "0"), (61, "61 is outside"), (-1, "-1")):
        with pytest.raises(ValueError, match=message):
            token_id(bad, tokenizer)


def test_counts_are_how_often_tokens_occur_and_no_text_is_refused():
    tokenizer = words_tokenizer()
    counts = token_counts([" cat dog cat", " dog"], tokenizer)
    assert counts.sum() == 4
    assert counts[token_id("cat", tokenizer)] == counts[token_id("dog", tokenizer)] == 2
    with pytest.raises(ValueError, match="no token"):
        token_counts([""], tokenizer)


def test_written_tokens_leave_out_space_pieces_of_characters_and_the_end_of_text():
    tokenizer = words_tokenizer()
    left_out = set(range(VOCAB)) - set(written_tokens(tokenizer))
    assert left_out == {0, 1, tokenizer.eot_token}


def test_rows_get_length_one_and_a_row_of_zeros_stays_one():
    rows = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert rows.flatten().tolist() == pytest.approx([0.6, 0.8, 0, 0])


def test_text_of_several_tokens_is_no_single_token():
    tokenizer = words_tokenizer()
    assert single_token("he", tokenizer) is None
    assert single_token(" he", tokenizer) == token_id("he", tokenizer)
