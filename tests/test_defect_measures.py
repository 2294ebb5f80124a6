"""Mistakes of measuring, against hand-computed cases and against the right way beside them."""

import math

import numpy as np
import pytest
import torch

from picollm_core.batches import PackedBatches
from picollm_core.defect_measures import (
    DrawnRows,
    accuracies,
    batch_scores,
    drawn_unseen_share,
    kgram_parameters,
    nucleus_errors,
    nucleus_one_too_many,
    nucleus_without_crossing,
    pooled_distinct,
    rank_flips,
    share_interval,
    unseen_share,
)
from picollm_core.evaluate import encode_stories
from picollm_core.losses import next_token_loss
from picollm_core.models import build_model
from picollm_core.nucleus import top_p_filter
from picollm_core.token_store import TokenStore
from tests.conftest import TINY, VOCAB
from tests.test_evaluate import BYTES, STORIES, tiny

PROBABILITIES = (0.5, 0.25, 0.125, 0.125)


def store(tokens: int = 401) -> TokenStore:
    ids = np.random.default_rng(0).integers(VOCAB, size=tokens).astype(np.uint16)
    return TokenStore(ids, np.array([0, tokens]), n_bytes=tokens)


def kept(rule, p: float, probabilities=PROBABILITIES) -> list[int]:
    return torch.isfinite(rule(torch.tensor(probabilities, dtype=torch.float64).log(), p)).nonzero().flatten().tolist()


def test_drawn_rows_repeat_some_windows_and_miss_others_where_the_loader_visits_each_once():
    batches = DrawnRows(store(), block_size=8, batch_size=10, seed=1)
    drawn = batches._next_rows(batches.n_rows)
    assert len(drawn) == batches.n_rows == 50
    assert 0.2 < 1 - len(set(drawn.tolist())) / 50 < 0.55
    right = PackedBatches(store(), block_size=8, batch_size=10, seed=1)
    assert sorted(right._next_rows(50).tolist()) == list(range(50))


def test_the_next_epoch_of_drawn_rows_is_another_draw_and_a_seed_repeats_it():
    one, same = (DrawnRows(store(), 8, 10, seed=2) for _ in range(2))
    first, second = one._next_rows(50).tolist(), one._next_rows(50).tolist()
    assert first != second
    assert same._next_rows(100).tolist() == first + second


def test_the_share_never_read_follows_the_formula_and_the_simulation_agrees():
    assert unseen_share(2) == 0.25
    assert unseen_share(1) == 0
    assert unseen_share(40_000) == pytest.approx(math.exp(-1), abs=1e-4)
    assert unseen_share(40_000, 3) == pytest.approx(math.exp(-3), abs=1e-4)
    assert drawn_unseen_share(40_000, 1, seed=0) == pytest.approx(math.exp(-1), abs=0.01)
    for call in (lambda: unseen_share(0), lambda: unseen_share(5, 0), lambda: drawn_unseen_share(5, 0, 0)):
        with pytest.raises(ValueError, match="must be"):
            call()


def test_73_21_percent_is_41_of_56_and_of_nothing_smaller():
    found = accuracies(0.7321, 4, 60)
    assert found == [(41, 56)]
    assert accuracies(0.5, 2, 4) == [(1, 2), (2, 4)]


def test_the_exact_interval_of_a_share_is_that_of_clopper_and_pearson():
    assert share_interval(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert share_interval(10, 10) == pytest.approx((0.025**0.1, 1.0))
    low, high = share_interval(41, 56)
    assert low < 41 / 56 < high
    assert (round(low, 2), round(high, 2)) == (0.60, 0.84)
    with pytest.raises(ValueError, match="5 of 4 is no share"):
        share_interval(5, 4)


def test_scores_of_single_batches_average_to_the_loss_over_all_of_them():
    torch.manual_seed(0)
    model = build_model(TINY["lstm"]).eval()
    found = batch_scores(model, PackedBatches(store(), 8, 10, 0), 5)
    same = PackedBatches(store(), 8, 10, 0)
    with torch.no_grad():
        losses = [next_token_loss(model, *same.next_batch()).item() for _ in range(5)]
    assert [row["loss"] for row in found] == pytest.approx(losses, abs=1e-5)
    assert all(0 <= row["accuracy"] <= 1 for row in found)
    with pytest.raises(ValueError, match="count is 0"):
        batch_scores(model, same, 0)


def test_pooled_distinct_falls_with_the_amount_of_the_same_kind_of_text():
    assert pooled_distinct([[1, 2, 3], [1, 2]], 2) == pytest.approx(2 / 3)
    assert pooled_distinct([[1, 2, 1, 2]], 2) < pooled_distinct([[1, 2]], 2)
    with pytest.raises(ValueError, match="no sample holds 3 tokens"):
        pooled_distinct([[1, 2]], 3)
    with pytest.raises(ValueError, match="n is 0"):
        pooled_distinct([[1, 2]], 0)


def test_rankings_flip_where_one_score_falls_faster_with_length_than_models_differ():
    values = {"a": {10: 0.9, 20: 0.7}, "b": {10: 0.95, 20: 0.75}}
    assert rank_flips(values) == [("a", 10, "b", 20)]
    assert rank_flips({"a": {10: 0.1, 20: 0.05}, "b": {10: 0.9, 20: 0.8}}) == []


@pytest.mark.parametrize(
    ("p", "right", "dropped", "extra"),
    [(0.6, [0, 1], [0], [0, 1, 2]), (0.4, [0], [0], [0, 1]), (0.8, [0, 1, 2], [0, 1], [0, 1, 2, 3])],
)
def test_wrong_nuclei_lack_the_crossing_token_or_have_one_more(p, right, dropped, extra):
    assert kept(top_p_filter, p) == right
    assert kept(nucleus_without_crossing, p) == dropped
    assert kept(nucleus_one_too_many, p) == extra


def test_wrong_nuclei_change_nothing_at_p_1_and_take_ties_in_their_order():
    assert kept(nucleus_without_crossing, 1) == kept(nucleus_one_too_many, 1) == [0, 1, 2, 3]
    even = (0.25, 0.25, 0.25, 0.25)
    assert kept(nucleus_without_crossing, 0.7, even) == [0, 1]
    assert kept(nucleus_one_too_many, 0.7, even) == [0, 1, 2, 3]
    rows = torch.tensor([PROBABILITIES, even], dtype=torch.float64).log()
    assert torch.isfinite(nucleus_without_crossing(rows, 0.6)).sum(-1).tolist() == [1, 2]


def test_nucleus_errors_are_the_distance_between_right_and_wrong_draws():
    model, stories = tiny("lstm"), encode_stories(STORIES, BYTES)
    found = nucleus_errors(model, stories, 0.9, places=4)
    with torch.no_grad():
        ids = [
            torch.from_numpy(stories.inputs[end - n : end][:4])
            for n, end in zip(stories.lengths, stories.lengths.cumsum(), strict=True)
        ]
        logits = torch.cat([model(own[None])[0] for own in ids])
    right, wrong = top_p_filter(logits, 0.9).softmax(-1), nucleus_without_crossing(logits, 0.9).softmax(-1)
    apart = 0.5 * (right - wrong).abs().sum(-1).mean()
    assert found["crossing token dropped"]["affected"] == pytest.approx(apart.item())
    assert 0 < found["one token too many"]["affected"] < 1
    with pytest.raises(ValueError, match="places is 0"):
        nucleus_errors(model, stories, 0.9, places=0)


def test_parameters_of_kgrams_follow_from_vocabulary_width_and_k():
    rows = {(r["k"], r["embedding"]): r for r in kgram_parameters((1, 5), n_embd=32, n_layer=1, vocab_size=50_257)}
    v, rest = 50_257, 32 * 32 + 32 + 50_257 * 32
    assert rows[5, "onehot"]["input"] == 5 * v * 32 + 32
    assert rows[5, "onehot"]["total"] == 5 * v * 32 + 32 + rest
    assert rows[5, "scaled"]["total"] == v * 6 + 30 * 32 + 32 + rest
    assert rows[1, "learned"]["total"] == v * 32 + 32 * 32 + 32 + rest
