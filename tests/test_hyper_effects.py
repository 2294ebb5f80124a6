"""Effects against hand-computed cases; speeds and texts of real tiny models; advice that says what is not sure."""

import dataclasses
import math

import pandas as pd
import pytest

from picollm_core.config import DataConfig, RunConfig, TrainConfig
from picollm_core.contrasts import paired_contrast
from picollm_core.hyper_design import BASE, Change
from picollm_core.hyper_effects import (
    compute_spent,
    confounded_table,
    design_table,
    effect_table,
    measure_speeds,
    measure_texts,
    paired,
    recommendations,
    sweep_rows,
    update_times,
)
from picollm_core.hyper_study import CONFOUNDED, Arm
from picollm_core.lab import Lab
from picollm_core.presets import run_config
from picollm_core.profiles import PROFILES
from picollm_core.runs import Run

SEEDS = (0, 1, 2)


def run(family: str, name: str, seed: int, nll: float) -> Run:
    config = run_config(RunConfig(model=BASE[family]), seed=seed, learning_rate=0.1)
    summary = {"nll": nll, "parameters": 1_000, "steps": 40}
    return Run(config, {"fingerprint": f"{family} {name} {seed}"}, summary, {}, pd.DataFrame())


def arm(family: str, change: Change | None, losses) -> Arm:
    name = change.label if change else "base"
    runs = tuple(run(family, name, seed, nll) for seed, nll in zip(SEEDS, losses, strict=False))
    return Arm(family, change, 0.1, {}, runs)


def written(own, distinct=0.5):
    return {r.fingerprint: {"distinct_2": distinct, "repetition_4": 0.1} for a in own for r in a.runs}


WIDE, DEEP = Change("width", "width 64"), Change("layers", "2 layers")
OWN = [
    arm("lstm", None, (4.0, 4.1, 4.2)),
    arm("lstm", WIDE, (3.9, 4.0, 4.09)),
    arm("lstm", DEEP, (4.3, 4.4)),
]
SPEEDS = {"base": [1.0, 1.0, 1.0], "width 64": [2.0, 2.0, 8.0], "2 layers": [4.0, 4.0, 4.0]}


def test_effects_are_paired_by_seed_and_corrected_over_the_whole_table():
    texts = written(OWN) | {"lstm width 64 0": {"distinct_2": 0.8, "repetition_4": None}}
    table = effect_table({"lstm": OWN}, {"lstm": texts}, {"lstm": SPEEDS}).set_index("change")
    wide = paired_contrast([3.9, 4.0, 4.09], [4.0, 4.1, 4.2])
    assert table.loc["width 64", ["effect", "low", "high", "p"]].tolist() == [
        wide.mean,
        wide.low,
        wide.high,
        wide.p_value,
    ]
    assert table.loc["2 layers", "effect"] == pytest.approx(0.3)
    assert table.loc["2 layers", "seeds"] == 2
    assert table.loc["width 64", "p_holm"] == pytest.approx(min(1, max(wide.p_value, 2 * table["p"].min())))
    assert table.loc["width 64", "speed"] == 0.5
    assert table.loc["2 layers", "speed"] == 0.25
    assert table.loc["width 64", "distinct_2"] == pytest.approx(0.1)
    assert table.loc["width 64", "repetition_4"] == pytest.approx(0.0)  # of the two seeds that have one


def test_one_seed_gives_differences_without_intervals():
    own = [arm("lstm", None, (4.0,)), arm("lstm", WIDE, (3.9,))]
    table = effect_table({"lstm": own}, {"lstm": written(own)}, {"lstm": SPEEDS})
    assert table["effect"].tolist() == [pytest.approx(-0.1)]
    assert table[["low", "high", "p", "p_holm"]].isna().all(axis=None)
    assert recommendations(table, 0.02) == {"LSTM": ["one seed, nothing is sure: width 64 -0.10"]}


def test_a_model_without_texts_leaves_only_its_text_out():
    texts = written(OWN) | {r.fingerprint: {"distinct_2": None, "repetition_4": None} for r in OWN[1].runs}
    table = effect_table({"lstm": OWN}, {"lstm": texts}, {"lstm": SPEEDS}).set_index("change")
    assert math.isnan(table.loc["width 64", "distinct_2"])
    assert math.isfinite(table.loc["width 64", "effect"])
    assert table.loc["2 layers", "distinct_2"] == 0


def test_without_a_change_there_is_no_table():
    with pytest.raises(ValueError, match="no change was run"):
        effect_table({"lstm": OWN[:1]}, {"lstm": written(OWN)}, {"lstm": SPEEDS})


def test_advice_says_what_is_sure_and_what_hardly_matters():
    row = {"family": "kgram", "knob": "", "speed": 1.0, "seeds": 5, "p": 0.001}
    rows = [
        {"change": "better", "effect": -0.2, "low": -0.21, "high": -0.19, "p_holm": 0.001},
        {"change": "worse", "effect": 0.3, "low": 0.29, "high": 0.31, "p_holm": 0.001},
        {"change": "unsure", "effect": -0.1, "low": -0.3, "high": 0.1, "p_holm": 0.9},
        {"change": "likely", "effect": -0.1, "low": -0.15, "high": -0.05, "p_holm": 0.2},
        {"change": "same", "effect": 0.001, "low": -0.01, "high": 0.012, "p_holm": 0.9},
    ]
    table = pd.DataFrame([row | each for each in rows])
    lower, likely, raised, harm, same = recommendations(table, 0.02)["k-gram MLP"]
    assert lower == "lowers the loss, surely: better (-0.200 nats, 1.00 times the speed)"
    assert likely == "probably lowers it (by its own interval alone): likely (-0.100 nats, 1.00 times the speed)"
    assert raised.startswith("raises the loss, surely: worse (+0.300")
    assert harm == "probably raises it: nothing"
    assert same == "within 0.02 nats of the base, surely: same"


def test_the_sum_of_single_changes_stands_beside_all_three_at_once():
    losses = dict.fromkeys(CONFOUNDED, (4.0, 4.0, 4.0))
    losses |= {"large": (3.5, 3.6, 3.4), "width 64": (3.8, 3.8, 3.8), "twice the rate": (4.1, 4.1, 4.2)}
    table = confounded_table({name: arm("lstm", CONFOUNDED[name], losses[name]) for name in CONFOUNDED})
    found = table.set_index("configuration")
    assert found.loc["large", "effect"] == pytest.approx(-0.5)
    assert found.loc["sum of the three alone, to large", "effect"] == pytest.approx(-0.2 + 0.4 / 3)
    assert found.loc["sum of the three alone, to small", ["effect", "low", "high"]].tolist() == [0, 0, 0]
    assert found.loc["middle", "changed"] == "none"


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    data, train = DataConfig(corpus=("storyworld",), n_stories=200), TrainConfig(max_steps=3, final_stories=3)
    return Lab(dataclasses.replace(PROFILES["quick"], data=data, train=train, block_size=32))


def test_every_configuration_is_timed_in_every_round():
    configs = {name: run_config(RunConfig(model=BASE["kgram"]), block_size=16, batch_size=b, learning_rate=0.1)
               for name, b in (("small", 2), ("large", 4))}  # fmt: skip
    times = update_times(configs, 3)
    assert {name: len(own) for name, own in times.items()} == {"small": 3, "large": 3}
    assert min(min(own) for own in times.values()) > 0
    for configurations, rounds in (({}, 3), (configs, 0)):
        with pytest.raises(ValueError, match=f"{rounds} rounds"):
            update_times(configurations, rounds)


def test_texts_and_speeds_of_real_models_are_measured_once(lab):
    runs = tuple(lab.train(BASE["kgram"], learning_rate=0.1, seed=seed) for seed in (0, 1))
    base = Arm("kgram", None, 0.1, {}, runs)
    drawn = {"prompt": "Once", "budget": 60, "max_new_tokens": 30, "top_p": 0.95, "seed": 0}
    texts = measure_texts(lab, [base], 1, **drawn)
    assert set(texts) == {runs[0].fingerprint}  # the first seed alone
    assert all(0 < own["distinct_2"] <= 1 for own in texts.values())
    speeds = measure_speeds(lab, [base], 2)
    before = lab.redrawn
    assert measure_texts(lab, [base], 1, **drawn) == texts
    assert measure_speeds(lab, [base], 2) == speeds
    assert lab.redrawn == before + 2
    count, seconds = compute_spent(lab)
    assert count == 2
    assert seconds == pytest.approx(sum(r.summary["train_seconds"] for r in runs))
    assert paired(base, base).mean == 0


def test_the_sweep_table_names_every_run_once_with_its_part(lab):
    first, second = (lab.train(BASE["kgram"], learning_rate=rate) for rate in (0.1, 0.2))
    arms = {"kgram": [Arm("kgram", None, 0.1, {}, (first,)), Arm("kgram", WIDE, 0.2, {}, (second,))]}
    table = sweep_rows(arms, [first])
    assert dict(zip(table["fingerprint"], table["part"], strict=True)) == {
        first.fingerprint: "random design",
        second.fingerprint: "width 64",
    }
    assert table["learning_rate"].tolist() == [0.1, 0.2]
    assert "batch_size" not in table  # equal in both
    assert set(table["corpora"]) == {"storyworld"}


def test_a_design_table_holds_rates_relative_to_each_family_and_refuses_other_evaluations(lab):
    runs = [lab.train(BASE["kgram"], learning_rate=rate) for rate in (0.1, 0.2)]
    table = design_table(runs, {"kgram": 0.1})
    assert table["relative_rate"].tolist() == [1.0, 2.0]
    assert table.shape[1] >= 22
    other = lab.train(BASE["kgram"], learning_rate=0.1, final_stories=1)
    with pytest.raises(ValueError, match="n_stories"):
        design_table([*runs, other], {"kgram": 0.1})
