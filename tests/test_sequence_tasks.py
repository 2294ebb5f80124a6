"""Sequence tasks: right answers, only answers scored, fresh rows that a seed and a step fix, clear refusals."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from picollm_core.batches import IGNORED
from picollm_core.sequence_tasks import (
    BEGIN,
    END,
    FIRST_SYMBOL,
    PADDING,
    SEPARATOR,
    TASKS,
    AdditionTask,
    CopyTask,
    ParityTask,
    RecallTask,
    ReverseTask,
    TaskBatches,
    held_out_rows,
)

LENGTHS = (1, 2, 7, 20)


def rows(task, length, count=50, seed=0):
    return task.rows(length, count, np.random.default_rng(seed))


def parts(task, length):
    """What stands before and after SEPARATOR, BEGIN and END taken off, as symbols counted from 0."""
    idx, targets = rows(task, length)
    place = 1 + (idx[0] == SEPARATOR).argmax()
    assert (idx[:, 0] == BEGIN).all()
    assert (idx[:, place - 1] == SEPARATOR).all()
    assert (targets[:, -1] == END).all()
    return idx[:, 1 : place - 1] - FIRST_SYMBOL, targets[:, place - 1 : -1] - FIRST_SYMBOL


def number(digits, base):
    """Digits (N, n), least significant first, as Python's integers."""
    return [sum(int(digit) * base**place for place, digit in enumerate(row)) for row in digits]


@pytest.fixture(params=TASKS, ids=str)
def task(request):
    return TASKS[request.param]()


@pytest.mark.parametrize("length", LENGTHS)
def test_rows_have_the_promised_width_and_ids_within_the_vocabulary(task, length):
    idx, targets = rows(task, length)
    assert idx.dtype == targets.dtype == np.int64
    assert idx.shape == targets.shape == (50, task.width(length))
    assert idx.min() >= 0
    assert max(idx.max(), targets.max()) < task.vocab_size
    assert (idx != PADDING).all()


@pytest.mark.parametrize("length", LENGTHS)
def test_every_row_of_a_length_is_scored_at_the_same_places(task, length):
    scored = rows(task, length)[1] != IGNORED
    assert (scored == scored[0]).all()
    assert scored[0].any()
    assert scored[0, -1]


@pytest.mark.parametrize("name", ["copy", "reverse", "addition"])
def test_a_written_answer_is_read_one_token_later(name):
    idx, targets = rows(TASKS[name](), 6)
    scored = targets[0] != IGNORED
    answer = targets[:, scored]
    assert (idx[:, scored][:, 1:] == answer[:, :-1]).all()
    assert (idx[:, scored][:, 0] == SEPARATOR).all()


@pytest.mark.parametrize("length", LENGTHS)
def test_copy_repeats_and_reverse_turns_round(length):
    question, answer = parts(CopyTask(), length)
    assert question.shape == (50, length)
    assert (answer == question).all()
    question, answer = parts(ReverseTask(), length)
    assert (answer == np.flip(question, axis=1)).all()


def test_copy_uses_all_of_its_symbols_about_equally_often():
    question, _ = parts(CopyTask(n_symbols=5), 200)
    assert np.bincount(question.ravel(), minlength=5).min() > 0.18 * question.size


@pytest.mark.parametrize("first_digit", ["least", "most"])
@pytest.mark.parametrize("base", [2, 3, 10])
@pytest.mark.parametrize("length", [1, 4, 30])
def test_the_sum_is_right_in_either_order_of_digits(first_digit, base, length):
    question, answer = parts(AdditionTask(base=base, first_digit=first_digit), length)
    first, plus, second = question[:, :length], question[:, length], question[:, length + 1 :]
    assert (plus == base).all()
    assert answer.shape == (50, length + 1)
    if first_digit == "most":
        first, second, answer = (np.flip(digits, axis=1) for digits in (first, second, answer))
    sums = [a + b for a, b in zip(number(first, base), number(second, base), strict=True)]
    assert number(answer, base) == sums


def test_recall_asks_every_key_once_and_expects_its_value():
    task = RecallTask(n_keys=12, n_values=5, max_length=8)
    idx, targets = rows(task, 8)
    keys, values, asked = idx[:, 1:17:2], idx[:, 2:17:2], idx[:, 17:]
    assert keys.max() < FIRST_SYMBOL + 12 <= values.min()
    assert (np.sort(keys, axis=1) == np.sort(asked, axis=1)).all()
    assert (targets[:, :17] == IGNORED).all()
    for row in range(50):
        assert len(set(keys[row])) == 8
        known = dict(zip(keys[row], values[row], strict=True))
        assert targets[row, 17:].tolist() == [known[key] for key in asked[row]]
    assert (keys != asked).any(axis=1).mean() > 0.9


@given(length=st.integers(1, 60), seed=st.integers(0, 1_000))
def test_parity_is_that_of_the_ones_counted_so_far(length, seed):
    task = ParityTask()
    idx, targets = rows(task, length, 1, seed)
    mark, *bits = task.spell(idx[0]).split()
    assert mark == "^"
    assert task.spell(targets[0]).split() == [".", *("eo"[bits[:end].count("1") % 2] for end in range(1, length + 1))]


def test_spelling_shows_marks_symbols_and_what_is_not_scored():
    idx, targets = rows(CopyTask(), 2, 1)
    sign = [chr(ord("a") + symbol) for symbol in idx[0, 1:3] - FIRST_SYMBOL]
    assert CopyTask().spell(idx[0]) == f"^ {sign[0]} {sign[1]} > {sign[0]} {sign[1]}"
    assert CopyTask().spell(torch.from_numpy(targets[0])) == f". . . {sign[0]} {sign[1]} $"


def test_every_symbol_has_its_own_sign(task):
    assert len(set(task.symbols)) == len(task.symbols)
    assert len(CopyTask(n_symbols=40).symbols) == 40


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_batches_follow_from_seed_and_step(task):
    one, two, other = (TaskBatches(task, 6, seed) for seed in (3, 3, 4))
    first, second = one.next_batch(), one.next_batch()
    assert same(first, two.next_batch())
    assert same(second, two.next_batch())
    assert first[0].shape != second[0].shape or not same(first, second)
    other_first = other.next_batch()
    assert first[0].shape != other_first[0].shape or not same(first, other_first)


def test_a_saved_loader_goes_on_where_it_stood(task):
    original = TaskBatches(task, 5, seed=1)
    for _ in range(3):
        original.next_batch()
    state = json.loads(json.dumps(original.state_dict()))
    resumed = TaskBatches(task, 5, seed=1)
    resumed.load_state_dict(state)
    assert resumed.epoch == original.epoch == 3 / original.steps_per_epoch
    assert same(resumed.next_batch(), original.next_batch())


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (TaskBatches(CopyTask(), 4, seed=2), "seed=1"),
        (TaskBatches(CopyTask(), 5, seed=1), "batch_size=4"),
        (TaskBatches(ReverseTask(), 4, seed=1), "task="),
    ],
)
def test_a_state_of_another_loader_is_refused(other, said):
    with pytest.raises(ValueError, match=said):
        other.load_state_dict(TaskBatches(CopyTask(), 4, seed=1).state_dict())


def test_padding_is_never_scored_and_rows_keep_their_own_length():
    task = CopyTask(min_length=2, max_length=9)
    idx, targets = TaskBatches(task, 64).next_batch()
    assert idx.dtype == targets.dtype == torch.int64
    padded = idx == PADDING
    assert padded.any()
    assert (targets[padded] == IGNORED).all()
    lengths = (targets != IGNORED).sum(dim=1) - 1  # END is scored too
    assert ((~padded).sum(dim=1) == 2 * lengths + 2).all()
    assert (targets.gather(1, (2 * lengths + 1)[:, None]) == END).all()


def test_training_draws_every_length_between_the_ends_about_equally_often():
    batches = TaskBatches(ParityTask(min_length=3, max_length=6), 400)
    lengths = (batches.next_batch()[1] != IGNORED).sum(dim=1)
    counts = torch.bincount(lengths, minlength=8)
    assert counts[3:7].min() > 70
    assert counts.sum() == counts[3:7].sum()


def test_held_out_rows_are_fixed_and_not_those_of_training():
    task = CopyTask(min_length=12, max_length=12)
    trained = TaskBatches(task, 50, seed=0).next_batch()[0]
    held_out = held_out_rows(task, 12, 50, seed=0)
    assert same(held_out, held_out_rows(task, 12, 50, seed=0))
    assert not {tuple(row) for row in trained.tolist()} & {tuple(row) for row in held_out[0].tolist()}
    assert not same(held_out, held_out_rows(task, 12, 50, seed=1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CopyTask(min_length=0), "from 0 to 20"),
        (lambda: CopyTask(min_length=9, max_length=8), "from 9 to 8"),
        (lambda: CopyTask(n_symbols=1), "n_symbols is 1"),
        (lambda: AdditionTask(base=16), "base is 16"),
        (lambda: AdditionTask(first_digit="middle"), "'middle'"),
        (lambda: RecallTask(n_keys=4, max_length=5), "5 pairs .* n_keys is 4"),
        (lambda: RecallTask(n_values=1), "n_values is 1"),
        (lambda: rows(RecallTask(n_keys=16), 17), "17 pairs .* n_keys is 16"),
        (lambda: rows(CopyTask(), 0), "length is 0"),
        (lambda: TaskBatches(CopyTask(), 0), "batch_size is 0"),
        (lambda: TaskBatches(CopyTask(), 1, steps_per_epoch=0), "steps_per_epoch is 0"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_value(make, said):
    with pytest.raises(ValueError, match=said):
        make()
