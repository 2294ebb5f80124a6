"""Gradients by token show what a prediction depends on, and nothing else."""

import pytest
import torch

from picollm_core.interpret.gradients import input_gradients
from picollm_core.models import build_model
from tests.conftest import TINY, VOCAB

WITH_VECTORS = [name for name, config in TINY.items() if config.family != "kgram"]


def ids(batch=3, time=7) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, time), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", WITH_VECTORS)
def test_a_prediction_depends_on_every_token_up_to_its_own_and_on_no_other_row(name):
    torch.manual_seed(0)
    found = input_gradients(build_model(TINY[name]), ids(), row=1)
    expected = torch.zeros(7, 3, 7, dtype=torch.bool)
    expected[:, 1] = torch.ones(7, 7, dtype=torch.bool).tril()
    assert torch.equal(found > 0, expected)


def test_lengths_are_those_of_finite_differences():
    torch.manual_seed(0)
    model = build_model(TINY["transformer"].replace(tied=False)).double()
    idx = torch.tensor([[3, 9, 27, 14]])  # no token twice, so a row of the table is one position's vector
    found = input_gradients(model, idx)
    token = int(idx[0, 1])
    winners = model(idx)[0].argmax(-1)
    slopes = torch.zeros(4, model.config.n_embd, dtype=torch.float64)
    with torch.no_grad():
        for i in range(model.config.n_embd):
            values = []
            for sign in (1, -1):
                model.embedding.weight[token, i] += sign * 1e-5
                values.append(model(idx)[0].gather(-1, winners[:, None])[:, 0])
                model.embedding.weight[token, i] -= sign * 1e-5
            slopes[:, i] = (values[0] - values[1]) / 2e-5
    torch.testing.assert_close(found[:, 0, 1], slopes.norm(dim=-1), rtol=1e-6, atol=1e-9)


def test_weights_get_no_gradient_and_the_mode_is_kept():
    model = build_model(TINY["transformer"]).train()
    with torch.no_grad():
        input_gradients(model, ids())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.embedding._forward_hooks


def test_a_model_without_token_vectors_and_a_row_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match="a kgram model"):
        input_gradients(build_model(TINY["kgram-onehot"]), ids())
    with pytest.raises(ValueError, match="row is 3, but the ids have 3 rows"):
        input_gradients(build_model(TINY["transformer"]), ids(), row=3)
