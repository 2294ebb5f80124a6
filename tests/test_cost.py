"""Operations counted exactly, and the full set-up's table: sums, hours, where its numbers come from."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training_steps import matmul_flops
from picollm_core import cost
from picollm_core.config import KGramConfig, LSTMConfig, TransformerConfig
from picollm_core.models import build_model
from picollm_core.models.attention import causal_mask
from tests.conftest import BLOCK, TINY, VOCAB

SOFTMAX = ["transformer", "transformer-rope-gqa", "transformer-nope-post", "transformer-qk-norm"]


def counted(config, length=BLOCK):
    """Operations a token that torch itself counts in forward and backward pass."""
    torch.manual_seed(0)
    model = build_model(config)
    idx = torch.randint(config.vocab_size, (3, length))
    with FlopCounterMode(display=False) as counter:
        model(idx).sum().backward()
    return counter.get_total_flops() / idx.numel()


@pytest.mark.parametrize("kind", ["kgram-learned", "kgram-scaled", "kgram-onehot", "kgram-conv"])
def test_operations_of_a_kgram_are_those_that_torch_counts(kind):
    assert cost.training_flops(TINY[kind]) == counted(TINY[kind])


@pytest.mark.parametrize("kind", SOFTMAX)
def test_operations_of_a_transformer_are_those_of_the_benchmark(kind):
    expected = matmul_flops(build_model(TINY[kind]), batch_size=2, block_size=BLOCK) / (2 * BLOCK)
    assert cost.training_flops(TINY[kind]) == pytest.approx(expected)


@pytest.mark.parametrize("tied", [False, True])
def test_operations_of_an_lstm_are_its_gates_and_the_head(tied):
    config = LSTMConfig(vocab_size=VOCAB, n_embd=16, n_layer=2, tied=tied)
    assert cost.training_flops(config) == 6 * (2 * 8 * 16 * 16 + VOCAB * 16)


def test_a_window_counts_the_pairs_that_its_mask_lets_through():
    for length, window in ((10, None), (10, 4), (3, 4), (7, 1)):
        assert cost._pairs(length, window) == causal_mask(length, length, torch.device("cpu"), window).sum().item()
    narrow, wide = (TINY["transformer-window"].replace(window=size) for size in (4, BLOCK))
    difference = 6 * 2 * 2 * 6 * (cost._pairs(BLOCK, None) - cost._pairs(BLOCK, 4)) / BLOCK  # heads of width 6
    assert cost.training_flops(wide) - cost.training_flops(narrow) == pytest.approx(2 * difference)  # two layers


def test_only_the_active_experts_count():
    config = TINY["transformer-gpt-oss"]
    more = config.replace(n_expert=8)
    router = 6 * 2 * 16 * 4  # four more columns in each of two layers
    assert cost.training_flops(more) - cost.training_flops(config) == pytest.approx(router)


def test_a_linear_mixer_counts_what_its_recurrence_needs_at_every_length():
    for kind, products in (("transformer-plain", 2), ("transformer-delta", 3)):
        assert cost.training_flops(TINY[kind], 8) == cost.training_flops(TINY[kind], 10_000)
        weights = sum(m.weight.numel() for m in build_model(TINY[kind]).modules() if isinstance(m, torch.nn.Linear))
        mixers = [m for m in build_model(TINY[kind]).modules() if isinstance(m, cost.LinearMixer)]
        states = sum(m.n_head * m.key_width * m.value_width for m in mixers)
        assert cost.training_flops(TINY[kind]) == 6 * (weights + products * states)


@pytest.mark.parametrize("kind", TINY)
def test_parameters_are_counted_without_building_weights(kind):
    assert cost.parameter_count(TINY[kind]) == build_model(TINY[kind]).num_parameters()
    assert cost.training_flops(TINY[kind]) > 0


def test_a_length_below_one_is_refused():
    with pytest.raises(ValueError, match="block_size is 0"):
        cost.training_flops(KGramConfig(), 0)


def test_the_full_set_up_is_a_million_stories_five_times():
    assert cost.full_tokens(200.0) == pytest.approx(5 * 980_000 * 200)
    config = cost.full_config("lstm-tiny")
    assert (config.train.batch_size, config.train.epochs, config.model.n_embd) == (64, 5, 64)
    assert (config.data.tokenizer, config.model.vocab_size, config.model.block_size) == ("gpt2", 50_257, 256)
    with pytest.raises(ValueError, match="unknown preset 'lstm-huge'"):
        cost.full_config("lstm-huge")


def test_a_table_of_measured_steps_has_core_hours_and_their_sum():
    speeds = {"kgram-pico": 20_000.0, "lstm-pico": 10_000.0}
    table = cost.full_setup_table(speeds, models=list(speeds), cores=2)
    tokens = cost.full_tokens()
    assert table.loc["lstm-pico", "seconds"] == pytest.approx(tokens / 10_000)
    assert table.loc["lstm-pico", "hours"] == pytest.approx(2 * tokens / 10_000 / 3_600)
    assert table.loc["all", "hours"] == pytest.approx(table["hours"].iloc[:-1].sum())
    assert table.loc["kgram-pico", "flops"] == pytest.approx(tokens * table.loc["kgram-pico", "flops_per_token"])
    assert set(table["basis"]) == {"measured steps, 2 cores"}


def test_a_table_from_a_data_sheet_says_that_nothing_was_measured():
    table = cost.full_setup_table(device="A100", share=0.4, models=["transformer-base"])
    assert set(table["basis"]) == {"computed, not measured: 40% of the bfloat16 peak of one A100"}
    ideal = table.loc["transformer-base", "flops"] / (0.4 * 312e12)
    assert ideal < table.loc["transformer-base", "seconds"] < 1.2 * ideal


def test_narrow_models_are_held_up_by_the_logits_and_by_starting_updates():
    config = cost.full_config("lstm-pico").model
    quick, slow = (cost.Device("one", 1e18, bandwidth) for bandwidth in (1e13, 1e11))
    assert cost.computed_speed(config, quick) > 5 * cost.computed_speed(config, slow)
    assert cost.computed_speed(config, quick, tokens_per_update=100) < 100 / cost.UPDATE_SECONDS


def test_every_device_of_the_list_gives_a_table():
    for name, device in cost.DEVICES.items():
        row = cost.full_setup_table(device=name, models=["kgram-small"]).loc["kgram-small"]
        assert row["seconds"] > row["flops"] / device.flops


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either measured speeds or a device"),
        ({"measured": {}, "device": "A100"}, "either measured speeds or a device"),
        ({"device": "abacus"}, "device is 'abacus'; choose one of H200"),
        ({"measured": {"lstm-pico": 1.0}, "models": ["kgram-pico"]}, "no speed of 'kgram-pico' is given"),
        ({"device": "T4", "share": 1.5}, r"share is 1\.5"),
        ({"measured": {}, "cores": 0}, "cores is 0"),
    ],
)
def test_what_cannot_be_tabulated_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cost.full_setup_table(**options)


def test_speed_is_measured_in_a_process_of_its_own(monkeypatch):
    tiny = TransformerConfig(vocab_size=VOCAB, n_embd=16, n_head=2, block_size=BLOCK)
    monkeypatch.setitem(cost.preset.__globals__["PRESETS"], "tiny-here", tiny)
    assert cost.measured_speed("tiny-here", updates=1, batch_size=2) > 0
