"""Batches: every window once an epoch, exact resumption, weights met, padding never scored, clear refusals."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from picollm_core.batches import IGNORED, LineBatches, MixedBatches, PackedBatches, make_batches
from picollm_core.corpora import load_corpus
from picollm_core.token_store import TokenStore
from picollm_core.tokenizers import load_tokenizer

EOT = 999


def make_store(lengths, first_id=0):
    """Stories of the given lengths (the final EOT included) whose other ids all differ, so that each can be traced."""
    ids = np.arange(first_id, first_id + sum(lengths))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids[offsets[1:] - 1] = EOT
    return TokenStore(ids.astype(np.uint16), offsets.astype(np.int64), n_bytes=0)


def long_store(n_tokens=1003):
    return make_store([n_tokens], first_id=1000)


SOURCES = {
    "packed": lambda: PackedBatches(long_store(), block_size=16, batch_size=5, seed=3),
    "lines": lambda: LineBatches(make_store(range(2, 40)), block_size=16, batch_size=5, seed=3),
    "mixed": lambda: MixedBatches(
        [
            PackedBatches(long_store(), block_size=16, batch_size=1, seed=3),
            LineBatches(make_store(range(2, 40)), block_size=16, batch_size=1, seed=3),
        ],
        weights=[3, 1],
        batch_size=5,
        seed=3,
    ),
}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", SOURCES)
def test_batches_are_int64_of_equal_shape_and_contiguous(kind):
    idx, targets = SOURCES[kind]().next_batch()
    assert idx.dtype == targets.dtype == torch.int64
    assert idx.shape == targets.shape
    assert idx.shape[0] == 5
    assert idx.shape[1] <= 16
    assert idx.is_contiguous()
    assert targets.is_contiguous()
    assert idx.min() >= 0


@pytest.mark.parametrize("kind", SOURCES)
def test_the_seed_decides_the_order(kind):
    first, again = SOURCES[kind](), SOURCES[kind]()
    assert all(same(first.next_batch(), again.next_batch()) for _ in range(30))


@pytest.mark.parametrize("block_size", [1, 7, 16])
@pytest.mark.parametrize("batch_size", [1, 5, 64 - 1])
def test_every_window_comes_exactly_once_an_epoch(block_size, batch_size):
    store = long_store(64 * block_size + 1)
    batches = PackedBatches(store, block_size, batch_size, seed=1)
    assert batches.n_rows == 64
    rows = torch.cat([batches.next_batch()[0] for _ in range(3 * 64 // batch_size + 1)])[: 3 * 64]
    starts = [sorted(epoch.tolist()) for epoch in rows[:, 0].reshape(3, 64)]
    assert starts == [store.tokens[:-1:block_size].tolist()] * 3


def test_every_token_but_the_first_is_a_target_once_an_epoch():
    store = long_store(64 * 16 + 1)
    batches = PackedBatches(store, block_size=16, batch_size=8, seed=1)
    targets = torch.cat([batches.next_batch()[1] for _ in range(8)])
    assert sorted(targets.flatten().tolist()) == sorted(store.tokens[1:].tolist())


def test_targets_are_the_next_tokens():
    idx, targets = PackedBatches(long_store(), block_size=16, batch_size=5).next_batch()
    assert torch.equal(idx[:, 1:], targets[:, :-1])
    # ids rise by one in this store, except into its very last token
    assert torch.equal(targets[targets != EOT], idx[targets != EOT] + 1)


def test_epochs_have_different_orders_and_seeds_too():
    batches = PackedBatches(long_store(), block_size=16, batch_size=62, seed=1)
    assert batches.n_rows == 62
    first, second = batches.next_batch(), batches.next_batch()
    other = PackedBatches(long_store(), block_size=16, batch_size=62, seed=2).next_batch()
    assert not same(first, second)
    assert not same(first, other)


@given(k=st.integers(0, 40), kind=st.sampled_from(list(SOURCES)))
def test_resuming_continues_with_the_batch_that_would_have_come(k, kind):
    batches, resumed = SOURCES[kind](), SOURCES[kind]()
    for _ in range(k):
        batches.next_batch()
    resumed.load_state_dict(json.loads(json.dumps(batches.state_dict())))
    assert resumed.epoch == batches.epoch
    assert all(same(batches.next_batch(), resumed.next_batch()) for _ in range(15))
    assert resumed.state_dict() == batches.state_dict()


@pytest.mark.parametrize("kind", SOURCES)
def test_a_state_can_be_loaded_into_a_loader_that_has_moved_on(kind):
    batches = SOURCES[kind]()
    state = batches.state_dict()
    first = [batches.next_batch() for _ in range(20)]
    batches.load_state_dict(state)
    assert all(same(batch, batches.next_batch()) for batch in first)


def test_a_state_of_other_data_or_another_seed_is_refused():
    state = PackedBatches(long_store(), block_size=16, batch_size=5, seed=3).state_dict()
    with pytest.raises(ValueError, match="n_rows=62 but this one has 125"):
        PackedBatches(long_store(), block_size=8, batch_size=5, seed=3).load_state_dict(state)
    with pytest.raises(ValueError, match="seed=3 but this one has 4"):
        PackedBatches(long_store(), block_size=16, batch_size=5, seed=4).load_state_dict(state)
    mixed = SOURCES["mixed"]()
    with pytest.raises(ValueError, match="1 sources"):
        mixed.load_state_dict(mixed.state_dict() | {"sources": [state]})


@pytest.mark.parametrize("kind", SOURCES)
def test_epoch_counts_rows_and_steps_per_epoch_covers_them(kind):
    batches = SOURCES[kind]()
    for _ in range(batches.steps_per_epoch):
        assert batches.epoch < 1
        batches.next_batch()
    assert 1 <= batches.epoch < 1 + 5 / batches.n_rows


def test_lines_start_after_end_of_text_and_their_end_is_scored_but_padding_is_not():
    store = make_store([4, 2, 6])
    idx, targets = LineBatches(store, block_size=16, batch_size=3).next_batch()
    assert idx.shape == (3, 6)
    for row, row_targets in zip(idx.tolist(), targets.tolist(), strict=True):
        story = next(s for s in map(store.story, range(3)) if s[0] == row_targets[0]).tolist()
        n = len(story)
        assert row == [EOT, *story[:-1]] + [EOT] * (6 - n)
        assert row_targets == story + [IGNORED] * (6 - n)
        assert row_targets[n - 1] == EOT


def test_every_line_comes_once_an_epoch():
    batches = LineBatches(make_store(range(2, 40)), block_size=50, batch_size=38)
    for _ in range(3):
        _, targets = batches.next_batch()
        assert len(set(targets[:, 0].tolist())) == 38
        assert int((targets != IGNORED).sum()) == sum(range(2, 40))


def test_long_lines_are_cut_to_the_block_and_counted():
    batches = LineBatches(make_store([4, 30, 16]), block_size=16, batch_size=3)
    idx, targets = batches.next_batch()
    assert idx.shape == (3, 16)
    assert batches.n_truncated == 1
    cut = targets[(targets != IGNORED).sum(1) == 16]
    assert sorted((row == EOT).any().item() for row in cut) == [False, True]


def test_weights_are_met_and_reported():
    stores = [make_store([2000], first_id=1000 + 3000 * i) for i in range(3)]
    sources = [PackedBatches(store, block_size=4, batch_size=1, seed=0) for store in stores]
    mixed = MixedBatches(sources, weights=[0.5, 0.3, 0.2], batch_size=16, seed=1)
    assert mixed.shares() == [0, 0, 0]
    rows = torch.cat([mixed.next_batch()[0][:, 0] for _ in range(400)])
    counts = torch.bincount((rows - 1000) // 3000, minlength=3).double()
    expected = rows.numel() * torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # chi-square, 2 degrees of freedom, p = 0.001
    assert mixed.shares() == (counts / rows.numel()).tolist()


def test_each_source_of_a_mixture_is_walked_through_without_repeats():
    mixed = SOURCES["mixed"]()
    packed = mixed.sources[0]
    rows = []
    while packed.position < packed.n_rows:
        idx, _ = mixed.next_batch()
        rows += idx[idx[:, 0] >= 1000][:, 0].tolist()
    first_epoch = rows[: packed.n_rows]
    assert len(set(first_epoch)) == packed.n_rows


def test_a_source_of_weight_zero_is_never_drawn():
    mixed = SOURCES["mixed"]()
    only = MixedBatches(mixed.sources, weights=[0, 1], batch_size=5)
    for _ in range(200):
        only.next_batch()
    assert only.shares() == [0, 1]
    assert mixed.sources[0].position == 0
    assert only.n_rows == mixed.sources[1].n_rows


def test_mixed_rows_are_padded_but_padding_is_not_scored():
    mixed = SOURCES["mixed"]()
    for _ in range(50):
        idx, targets = mixed.next_batch()
        lines = idx[:, 0] == EOT
        after_end = (idx[:, 1:] == EOT).cumsum(1) > 0
        assert (targets[lines][:, 1:][after_end[lines]] == IGNORED).all()
        assert (targets[~lines] != IGNORED).all()


@pytest.mark.parametrize(
    ("weights", "message"),
    [((0, 0), "sum to 0"), ((1, -1), "at least one"), ((1,), "2 sources but 1 weights"), ((float("nan"), 1), "sum")],
)
def test_weights_that_cannot_be_drawn_from_are_refused(weights, message):
    sources = SOURCES["mixed"]().sources
    with pytest.raises(ValueError, match=message):
        MixedBatches(sources, weights, batch_size=5)


def test_a_corpus_smaller_than_a_window_or_a_batch_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"has 16 tokens but one window of block_size=16 needs 17"):
        PackedBatches(long_store(16), block_size=16, batch_size=1)
    with pytest.raises(ValueError, match=r"gives 3 windows of block_size=16 but a batch needs 4"):
        PackedBatches(long_store(3 * 16 + 1), block_size=16, batch_size=4)
    with pytest.raises(ValueError, match="gives 2 examples but a batch needs 3"):
        LineBatches(make_store([3, 3]), block_size=16, batch_size=3)


@pytest.mark.parametrize(("block_size", "batch_size"), [(0, 4), (-2, 4), (4, 0)])
def test_sizes_below_one_are_refused(block_size, batch_size):
    for kind in (PackedBatches, LineBatches):
        with pytest.raises(ValueError, match="must be at least 1"):
            kind(make_store([30, 30, 30, 30]), block_size, batch_size)


@pytest.fixture
def two_corpora(tmp_path):
    lines, stories = tmp_path / "lines.txt", tmp_path / "stories.txt"
    lines.write_text("".join(f"{i} {i + 1} {i + 2}\n" for i in range(100)))
    stories.write_text("".join(f"Story {i}.\nThe cat ran home.\n<|endoftext|>\n" for i in range(100)))
    return [load_corpus(str(path), splits=(80, 20, 0)) for path in (lines, stories)]


def test_make_batches_pads_lines_packs_stories_and_mixes(two_corpora, tmp_path):
    encoding = load_tokenizer("stories-4k")

    def make(weights, **options):
        return make_batches(two_corpora, weights, encoding, 32, 4, seed=1, cache_dir=tmp_path / "cache", **options)

    assert isinstance(make([1, 0]), LineBatches)
    assert not list((tmp_path / "cache" / "tokens").glob(f"{two_corpora[1].content_hash}*"))
    packed = make([0, 2])
    assert isinstance(packed, PackedBatches)
    assert "The cat ran home." in encoding.decode(packed.next_batch()[0].flatten().tolist())
    mixed = make([1, 1])
    assert isinstance(mixed, MixedBatches)
    assert make([1, 0], split="validation").n_rows == two_corpora[0].count("validation")
    with pytest.raises(ValueError, match="sum to 0"):
        make([0, 0])


def test_a_small_corpus_may_join_a_mixture_that_it_could_not_fill_alone(two_corpora, tmp_path):
    encoding = load_tokenizer("stories-4k")
    arguments = (encoding, 32, 90)
    with pytest.raises(ValueError, match="examples but a batch needs 90"):
        make_batches(two_corpora[:1], [1], *arguments, cache_dir=tmp_path)
    mixed = make_batches(two_corpora, [1, 9], *arguments, cache_dir=tmp_path)
    assert mixed.next_batch()[0].shape[0] == 90


def test_cut_lines_are_reported(two_corpora, tmp_path, caplog):
    make_batches(two_corpora[:1], [1], load_tokenizer("stories-4k"), 2, 4, cache_dir=tmp_path)
    n = two_corpora[0].count("train")
    assert f"{n} of {n} examples of lines.txt are longer than block_size=2 and are cut" in caplog.text
