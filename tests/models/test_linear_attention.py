"""The fast forms of every linear mixer against the recurrence, and the recurrence against the formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.mixer_equivalence import (
    ADVERSARIAL_BOUND,
    BOUNDS,
    CHUNKS,
    KERNELS,
    LENGTHS,
    adversarial_cases,
    errors,
    everything,
    random_case,
)
from picollm_core.models.linear_attention import (
    FORMS,
    gated_delta_rule,
    gated_linear_attention,
    linear_attention,
    positive_features,
)

every_kernel = pytest.mark.parametrize("name", KERNELS)
every_form = pytest.mark.parametrize("form", FORMS)


def exact(found: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)


@every_kernel
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_every_form_has_the_outputs_state_and_gradients_of_the_recurrence(name, length, dtype):
    for with_resets in (False, True):
        case = random_case(name, length, seed=length, with_resets=with_resets)
        truth = everything(KERNELS[name], case, "recurrent")
        for form, chunk in [("recurrent", 64), ("quadratic", 64), *(("chunked", chunk) for chunk in CHUNKS)]:
            found = everything(KERNELS[name], case, form, chunk, dtype)
            assert max(errors(found, truth)) <= BOUNDS[dtype], (form, chunk, with_resets)


@pytest.mark.parametrize("inputs", adversarial_cases())
def test_inputs_that_break_careless_implementations_stay_finite_and_right(inputs):
    name, case = adversarial_cases(130)[inputs]
    truth = everything(KERNELS[name], case, "recurrent")
    for form in FORMS:
        found = everything(KERNELS[name], case, form, dtype=torch.float32)
        assert max(errors(found, truth)) <= ADVERSARIAL_BOUND, form


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(KERNELS)),
    length=st.integers(2, 40),
    chunk=st.integers(1, 40),
    share=st.floats(0, 1),
    p_reset=st.sampled_from((0.0, 0.1, 0.9)),
    seed=st.integers(0, 2**31),
)
def test_a_sequence_may_be_split_anywhere(name, length, chunk, share, p_reset, seed):
    """Two pieces with carried state give the outputs and the final state of the whole, wherever resets stand."""
    case = random_case(name, length, seed)
    resets = torch.rand(2, length, generator=torch.Generator().manual_seed(seed)) < p_reset
    split = 1 + int(share * (length - 2))
    whole, final = KERNELS[name](*case.tensors, chunk_size=chunk, state=case.state, resets=resets)
    pieces, state = [], case.state
    for part in (slice(split), slice(split, None)):
        tensors = [x[:, :, part] for x in case.tensors]
        o, state = KERNELS[name](*tensors, chunk_size=chunk, state=state, resets=resets[:, part])
        pieces.append(o)
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-10)


@every_kernel
@every_form
def test_token_by_token_equals_the_whole(name, form):
    case = random_case(name, 17, with_resets=True)
    whole, final = KERNELS[name](*case.tensors, form=form, state=case.state, resets=case.resets)
    state = case.state
    for t in range(17):
        tensors = [x[:, :, t : t + 1] for x in case.tensors]
        o, state = KERNELS[name](*tensors, form=form, state=state, resets=case.resets[:, t : t + 1])
        exact(o, whole[:, :, t : t + 1])
    exact(state, final)


@every_kernel
@every_form
def test_a_reset_equals_running_the_pieces_separately(name, form):
    """Outputs, state and gradients: nothing behind a reset depends on anything before it."""
    case = random_case(name, 30)
    resets = torch.zeros(2, 30, dtype=torch.bool)
    resets[:, [0, 11, 12, 24]] = True
    tensors = [x.clone().requires_grad_() for x in case.tensors]
    state = torch.full_like(case.state, 1e6).requires_grad_()
    o, final = KERNELS[name](*tensors, form=form, chunk_size=8, state=state, resets=resets)
    for start, end in ((0, 11), (11, 12), (12, 24), (24, 30)):
        piece, last = KERNELS[name](*[x[:, :, start:end] for x in case.tensors], form=form)
        exact(o[:, :, start:end], piece)
    exact(final, last)
    gradients = torch.autograd.grad(o[:, :, 24:].sum() + final.sum(), [*tensors, state])
    assert all(gradient[:, :, :24].abs().max() < 1e-13 for gradient in gradients[:-1])
    assert (gradients[-1] == 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_resets_are_those_of_each_row():
    case = random_case("delta", 12)
    resets = torch.zeros(2, 12, dtype=torch.bool)
    resets[1, 5] = True
    with_reset, _ = gated_delta_rule(*case.tensors, chunk_size=4, state=case.state, resets=resets)
    without, _ = gated_delta_rule(*case.tensors, chunk_size=4, state=case.state)
    exact(with_reset[0], without[0])
    exact(with_reset[1, :, :5], without[1, :, :5])
    assert (with_reset[1, :, 5:] - without[1, :, 5:]).abs().amax(dim=(0, 2)).min() > 1e-8


@every_kernel
@every_form
@pytest.mark.parametrize("with_resets", [False, True])
def test_gradients_pass_the_check_by_differences(name, form, with_resets):
    case = random_case(name, 5, seed=3)
    q, k, v, *gates = (x[:1, :1] for x in case.tensors)
    v, state = v[..., :3], case.state[:1, :1, :, -(4 if name == "linear" else 3) :]
    inputs = [x.clone().requires_grad_() for x in (q, k, v, *gates, state)]
    resets = torch.arange(5).unsqueeze(0) == 3 if with_resets else None

    def call(*args: Tensor) -> tuple[Tensor, Tensor]:
        return KERNELS[name](*args[:-1], form=form, chunk_size=2, state=args[-1], resets=resets)

    assert torch.autograd.gradcheck(call, inputs, fast_mode=False)


@every_form
def test_outputs_depend_on_no_later_token(form):
    for name, kernel in KERNELS.items():
        case = random_case(name, 20)
        tensors = [x.clone().requires_grad_() for x in case.tensors]
        o, _ = kernel(*tensors, form=form, chunk_size=8)
        gradients = torch.autograd.grad(o[:, :, 12].sum(), tensors)
        assert all((gradient[:, :, 13:] == 0).all() for gradient in gradients), name
        assert all((gradient[:, :, 11] != 0).any() for gradient in gradients[1:]), name  # all but the queries


def test_the_recurrence_is_the_papers_formula_written_out():
    """One head, token by token, by sums over the past: no state at all."""
    q, k, v, g = (x[0, 0] for x in random_case("gla-vector", 9).tensors)
    o, _ = gated_linear_attention(q[None, None], k[None, None], v[None, None], g[None, None], form="recurrent")
    for t in range(9):
        past = sum((q[t] * k[j] * g[j + 1 : t + 1].sum(0).exp()).sum() * v[j] for j in range(t + 1))
        exact(o[0, 0, t], past / math.sqrt(q.size(-1)))


def test_the_delta_rule_is_the_product_of_its_transitions_written_out():
    """S_t = (I - beta_t k_t k_t^T) e^g_t S_{t-1} + beta_t k_t v_t^T, equation 10 of the paper transposed."""
    q, k, v, g, beta = (x[0, 0] for x in random_case("delta-negative", 9).tensors)
    o, final = gated_delta_rule(*(x[None, None] for x in (q, k, v, g, beta)), form="recurrent")
    state = torch.zeros(k.size(-1), v.size(-1), dtype=torch.float64)
    for t in range(9):
        transition = torch.eye(k.size(-1)) - beta[t] * torch.outer(k[t], k[t])
        state = transition @ (g[t].exp() * state) + beta[t] * torch.outer(k[t], v[t])
        exact(o[0, 0, t], q[t] @ state / math.sqrt(q.size(-1)))
    exact(final[0, 0], state)


@every_form
def test_the_normalised_form_is_a_weighted_mean_of_the_values(form):
    q, k, v = random_case("plain", 33).tensors
    phi_q, phi_k = positive_features(q), positive_features(k)
    weights = (phi_q @ phi_k.mT).tril()
    expected = weights / weights.sum(dim=-1, keepdim=True) @ v
    o, state = linear_attention(phi_q, phi_k, v, form=form, chunk_size=16, normalised=True)
    exact(o, expected)
    exact(state, phi_k.mT @ F.pad(v, (0, 1), value=1.0))  # the last column is z, the sum of the keys


@every_form
def test_without_decay_gated_linear_attention_is_linear_attention(form):
    q, k, v, g = random_case("gla-vector", 40).tensors
    truth, final = linear_attention(q, k, v, form=form)
    for zero in (torch.zeros_like(g), torch.zeros_like(g[..., :1])):
        o, state = gated_linear_attention(q, k, v, zero, form=form)
        exact(o, truth)
        exact(state, final)


@every_form
def test_equal_gates_in_all_channels_are_a_scalar_gate(form):
    q, k, v, g = random_case("gla-scalar", 40).tensors
    truth, final = gated_linear_attention(q, k, v, g, form=form)
    o, state = gated_linear_attention(q, k, v, g.expand_as(q), form=form)
    exact(o, truth)
    exact(state, final)


@every_form
def test_with_beta_0_the_delta_rule_only_decays_what_it_holds(form):
    case = random_case("delta", 40)
    q, k, v, g, beta = case.tensors
    o, state = gated_delta_rule(q, k, v, g, torch.zeros_like(beta), form=form, state=case.state)
    decay = g.cumsum(dim=-1).exp()[..., None, None]  # (B, H, T, 1, 1)
    held = decay * case.state.unsqueeze(2)  # (B, H, T, Dk, Dv)
    exact(o, (q.unsqueeze(-2) @ held).squeeze(-2) / math.sqrt(q.size(-1)))
    exact(state, held[:, :, -1])


@every_form
def test_on_orthogonal_keys_without_decay_the_delta_rule_is_linear_attention(form):
    v = random_case("plain", 6).tensors[2]
    k = torch.eye(6, dtype=torch.float64).expand(2, 2, 6, 6)
    ones = torch.ones(2, 2, 6, dtype=torch.float64)
    o, state = gated_delta_rule(k, k, v, 0 * ones, ones, form=form)
    truth, final = linear_attention(k, k, v, form=form)
    exact(o, truth)
    exact(state, final)


@every_form
def test_beta_1_replaces_what_was_written_under_a_key_and_beta_2_reflects_it(form):
    key = F.normalize(torch.randn(1, 1, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1)
    keys, values = key.expand(1, 1, 5, 6), random_case("plain", 5).tensors[2][:1, :1]
    ones = torch.ones(1, 1, 5, dtype=torch.float64)
    _, state = gated_delta_rule(keys, keys, values, 0 * ones, ones, form=form)
    exact(key @ state, values[:, :, -1:])
    zero = torch.zeros_like(values)
    _, state = gated_delta_rule(keys, keys, zero, 0 * ones, 2 * ones, form=form, state=state)
    exact(key @ state, -values[:, :, -1:])  # five reflections: an odd number


def test_a_chunk_size_that_is_no_power_of_two_changes_nothing():
    case = random_case("gla-vector", 70)
    truth, _ = gated_linear_attention(*case.tensors, form="recurrent")
    for chunk in (3, 50, 1000):
        o, _ = gated_linear_attention(*case.tensors, chunk_size=chunk)
        exact(o, truth)
