"""The LSTM against its cell written out step by step, and the choices of its initialisation."""

import math

import pytest
import torch

from picollm_core.config import LSTMConfig
from picollm_core.losses import next_token_loss
from picollm_core.models import build_model
from picollm_core.models.lstm import LSTM

V, C, T = 13, 8, 10


def lstm(**changes) -> LSTM:
    torch.manual_seed(0)
    return build_model(LSTMConfig(**({"vocab_size": V, "n_embd": C, "n_layer": 2} | changes)))


def tokens(batch=3, time=T):
    return torch.randint(V, (batch, time), generator=torch.Generator().manual_seed(0))


def written_out(model: LSTM, idx: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Hidden states (B, T, C) and the final h and c from the cell's equations (Hochreiter & Schmidhuber 1997).

    i, f, o = sigmoid; g = tanh; c' = f c + i g; h' = o tanh(c').
    """
    width, depth = model.config.n_embd, model.config.n_layer
    h = [torch.zeros(len(idx), width).to(model.head.weight) for _ in range(depth)]
    c = [torch.zeros(len(idx), width).to(model.head.weight) for _ in range(depth)]
    outputs = []
    for t in range(idx.size(1)):
        x = model.embedding.weight[idx[:, t]]
        for layer in range(depth):
            w_x, w_h, b_x, b_h = (
                getattr(model.rnn, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            i, f, g, o = (x @ w_x.T + b_x + h[layer] @ w_h.T + b_h).split(width, dim=1)
            c[layer] = f.sigmoid() * c[layer] + i.sigmoid() * g.tanh()
            x = h[layer] = o.sigmoid() * c[layer].tanh()
        outputs.append(x)
    return torch.stack(outputs, dim=1), (torch.stack(h), torch.stack(c))


@pytest.mark.parametrize("n_layer", [1, 2, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_hidden_states_final_state_and_gradients_equal_the_written_out_cell(n_layer, tied):
    model, idx = lstm(n_layer=n_layer, tied=tied).double(), tokens()
    hidden, state = model.hidden(idx)
    expected, expected_state = written_out(model, idx)
    torch.testing.assert_close((hidden, *state), (expected, *expected_state), rtol=1e-12, atol=1e-12)
    direction = torch.randn(hidden.shape, dtype=torch.float64)
    parameters = [p for name, p in model.named_parameters() if not name.startswith("head")]
    wanted = torch.autograd.grad((expected * direction).sum(), parameters)
    for a, b in zip(torch.autograd.grad((hidden * direction).sum(), parameters), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_logits_are_the_head_of_the_hidden_states_without_activation_or_bias():
    model, idx = lstm(), tokens()
    hidden, _ = model.hidden(idx)
    assert model.head.bias is None
    torch.testing.assert_close(model(idx), hidden @ model.head.weight.T)
    assert (model(idx) < 0).any()


def test_forget_gates_start_open_and_all_other_biases_at_zero():
    model = lstm()
    for layer in range(2):
        total = getattr(model.rnn, f"bias_ih_l{layer}") + getattr(model.rnn, f"bias_hh_l{layer}")
        i, f, g, o = total.split(C)
        assert (f == 1).all()
        assert all((gate == 0).all() for gate in (i, g, o))


def test_tying_shares_one_parameter_and_survives_training():
    model = lstm(tied=True)
    assert model.head.weight is model.embedding.weight
    assert model.num_parameters() == lstm().num_parameters() - V * C
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    idx = tokens()
    next_token_loss(model, idx[:, :-1], idx[:, 1:]).backward()
    optimizer.step()
    assert model.head.weight is model.embedding.weight
    assert lstm().head.weight is not lstm().embedding.weight


@pytest.mark.parametrize("n_embd", [32, 256])
@pytest.mark.parametrize("tied", [False, True])
def test_initial_loss_is_within_five_hundredths_of_ln_v_when_tied_too(tied, n_embd):
    model = lstm(tied=tied, n_embd=n_embd, vocab_size=2_000, n_layer=1)
    idx = torch.randint(2_000, (4, 65))
    with torch.no_grad():
        loss = next_token_loss(model, idx[:, :-1], idx[:, 1:]).item()
    assert loss == pytest.approx(math.log(2_000), abs=0.05)


def test_the_state_has_one_h_and_c_for_each_layer_and_no_limit():
    model = lstm(n_layer=3)
    for part in model.init_state(5):
        assert torch.equal(part, torch.zeros(3, 5, C))
    assert model.double().init_state(1)[0].dtype == torch.float64
    assert model.context_limit is None


def test_dropout_acts_in_training_only():
    model, idx = lstm(dropout=0.5), tokens()
    assert not torch.equal(model(idx), model(idx))
    model.eval()
    assert torch.equal(model(idx), model(idx))
    with torch.no_grad():
        torch.testing.assert_close(model.hidden(idx)[0], written_out(model, idx)[0])


def test_one_layer_with_dropout_is_built_without_a_warning(recwarn):
    assert lstm(n_layer=1, dropout=0.5).config.dropout == 0.5
    assert not recwarn.list
