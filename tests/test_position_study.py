"""Losses by place past the trained length, what the order of words is worth, and when differences count as none."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from picollm_core.config import DataConfig, TrainConfig, TransformerConfig
from picollm_core.evaluate import evaluate
from picollm_core.lab import Lab
from picollm_core.models import build_model
from picollm_core.position_study import (
    against_others,
    binned,
    can_read,
    claim_table,
    drawn_diversity,
    length_ranges,
    long_stories,
    longest_solved,
    order_effect,
    order_effects,
    pair_contrasts,
    place_losses,
    position_losses,
    shuffled,
    story_diversity,
)
from picollm_core.profiles import PROFILES
from picollm_core.samples import diversity
from tests.test_evaluate import BYTES, EOT, STORIES, V, one_by_one, tiny

LENGTH = 40  # longer than the 24 tokens that the tiny models are built for
POSITIONS = ("absolute", "sinusoidal", "rope", "alibi", "none")


def transformer(position, **changes):
    return tiny("transformer", position=position, **changes)


def test_long_stories_are_the_first_that_are_long_enough_after_an_end_of_text():
    rows = long_stories(STORIES, BYTES, LENGTH, 5)
    long = [story.encode() for story in STORIES if len(story.encode()) >= LENGTH]
    assert rows.tolist() == [[EOT, *story[:LENGTH]] for story in long]
    assert len(rows) == 2
    assert long_stories(STORIES, BYTES, LENGTH, 1).tolist() == rows[:1].tolist()


def test_a_story_of_exactly_the_length_counts_and_its_closing_token_is_not_read():
    rows = long_stories(["abc", "abcd"], BYTES, 4, 9)
    assert rows.tolist() == [[EOT, *b"abcd"]]


@pytest.mark.parametrize(
    ("length", "most", "said"),
    [(500, 1, "longest of 6 stories has 62 tokens, 500 are needed"), (0, 1, "length is 0"), (4, 0, "most is 0")],
)
def test_impossible_stories_are_refused(length, most, said):
    with pytest.raises(ValueError, match=said):
        long_stories(STORIES, BYTES, length, most)


@pytest.mark.parametrize("position", POSITIONS)
def test_cut_losses_are_those_of_one_forward_pass_for_every_token(position):
    model, story = transformer(position), STORIES[2][:LENGTH]
    rows = long_stories([story], BYTES, LENGTH, 1)
    slow, _ = one_by_one(model, story, window=24)
    # the slow truth of a story of LENGTH + 1 targets ends its last window one place later
    assert place_losses(model, rows, 24)[:36] == pytest.approx(slow[:36], abs=1e-9)
    assert place_losses(model, rows, 24, batch_size=1) == pytest.approx(place_losses(model, rows, 24), abs=1e-12)


def test_cut_losses_add_up_to_what_the_evaluator_reports():
    model, story = transformer("absolute"), STORIES[2]
    length = len(story.encode())
    rows = torch.tensor([[EOT, *story.encode(), EOT]])
    total = evaluate(model, BYTES, [story], n_bootstrap=1)
    assert place_losses(model, rows, 24).mean() == pytest.approx(total.nll, abs=1e-9)
    assert len(total.per_position) == length + 1


@pytest.mark.parametrize("position", [p for p in POSITIONS if p != "absolute"])
def test_whole_losses_see_everything_from_the_start(position):
    model = transformer(position)
    rows = long_stories(STORIES, BYTES, LENGTH, 5)
    slow = [one_by_one(model, BYTES.decode(row[1:]))[0][:LENGTH] for row in rows.tolist()]
    assert place_losses(model, rows) == pytest.approx(np.mean(slow, axis=0), abs=1e-9)
    cut = place_losses(model, rows, 24)
    assert place_losses(model, rows)[:24] == pytest.approx(cut[:24], abs=1e-9)
    assert place_losses(model, rows)[24:] != pytest.approx(cut[24:], abs=1e-3)


def test_learned_positions_cannot_be_read_past_their_end():
    rows = long_stories(STORIES, BYTES, LENGTH, 5)
    with pytest.raises(ValueError, match="24 learned positions"):
        place_losses(transformer("absolute"), rows)
    absolute = TransformerConfig(block_size=24)
    assert can_read(absolute, 24)
    assert not can_read(absolute, 25)
    assert all(can_read(absolute.replace(position=position), 1_000) for position in POSITIONS[1:])


@pytest.mark.parametrize(
    ("rows", "arguments", "said"),
    [
        (torch.zeros(2, 9, dtype=torch.long), {"window": 0}, "window is 0"),
        (torch.zeros(2, 9, dtype=torch.long), {"batch_size": 0}, "batch_size is 0"),
        (torch.zeros(2, 1, dtype=torch.long), {}, r"shape \(2, 1\)"),
        (torch.zeros(9, dtype=torch.long), {}, r"shape \(9,\)"),
    ],
)
def test_rows_without_a_place_and_windows_without_a_token_are_refused(rows, arguments, said):
    with pytest.raises(ValueError, match=said):
        place_losses(transformer("rope"), rows, **arguments)


def test_scoring_leaves_the_model_in_its_mode():
    model = transformer("rope").train()
    rows = long_stories(STORIES, BYTES, LENGTH, 5)
    place_losses(model, rows)
    order_effect(model, rows, 8)
    assert model.training


def test_shuffling_keeps_the_ends_and_the_bag_of_words_and_repeats_with_its_seed():
    rows = torch.arange(60).reshape(3, 20)
    mixed = shuffled(rows, 1)
    assert torch.equal(mixed[:, [0, -1]], rows[:, [0, -1]])
    assert torch.equal(mixed.sort(dim=1).values, rows)
    assert not torch.equal(mixed, rows)
    assert len({tuple((row - row.min()).tolist()) for row in mixed}) == 3, "every row has an order of its own"
    assert torch.equal(shuffled(rows, 1), mixed)
    assert not torch.equal(shuffled(rows, 2), mixed)


def test_order_is_worth_nothing_to_one_layer_without_positions_and_something_to_all_others():
    rows = long_stories(STORIES, BYTES, LENGTH, 5)
    blind = order_effect(transformer("none", n_layer=1), rows, 8)
    assert blind["shuffled"] == pytest.approx(blind["ordered"], abs=1e-9)
    assert blind["predictions"] == 2 * 4, "two rows of 41 tokens hold four pieces of 9 each"
    for position in POSITIONS[:-1]:
        found = order_effect(transformer(position, n_layer=1), rows, 8)
        assert abs(found["shuffled"] - found["ordered"]) > 1e-5, position
    deep = order_effect(transformer("none", n_layer=2), rows, 8)
    assert abs(deep["shuffled"] - deep["ordered"]) > 1e-5, "the causal mask alone tells two layers the order"


def test_ordered_loss_is_that_of_the_token_after_the_context():
    model, rows = transformer("rope"), long_stories(STORIES, BYTES, 9, 1)[:, :9]
    found = order_effect(model, rows, 8)
    assert found["ordered"] == pytest.approx(place_losses(model, rows)[-1], abs=1e-9)
    assert found["predictions"] == 1


@pytest.mark.parametrize(("context", "said"), [(3, "context is 3"), (41, "rows of 41 tokens hold no context of 41")])
def test_contexts_that_have_no_order_or_do_not_fit_are_refused(context, said):
    with pytest.raises(ValueError, match=said):
        order_effect(transformer("rope"), long_stories(STORIES, BYTES, LENGTH, 5), context)


def test_too_short_a_row_has_nothing_to_shuffle():
    with pytest.raises(ValueError, match="rows have 3 tokens"):
        shuffled(torch.zeros(1, 3, dtype=torch.long), 0)


def test_bins_are_means_and_the_last_may_be_short():
    assert binned(np.arange(5.0), 2) == [0.5, 2.5, 4.0]
    with pytest.raises(ValueError, match="width is 0"):
        binned(np.arange(5.0), 0)


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    stories = "\n".join("and the cat sat on mat " * 3 + str(n) for n in range(300))
    (tmp_path / "text.txt").write_text(stories)
    train = TrainConfig(max_steps=3, eval_every=3, eval_stories=4, batch_size=2)
    data = DataConfig(corpus=("text.txt",))
    return Lab(dataclasses.replace(PROFILES["quick"], data=data, train=train, block_size=8))


def test_tables_of_runs_have_a_row_a_bin_and_are_recorded_without_the_weights(lab, tmp_path):
    arms = {p: TransformerConfig(n_embd=8, n_head=2, position=p) for p in ("absolute", "none")}
    runs = {p: [lab.train(config, seed=seed) for seed in (0, 1)] for p, config in arms.items()}
    given = {"length": 20, "most": 4}
    table = position_losses(lab, runs, width=8, **given)
    assert len(table) == 2 * 2 * 2 * 3
    assert table[["first", "last"]].drop_duplicates().to_numpy().tolist() == [[1, 8], [9, 16], [17, 20]]
    missing = table[table.loss.isna()]
    assert set(missing.arm) == {"absolute"}
    assert set(missing.reading) == {"whole"}
    inside = table[(table.arm == "none") & (table["last"] == 8)].pivot(index="seed", columns="reading", values="loss")
    assert inside.whole.to_numpy() == pytest.approx(inside.cut.to_numpy())
    order = order_effects(lab, runs, context=6, **given)
    assert order.cost.to_numpy() == pytest.approx((order.shuffled - order.ordered).to_numpy())
    assert len(order) == 4
    forgotten = {p: [dataclasses.replace(run, directory=None) for run in own] for p, own in runs.items()}
    assert position_losses(lab, forgotten, width=8, **given).equals(table)
    assert order_effects(lab, forgotten, context=6, **given).equals(order)


def test_a_window_of_one_makes_rope_alibi_and_none_one_and_the_same_model():
    """Why code whose attention sees only the current token finds that positions hardly matter."""
    idx = torch.randint(V, (2, 12), generator=torch.Generator().manual_seed(0))
    outputs = []
    for position in ("none", "rope", "alibi"):
        torch.manual_seed(0)
        shape = {"vocab_size": V, "block_size": 24, "n_embd": 16, "n_layer": 2, "n_head": 2}
        config = TransformerConfig(**shape, position=position, mixers=("window",), window=1)
        outputs.append(build_model(config).double().eval()(idx))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def scores(**exact):
    """A table of task_study with one arm a keyword: exact match at lengths 2, 4, 6 for every seed."""
    rows = [
        {"arm": arm, "seed": seed, "length": length, "exact": value, "token_accuracy": (1 + value) / 2}
        for arm, seeds in exact.items()
        for seed, values in enumerate(seeds)
        for length, value in zip((2, 4, 6), values, strict=True)
    ]
    return pd.DataFrame(rows)


def test_scores_are_summed_up_within_and_beyond_the_trained_lengths_seed_by_seed():
    found = length_ranges({"copy": scores(rope=[(1, 0.8, 0.2), (1, 1, 0)])}, trained=4)
    assert found.lengths.tolist() == ["up to 4", "5 to 6", "up to 4", "5 to 6"]
    assert found.seed.tolist() == [0, 0, 1, 1]
    assert found.exact.tolist() == pytest.approx([0.9, 0.2, 1, 0])
    assert found.token_accuracy.tolist() == pytest.approx([0.95, 0.6, 1, 0.5])
    for trained in (1, 6):
        with pytest.raises(ValueError, match="'copy' was tested at lengths 2 to 6"):
            length_ranges({"copy": scores(rope=[(1, 1, 1)])}, trained=trained)


def test_the_longest_solved_length_ends_at_the_first_failure():
    table = scores(rope=[(1, 0.4, 1), (1, 0.4, 1)], alibi=[(1, 1, 0.2), (0.2, 0.6, 0.8)], none=[(0.4, 1, 1)])
    assert longest_solved(table) == {"rope": 2, "alibi": 6, "none": 0}
    assert longest_solved(table, share=0.3) == {"rope": 6, "alibi": 6, "none": 6}


def test_an_arm_is_best_only_when_it_is_above_every_other_one():
    far = [(0, 0, 0.5), (0, 0, 0.52), (0, 0, 0.51)]
    tables = {
        "copy": scores(none=[(0, 0, 0.9), (0, 0, 0.91), (0, 0, 0.93)], rope=far, alibi=[(0, 0, 0)] * 3),
        "reverse": scores(none=far, rope=[(0, 0, 0.9), (0, 0, 0.91), (0, 0, 0.93)], alibi=[(0, 0, 0)] * 3),
    }
    table = length_ranges(tables, trained=4)
    found = against_others(table[table.lengths == "5 to 6"], "none", "exact")
    assert found.verdict.tolist() == ["holds", "fails"]
    assert found["best other"].tolist() == ["rope", "rope"]
    assert found.none.tolist() == pytest.approx([0.9133, 0.51], abs=1e-3)
    assert found.difference["copy"].mean == pytest.approx(0.4033, abs=1e-3)
    with pytest.raises(ValueError, match="has arms alibi, none, rope; 'absolute'"):
        against_others(table[table.lengths == "5 to 6"], "absolute", "exact")


def test_claims_are_judged_by_their_side_and_minimal_differences_by_the_margin():
    values = {"a": [1.0, 1.1, 1.2], "b": [1.01, 1.12, 1.2], "c": [2.0, 2.1, 2.3]}
    near, far = pair_contrasts(values, [("a", "b")]), pair_contrasts(values, [("a", "c"), ("b", "c")])
    assert list(far) == ["a - c", "b - c"]
    assert far["a - c"].mean == pytest.approx(-3.1 / 3)
    rows = [
        ("x", "nats", near, "none"),
        ("y", "nats", far, "none"),
        ("y", "nats", far, "below"),
        ("z", "", far, "above"),
    ]
    table = claim_table(rows, margin=0.05)
    assert table.verdict.tolist() == ["holds", "fails", "holds", "fails"]
    assert table.differences[1] == f"a - c: {far['a - c']}<br>b - c: {far['b - c']}"


def test_diversity_of_runs_and_of_stories_is_recorded_and_comparable(lab):
    runs = {"none": [lab.train(TransformerConfig(n_embd=8, n_head=2, position="none"), seed=seed) for seed in (0, 1)]}
    given = {"prompt": "and the", "budget": 60}
    table = drawn_diversity(lab, runs, top_p=1.0, max_new_tokens=20, seed=0, **given)
    assert table.index.tolist() == [0, 1]
    run = runs["none"][1]
    own = diversity(run.load_model(), run.load_tokenizer(), top_p=1.0, max_new_tokens=20, seed=0, **given)
    assert table.none[1] == own["distinct_2"]
    stories = story_diversity(lab, run, max_tokens=20, **given)
    assert stories["distinct_2"] < own["distinct_2"], "the same sentence over and over"
    forgotten = {"none": [dataclasses.replace(run, directory=None) for run in runs["none"]]}
    assert drawn_diversity(lab, forgotten, top_p=1.0, max_new_tokens=20, seed=0, **given).equals(table)
