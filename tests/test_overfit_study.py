"""The study of overfitting: one thing changed at a time, and claims judged by their intervals."""

import math

import pytest

from picollm_core.lab import Lab
from picollm_core.overfit_study import (
    FAMILIES,
    Plan,
    changed_configs,
    claims_overfitting,
    judge_diversity,
    judge_parting,
    make_plan,
)
from picollm_core.presets import run_config
from picollm_core.profiles import get_profile
from picollm_core.results import ResultStore
from tests.overfit_arms import arm, samples


def test_parting_holds_where_every_gap_grows_and_fails_where_one_shrinks():
    grows = {family: arm(family, [3, 1], [4, 5]) for family in FAMILIES}
    found = judge_parting(grows, 43)
    assert (found.verdict, found.id) == ("holds", "overfitting-43-sequences")
    assert found.effect == pytest.approx(3)
    assert found.runs == tuple(f"measurements/{family}.json" for family in FAMILIES)
    mixed = judge_parting(grows | {"lstm": arm("lstm", [3, 3], [5, 4])}, 43)
    assert mixed.verdict == "depends"
    assert mixed.effect == pytest.approx(-1)  # the least family
    assert "lstm -1.000" in mixed.cause
    assert judge_parting({f: arm(f, [3, 1], [4, 5], seeds=1) for f in FAMILIES}, 43).verdict == "open"


def test_diversity_is_judged_by_distinct_2_of_the_fewest_and_the_most_stories():
    less = {16: {f: samples(0.4, 0.2) for f in FAMILIES}, 64: {f: samples(0.9, 0.5) for f in FAMILIES},
            512: {f: samples(0.6, 0.9, spread=0.005) for f in FAMILIES}}  # fmt: skip
    found = judge_diversity(less)
    assert found.verdict == "holds"
    assert found.effect == pytest.approx(-0.2)
    assert "people 0.70" in found.cause
    assert "kgram 0.20 and 0.90" in found.cause
    reverse = {16: less[512], 512: less[16]}
    assert judge_diversity(reverse).verdict == "fails"
    assert judge_diversity({16: less[16] | {"lstm": samples(0.8, 0.2)}, 512: less[512]}).verdict == "depends"


@pytest.mark.parametrize("family", FAMILIES)
def test_changes_change_one_thing(family):
    base = run_config(FAMILIES[family], learning_rate=0.01)
    changed = changed_configs(base)
    assert len(changed) == (5 if family == "kgram" else 3)
    for name, config in changed.items():
        one, other = ({**c.model.to_dict(), **c.train.to_dict()} for c in (base, config))
        differ = {key for key in one if one[key] != other[key]}
        expected = {
            "width × 2": {"n_embd", "learning_rate"},
            "dropout 0.3": {"dropout"},
            "weight decay 1": {"weight_decay"},
        }
        assert differ == expected.get(name, {"k"})
        assert config.data == base.data
    wide = changed["width × 2"].train.learning_rate
    assert wide == pytest.approx(0.01 / (math.sqrt(2) if family == "transformer" else 2))


def test_the_claims_come_from_runs_of_the_plan_and_one_seed_leaves_them_open(tmp_path):
    lab = Lab(get_profile("quick"))
    lab.store = ResultStore(tmp_path)
    plan = make_plan(lab)
    short = {"max_steps": 6, "eval_every": 3, "limit": 300}
    tiny = Plan(
        seeds=(0,),
        rates=plan.rates,
        stories_run={**plan.stories_run, **short},
        lines_run={**plan.lines_run, **short, "epochs": 1.0},
        lines=(20,),
        stories=(4, 40),
        watch=plan.watch.replace(held_out=2, budget=60, sample_length=30),
        watch_lines=plan.watch_lines.replace(held_out=3),
    )
    found = claims_overfitting(lab, tiny)
    assert [v.id for v in found] == ["overfitting-43-sequences", "overfitted-text-lacks-diversity"]
    assert {v.verdict for v in found} == {"open"}
    assert all((lab.store.folder / run).is_file() for v in found for run in v.runs)
    assert make_plan(Lab(get_profile("standard"))).seeds == (0, 1, 2, 3, 4)
