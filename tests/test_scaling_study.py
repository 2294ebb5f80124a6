"""The scaling study's models have the sizes they are said to have, and its runs become rows of one table."""

import dataclasses
import math

import pandas as pd
import pytest

from picollm_core.config import DataConfig, KGramConfig, LSTMConfig
from picollm_core.lab import Lab
from picollm_core.models import build_model
from picollm_core.profiles import PROFILES
from picollm_core.scaling_study import (
    CHANGES,
    CONSTANT,
    Arm,
    Plan,
    Rates,
    arm_config,
    changed_arms,
    constant_arms,
    count_parameters,
    equal_width,
    exponent_table,
    family_arms,
    grid_arms,
    largest,
    law_fits,
    rival_arms,
    seed_noise,
    sized,
    study_plan,
    study_table,
    train_study,
    tune,
)

PLAN = Plan()
RATES = Rates(pd.DataFrame(), {8: 0.04, 128: 0.01}, {"lstm": 0.05, "kgram": 0.06})


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(f"the {n} cats sat on mat {n}" for n in range(300)))
    return Lab(dataclasses.replace(PROFILES["quick"], data=DataConfig(corpus=("text.txt",)), seeds=(0, 1)))


@pytest.mark.parametrize("width", PLAN.widths)
def test_parameters_are_those_of_the_model_that_is_built_with_and_without_its_table(width):
    config = sized(width)
    whole, bare = count_parameters(config)
    assert whole == build_model(config).num_parameters()
    assert whole - bare == 4_096 * width  # one table, tied
    assert bare == 2 * 12 * width**2 + 5 * width  # 4 C^2 of attention and 8 C^2 of MLP a layer; five norms


def test_tables_of_untied_models_and_learned_positions_are_not_counted_as_the_model():
    config = LSTMConfig(vocab_size=4_096, n_embd=8)
    assert count_parameters(config)[1] == count_parameters(config.replace(tied=True))[1]
    learned = sized(16).replace(position="absolute")
    assert count_parameters(learned)[1] == count_parameters(sized(16))[1]
    assert count_parameters(learned)[0] == count_parameters(sized(16))[0] + 64 * 16


def test_rivals_have_the_transformers_parameters_within_two_per_cent():
    arms = family_arms(PLAN.rival_width)
    assert list(arms) == ["transformer", "lstm", "kgram"]
    counts = {name: count_parameters(config)[0] for name, config in arms.items()}
    assert all(abs(count / counts["transformer"] - 1) <= 0.02 for count in counts.values())
    with pytest.raises(ValueError, match=r"parameters, .*% from 71,760; choose another size"):
        equal_width(KGramConfig(vocab_size=4_096), 71_760)


def test_widths_that_make_no_heads_of_sixteen_are_refused():
    assert [sized(width).n_head for width in (8, 16, 64)] == [1, 1, 4]
    with pytest.raises(ValueError, match="width is 40"):
        sized(40)


def test_rates_between_the_tuned_widths_lie_on_a_line_in_logarithms():
    assert [RATES.of("transformer", width) for width in (8, 32, 128)] == [0.04, 0.02, 0.01]
    assert RATES.of("lstm", 32) == 0.05
    one = Rates(pd.DataFrame(), {8: 0.03, 32: 0.03}, {})
    assert one.of("transformer", 16) == 0.03


def test_the_grid_has_every_width_at_every_budget_and_arms_that_are_compared_share_their_seeds():
    grid = grid_arms(PLAN)
    first = {(arm.width, arm.steps) for arm in grid if arm.seed == 0}
    assert first == {(width, steps) for width in PLAN.widths for steps in PLAN.budgets}
    rivals = rival_arms(PLAN)
    for steps in (min(PLAN.budgets), max(PLAN.budgets)):
        for family in ("transformer", "lstm"):
            assert [a.seed for a in rivals if (a.family, a.steps) == (family, steps)] == [0, 1, 2, 3, 4]
    changed = changed_arms(PLAN)
    assert {(a.width, a.change, a.seed) for a in changed} == {
        (width, change, seed) for width in (16, 64) for change in ("", *CHANGES) for seed in range(5)
    }
    assert all(len(set(arms)) == len(arms) for arms in (grid, rivals, changed, constant_arms(PLAN)))


def test_an_arm_changes_what_it_says_and_nothing_else(lab):
    plain = arm_config(lab, PLAN, RATES, Arm("transformer", 16, 100, 3))
    assert plain.train.seed == 3
    assert plain.train.max_steps == 100
    for change in (*CHANGES, CONSTANT):
        other = arm_config(lab, PLAN, RATES, Arm("transformer", 16, 100, 3, change)).to_dict()
        differ = [
            name
            for part in ("model", "train")
            for name, value in other[part].items()
            if value != plain.to_dict()[part][name]
        ]
        assert len(differ) == 1, (change, differ)
    with pytest.raises(ValueError, match="change is 'other'"):
        arm_config(lab, PLAN, RATES, Arm("transformer", 16, 100, 3, "other"))


def test_runs_become_rows_with_the_loss_on_the_way(lab):
    plan = study_plan(lab)
    rates = tune(lab, plan)
    assert rates.by_width == {8: 0.03, 32: 0.03}
    arms = [Arm("transformer", 8, 20, 0), Arm("transformer", 8, 40, 0), Arm("lstm", 32, 20, 1)]
    table = study_table(train_study(lab, plan, rates, [*arms, arms[0]], n_jobs=1))
    assert list(table["family"]) == ["transformer", "transformer", "lstm"]
    assert table["tokens"][1] == pytest.approx(2 * table["tokens"][0], rel=0.02)  # lines differ in length
    assert (table["low"] <= table["nll"]).all()
    assert (table["nll"] <= table["high"]).all()
    assert math.isnan(table["early"][0])  # too short to be watched
    assert table["early"][1] > table["last"][1]
    assert list(largest(table)) == [False, False, False]
    assert list(largest(table[:2])) == [False, True]
    with pytest.raises(ValueError, match="0 runs"):
        study_table({})


def test_the_noise_of_seeds_is_pooled_over_arms_that_have_several():
    table = pd.DataFrame(
        [("lstm", 8, 10, "", math.exp(value)) for value in (1.0, 1.2)]
        + [("lstm", 8, 20, "", math.exp(value)) for value in (1.0, 1.1, 1.2)]
        + [("kgram", 8, 10, "", 9.0)],
        columns=["family", "width", "steps", "change", "nll"],
    )
    assert seed_noise(table) == pytest.approx(math.sqrt((0.02 + 0.02) / 3))
    assert math.isnan(seed_noise(table[5:]))


def test_exponents_of_every_law_stand_beside_those_published_for_the_same_law():
    rows = []
    for arm in grid_arms(PLAN):
        whole, bare = count_parameters(sized(arm.width))
        tokens = 1_024 * arm.steps
        loss = 2 + 30 / whole**0.35 + 400 / tokens**0.45
        rows.append((arm.width, arm.steps, whole, bare, tokens, loss))
    grid = pd.DataFrame(rows, columns=["width", "steps", "parameters", "bare", "tokens", "nll"])
    fits = law_fits(grid.assign(nll=grid["nll"].where(~largest(grid), 3.0)), resamples=0)
    assert len(fits["N, D"].residuals) == len(grid) - 1
    table = exponent_table(fits).set_index(["fit", "variable"])
    assert table.loc[("N, D", "N"), "exponent"] == pytest.approx(0.35, rel=1e-3)
    assert table.loc[("N, D", "N"), "published"] == 0.34
    assert table.loc[("D at the largest N", "D"), "published"] == 0.095
    assert math.isnan(table.loc[("D at the largest N", "D"), "floor"])
    few = grid[grid["steps"] > min(PLAN.budgets)]
    assert [name for name in law_fits(few, resamples=0) if name.startswith("D at")] == []
