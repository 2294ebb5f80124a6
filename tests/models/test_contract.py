"""What every model must do, whichever family it belongs to."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm_core.config import KGramConfig, ModelConfig
from picollm_core.losses import next_token_loss
from picollm_core.models import MODELS, LanguageModel, build_model, seq_first
from picollm_core.presets import PRESETS
from tests.conftest import BLOCK, TINY, VOCAB


def tokens(batch: int, time: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, time), generator=torch.Generator().manual_seed(seed))


def receptive_field(config: ModelConfig) -> int:
    if isinstance(config, KGramConfig):
        return config.k
    if set(getattr(config, "mixers", ())) == {"window"}:
        return min(BLOCK, config.n_layer * (config.window - 1) + 1)
    return BLOCK


def embedding_tables(model: LanguageModel) -> list[torch.nn.Module]:
    return [m for name, m in model.named_modules() if isinstance(m, torch.nn.Embedding) and "position" not in name]


def test_every_registered_family_is_among_the_models_under_test():
    assert {config.family for config in TINY.values()} == set(MODELS)


def test_forward_returns_logits_for_every_position(tiny_model):
    idx = tokens(3, 7)
    logits = tiny_model(idx)
    assert logits.shape == (3, 7, VOCAB)
    hidden, _ = tiny_model.hidden(idx)
    torch.testing.assert_close(tiny_model.head(hidden), logits)


def test_a_changed_token_changes_only_its_own_row_from_its_own_position_on(tiny_model, tiny_config):
    idx, row, place = tokens(3, 12), 1, 5
    other = idx.clone()
    other[row, place] = (idx[row, place] + 1) % VOCAB
    with torch.no_grad():
        changed = (tiny_model(idx) != tiny_model(other)).any(dim=-1)  # (B, T)
    expected = torch.zeros(3, 12, dtype=torch.bool)
    expected[row, place : place + receptive_field(tiny_config)] = True
    assert torch.equal(changed, expected)


def test_gradients_reach_exactly_the_receptive_field(tiny_model, tiny_config):
    """d logits[b, t] / d embedding[b', t'] is zero outside b' = b, t' <= t, and non-zero for every t' in the field."""
    if getattr(tiny_config, "embedding", "") == "onehot":
        pytest.skip("a one-hot input has no embedding vectors; the perturbation test covers it")
    (table,) = embedding_tables(tiny_model)
    seen: list[torch.Tensor] = []

    def keep(_module, _inputs, output):
        output.retain_grad()
        seen.append(output)
        return output

    handle = table.register_forward_hook(keep)
    idx, row, place = tokens(2, 9), 1, 6
    tiny_model(idx)[row, place].square().sum().backward()
    handle.remove()
    size = seen[0].grad.abs().sum(dim=-1)  # (B, T), or (B, T, k) for a k-gram
    if size.ndim == 3:  # entry j of the window at t holds token t - k + 1 + j
        assert (size[row, place] > 0).all()
        size[row, place] = 0
        assert (size == 0).all()
    else:
        reached = torch.zeros(2, 9, dtype=torch.bool)
        reached[row, max(0, place + 1 - receptive_field(tiny_config)) : place + 1] = True
        assert torch.equal(size > 0, reached)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_any_split_with_carried_state_gives_the_same_hidden_states(tiny_config, dtype):
    torch.manual_seed(0)
    model = build_model(tiny_config).to(dtype).eval()
    idx = tokens(2, BLOCK)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    with torch.no_grad():
        whole, _ = model.hidden(idx)
        for cuts in ([1], [BLOCK - 1], [3, 4, 17], list(range(1, BLOCK))):
            state, pieces = None, []
            for start, end in pairwise([0, *cuts, BLOCK]):
                hidden, state = model.hidden(idx[:, start:end], state)
                pieces.append(hidden)
            torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=tolerance, atol=tolerance)


@settings(max_examples=20, deadline=None)
@given(cuts=st.sets(st.integers(1, BLOCK - 1), max_size=5), kind=st.sampled_from(sorted(TINY)))
def test_random_splits_with_carried_state_agree(cuts, kind):
    torch.manual_seed(0)
    model = build_model(TINY[kind]).eval()
    idx = tokens(1, BLOCK, seed=1)
    bounds = [0, *sorted(cuts), BLOCK]
    state, pieces = model.init_state(1), []
    with torch.no_grad():
        for start, end in pairwise(bounds):
            hidden, state = model.hidden(idx[:, start:end], state)
            pieces.append(hidden)
        torch.testing.assert_close(torch.cat(pieces, dim=1), model.hidden(idx)[0], rtol=1e-5, atol=1e-5)


def test_two_continuations_of_one_state_do_not_disturb_each_other(tiny_model):
    prefix, left, right = tokens(1, 6, 0), tokens(1, 5, 1), tokens(1, 5, 2)
    with torch.no_grad():
        _, state = tiny_model.hidden(prefix)
        _, after_left = tiny_model.hidden(left, state)
        tiny_model.hidden(right, state)
        continued, _ = tiny_model.hidden(tokens(1, 3, 3), after_left)
        whole, _ = tiny_model.hidden(torch.cat([prefix, left, tokens(1, 3, 3)], dim=1))
    torch.testing.assert_close(continued, whole[:, -3:], rtol=1e-5, atol=1e-5)


def test_gradients_flow_through_a_carried_state(tiny_model):
    tiny_model.double()
    idx = tokens(2, 8)
    whole = torch.autograd.grad(tiny_model.hidden(idx)[0][:, -2:].sum(), tiny_model.parameters(), allow_unused=True)
    _, state = tiny_model.hidden(idx[:, :5])
    pieces = torch.autograd.grad(
        tiny_model.hidden(idx[:, 5:], state)[0][:, -2:].sum(), tiny_model.parameters(), allow_unused=True
    )
    for a, b in zip(whole, pieces, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_length_past_block_size_follows_the_documented_behaviour(tiny_model, tiny_config):
    idx = tokens(1, BLOCK + 5)
    if getattr(tiny_config, "position", None) == "absolute":
        with pytest.raises(ValueError, match=rf"{BLOCK + 5} tokens exceed the {BLOCK} learned positions"):
            tiny_model.hidden(idx)
        return
    with torch.no_grad():
        whole, _ = tiny_model.hidden(idx)
        state, steps = None, []
        for t in range(idx.size(1)):
            hidden, state = tiny_model.hidden(idx[:, t : t + 1], state)
            steps.append(hidden)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in PRESETS if not n.endswith("base")])
def test_initial_loss_is_within_five_hundredths_of_ln_v(name):
    torch.manual_seed(0)
    model = build_model(name, **({"vocab_size": 4_096} if name.endswith("course") else {}))  # some would need 1 GB
    idx = torch.randint(model.config.vocab_size, (4, 129) if name.endswith("course") else (8, 129))
    with torch.no_grad():
        loss = next_token_loss(model, idx[:, :-1], idx[:, 1:]).item()
    assert loss == pytest.approx(math.log(model.config.vocab_size), abs=0.05)


def test_appended_padding_changes_neither_loss_nor_gradients(tiny_model):
    idx, targets = tokens(3, 10), tokens(3, 10, seed=1)
    padding = torch.zeros(3, 4, dtype=torch.long)
    loss = next_token_loss(tiny_model, idx, targets)
    padded = next_token_loss(tiny_model, torch.cat([idx, padding], 1), torch.cat([targets, padding - 100], 1))
    torch.testing.assert_close(loss, padded)
    parameters = list(tiny_model.parameters())
    for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(padded, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_one_batch_is_overfitted_below_five_hundredths_of_a_nat(tiny_config):
    torch.manual_seed(0)
    model = build_model(tiny_config)
    idx = tokens(2, 13)
    if isinstance(tiny_config, KGramConfig):  # contexts of k tokens must determine the next token
        idx = torch.stack(
            [torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))[:26][i::2] for i in (0, 1)]
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(350):
        loss = next_token_loss(model, idx[:, :-1], idx[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_time_first_adapter_gives_the_same_logits(tiny_model):
    idx = tokens(2, 6)
    torch.testing.assert_close(seq_first(tiny_model)(idx.T), tiny_model(idx).transpose(0, 1))


def test_construction_and_hidden_states_depend_on_the_seed_alone(tiny_config):
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build_model(tiny_config).eval())
    assert torch.equal(models[0](tokens(2, 9)), models[1](tokens(2, 9)))


@pytest.mark.parametrize(("bad", "shown"), [(-1, "-1"), (VOCAB, str(VOCAB))])
def test_token_ids_outside_the_vocabulary_are_named(tiny_model, bad, shown):
    idx = tokens(1, 4)
    idx[0, 2] = bad
    with pytest.raises(ValueError, match=rf"token id {shown} is outside the vocabulary of {VOCAB}"):
        tiny_model(idx)


@pytest.mark.parametrize("shape", [(5,), (1, 0), (0, 3)], ids=str)
def test_ids_that_are_not_batch_by_time_are_refused(tiny_model, shape):
    with pytest.raises(ValueError, match=r"expected \(batch, time\), both at least 1"):
        tiny_model(torch.zeros(shape, dtype=torch.long))


def test_autocast_changes_hidden_states_little(tiny_model):
    idx = tokens(2, 9)
    with torch.no_grad():
        exact = tiny_model(idx)
        with torch.autocast("cpu", torch.bfloat16):
            lowered = tiny_model(idx)
    assert F.mse_loss(lowered.float(), exact) < 1e-2 * exact.var()
