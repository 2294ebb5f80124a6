"""Types, and arguments that do not fit, of the linear attention functions."""

import pytest
import torch

from benchmarks.mixer_equivalence import KERNELS, random_case
from picollm_core.models.linear_attention import (
    FORMS,
    gated_delta_rule,
    gated_linear_attention,
    linear_attention,
    positive_features,
)

every_kernel = pytest.mark.parametrize("name", KERNELS)


@every_kernel
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_inputs_are_computed_in_float32(name, form):
    """Under autocast too: the outputs are those of the rounded inputs, rounded once at the end."""
    case = random_case(name, 70)
    half = [x.bfloat16() for x in case.tensors]
    truth, final = KERNELS[name](*[x.float() for x in half], form=form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, state = KERNELS[name](*half, form=form)
    assert o.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    # the features of the normalised form are themselves computed, here in half precision, before the kernel
    tolerance = 0.1 if name == "linear" else 1e-2
    torch.testing.assert_close(o.float(), truth, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state, final, rtol=tolerance if name == "linear" else 1e-6, atol=tolerance)


def test_autocast_leaves_float32_alone():
    case = random_case("delta", 40)
    tensors = [x.float() for x in case.tensors]
    truth, final = gated_delta_rule(*tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, state = gated_delta_rule(*tensors)
    assert torch.equal(o, truth)
    assert torch.equal(state, final)


@every_kernel
def test_the_state_given_is_not_written_to(name):
    case = random_case(name, 20, with_resets=True)
    for length in (1, 20):
        before = case.state.clone()
        tensors = [x[:, :, :length] for x in case.tensors]
        first = KERNELS[name](*tensors, state=case.state, resets=case.resets[:, :length])
        again = KERNELS[name](*tensors, state=case.state, resets=case.resets[:, :length])
        assert torch.equal(case.state, before)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_positive_features_are_elu_plus_one():
    x = torch.tensor([-1.0, 0.0, 2.0])
    torch.testing.assert_close(positive_features(x), torch.tensor([1 / torch.e, 1.0, 3.0]))


@every_kernel
@pytest.mark.parametrize("form", FORMS)
def test_the_state_has_one_matrix_a_head(name, form):
    case = random_case(name, 20)
    o, state = KERNELS[name](*case.tensors, form=form)
    assert o.shape == case.tensors[2].shape
    assert state.shape == case.state.shape


Q, V = torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 5, 6)


@pytest.mark.parametrize(
    ("q", "k", "v", "options", "message"),
    [
        (Q, Q, V, {"chunk_size": 0}, "chunk_size is 0; it must be at least 1"),
        (Q, Q, V, {"form": "parallel"}, "form is 'parallel'; choose one of recurrent, chunked, quadratic"),
        (Q, Q[..., :3], V, {}, "queries and keys must have the same shape"),
        (Q, Q, V[:, :, :4], {}, "values must agree with keys in batch, heads and time"),
        (Q[0], Q[0], V[0], {}, r"each must be \(batch, heads, time, width\)"),
        (Q[:, :, :0], Q[:, :, :0], V[:, :, :0], {}, "at least one token"),
        (Q, Q, V, {"state": torch.zeros(2, 3, 6, 4)}, r"the state is \(2, 3, 6, 4\).*must be \(2, 3, 4, 6\)"),
        (Q, Q, V, {"resets": torch.zeros(2, 4, dtype=torch.bool)}, r"must be torch.bool \(2, 5\)"),
        (Q, Q, V, {"resets": torch.zeros(2, 5)}, r"resets are torch.float32 \(2, 5\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(q, k, v, options, message):
    with pytest.raises(ValueError, match=message):
        linear_attention(q, k, v, **options)


def test_gates_and_strengths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"g is \(2, 3, 5, 2\) with q \(2, 3, 5, 4\)"):
        gated_linear_attention(Q, Q, V, Q[..., :2])
    with pytest.raises(ValueError, match=r"g is \(2, 3, 5\) with q"):
        gated_linear_attention(Q, Q, V, Q[..., 0])
    with pytest.raises(ValueError, match=r"g is \(2, 3, 5, 4\) with q \(2, 3, 5, 4\); it must be \(2, 3, 5\)"):
        gated_delta_rule(Q, Q, V, Q, Q[..., 0])
    with pytest.raises(ValueError, match=r"beta is \(2, 3, 4\)"):
        gated_delta_rule(Q, Q, V, Q[..., 0], Q[:, :, :4, 0])


def test_a_state_without_the_normalisers_column_is_refused():
    with pytest.raises(ValueError, match=r"the state is \(2, 3, 4, 6\).*must be \(2, 3, 4, 7\)"):
        linear_attention(Q, Q, V, state=torch.zeros(2, 3, 4, 6), normalised=True)
