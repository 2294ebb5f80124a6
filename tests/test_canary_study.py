"""The study of canaries: what is planted, what is recorded, and which settings are refused."""

import numpy as np
import pandas as pd
import pytest

from picollm_core.canaries import chance_exposure
from picollm_core.canary_study import CanarySetting, canary_arm, canary_run, exposure_range, exposure_table, word_pool
from picollm_core.config import LSTMConfig
from picollm_core.lab import Lab
from picollm_core.presets import run_config
from picollm_core.profiles import get_profile
from picollm_core.results import ResultStore
from picollm_core.storyworld import generate_stories
from picollm_core.tokenizers import load_tokenizer

CONFIG = run_config(
    LSTMConfig(n_embd=32),
    corpus="storyworld",
    n_stories=300,
    block_size=32,
    batch_size=8,
    max_steps=120,
    learning_rate=0.03,
    eval_stories=3,
)
SMALL = CanarySetting(stories=10, words=8, length=2, times=(64,), of_each=3, kept_back=4)


def test_planted_canaries_are_exposed_in_the_trained_model_alone():
    found = canary_run(CONFIG, SMALL)
    assert [row["times"] for row in found["rows"]] == [64, 64, 64, 0, 0, 0, 0]
    planted = [row for row in found["rows"] if row["times"]]
    assert np.mean([row["exposure"] for row in planted]) > 3  # of 6 bits, where chance is 1.4
    assert np.mean([row["untrained"] for row in planted]) < 4
    assert (found["bits"], found["chance"]) == (6.0, chance_exposure(64)[0])
    assert found["example"].startswith(SMALL.prefix)


def test_the_control_ranks_the_same_secrets_without_planting_them():
    planted, control = (
        canary_run(CONFIG.replace(train=CONFIG.train.replace(max_steps=5)), SMALL),
        canary_run(CONFIG.replace(train=CONFIG.train.replace(max_steps=5)), SMALL.replace(plant=False)),
    )
    assert control["example"] == planted["example"]
    assert [row["untrained"] for row in control["rows"]] == [row["untrained"] for row in planted["rows"]]
    assert control["epochs"] > planted["epochs"]  # there is less text


def test_the_pool_holds_different_whole_words_that_are_not_the_commonest():
    tokenizer = load_tokenizer("stories-4k")
    stories = tokenizer.encode_ordinary_batch(list(generate_stories(60, seed=0)))
    pool = word_pool(stories, tokenizer, 20, seed=0)
    words = [tokenizer.decode([token]) for token in pool]
    assert len(set(pool)) == 20
    assert all(word.startswith(" ") and word[1:].isalpha() and len(word) > 3 for word in words)
    assert " the" not in words
    assert pool == word_pool(stories, tokenizer, 20, seed=0) != word_pool(stories, tokenizer, 20, seed=1)
    with pytest.raises(ValueError, match="give more stories"):
        word_pool(stories[:1], tokenizer, 300, seed=0)


def test_arms_are_recorded_and_tabled_by_level(tmp_path):
    lab = Lab(get_profile("quick"))
    lab.store = ResultStore(tmp_path)
    arm = canary_arm(lab, CONFIG.replace(train=CONFIG.train.replace(max_steps=3)), SMALL, (0, 1))
    table = exposure_table({"lstm": arm})
    assert list(zip(table["seed"], table["times"], strict=True)) == [(0, 64), (0, 0), (1, 64), (1, 0)]
    own = [row["exposure"] for row in arm.results[1]["rows"] if row["times"] == 64]
    assert table["exposure"].iloc[2] == pytest.approx(np.mean(own))
    before = [row["untrained"] for row in arm.results[0]["rows"] if row["times"] == 0]
    assert exposure_table({"lstm": arm}, "untrained")["exposure"].iloc[1] == pytest.approx(np.mean(before))
    with pytest.raises(ValueError, match="0 canaries"):
        exposure_table({})


def test_the_range_of_each_level_is_that_of_the_arms_means():
    rows = [("a", 0, 1, 2.0), ("a", 1, 1, 4.0), ("b", 0, 1, 1.0), ("control", 0, 1, 0.0)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "times", "exposure"])
    assert exposure_range(table, "control").loc[1].tolist() == [1.0, 3.0]
    assert exposure_range(table).loc[1].tolist() == [0.0, 3.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": ()}, "times is empty"),
        ({"times": (1, 1)}, "different numbers"),
        ({"times": (4, 0)}, "1 or more"),
        ({"words": 1}, "at least 2"),
        ({"prefix": ""}, "prefix is empty"),
        ({"of_each": 0}, "of_each is 0"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CanarySetting(**changes)
