"""Each kind of sparsity keeps what its paper says, costs what it says, and passes the gradients it says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm_core.interpret.sparsity import ACTIVATION_KINDS, BatchTopK, JumpReLU, ReLU, TopK, build_activation


def numbers(rows=6, width=10, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 100))
def test_topk_keeps_the_largest_positive_values_of_each_row_and_nothing_else(rows, k, seed):
    pre = numbers(rows, 12, seed)
    z = TopK(k)(pre)
    for row, code in zip(pre.tolist(), z.tolist(), strict=True):
        least = sorted(row, reverse=True)[k - 1]
        assert code == [value if value >= least and value > 0 else 0 for value in row]


def test_batch_topk_keeps_the_largest_of_the_whole_batch_in_training():
    pre = numbers(8, 10)
    activation = BatchTopK(3).train()
    z = activation(pre)
    least = sorted(pre.flatten().tolist(), reverse=True)[3 * 8 - 1]
    torch.testing.assert_close(z, torch.where(pre >= least, pre, 0.0))
    assert (z > 0).sum() == 24
    assert activation.threshold.item() == pytest.approx(least)


def test_batch_topk_judges_every_token_by_itself_after_training():
    activation = BatchTopK(2).train()
    for seed in range(20):
        activation(numbers(16, 10, seed))
    activation.eval()
    pre, before = numbers(9, 10, 77), activation.threshold.clone()
    together = activation(pre)
    alone = torch.cat([activation(row[None]) for row in pre])
    assert torch.equal(together, alone)
    assert torch.equal(activation.threshold, before)
    assert torch.equal(together > 0, pre > before)


def test_batch_topk_threshold_is_a_running_mean():
    activation = BatchTopK(1, momentum=0.75).train()
    activation(torch.tensor([[4.0, 1.0], [2.0, 0.0]]))  # the 2 largest are 4 and 2
    activation(torch.tensor([[8.0, 1.0], [6.0, 0.0]]))
    assert activation.threshold.item() == pytest.approx(0.75 * 2 + 0.25 * 6)


def test_relu_costs_the_mean_sum_of_a_code():
    pre = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]])
    activation = ReLU(0.1)
    z = activation(pre)
    assert z.tolist() == [[1, 0, 3], [0.5, 0, 0]]
    assert activation.penalty(pre, z).item() == pytest.approx(0.1 * (4 + 0.5) / 2)


def test_jumprelu_is_zero_up_to_its_threshold_and_the_value_above():
    activation = JumpReLU(2.0)
    activation.attach(4)
    z = activation(torch.tensor([[0.5, 1.5, -3.0, 0.99]]))
    assert z.tolist() == [[0, 1.5, 0, 0]]


def test_jumprelu_gradients_are_the_papers_pseudo_derivatives():
    activation = JumpReLU(2.0, weight=3.0, bandwidth=0.4)
    activation.attach(3)
    pre = torch.tensor([[1.1, 2.0, 0.9], [0.1, 1.05, 3.0]], requires_grad=True)
    upstream = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    (activation(pre) * upstream).sum().backward()
    assert pre.grad.tolist() == [[1, 2, 0], [0, 16, 32]]  # straight through where it passed
    kernel = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]) / 0.4  # |pre - 1| < 0.2
    theta = -(kernel * upstream * 1.0).sum(0)  # times d theta / d log theta = 1
    torch.testing.assert_close(activation.log_threshold.grad, theta)


def test_jumprelu_penalty_pulls_the_thresholds_towards_the_wanted_number():
    for target, sign in ((1.0, -1), (3.0, 1)):  # 2 features fire: too many raise the thresholds, too few lower them
        activation = JumpReLU(target, bandwidth=0.4)
        activation.attach(3)
        pre = torch.tensor([[1.1, 1.05, 0.9]])
        penalty = activation.penalty(pre, activation(pre))
        assert penalty.item() == pytest.approx((2 / target - 1) ** 2)
        penalty.backward()
        assert (activation.log_threshold.grad.sign() == sign).all()


@pytest.mark.parametrize("activation", [ReLU(), JumpReLU(4.0)])
def test_kinds_without_a_k_start_with_few_active_features(activation):
    activation.attach(400)
    pre = numbers(500, 400)
    shift = activation.start(pre)
    wanted = 32 if isinstance(activation, ReLU) else 4
    assert (activation(pre + shift) > 0).sum(1).float().mean().item() == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("activation", [TopK(2), BatchTopK(2)])
def test_kinds_with_a_k_start_as_they_are(activation):
    assert activation.start(numbers()).tolist() == [0] * 10


@pytest.mark.parametrize("activation", [TopK(5), BatchTopK(4, 0.9), ReLU(0.3), JumpReLU(6.0, 2.0, 0.5)])
def test_settings_build_the_same_kind_again(activation):
    again = build_activation(activation.settings())
    assert type(again) is type(activation)
    assert again.settings() == activation.settings()


def test_every_kind_is_known_by_its_name():
    assert set(ACTIVATION_KINDS) == {"topk", "batchtopk", "relu", "jumprelu"}


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: TopK(0), "k is 0"),
        (lambda: BatchTopK(-1), "k is -1"),
        (lambda: BatchTopK(2, momentum=1.0), "momentum is 1.0"),
        (lambda: ReLU(-0.1), "l1 is -0.1"),
        (lambda: JumpReLU(0), "target is 0"),
        (lambda: JumpReLU(bandwidth=-1), "bandwidth is -1"),
        (lambda: JumpReLU(weight=-1), "weight is -1"),
        (lambda: TopK(33).attach(32), "dict_size is 32, smaller than the k=33"),
        (lambda: build_activation({"kind": "softmax"}), "'softmax' is unknown; choose one of topk"),
        (lambda: build_activation({"kind": "topk", "q": 1}), "cannot be built from {'q': 1}"),
    ],
)
def test_impossible_settings_are_refused_with_their_values(build, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace("{", r"\{")):
        build()
