"""The words that ship can be used with the vocabulary that ships."""

from picollm_core.interpret.word_lists import WORD_GROUPS, WORD_PAIRS
from picollm_core.tokenizers import load_tokenizer


def test_the_word_lists_are_single_tokens_and_shuffling_pairs_no_word_with_itself():
    tokenizer = load_tokenizer("stories-4k")
    assert sum(map(len, WORD_GROUPS.values())) == 40
    for pairs in (*WORD_PAIRS.values(), *[tuple((word, word) for word in group) for group in WORD_GROUPS.values()]):
        assert all(len(tokenizer.encode_ordinary(f" {word}")) == 1 for pair in pairs for word in pair)
    for kind, pairs in WORD_PAIRS.items():
        left, right = zip(*pairs, strict=True)
        assert not set(left) & set(right), kind
