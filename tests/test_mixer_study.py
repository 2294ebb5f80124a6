"""Mixers compared at equal size; maps, half-lives and states are what the layers really hold."""

import json
import math

import pytest
import torch

from picollm_core.config import LINEAR_MIXERS, TrainConfig
from picollm_core.interpret.attention_maps import attention_patterns
from picollm_core.lab import Lab
from picollm_core.mixer_study import (
    GATES,
    LEAST_DECAY,
    LEAST_LIFE,
    decoding_costs,
    half_lives,
    head_memory,
    log_decays,
    memory_study,
    mixer_arms,
    parity_arms,
    recall_arms,
    recorded_memory,
    shares,
    state_bytes,
)
from picollm_core.models import build_model
from picollm_core.profiles import PROFILES
from picollm_core.sequence_tasks import ParityTask, RecallTask
from picollm_core.task_study import fit_config
from picollm_core.trainer import seeded
from tests.conftest import TINY, VOCAB
from tests.test_evaluate import BYTES, STORIES, tiny

GATED = ["transformer-gla", "transformer-gla-scalar", "transformer-retention"]


def model_of(name):
    torch.manual_seed(0)
    return build_model(TINY[name]).eval()


def ids(batch=2, time=9):
    return torch.randint(VOCAB, (batch, time), generator=torch.Generator().manual_seed(0))


def test_all_mixers_have_the_same_number_of_parameters():
    models = {name: build_model(config) for name, config in mixer_arms().items()}
    softmax = models["softmax"]
    blocks = sum(p.numel() for p in softmax.blocks.parameters())
    for name, model in models.items():
        assert model.num_parameters() == pytest.approx(softmax.num_parameters(), rel=0.02), name
        assert sum(p.numel() for p in model.blocks.parameters()) == pytest.approx(blocks, rel=0.01), name


def test_arms_differ_in_their_mixers_gates_positions_and_the_width_that_pays_for_them_alone():
    arms = mixer_arms()
    changed = {"mixers": ("softmax",), "gate": "vector", "position": "none", "mlp_width": None}
    assert len({config.replace(**changed).fingerprint() for config in arms.values()}) == 1
    for name, config in arms.items():
        assert config.position == ("rope" if "softmax" in config.mixers else "none"), name
    gated = [arms[name] for name in GATES.values()]
    assert [config.gate for config in gated] == ["none", "fixed", "scalar", "vector"]
    assert {config.mixers for config in gated} == {("gla",)}


def test_fixed_memories_are_equally_large_and_so_are_all_heads():
    for config in (*mixer_arms().values(), *recall_arms().values(), *parity_arms().values()):
        model = build_model(config.replace(vocab_size=61))
        for block in model.blocks:
            memory = getattr(block.attention.empty_state(1), "memory", None)
            assert memory is None or memory.shape[1:3] == (4, 16)
            assert memory is None or memory.size(3) == 16 + (block.attention.__class__.__name__ == "LinearAttention")


@pytest.mark.parametrize(
    ("arms", "task"), [(recall_arms(), RecallTask(max_length=2, n_keys=12)), (parity_arms(), ParityTask(max_length=2))]
)
def test_the_arms_of_the_tasks_take_rows_longer_than_those_they_are_trained_on(arms, task):
    for name, config in arms.items():
        model = build_model(fit_config(config, task, 12)).eval()
        width = task.width(12)
        assert model.hidden(torch.zeros(1, width, dtype=torch.long))[0].shape == (1, width, 64), name


def test_arms_of_recall_have_one_mixer_each_beside_a_layer_that_sees_two_tokens():
    arms = recall_arms().values()
    assert len({config.replace(mixers=("softmax",)).fingerprint() for config in arms}) == 1
    assert all(config.window == 2 and sorted(config.mixers)[-1] == "window" for config in arms)
    assert len({frozenset(config.mixers) for config in arms}) == len(arms)


def test_one_arm_of_parity_may_change_the_sign_of_its_memory():
    strong = [name for name, config in parity_arms().items() if config.negative_eigenvalues]
    assert strong == ["DeltaNet, β < 2"]


def test_shares_keep_signs_and_add_up_to_one_in_size():
    found = shares(torch.tensor([[2.0, 0.0], [-1.0, 3.0], [0.0, 0.0]]))
    assert found.tolist() == [[1.0, 0.0], [-0.25, 0.75], [0.0, 0.0]]


def test_memory_of_a_head_is_its_mean_distance_its_own_share_and_what_it_subtracts():
    length = 6
    own = torch.eye(length)
    previous = torch.zeros(length, length)
    previous[torch.arange(length), (torch.arange(length) - 1).clamp(min=0)] = -3.0
    even = torch.ones(length, length).tril()
    table = head_memory(torch.stack([own, previous, even])[None, None])
    assert table[["layer", "head"]].to_numpy().tolist() == [[1, 1], [1, 2], [1, 3]]
    assert table.reach.tolist() == pytest.approx([0, 1, (1.5 + 2 + 2.5) / 3])  # of queries 3, 4 and 5
    assert table.own.tolist() == pytest.approx([1, 0, (1 / 4 + 1 / 5 + 1 / 6) / 3])
    assert table.negative.tolist() == pytest.approx([0, 1, 0])
    assert table.even.tolist() == pytest.approx([2, 2, 2])


def test_a_text_of_one_token_has_no_past_to_remember():
    with pytest.raises(ValueError, match="1 token"):
        head_memory(torch.ones(1, 1, 1, 1, 1))


@pytest.mark.parametrize("name", ["transformer", "transformer-linear", "transformer-plain"])
def test_mixers_without_decay_have_none(name):
    assert log_decays(model_of(name), ids()) == [None, None]
    assert half_lives(model_of(name), ids()).empty


@pytest.mark.parametrize("name", [*GATED, "transformer-delta"])
def test_a_decay_belongs_to_a_token_and_a_head_and_nothing_grows(name):
    for decay in log_decays(model_of(name), ids()):
        assert decay.shape[:3] == (2, 2, 9)
        assert (decay <= 0).all()


@pytest.mark.parametrize("name", GATED)
def test_decays_are_those_with_which_the_layer_forgets(name):
    model, idx = model_of(name), ids()
    decays, patterns = log_decays(model, idx), attention_patterns(model, idx)
    for block, decay, pattern in zip(model.blocks, decays, patterns, strict=True):
        calls, layer = [], block.attention
        handle = layer.register_forward_pre_hook(lambda module, inputs, calls=calls: calls.append(inputs[0]))
        model.hidden(idx)
        handle.remove()
        q, k, *_ = layer.inputs(calls[0], None, None)[0]
        far = (q[:, :, 8] * k[:, :, 2] * decay[:, :, 3:9].sum(2).exp()).sum(-1) * q.size(-1) ** -0.5
        torch.testing.assert_close(pattern[:, :, 8, 2], far)


def test_retention_has_the_half_lives_of_its_constants():
    table = half_lives(model_of("transformer-retention"), ids())
    lives = [math.log(2) / -math.log(1 - 2.0**-5), math.log(2) / -math.log(1 - 2.0**-6)]
    assert table[["layer", "head"]].to_numpy().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    for column in ("low", "median", "high"):
        assert table[column].tolist() == pytest.approx(lives * 2, rel=1e-4)


def test_a_gated_layer_starts_with_half_lives_of_sixteen_tokens():
    table = half_lives(model_of("transformer-gla"), ids())
    assert table["median"].tolist() == pytest.approx([16] * 4, rel=0.05)
    assert (table.low <= table["median"]).all()
    assert (table["median"] <= table.high).all()


def test_the_half_life_of_the_delta_rule_follows_its_rate_and_step():
    model = model_of("transformer-delta")
    mixer = model.blocks[1].attention
    with torch.no_grad():
        mixer.step.weight.zero_()
        mixer.A_log.copy_(torch.tensor([0.0, -60.0]))
        mixer.dt_bias.fill_(math.log(math.e - 1))  # softplus of it is 1
    table = half_lives(model, ids())
    assert table["median"].tolist()[2] == pytest.approx(math.log(2))
    assert table["median"].tolist()[3] == pytest.approx(math.log(2) / LEAST_DECAY), "what never decays has an end too"


def test_looking_leaves_the_model_as_it_was():
    model = model_of("transformer-gla").train()
    half_lives(model, ids())
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ValueError, match="token id"):
        log_decays(model, ids() + VOCAB)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["softmax", "gla", "delta"])
def test_the_study_of_a_memory_can_be_kept_as_json(kind):
    with seeded(3):
        model = tiny("transformer", position="none", mixers=(kind,))
    found = json.loads(json.dumps(memory_study(model, BYTES, "cat", STORIES, length=12, most=2, seed=3)))
    assert found["tokens"] == ["<start>", "c", "a", "t"]
    assert found["stories"] == 2
    size = model.config.n_layer * model.config.n_head
    assert len(found["heads"]) == size
    assert len(found["lives"]) == (size if kind in LINEAR_MIXERS else 0)
    for row in (row for layer in found["maps"] for head in layer for row in head):
        assert sum(map(abs, row)) == pytest.approx(1, abs=0.01)


def test_the_start_of_half_lives_is_that_of_the_seed_that_the_model_was_trained_with():
    config = tiny("transformer", position="none", mixers=("delta",)).config
    with seeded(3):
        model = build_model(config)
    lives = memory_study(model, BYTES, "cat", STORIES, length=12, most=3, seed=3)["lives"]
    assert [row["start"] for row in lives] == [row["median"] for row in lives], "this model was never trained"
    other = memory_study(model, BYTES, "cat", STORIES, length=12, most=3, seed=4)["lives"]
    assert [row["start"] for row in other] != [row["start"] for row in lives]


def test_the_memory_of_a_run_is_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lab = Lab(PROFILES["quick"])
    settings = {"max_steps": 1, "batch_size": 2, "block_size": 16, "eval_stories": 2, "eval_every": 1}
    run = lab.train(mixer_arms()["GLA"].replace(n_embd=16, n_head=2, mlp_width=16), **settings)
    assert isinstance(run.config.train, TrainConfig)
    found = recorded_memory(lab, run, "Tom had a ball.", length=16, most=2)
    before = lab.redrawn
    assert recorded_memory(lab, run, "Tom had a ball.", length=16, most=2) == found
    assert lab.redrawn == before + 1
    assert len(found["lives"]) == 4


def test_softmax_keeps_keys_and_values_of_all_tokens():
    model = build_model(mixer_arms()["softmax"].replace(vocab_size=61))
    assert [state_bytes(model, length) for length in (1, 50)] == [2 * 2 * 64 * 4 * length for length in (1, 50)]


def test_a_linear_memory_is_as_large_after_a_thousand_tokens_as_after_one():
    arms = mixer_arms()
    sizes = {}
    for name in ("linear", "GLA", "DeltaNet", "GLA + softmax"):
        model = build_model(arms[name].replace(vocab_size=61))
        sizes[name] = [state_bytes(model, length) for length in (1, 1_000)]
    assert sizes["linear"] == [2 * 4 * 16 * 17 * 4] * 2
    assert sizes["GLA"] == [2 * 4 * 16 * 16 * 4] * 2
    assert sizes["DeltaNet"] == [2 * (4 * 16 * 16 + 3 * 3 * 64) * 4] * 2, "with the tail of its convolution"
    assert sizes["GLA + softmax"] == [4 * 16 * 16 * 4 + 2 * 64 * 4 * length for length in (1, 1_000)]


def test_a_state_of_no_token_is_refused():
    with pytest.raises(ValueError, match="length is 0"):
        state_bytes(model_of("transformer-gla"), 0)


def test_decoding_costs_name_every_arm_and_length_with_time_and_size():
    arms = {name: mixer_arms()[name] for name in ("softmax", "GLA")}
    table = decoding_costs(arms, [8, 200], repetitions=3)
    assert [(row["mixer"], row["length"]) for row in table] == [(m, n) for m in arms for n in (8, 200)]
    assert all(0 < row["low"] <= row["milliseconds"] <= row["high"] for row in table)
    assert [row["bytes"] for row in table] == [2 * 2 * 64 * 4 * 8, 2 * 2 * 64 * 4 * 200, *[2 * 4 * 16 * 16 * 4] * 2]
    assert set(table[0]) == {"mixer", "length", "milliseconds", "low", "high", "bytes"}


def test_decoding_nothing_is_refused():
    with pytest.raises(ValueError, match="0 arms"):
        decoding_costs({}, [8])
    with pytest.raises(ValueError, match="lengths is empty"):
        decoding_costs({"GLA": mixer_arms()["GLA"]}, [])


def test_a_memory_that_is_gone_after_one_token_has_the_shortest_half_life_there_is():
    torch.manual_seed(0)
    model = build_model(TINY["transformer-delta"])
    with torch.no_grad():
        for block in model.blocks:
            block.attention.dt_bias.fill_(1e6)
    lives = half_lives(model, torch.randint(VOCAB, (2, 9)))
    assert ((lives[["low", "median", "high"]] - LEAST_LIFE).abs() < 1e-6).all(axis=None)
    assert lives["low"].round(2).min() > 0
