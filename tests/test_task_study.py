"""Training and testing on sequence tasks: scores equal real writing, studies are paired, tuned apart and recorded."""

import pytest
import torch

from picollm_core.batches import IGNORED
from picollm_core.config import LSTMConfig, ModelConfig, TransformerConfig
from picollm_core.lab import Lab
from picollm_core.models import build_model
from picollm_core.profiles import get_profile
from picollm_core.sequence_tasks import (
    END,
    SEPARATOR,
    CopyTask,
    ParityTask,
    RecallTask,
    TaskBatches,
    held_out_rows,
)
from picollm_core.task_study import (
    TUNING_SEED,
    accuracy_by_place,
    fit_config,
    score_task,
    task_study,
    train_task,
    tune_task,
)
from picollm_core.trainer import TrainingDiverged

ROPE = TransformerConfig(n_layer=2, n_embd=32, n_head=2, position="rope")
COPY = CopyTask(max_length=3, n_symbols=3)
SCORES = ["exact", "token_accuracy", "last", "nll"]


@pytest.fixture(scope="module")
def half_trained():
    """A copying model that is right on some rows and wrong on others."""
    return train_task(ROPE, COPY, steps=70, batch_size=16, learning_rate=0.01, longest=6)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Lab(get_profile("quick"))


def written(model, prompt, count):
    """`count` tokens after `prompt` (N, T), each the likeliest, fed back one by one through the streaming state."""
    out, state = [], None
    token = prompt
    for _ in range(count):
        hidden, state = model.hidden(token, state)
        token = model.head(hidden[:, -1:]).argmax(-1)  # (N, 1)
        out.append(token)
    return torch.cat(out, dim=1)


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_exact_match_in_one_pass_equals_that_of_greedy_writing(half_trained, length):
    idx, targets = held_out_rows(COPY, length, 300)
    prompt = idx[:, : int((idx[0] == SEPARATOR).nonzero()) + 1]
    answer = targets[targets != IGNORED].view(300, -1)
    with torch.no_grad():
        right = (written(half_trained, prompt, answer.size(1)) == answer).all(dim=1)
    score = score_task(half_trained, COPY, [length], n=300)
    assert score["exact"].item() == right.double().mean().item()
    assert (answer[:, -1] == END).all()


def test_the_half_trained_model_leaves_something_to_tell_apart(half_trained):
    exact = score_task(half_trained, COPY, [2, 3], n=300)["exact"]
    assert ((exact > 0.02) & (exact < 0.98)).any()


def test_scores_follow_from_the_accuracy_at_each_place(half_trained):
    score = score_task(half_trained, COPY, [3], n=100, seed=5).iloc[0]
    places = accuracy_by_place(half_trained, COPY, 3, n=100, seed=5)
    assert places.shape == (4,)  # three symbols and END
    assert score["token_accuracy"] == pytest.approx(places.mean())
    assert score["last"] == pytest.approx(places[-1])
    assert score["exact"] <= places.min()


def test_loss_of_a_length_is_the_cross_entropy_of_its_scored_tokens(half_trained):
    idx, targets = held_out_rows(COPY, 2, 50)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(half_trained(idx).flatten(0, 1), targets.flatten())
    assert score_task(half_trained, COPY, [2], n=50)["nll"].item() == pytest.approx(loss.item(), rel=1e-5)


def test_scores_do_not_depend_on_how_many_rows_go_through_at_once(half_trained, monkeypatch):
    whole = score_task(half_trained, COPY, [3], n=30)
    monkeypatch.setattr("picollm_core.task_study._TOKENS_AT_ONCE", 20)
    assert score_task(half_trained, COPY, [3], n=30)[SCORES].iloc[0].tolist() == pytest.approx(
        whole[SCORES].iloc[0].tolist(), rel=1e-5
    )


@pytest.mark.parametrize("task", [RecallTask(max_length=3, n_keys=4, n_values=4), ParityTask(max_length=4)])
def test_an_untrained_model_guesses(task):
    torch.manual_seed(0)
    model = build_model(fit_config(ROPE, task)).train()
    score = score_task(model, task, [3], n=400).iloc[0]
    assert score["token_accuracy"] < 0.65
    assert model.training


def test_training_is_fixed_by_its_seed_and_leaves_torch_s_generator_alone():
    before = torch.random.get_rng_state()
    one, two, other = (train_task(ROPE, COPY, steps=2, batch_size=4, learning_rate=0.01, seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not one.training
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_settings_reach_the_training_loop():
    plain, adam = (
        train_task(ROPE, COPY, steps=2, batch_size=4, learning_rate=0.01, **settings)
        for settings in ({}, {"optimizer": "adamw"})
    )
    matrices = [model.state_dict()["blocks.0.mlp.fc.weight"] for model in (plain, adam)]
    assert not torch.equal(*matrices)


def test_a_few_steps_teach_parity_of_one_bit():
    task = ParityTask(max_length=1)
    model = train_task(LSTMConfig(n_embd=16), task, steps=60, batch_size=16, learning_rate=0.03)
    assert score_task(model, task, [1])["exact"].item() == 1.0


def test_learned_positions_reach_to_the_longest_test_and_not_beyond():
    config = ROPE.replace(position="absolute")
    task = CopyTask(max_length=2)
    fitted = fit_config(config, task, longest=5)
    assert (fitted.vocab_size, fitted.block_size) == (task.vocab_size, task.width(5))
    assert fit_config(config, task, longest=1).block_size == task.width(2)
    model = train_task(config, task, steps=1, batch_size=2, learning_rate=1e-3, longest=5)
    assert score_task(model, task, [5], n=3)["length"].tolist() == [5]
    with pytest.raises(ValueError, match="14 tokens exceed the 12 learned positions"):
        score_task(model, task, [6], n=3)


def test_positions_beyond_the_training_lengths_keep_their_initial_direction():
    config, task = ROPE.replace(position="absolute"), CopyTask(max_length=2)
    settings = {"batch_size": 4, "learning_rate": 0.01, "weight_decay": 0.0, "longest": 5}
    few, many = (train_task(config, task, steps=steps, **settings).positions.weight for steps in (1, 6))
    assert torch.equal(few[task.width(2) :], many[task.width(2) :])
    assert not torch.equal(few[: task.width(2)], many[: task.width(2)])


ARMS = {"rope": ROPE, "none": ROPE.replace(position="none")}
STUDY = {"lengths": [2, 4], "seeds": [0, 1], "n_test": 20, "steps": 3, "batch_size": 4}


def test_a_study_has_one_row_for_each_arm_seed_and_length(lab):
    table = task_study(lab, "copying", ARMS, COPY, rates=[0.01], **STUDY)
    assert list(table.columns[:4]) == ["arm", "learning_rate", "seed", "length"]
    assert table[["arm", "seed", "length"]].to_records(index=False).tolist() == [
        (arm, seed, length) for arm in ARMS for seed in (0, 1) for length in (2, 4)
    ]
    assert table[SCORES].notna().all(axis=None)
    assert (table["parameters"] > 0).all()
    alone = train_task(ROPE, COPY, steps=3, batch_size=4, learning_rate=0.01, seed=1, longest=4)
    again = score_task(alone, COPY, [2, 4], n=20)
    assert table.query("arm == 'rope' and seed == 1")["nll"].tolist() == pytest.approx(again["nll"].tolist(), abs=1e-5)


def test_a_second_study_only_reads_the_records(lab, monkeypatch):
    first = task_study(lab, "copying", ARMS, COPY, rates=[0.01, 1e-5], **STUDY)
    monkeypatch.setattr("picollm_core.task_study.train_task", lambda *_, **__: pytest.fail("trained again"))
    assert task_study(lab, "copying", ARMS, COPY, rates=[0.01, 1e-5], **STUDY).equals(first)
    tune_task(lab, "copying", ARMS, COPY, rates=[0.01, 1e-5], longest=4, n_test=20, steps=3, batch_size=4)


def test_each_arm_gets_the_rate_that_was_best_at_training_lengths(lab):
    rates = [1e-6, 0.01]
    tried = tune_task(lab, "copying", ARMS, COPY, rates=rates, longest=4, n_test=50, steps=40, batch_size=8)
    assert tried.groupby("arm")["chosen"].sum().tolist() == [1, 1]
    assert tried[tried["chosen"]]["learning_rate"].tolist() == [0.01, 0.01]
    study = task_study(
        lab, "copying", ARMS, COPY, rates=rates, **{**STUDY, "seeds": [0], "n_test": 50, "steps": 40, "batch_size": 8}
    )
    assert set(study["learning_rate"]) == {0.01}


def test_every_arm_of_a_study_reads_the_same_rows(lab, monkeypatch):
    read = []

    class Noted(TaskBatches):
        def next_batch(self):
            batch = super().next_batch()
            read.append((self.seed, batch[0].tolist()))
            return batch

    monkeypatch.setattr("picollm_core.task_study.TaskBatches", Noted)
    task_study(lab, "copying", ARMS, COPY, rates=[0.01], **STUDY)
    assert len(read) == 12
    assert read[:6] == read[6:]


def diverging(model_config: ModelConfig, *_, learning_rate, **__):
    """Stands in for training: diverges above a rate of 0.1, and else gives the untrained model."""
    if learning_rate > 0.1:
        raise TrainingDiverged("the loss became nan")
    torch.manual_seed(0)
    return build_model(fit_config(model_config, COPY, 4)).eval()


def test_a_rate_that_diverges_is_never_chosen(lab, monkeypatch):
    monkeypatch.setattr("picollm_core.task_study.train_task", diverging)
    table = task_study(lab, "copying", ARMS, COPY, rates=[1.0, 0.01], **STUDY)
    assert set(table["learning_rate"]) == {0.01}
    with pytest.raises(ValueError, match=r"arm 'rope' diverged with every learning rate of \(1.0, 0.5\)"):
        task_study(lab, "copying", ARMS, COPY, rates=[1.0, 0.5], **STUDY)
    with pytest.raises(ValueError, match="arm 'rope' diverged at learning rate 1 with seed 0"):
        task_study(lab, "copying", ARMS, COPY, rates=[1.0], **STUDY)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": {}}, "0 arms"),
        ({"lengths": []}, "0 lengths"),
        ({"rates": []}, r"learning rates are \(\)"),
        ({"rates": [0.1, 0.1]}, "none of them twice"),
        ({"seeds": [0, TUNING_SEED]}, f"seed {TUNING_SEED}"),
        ({"n_test": 0}, "n is 0"),
        ({"steps": 0}, "max_steps is 0"),
    ],
)
def test_impossible_studies_are_refused(lab, changes, said):
    settings = {"arms": {"rope": ROPE}, "task": COPY, "rates": [0.01]} | STUDY | changes
    with pytest.raises(ValueError, match=said):
        task_study(lab, "copying", **settings)
