"""The states of an LSTM, read and edited token by token, are those that the fused layer passes through."""

import pytest
import torch
from torch import nn

from picollm_core.config import LSTMConfig
from picollm_core.interpret.hooks import activations, hooked, lstm_layer
from picollm_core.models import build_model
from tests.conftest import VOCAB
from tests.interpret.test_hooks import build, ids


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("split", [0, 1, 4, 8])
def test_an_lstm_layer_step_by_step_is_torchs_for_any_split(dtype, tolerance, split):
    model = build_model(LSTMConfig(vocab_size=VOCAB, n_embd=16, n_layer=1)).to(dtype)
    for parameter in model.rnn.parameters():
        nn.init.normal_(parameter, std=0.5)  # biases too
    x = torch.randn(3, 9, 16, dtype=dtype)
    h = c = torch.zeros(3, 16, dtype=dtype)
    with torch.no_grad():
        wanted, (h_last, c_last) = model.rnn(x)
        parts = []
        for part in x.split([split, 9 - split] if split else [9], dim=1):
            outputs, cells = lstm_layer(model.rnn, 0, part, h, c)
            h, c = outputs[:, -1], cells[:, -1]
            parts.append(outputs)
    for got, want in ((torch.cat(parts, 1), wanted), (h, h_last[0]), (c, c_last[0])):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("split", [1, 5, 8])
def test_states_are_read_alike_for_any_split_and_equal_what_the_model_carries(split):
    model = build("lstm").double()
    sites = ["rnn.h.0", "rnn.c.0", "rnn.h.1", "rnn.c.1"]
    whole = activations(model, ids(), sites)
    assert whole["rnn.c.0"].dtype == torch.float64
    with torch.no_grad(), hooked(model, read=sites) as seen:
        _, state = model.hidden(ids()[:, :split])
        for number, values in enumerate(state):
            for layer in range(2):
                wanted = whole[f"rnn.{'hc'[number]}.{layer}"][:, split - 1]
                torch.testing.assert_close(values[layer], wanted, rtol=0, atol=1e-12)
        model.hidden(ids()[:, split:], state)
    for site in sites:
        torch.testing.assert_close(seen[site], whole[site][:, split:], rtol=0, atol=1e-12)


@torch.no_grad()
def test_an_edited_state_is_carried_over_a_split_as_it_is_inside_a_sequence():
    model = build("lstm").double()
    with hooked(model, edit={"rnn.c.0": lambda c: 0.5 * c, "rnn.h.1": lambda h: h + 0.1}):
        whole, _ = model.hidden(ids())
        first, state = model.hidden(ids()[:, :4])
        second, _ = model.hidden(ids()[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-12)


@torch.no_grad()
def test_editing_a_state_is_what_a_loop_over_torchs_own_cell_does():
    model = build("lstm").double()
    cells = [nn.LSTMCell(16, 16).double() for _ in range(2)]
    for layer, cell in enumerate(cells):
        names = [f"weight_ih_l{layer}", f"weight_hh_l{layer}", f"bias_ih_l{layer}", f"bias_hh_l{layer}"]
        cell.load_state_dict({name[:-3]: getattr(model.rnn, name) for name in names})
    h, c, wanted = [torch.zeros(2, 16).double() for _ in cells], [torch.zeros(2, 16).double() for _ in cells], []
    for t in range(9):
        x = model.embedding(ids()[:, t])
        for layer, cell in enumerate(cells):
            h[layer], c[layer] = cell(x, (h[layer], c[layer]))
            if layer == 0:
                h[0] = h[0] * 2 - 0.3
            x = h[layer]
        wanted.append(x)
    with hooked(model, edit={"rnn.h.0": lambda h: h * 2 - 0.3}):
        torch.testing.assert_close(model.hidden(ids())[0], torch.stack(wanted, 1), rtol=0, atol=1e-12)


@torch.no_grad()
def test_an_edit_may_write_into_the_state_that_it_is_given():
    model = build("lstm")
    with hooked(model, edit={"rnn.c.0": torch.zeros_like}):
        wanted = model(ids())
    with hooked(model, edit={"rnn.c.0": lambda c: c.zero_()}):
        assert torch.equal(model(ids()), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropout_between_layers_is_drawn_once_whatever_is_read_and_left_as_it_is(dtype):
    model, sites = build("lstm", dropout=0.4).to(dtype).train(), ["rnn.h.0", "rnn.h.1", "rnn.c.1"]
    torch.manual_seed(1)
    wanted, following = model(ids()), torch.rand(3)
    for edit in ({}, dict.fromkeys(sites, torch.clone)):
        torch.manual_seed(1)
        with hooked(model, read=[*sites, "rnn"], edit=edit) as seen:
            assert torch.equal(model(ids()), wanted)
        assert torch.equal(torch.rand(3), following)
        torch.testing.assert_close(seen["rnn.h.1"], seen["rnn"])  # what is read went through the same dropout


def test_an_edit_of_a_state_keeps_dropout_and_what_is_drawn_after_it():
    model = build("lstm", dropout=0.4).double().train()
    torch.manual_seed(1)
    wanted, following = model(ids()), torch.rand(3)
    torch.manual_seed(1)
    with hooked(model, edit={"rnn.c.1": lambda c: c * (1 + 1e-9)}):
        found = model(ids())
    assert not torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)
    assert torch.equal(torch.rand(3), following)
