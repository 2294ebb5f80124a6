"""The equivalence table measures what it says; the bounds themselves are tested with the mixers."""

import math

import pytest
import torch

from benchmarks import linear_attention, mixer_equivalence
from benchmarks.mixer_equivalence import KERNELS, Errors, errors, everything, line, random_case, relative_error


def test_the_error_is_relative_to_the_largest_value():
    truth = torch.tensor([1.0, -4.0], dtype=torch.float64)
    assert relative_error(torch.tensor([1.0, -4.0]), truth) == 0
    assert relative_error(torch.tensor([1.5, -4.0]), truth) == 0.125
    assert relative_error(torch.tensor([math.nan, -4.0]), truth) == math.inf
    assert relative_error(torch.tensor([0.0]), torch.tensor([1e-80], dtype=torch.float64)) < 1e-30


def test_errors_name_the_part_that_is_wrong():
    truth = everything(KERNELS["delta"], random_case("delta", 9), "recurrent")
    assert errors(truth, truth) == Errors(0, 0, 0)
    wrong_output = truth._replace(outputs=2 * truth.outputs)
    wrong_gradient = truth._replace(gradients=(*truth.gradients[:-1], 2 * truth.gradients[-1]))
    assert errors(wrong_output, truth) == Errors(1, 0, 0)
    assert errors(wrong_gradient, truth) == Errors(0, 0, 1)


def test_a_wrong_kernel_breaks_its_bound(monkeypatch, capsys):
    def forgets_the_scale(q, k, v, *, form, **options):
        factor = 1.0 if form == "recurrent" else 1.0 + 1e-7
        return KERNELS["plain"](q * factor, k, v, form=form, **options)

    right = mixer_equivalence.regular_rows(lengths=(5,))
    assert all(max(found) <= bound for _, found, bound in right)
    monkeypatch.setattr(mixer_equivalence, "LENGTHS", (5,))
    monkeypatch.setattr(mixer_equivalence, "KERNELS", {**KERNELS, "plain": forgets_the_scale})
    broken = [name for name, found, bound in mixer_equivalence.regular_rows((5,)) if max(found) > bound]
    assert [name.split() for name in broken] == [["plain", form, "float64"] for form in ("chunked", "quadratic")]


def test_a_line_says_whether_the_bound_is_kept():
    assert line("delta", Errors(1e-6, 0.0, 1e-7), 1e-5).endswith("<= 1e-05 kept")
    assert line("delta", Errors(1e-6, 0.0, 1e-4), 1e-5).endswith("<= 1e-05 BROKEN")


@pytest.mark.parametrize("kind", ["gla", "delta"])
def test_both_forms_of_a_speed_row_do_the_same_work(kind, monkeypatch):
    monkeypatch.setattr(linear_attention, "LENGTH", 40)
    (row,) = linear_attention.measure_forms(kind, repetitions=1)
    assert row.name == f"chunked-{kind}"
    inputs = linear_attention.head_inputs(kind)
    fast, truth = (linear_attention.forward_and_backward(kind, inputs, form) for form in ("chunked", "recurrent"))
    torch.testing.assert_close(fast[0], truth[0], rtol=1e-4, atol=1e-5)


def test_the_rows_against_softmax_come_from_the_longest_length(monkeypatch):
    monkeypatch.setattr(linear_attention, "LENGTHS", (16, 64))
    rows = linear_attention.measure_against_softmax(repetitions=2)
    assert [row.name for row in rows] == ["softmax-linear", "softmax-gla", "softmax-delta"]
    assert all("T = 64" in row.notes for row in rows)
    assert all(row.ratio == pytest.approx(row.peer / row.ours, rel=1.0) for row in rows)
