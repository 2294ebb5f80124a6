"""Changes differ from the base in one thing, see equal text, and a design's settings do not go together."""

import numpy as np
import pandas as pd
import pytest

from picollm_core.config import RunConfig
from picollm_core.hyper_design import (
    BASE,
    BATCH,
    BLOCK,
    FAMILIES,
    LEVELS,
    RATE_SPAN,
    changes,
    equal_tokens,
    random_design,
    whole_design,
)
from picollm_core.presets import run_config
from picollm_core.runs import hyperparameters

TOKENS = 163_840


def config(family, settings) -> RunConfig:
    return run_config(RunConfig(model=BASE[family]), **equal_tokens(settings, TOKENS))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_change_changes_one_thing_and_with_it_only_what_keeps_the_tokens_equal(family):
    allowed = {"block_size": {"batch_size"}, "batch_size": {"max_steps"}, "optimizer": {"weight_decay"}}
    base = hyperparameters(config(family, {}))
    for change in changes(family):
        flat = hyperparameters(config(family, change.settings))
        differing = {name for name in base if flat[name] != base[name]} - {"learning_rate"}
        first = next(iter(change.settings), "learning_rate")
        assert differing - allowed.get(first, set()) == {first} - {"learning_rate"}, change.label
        assert flat["max_steps"] * flat["block_size"] * flat["batch_size"] == TOKENS
        assert bool(differing) != (change.scale != 1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_changes_of_a_family_have_names_of_their_own_and_settings_it_has(family):
    own = changes(family)
    assert len({change.label for change in own}) == len(own)
    for change in own:
        config(family, change.settings)  # a setting that the family does not have raises
    assert any(change.knob == "k" for change in own) == (family == "kgram")
    assert any(change.knob == "heads" for change in own) == (family == "transformer")


def test_a_family_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="'gru'; choose one of kgram, lstm, transformer"):
        changes("gru")
    with pytest.raises(ValueError, match="'gru'; choose one of"):
        random_design("gru")


def test_equal_tokens_gives_the_updates_and_refuses_what_does_not_divide():
    assert equal_tokens({}, TOKENS) == {"block_size": BLOCK, "batch_size": BATCH, "max_steps": TOKENS // 1024}
    assert equal_tokens({"batch_size": 8}, TOKENS)["max_steps"] == TOKENS // 512
    with pytest.raises(ValueError, match="1000 tokens are no whole number"):
        equal_tokens({}, 1_000)
    with pytest.raises(ValueError, match="0 tokens"):
        equal_tokens({}, 0)


def codes(table: pd.DataFrame) -> pd.DataFrame:
    return table.apply(lambda c: c if pd.api.types.is_numeric_dtype(c) else c.astype("category").cat.codes)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_design_crosses_its_first_pair_uses_all_levels_alike_and_correlates_little(family):
    design = random_design(family, 16)
    first, second = list(LEVELS[family])[:2]
    assert not design.duplicated([first, second]).any()
    for name in LEVELS[family]:
        counts = design[name].value_counts()
        assert set(counts.index) == set(LEVELS[family][name])
        assert counts.max() - counts.min() <= 1
    worst = codes(design).corr("spearman").where(~np.eye(len(design.columns), dtype=bool)).abs().max().max()
    assert worst < 0.25
    logs = np.log(design["rate_factor"]) / np.log(RATE_SPAN)
    assert logs.abs().max() <= 1
    strata = (np.sort(logs) + 1) * 8 - np.arange(16)  # one in each of 16 equal strata
    assert strata.min() > -0.01
    assert strata.max() < 1.01


def test_the_same_seed_gives_the_same_design_and_another_one_another():
    pd.testing.assert_frame_equal(random_design("kgram", 16, 3), random_design("kgram", 16, 3))
    assert not random_design("kgram", 16, 3).equals(random_design("kgram", 16, 4))


def test_a_design_too_small_to_cross_still_varies_every_setting():
    small = random_design("kgram", 4)
    assert (small.nunique() > 1).all()
    with pytest.raises(ValueError, match="count is 3"):
        random_design("kgram", 3)


def test_the_whole_design_gives_every_run_its_own_seed_and_no_family_a_setting_it_lacks():
    whole = whole_design(16)
    assert len(whole) == 48
    assert whole["seed"].is_unique
    lstm = whole[whole["family"] == "lstm"]
    assert lstm[["k", "n_head", "activation"]].isna().all(axis=None)
    assert whole[whole["family"] == "kgram"]["k"].notna().all()
