"""Splits by hash: a story and its trivial copies stay together, shares are met, loose copies are found."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm_core.splits import (
    KEY_SPACE,
    SPLITS,
    assert_disjoint,
    assign_splits,
    check_shares,
    near_duplicates,
    overlap_report,
    split_bounds,
    split_of,
    story_key,
)

WORDS = ["cat", "dog", "sun", "moon", "tree", "boat", "hill", "bird", "fish", "song", "lake", "star"]


def made_stories(n: int, seed: int = 0, length: int = 40) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=length)) for _ in range(n)]


def brute_force(first, second, threshold, width):
    """Every pair compared by the definition."""

    def shingles(text):
        words = text.lower().split()
        return {tuple(words[i : i + width]) for i in range(max(1, len(words) - width + 1))}

    found = []
    for i, a in enumerate(map(shingles, first)):
        for j, b in enumerate(map(shingles, second)):
            if len(a & b) / len(a | b) >= threshold:
                found.append((i, j, len(a & b) / len(a | b)))
    return found


@pytest.mark.parametrize(
    "copy",
    ["once upon a time!", "Once  upon\na time", "ONCE UPON A TIME...", "“Once” upon a time"],
)
def test_copies_that_differ_in_case_spacing_or_punctuation_share_a_key(copy):
    assert story_key(copy) == story_key("Once upon a time.")
    assert story_key(copy) != story_key("Twice upon a time.")


def test_texts_without_letters_keep_keys_of_their_own():
    assert len({story_key(text) for text in ("+-+", "-+-", "!!!", "…")}) == 4


def test_the_split_of_a_story_does_not_depend_on_its_company():
    bounds = split_bounds((60, 40, 0))
    stories = made_stories(200)
    alone = [split_of(story_key(text), bounds) for text in stories]
    keys = np.array([story_key(text) for text in reversed(stories)], dtype=np.uint64)
    assert assign_splits(keys, bounds).tolist() == alone[::-1]


@pytest.mark.parametrize("shares", [(98, 1, 1), (60, 40, 0), (0.8, 0.1, 0.1), (1, 0, 0)])
def test_shares_are_met(shares):
    n = 20_000
    keys = np.array([story_key(f"story {i}") for i in range(n)], dtype=np.uint64)
    measured = np.bincount(assign_splits(keys, split_bounds(shares, keys)), minlength=3)
    expected = np.array(shares) / sum(shares)
    assert np.all(np.abs(measured - n * expected) <= 5 * np.sqrt(n * expected * (1 - expected)))


@given(st.lists(st.integers(0, KEY_SPACE - 1), min_size=3, max_size=40, unique=True))
def test_a_small_corpus_leaves_no_wanted_split_empty(keys):
    array = np.array(keys, dtype=np.uint64)
    bounds = split_bounds((98, 1, 1), array)
    assigned = assign_splits(array, bounds)
    assert set(assigned.tolist()) == {0, 1, 2}
    assert assigned.tolist() == [split_of(key, bounds) for key in keys]
    unwanted = assign_splits(array, split_bounds((60, 40, 0), array))
    assert set(unwanted.tolist()) == {0, 1}


def test_one_text_goes_to_one_split_and_no_bound_is_out_of_reach():
    keys = np.array([story_key("alone")] * 3, dtype=np.uint64)
    assert len(set(assign_splits(keys, split_bounds((98, 1, 1), keys)).tolist())) == 1


def test_a_story_in_two_splits_is_caught():
    keys = np.array([5, 6, 5], dtype=np.uint64)
    assert_disjoint(keys, np.array([0, 1, 0]))
    with pytest.raises(AssertionError, match="two splits"):
        assert_disjoint(keys, np.array([0, 1, 1]))


@pytest.mark.parametrize("shares", [(1, 2), (0, 0, 0), (-1, 1, 1), (float("nan"), 1, 1), (1, 1, float("inf"))])
def test_impossible_shares_are_refused_with_their_values(shares):
    with pytest.raises(ValueError, match="splits are"):
        check_shares(shares)


@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.5, 0.8, 1.0]))
def test_near_duplicates_equal_the_comparison_of_all_pairs(seed, threshold):
    first = made_stories(12, seed, length=12)
    words = [text.split() for text in first]
    second = [" ".join([*w[:k], "new", *w[k:]]) for w, k in zip(words, range(12), strict=True)] + [first[0]]
    assert near_duplicates(first, second, threshold, width=2) == brute_force(first, second, threshold, 2)


def test_a_similarity_that_equals_the_threshold_counts():
    assert near_duplicates(["a b c"], ["a b d"], threshold=1 / 3, width=2) == [(0, 0, 1 / 3)]
    assert near_duplicates(["a b c"], ["a b d"], threshold=0.34, width=2) == []


def test_near_duplicate_threshold_must_be_a_share():
    with pytest.raises(ValueError, match=r"threshold is 0\b"):
        near_duplicates(["a"], ["b"], threshold=0)


def test_report_counts_exact_and_near_copies_between_splits():
    stories = made_stories(20)
    changed = stories[3].replace("cat", "cow", 1)
    texts = {"train": stories, "validation": [stories[1].upper(), changed], "test": ["nothing like it at all here"]}
    rows = {row["splits"]: row for row in overlap_report(lambda split: iter(texts[split]))}
    assert set(SPLITS) == set(texts)
    assert rows["train/validation"] == {"splits": "train/validation", "exact": 1, "near": 2}
    assert rows["train/test"] == {"splits": "train/test", "exact": 0, "near": 0}
