"""What a model repeats: exact continuations against real greedy decoding, and copies counted by hand."""

import numpy as np
import pytest
import torch

from picollm_core.batches import LineBatches
from picollm_core.config import KGramConfig, LSTMConfig, ModelConfig, TrainConfig, TransformerConfig
from picollm_core.memorisation import copied_lengths, exact_lengths, long_enough, novelty
from picollm_core.models import LanguageModel, build_model
from picollm_core.overfit_runs import memory_store
from picollm_core.trainer import Trainer, seeded

VOCAB, END, WINDOW = 31, 30, 24
FAMILIES = (
    KGramConfig(vocab_size=VOCAB, block_size=WINDOW, n_embd=32, k=4),
    LSTMConfig(vocab_size=VOCAB, block_size=WINDOW, n_embd=32),
    TransformerConfig(vocab_size=VOCAB, block_size=WINDOW, n_embd=32, n_head=2),
)


def stories(count: int = 4, length: int = 20) -> list[list[int]]:
    return np.random.default_rng(0).integers(0, END, (count, length)).tolist()


def overfitted(config: ModelConfig, texts: list[list[int]]) -> LanguageModel:
    train = TrainConfig(max_steps=250, batch_size=len(texts), learning_rate=0.02, weight_decay=0.0, precision="float32")
    with seeded(0):
        trainer = Trainer(build_model(config), LineBatches(memory_store(texts, END), WINDOW, len(texts)), train)
        while trainer.step < 250:
            trainer.advance()
    return trainer.model.eval()


def greedily(model: LanguageModel, prompt: list[int], length: int) -> list[int]:
    """Token by token, on the whole text each time: what exact_lengths says without doing it."""
    ids = [END, *prompt]
    for _ in range(length):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[1 + len(prompt) :]


@pytest.mark.parametrize("config", FAMILIES, ids=lambda c: c.family)
def test_stories_that_were_overfitted_are_continued_exactly_and_others_are_not(config):
    texts = stories()
    model = overfitted(config, texts)
    untrained = build_model(config).eval()
    unseen = np.random.default_rng(1).integers(0, END, (4, 20)).tolist()
    assert exact_lengths(model, texts, END, prefix=4, length=16).tolist() == [16] * 4
    assert not (exact_lengths(untrained, texts, END, prefix=4, length=16) == 16).any()
    assert not (exact_lengths(model, unseen, END, prefix=4, length=16) == 16).any()


@pytest.mark.parametrize("config", FAMILIES, ids=lambda c: c.family)
def test_exact_length_is_where_greedy_decoding_leaves_the_story(config):
    model = overfitted(config, stories())
    told = [greedily(model, own[:5], 12) for own in stories()]
    changed = [own[:5] + line for own, line in zip(stories(), told, strict=True)]
    for place, own in enumerate(changed):
        own[5 + 3 * place] = (own[5 + 3 * place] + 1) % END  # leaves after 0, 3, 6, 9 tokens
    found = exact_lengths(model, changed, END, prefix=5, length=12, batch_size=3)
    assert found.tolist() == [0, 3, 6, 9]


def test_dropout_is_off_and_the_mode_comes_back():
    config = FAMILIES[0].replace(dropout=0.9)
    model = build_model(config).train()
    first, second = (exact_lengths(model, stories(), END, prefix=2, length=8) for _ in range(2))
    assert model.training
    assert first.tolist() == second.tolist()


def test_short_stories_are_refused_or_left_out():
    model = build_model(FAMILIES[1])
    with pytest.raises(ValueError, match="shortest story has 20 tokens"):
        exact_lengths(model, stories(), END, prefix=15, length=6)
    with pytest.raises(ValueError, match="0 stories"):
        exact_lengths(model, [], END, prefix=1, length=1)
    with pytest.raises(ValueError, match="at least 1"):
        exact_lengths(model, stories(), END, prefix=0, length=4)
    with pytest.raises(ValueError, match="window of 24"):
        exact_lengths(build_model(FAMILIES[2]), stories(length=40), END, prefix=20, length=5)
    assert long_enough([[1, 2, 3], [1], [1, 2, 3, 4]], 2, 1) == [[1, 2, 3], [1, 2, 3, 4]]


def test_copied_lengths_by_hand():
    training = [[1, 2, 3, 4], [3, 4, 5], [9]]
    samples = [[1, 2, 3, 4, 5], [7, 9, 1], [], [3, 4, 5, 9]]
    found = [own.tolist() for own in copied_lengths(samples, training)]
    # 1 2 3 4 stands in the first story, 3 4 5 in the second; no run goes on from one story into the next
    assert found == [[4, 3, 3, 2, 1], [0, 1, 1], [], [3, 2, 1, 1]]


def test_copied_lengths_agree_with_looking_at_every_run():
    generator = np.random.default_rng(3)
    training = [generator.integers(0, 4, n).tolist() for n in (30, 1, 17, 40)]
    samples = [generator.integers(0, 5, n).tolist() for n in (25, 12)] + [training[0][3:20]]
    runs = {tuple(story[i:j]) for story in training for i in range(len(story)) for j in range(i + 1, len(story) + 1)}
    for own, found in zip(samples, copied_lengths(samples, training), strict=True):
        for i, length in enumerate(found):
            assert length == max(n for n in range(len(own) - i + 1) if n == 0 or tuple(own[i : i + n]) in runs)


def test_novelty_by_hand():
    training = [[1, 2, 3], [4, 5]]
    found = novelty([[1, 2, 4, 5], [3, 4], [6]], training, orders=(1, 2, 3, 5))
    # 1-grams 1 2 4 5 3 4 6: one of 7 is new; 2-grams 12 24 45 34: two of 4; 3-grams 124 245: both; no sample has five
    assert found.shares == {1: 1 / 7, 2: 2 / 4, 3: 1.0, 5: None}
    assert found.longest == 2


def test_a_copy_is_not_novel_at_any_length_and_foreign_text_is_at_all():
    text = stories(2, 30)
    copied = novelty([text[1][5:25]], text)
    assert set(copied.shares.values()) == {0.0}
    assert copied.longest == 20
    foreign = novelty([[100, 101, 102]], text, orders=(1, 2, 3))
    assert set(foreign.shares.values()) == {1.0}
    assert foreign.longest == 0


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="0 samples"):
        copied_lengths([], [[1]])
    with pytest.raises(ValueError, match="0 training stories"):
        copied_lengths([[1]], [])
    with pytest.raises(ValueError, match="0 or more"):
        copied_lengths([[-1, 2]], [[1]])
    with pytest.raises(ValueError, match="orders"):
        novelty([[1]], [[1]], orders=())
    with pytest.raises(ValueError, match="orders"):
        novelty([[1]], [[1]], orders=(0, 1))
