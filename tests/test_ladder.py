"""The ladder: rungs that differ in one thing, equal time, costs paired by seed."""

import pandas as pd
import pytest

from picollm_core.config import TrainConfig, TransformerConfig
from picollm_core.lab import Lab
from picollm_core.ladder import (
    RUNGS,
    Rung,
    ladder_table,
    measure_ladder,
    quality_table,
    recorded_pace,
    rung_config,
    update_seconds,
)
from picollm_core.profiles import PROFILES
from picollm_core.shipped import shipped_config
from picollm_core.speed import made_up_batches

TINY = {"n_embd": 8, "n_head": 1, "n_layer": 1, "block_size": 16, "batch_size": 2}


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab(PROFILES["quick"])


def tiny(name: str, padded: bool = False, **changes: object) -> Rung:
    return Rung(name, TINY | changes, padded)


def measurements(**values: list[float]) -> pd.DataFrame:
    """Bits per byte by rung, one a seed."""
    rows = [
        {"rung": name, "seed": seed, "seconds_per_update": 0.1, "updates": 5, "tokens": 50, "parameters": 7}
        | {"threads": 1, "bits_per_byte": value}
        for name, own in values.items()
        for seed, value in enumerate(own)
    ]
    return pd.DataFrame(rows)


def test_the_recipe_is_that_of_the_shipped_transformer(lab):
    shipped, recipe = shipped_config("transformer"), rung_config(lab, RUNGS[0])
    assert recipe.model == shipped.model
    same = ("optimizer", "learning_rate", "schedule", "warmup_ratio", "batch_size", "weight_decay")
    assert [getattr(recipe.train, name) for name in same] == [getattr(shipped.train, name) for name in same]


def test_every_other_rung_changes_something_and_no_two_are_alike(lab):
    configs = [(rung_config(lab, rung), rung.padded) for rung in RUNGS]
    assert len(set(configs)) == len(RUNGS)
    assert len({rung.name for rung in RUNGS}) == len(RUNGS)


def test_no_rung_has_more_than_four_million_weights(lab):
    from picollm_core.models import build_model

    assert all(build_model(rung_config(lab, rung).model).num_parameters() <= 4_000_000 for rung in RUNGS)


def test_updates_of_equal_work_share_one_measurement_and_a_larger_batch_takes_longer(lab):
    rungs = [tiny("a"), tiny("b", learning_rate=0.1, schedule="cosine"), tiny("c", batch_size=64, block_size=256)]
    seconds = update_seconds({rung.name: rung_config(lab, rung) for rung in rungs}, repetitions=3)
    assert seconds["a"] == seconds["b"] < seconds["c"]


def test_measuring_nothing_is_refused(lab):
    with pytest.raises(ValueError, match="repetitions is 0"):
        update_seconds({"a": rung_config(lab, tiny("a"))}, repetitions=0)
    with pytest.raises(ValueError, match="seconds is 0"):
        measure_ladder(lab, seconds=0)
    with pytest.raises(ValueError, match="seeds is empty"):
        measure_ladder(lab, seeds=())


def test_made_up_batches_have_the_run_s_size_and_vocabulary(lab):
    config = rung_config(lab, tiny("a"))
    idx, targets = made_up_batches(config).next_batch()
    assert idx.shape == targets.shape == (2, 16)
    assert int(idx.max()) < config.model.vocab_size


def test_every_rung_trains_as_many_updates_as_fit_into_the_time_and_a_second_call_measures_nothing_again(lab):
    rungs = (tiny("recipe"), tiny("wide", n_embd=16), tiny("padded", padded=True))
    asked = {"seconds": 0.05, "seeds": (0, 1), "rungs": rungs, "repetitions": 1, "eval_stories": 5}
    first = measure_ladder(lab, **asked)
    assert list(first["rung"]) == ["recipe", "recipe", "wide", "wide", "padded", "padded"]
    for row in first.itertuples():
        assert row.updates == max(2, round(0.05 / row.seconds_per_update))
        assert row.tokens == row.updates * 2 * 16
        assert 0 < row.bits_per_byte < 20
    pd.testing.assert_frame_equal(first, measure_ladder(lab, **asked))


def test_a_cost_is_the_mean_difference_over_paired_seeds_with_its_interval():
    table = ladder_table(measurements(recipe=[1.0, 1.2, 1.1], worse=[1.2, 1.4, 1.31], better=[0.9, 1.1, 1.0]))
    assert list(table["rung"]) == ["recipe", "worse", "better"]
    assert table["cost"].tolist() == pytest.approx([0, 0.61 / 3, -0.1])
    assert table["low"][1] < 0.61 / 3 < table["high"][1]
    assert table["low"][1] > 0.18
    assert (table["seeds"] == 3).all()


def test_what_is_sure_is_corrected_for_the_number_of_rungs():
    found = measurements(
        recipe=[1.0, 1.2, 1.1], worse=[1.2, 1.4, 1.31], close=[1.02, 1.21, 1.14], level=[1.0, 1.21, 1.1]
    )
    table = ladder_table(found).set_index("rung")
    assert table["p"].drop("recipe").tolist() == pytest.approx([0.0002686, 0.11808, 0.42265], rel=1e-3)
    assert table["p_holm"].drop("recipe").tolist() == pytest.approx([0.0008059, 0.23616, 0.42265], rel=1e-3)
    assert table["p_holm"].isna().tolist() == [True, False, False, False]
    assert ladder_table(measurements(recipe=[1.0], other=[1.1]))["p_holm"].isna().all()


def test_a_ladder_needs_two_rungs_of_the_same_seeds():
    with pytest.raises(ValueError, match="1 rung"):
        ladder_table(measurements(recipe=[1.0]))
    with pytest.raises(ValueError, match=r"'other' has seeds \[0\], the recipe \[0, 1\]"):
        ladder_table(measurements(recipe=[1.0, 1.1], other=[1.0]))


def test_the_recipe_is_a_transformer_trained_by_muon():
    config = shipped_config("transformer")
    assert isinstance(config.model, TransformerConfig)
    assert config.train.optimizer == "muon" != TrainConfig().optimizer


def test_quality_after_some_minutes_is_that_of_as_many_updates_as_fit(lab):
    rungs = (tiny("recipe"),)
    table = quality_table(lab, minutes=(0.001, 0.002), shipped=False, eval_stories=5, rungs=rungs, repetitions=1)
    pace = recorded_pace(lab, rungs, 1)["seconds"]["recipe"]
    assert table["updates"].tolist() == [max(2, round(0.06 / pace)), max(2, round(0.12 / pace))]
    assert table["minutes"].tolist() == pytest.approx((table["updates"] * pace / 60).tolist())
    assert (table["low"] < table["bits_per_byte"]).all()
    assert (table["bits_per_byte"] < table["high"]).all()


def test_no_minutes_are_refused(lab):
    with pytest.raises(ValueError, match="minutes are"):
        quality_table(lab, minutes=())
    with pytest.raises(ValueError, match="minutes are"):
        quality_table(lab, minutes=(0.0,))
