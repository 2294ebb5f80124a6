"""Canaries: their space by hand, where they are planted, and exposure at chance where nothing was memorised."""

import math

import numpy as np
import pytest
import torch

from picollm_core.batches import PackedBatches
from picollm_core.canaries import CanarySpace, chance_exposure, exposures, planted, secret_nats
from picollm_core.config import LSTMConfig, TrainConfig, TransformerConfig
from picollm_core.models import build_model
from picollm_core.overfit_runs import memory_store
from picollm_core.trainer import Trainer, seeded

VOCAB, END = 41, 40
SPACE = CanarySpace(prefix=(1, 2), pool=tuple(range(10, 18)), length=3)  # 512 secrets
CONFIG = LSTMConfig(vocab_size=VOCAB, block_size=16, n_embd=32)


def random_stories(count: int = 40) -> list[list[int]]:
    return np.random.default_rng(5).integers(0, END, (count, 12)).tolist()


def trained(stories, steps: int = 300):
    train = TrainConfig(max_steps=steps, batch_size=16, learning_rate=0.02, weight_decay=0.0, precision="float32")
    with seeded(0):
        trainer = Trainer(build_model(CONFIG), PackedBatches(memory_store(stories, END), 16, 16), train)
        while trainer.step < steps:
            trainer.advance()
    return trainer.model.eval()


def test_secrets_are_numbers_in_base_of_the_pool():
    space = CanarySpace((1,), (7, 8, 9), 2)
    assert space.size == 9
    assert space.secrets(range(9)).tolist() == [[a, b] for a in (7, 8, 9) for b in (7, 8, 9)]
    drawn = space.draw(9, seed=0)
    assert sorted(drawn) == list(range(9))
    assert drawn == space.draw(9, seed=0)


def test_planting_keeps_the_stories_in_order_and_adds_each_copy_once():
    stories, times = random_stories(), {3: 5, 100: 1, 511: 0}
    found = planted(stories, SPACE, times, seed=1)
    secrets = [[1, 2, *secret] for secret in SPACE.secrets(list(times)).tolist()]
    assert [list(story) for story in found if list(story) not in secrets] == stories
    assert [sum(list(story) == secret for story in found) for secret in secrets] == [5, 1, 0]
    assert found != planted(stories, SPACE, times, seed=2)


@pytest.mark.parametrize("config", [CONFIG, TransformerConfig(vocab_size=VOCAB, block_size=5, n_embd=16)])
def test_nats_of_a_secret_are_those_of_its_tokens_one_by_one(config):
    torch.manual_seed(0)
    model = build_model(config)
    nats = secret_nats(model, SPACE, END, batch_size=100)
    assert nats.shape == (512,)
    for number in (0, 77, 511):
        ids = [END, *SPACE.prefix, *SPACE.secrets([number])[0].tolist()]
        logs = model.eval()(torch.tensor([ids[:-1]]))[0].detach().double().log_softmax(-1)
        assert nats[number] == pytest.approx(-sum(float(logs[t, ids[t + 1]]) for t in range(2, 5)), abs=1e-5)


def test_exposure_is_the_bits_that_the_rank_leaves():
    nats = np.array([4.0, 1.0, 3.0, 2.0])
    assert exposures(nats, [1, 3, 2, 0]).tolist() == [2.0, 1.0, 2 - math.log2(3), 0.0]
    assert exposures(np.zeros(4), [2]).tolist() == [2 - math.log2(2.5)]  # all equal: the middle rank


def test_exact_expectation_of_chance():
    assert chance_exposure(1) == (0.0, 0.0)
    assert chance_exposure(2)[0] == 0.5  # ranks 1 and 2: 1 bit or 0
    assert chance_exposure(4096)[0] == pytest.approx(math.log2(4096) - math.lgamma(4097) / math.log(2) / 4096)
    assert chance_exposure(2**20)[0] == pytest.approx(1 / math.log(2), abs=1e-4)
    simulated = exposures(np.random.default_rng(0).random(4096), range(4096))
    assert (simulated.mean(), simulated.std()) == pytest.approx(chance_exposure(4096))


def _standard_error(count: int) -> float:
    return chance_exposure(SPACE.size)[1] / count**0.5


def test_an_untrained_model_gives_exposure_at_chance():
    found = []
    for seed in range(12):
        torch.manual_seed(seed)
        found.append(exposures(secret_nats(build_model(CONFIG), SPACE, END), SPACE.draw(16, seed)).mean())
    mean, error = chance_exposure(SPACE.size)[0], _standard_error(12 * 16)
    assert abs(np.mean(found) - mean) < 3 * error


def test_canaries_planted_often_are_exposed_and_those_kept_back_are_at_chance():
    numbers = SPACE.draw(44, seed=0)
    often, never = numbers[:4], numbers[4:]
    model = trained(planted(random_stories(), SPACE, dict.fromkeys(often, 16) | dict.fromkeys(never, 0), seed=0))
    nats = secret_nats(model, SPACE, END)
    assert exposures(nats, often).min() >= 6  # of 9 bits: among the first 8 of 512
    assert abs(exposures(nats, never).mean() - chance_exposure(SPACE.size)[0]) < 3 * _standard_error(40)


def test_a_model_that_never_saw_any_gives_exposure_at_chance():
    nats = secret_nats(trained(random_stories()), SPACE, END)
    found = exposures(nats, SPACE.draw(200, seed=1))
    assert abs(found.mean() - chance_exposure(SPACE.size)[0]) < 3 * _standard_error(200)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"prefix": ()}, "prefix is empty"),
        ({"pool": (3,)}, "two or more"),
        ({"pool": (3, 3, 4)}, "2 different"),
        ({"length": 0}, "at least 1"),
        ({"length": 9}, "smaller pool"),
    ],
)
def test_impossible_spaces_are_refused(space, message):
    with pytest.raises(ValueError, match=message):
        CanarySpace(**({"prefix": (1,), "pool": tuple(range(8)), "length": 2} | space))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="list of canaries is empty"):
        planted([[1]], SPACE, {}, 0)
    with pytest.raises(ValueError, match="-1 times"):
        planted([[1]], SPACE, {3: -1}, 0)
    with pytest.raises(ValueError, match="list of canaries is empty"):
        exposures(np.zeros(4), [])
    with pytest.raises(ValueError, match="0 to 3"):
        exposures(np.zeros(4), [4])
    with pytest.raises(ValueError, match="0 to 511"):
        SPACE.secrets([512])
    with pytest.raises(ValueError, match="513 canaries"):
        SPACE.draw(513, 0)
    with pytest.raises(ValueError, match="size is 0"):
        chance_exposure(0)
    short = build_model(TransformerConfig(vocab_size=VOCAB, block_size=4, n_embd=16))
    with pytest.raises(ValueError, match="window holds 4"):
        secret_nats(short, SPACE, END)
