"""Subjects are known by what determines their weights and text, before either is loaded."""

import dataclasses
import shutil

import pytest
import torch

from picollm_core.config import DataConfig, TrainConfig, TransformerConfig
from picollm_core.interpret.concepts import RULE_CONCEPTS, storyworld_names
from picollm_core.interpret.subjects import WINDOW, run_subject, saved_subject, untrained
from picollm_core.lab import Lab
from picollm_core.loading import save_model
from picollm_core.models import build_model
from picollm_core.profiles import PROFILES
from picollm_core.runs import RUNS_DIR
from picollm_core.tokenizers import load_tokenizer

WORLD = DataConfig(corpus=("storyworld",), n_stories=100, splits=(60, 40, 0))


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    train = TrainConfig(max_steps=2, batch_size=2, eval_every=2, eval_stories=2)
    return Lab(dataclasses.replace(PROFILES["quick"], data=WORLD, train=train, block_size=16))


def saved(folder, seed=0):
    torch.manual_seed(seed)
    save_model(build_model(TransformerConfig(vocab_size=4096, n_embd=16, n_layer=1, n_head=2)), "stories-4k", folder)
    return folder


def test_a_run_is_known_by_its_fingerprint_also_where_its_weights_are_gone(lab):
    run = lab.train("lstm-pico", n_embd=8)
    subject = run_subject(run)
    assert (subject.name, subject.key, subject.data) == ("lstm", run.fingerprint, WORLD)
    model, tokenizer = subject.load()
    assert model.config == run.config.model
    assert tokenizer.n_vocab == model.config.vocab_size
    shutil.rmtree(RUNS_DIR / run.directory.name)
    again = run_subject(lab.train("lstm-pico", n_embd=8), "LSTM")
    assert again.name == "LSTM"
    assert again.identity == subject.identity


def test_a_saved_model_is_known_by_its_weights_and_nothing_else(tmp_path):
    first, copy, other = saved(tmp_path / "a"), saved(tmp_path / "b"), saved(tmp_path / "c", seed=1)
    keys = [saved_subject(folder, WORLD).key for folder in (first, copy, other)]
    assert keys[0] == keys[1] != keys[2]
    assert saved_subject(first, WORLD).name == "a"
    assert saved_subject(first, WORLD, "mine").name == "mine"
    assert not saved_subject(first, WORLD).load()[0].training


def test_the_text_is_part_of_the_identity(tmp_path):
    folder = saved(tmp_path / "a")
    here, there = (saved_subject(folder, data) for data in (WORLD, WORLD.replace(n_stories=101)))
    assert here.identity["weights"] == there.identity["weights"]
    assert here.identity != there.identity


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no model: it has no model\.safetensors"):
        saved_subject(tmp_path, WORLD)


def test_untrained_subjects_have_other_weights_and_another_key_than_trained_ones(tmp_path):
    subject = saved_subject(saved(tmp_path / "a", seed=5), WORLD)
    fresh, again, other = untrained(subject), untrained(subject), untrained(subject, seed=1)
    assert fresh.name == "a, untrained"
    assert fresh.data == subject.data
    assert len({subject.key, fresh.key, other.key}) == 3
    assert fresh.identity == again.identity
    models = [each.load()[0] for each in (subject, fresh, again, other)]
    assert all(model.config == models[0].config and not model.training for model in models)
    weights = [model.head.weight for model in models]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[3])


def test_an_untrained_control_takes_no_random_numbers_of_its_own_from_the_common_generator(tmp_path):
    subject, following = saved_subject(saved(tmp_path / "a"), WORLD), []
    for each in (subject, untrained(subject, seed=3)):
        torch.manual_seed(7)
        each.load()
        following.append(torch.rand(3))
    assert torch.equal(*following)


def test_storyworld_gives_its_ground_truth_and_other_texts_what_rules_find(tmp_path):
    folder, tokenizer = saved(tmp_path / "a"), load_tokenizer("stories-4k")
    truth = saved_subject(folder, WORLD).stories(tokenizer, 3, 48)
    assert truth.names == storyworld_names()
    assert truth.idx.shape == (3, 48)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f'"No!" said Lily to cat {n}. She was sad.' for n in range(200)))
    files = DataConfig(corpus=(str(text),), splits=(60, 40, 0))
    rules = saved_subject(folder, files).stories(tokenizer, 3, 48)
    assert rules.names == RULE_CONCEPTS
    assert rules.labels[..., rules.column("quote:inside")].any()
    both = DataConfig(corpus=("storyworld", str(text)), weights=(1.0, 1.0), n_stories=100, splits=(60, 40, 0))
    assert saved_subject(folder, both).stories(tokenizer, 3, 48).names == RULE_CONCEPTS


def test_held_out_stories_are_the_first_ones_and_training_windows_follow_the_seed(tmp_path):
    subject, tokenizer = saved_subject(saved(tmp_path / "a"), WORLD), load_tokenizer("stories-4k")
    few, more = (subject.stories(tokenizer, count, 48) for count in (2, 4))
    assert torch.equal(few.idx, more.idx[:2])
    model = subject.load()[0]
    windows = [subject.windows(model, tokenizer, seed).next_batch()[0] for seed in (0, 0, 1)]
    assert windows[0].size(1) == WINDOW
    assert torch.equal(windows[0], windows[1])
    assert not torch.equal(windows[0], windows[2])
    training = {tuple(row.tolist()) for row in windows[0].unfold(1, 12, 1).flatten(0, 1)}
    held_out = {tuple(row[1:13].tolist()) for row in more.idx}
    assert not training & held_out


def test_a_model_with_few_learned_positions_reads_windows_that_fit(tmp_path):
    torch.manual_seed(0)
    short = TransformerConfig(vocab_size=4096, n_embd=16, n_layer=1, n_head=2, block_size=32)
    save_model(build_model(short), "stories-4k", tmp_path)
    subject = saved_subject(tmp_path, WORLD)
    model, tokenizer = subject.load()
    idx = subject.windows(model, tokenizer, 0).next_batch()[0]
    assert idx.size(1) == 32
    assert model(idx).shape == (*idx.shape, 4096)
