"""The loss without full logits equals the loss with them: values, gradients, extremes, and memory."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from picollm_core import losses
from picollm_core.losses import IGNORE, chunked_loss, full_logits_loss, next_token_loss, token_nll
from picollm_core.models import build_model
from tests.conftest import TINY, VOCAB

N, C, V = 50, 8, 301


def problem(dtype=torch.float32, scale=1.0, seed=0, n=N, vocab=V):
    """hidden (N, C), weight (V, C), targets (N,); logits have about unit variance times scale^2."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, C, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(vocab, C, generator=generator, dtype=torch.float64) / math.sqrt(C)
    targets = torch.randint(vocab, (n,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def loss_and_gradients(loss_function, hidden, weight, targets):
    loss = loss_function(hidden, weight, targets)
    return loss, *torch.autograd.grad(loss, (hidden, weight))


def relative_error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.fixture(params=[1, 7, N - 1, N, 10 * N], ids=lambda rows: f"rows{rows}")
def chunk_rows(request, monkeypatch):
    """Chunks of this many rows in float32, half as many in float64."""
    monkeypatch.setattr(losses, "_CHUNK_BYTES", request.param * V * 4)
    return request.param


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
def test_chunked_loss_equals_full_logits_loss_in_value_and_gradients(chunk_rows, dtype, tolerance):
    chunked = loss_and_gradients(chunked_loss, *problem(dtype))
    full = loss_and_gradients(full_logits_loss, *problem(dtype))
    assert chunked[0].dtype == dtype
    for a, b in zip(chunked, full, strict=True):
        assert relative_error(a, b) < tolerance


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 40),
    vocab=st.integers(1, 60),
    rows=st.integers(1, 50),
    scale=st.floats(0, 300),
    seed=st.integers(0),
)
def test_chunked_loss_is_right_for_any_shape_and_scale(n, vocab, rows, scale, seed):
    before, losses._CHUNK_BYTES = losses._CHUNK_BYTES, rows * vocab * 8
    try:
        chunked = loss_and_gradients(chunked_loss, *problem(torch.float64, scale, seed % 2**32, n, vocab))
    finally:
        losses._CHUNK_BYTES = before
    full = loss_and_gradients(full_logits_loss, *problem(torch.float64, scale, seed % 2**32, n, vocab))
    for a, b in zip(chunked, full, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_losses_whose_probability_underflows_are_exact(chunk_rows, dtype):
    hidden, weight, targets = problem(dtype, scale=100)
    exact = full_logits_loss(*problem(torch.float64, scale=100))
    assert exact > 100  # nats: probabilities below 1e-43
    loss, *gradients = loss_and_gradients(chunked_loss, hidden, weight, targets)
    assert relative_error(loss, exact) < (1e-6 if dtype == torch.float32 else 1e-12)
    assert all(g.isfinite().all() for g in gradients)


def test_bfloat16_autocast_is_within_its_rounding(chunk_rows):
    """bfloat16 keeps 8 bits: the loss within 1%, gradients within 2% of their norm; sums stay in the weights' type."""
    full = loss_and_gradients(full_logits_loss, *problem())
    with torch.autocast("cpu", torch.bfloat16):
        lowered = loss_and_gradients(chunked_loss, *problem())
    assert [t.dtype for t in lowered] == [torch.float32] * 3
    for a, b in zip(lowered, full, strict=True):
        assert relative_error(a, b) < (0.01 if a is lowered[0] else 0.02)


def test_gradients_scale_with_what_the_loss_is_multiplied_by():
    hidden, weight, targets = problem(torch.float64)
    parts = [chunked_loss(hidden[part], weight, targets[part]) / 2 for part in (slice(0, 25), slice(25, 50))]
    split = torch.autograd.grad(parts[0] + parts[1], (hidden, weight))
    for a, b in zip(split, torch.autograd.grad(chunked_loss(hidden, weight, targets), (hidden, weight)), strict=True):
        assert relative_error(a, b) < 1e-12


def test_gradient_reaches_what_the_hidden_states_and_the_weight_were_made_of():
    hidden, weight, targets = problem(torch.float64)

    def through(loss_function):
        scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(loss_function(hidden * scale, weight * scale, targets), scale)[0]

    torch.testing.assert_close(through(chunked_loss), through(full_logits_loss), rtol=1e-12, atol=0)


def test_without_gradients_the_value_is_the_same():
    hidden, weight, targets = problem(torch.float64)
    with torch.no_grad():
        silent = chunked_loss(hidden, weight, targets)
    torch.testing.assert_close(silent, chunked_loss(hidden, weight, targets).detach(), rtol=1e-12, atol=0)


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements that any operation returned."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        outputs = result if isinstance(result, list | tuple) else [result]
        self.numel = max([self.numel, *(t.numel() for t in outputs if isinstance(t, torch.Tensor))])
        return result


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_no_tensor_of_tokens_times_vocabulary_is_ever_made(monkeypatch, autocast):
    n, vocab, rows = 512, 1_000, 16
    monkeypatch.setattr(losses, "_CHUNK_BYTES", rows * vocab * 4)
    hidden, weight, targets = problem(n=n, vocab=vocab)
    with LargestTensor() as watch, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        chunked_loss(hidden, weight, targets).backward()
        token_nll(hidden, weight, targets)
    assert hidden.grad is not None
    assert vocab * rows <= watch.numel <= 2 * vocab * rows  # bfloat16 fits twice the rows into a chunk
    with LargestTensor() as watch:
        full_logits_loss(hidden, weight, targets)
    assert watch.numel >= n * vocab  # the instrument does see what it looks for


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1, 100])
def test_token_nll_is_cross_entropy_of_every_token_and_the_likeliest_guess(chunk_rows, dtype, scale):
    hidden, weight, targets = problem(dtype, scale)
    nll, correct = token_nll(hidden, weight, targets)
    logits = hidden @ weight.T
    assert not nll.requires_grad
    assert (nll.dtype, nll.shape, correct.shape) == (dtype, (N,), (N,))
    torch.testing.assert_close(nll, F.cross_entropy(logits, targets, reduction="none").detach())
    assert torch.equal(correct, logits.argmax(-1) == targets)
    guessed = token_nll(hidden, weight, logits.argmax(-1))[1]
    assert guessed.all()


def test_token_nll_keeps_float32_under_autocast_and_for_bfloat16_weights():
    hidden, weight, targets = problem()
    with torch.autocast("cpu", torch.bfloat16):
        lowered = token_nll(hidden, weight, targets)[0]
    assert torch.equal(lowered, token_nll(hidden, weight, targets)[0])
    half = token_nll(hidden.bfloat16(), weight.bfloat16(), targets)[0]
    torch.testing.assert_close(half, token_nll(hidden.bfloat16().float(), weight.bfloat16().float(), targets)[0])


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(VOCAB, (3, 10), generator=generator) for _ in range(2))


def test_next_token_loss_is_the_mean_over_scored_targets_only(tiny_model):
    idx, targets = batch()
    targets[0, 2:] = IGNORE
    targets[2, ::3] = IGNORE
    expected = F.cross_entropy(tiny_model(idx).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    loss = next_token_loss(tiny_model, idx, targets)
    torch.testing.assert_close(loss, expected)
    parameters = list(tiny_model.parameters())
    wanted = torch.autograd.grad(expected, parameters)
    for a, b in zip(torch.autograd.grad(loss, parameters), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(TINY["lstm"])


def test_nothing_scored_is_an_error_that_says_so(model):
    idx, targets = batch()
    with pytest.raises(ValueError, match=r"all 30 targets are -100 \(not scored\); a loss needs at least one"):
        next_token_loss(model, idx, torch.full_like(targets, IGNORE))


def test_shapes_that_differ_are_an_error_with_both(model):
    idx, targets = batch()
    with pytest.raises(ValueError, match=r"idx has shape \(3, 10\) but targets have \(3, 9\)"):
        next_token_loss(model, idx, targets[:, 1:])


@pytest.mark.parametrize("bad", [-1, -99, VOCAB, VOCAB + 5])
def test_targets_outside_the_vocabulary_are_named(model, bad):
    idx, targets = batch()
    targets[1, 1] = bad
    with pytest.raises(ValueError, match=f"target {bad} is outside the vocabulary of {VOCAB}"):
        next_token_loss(model, idx, targets)
