"""Verdicts on claims about hyperparameters follow from the numbers: turned round, they turn the verdict round."""

import pytest

from picollm_core.claims import CLAIMS
from picollm_core.contrasts import Contrast
from picollm_core.hyper_claims import (
    claims_hyperparameters,
    judge_activations,
    judge_families,
    judge_three,
    judge_widths,
    several,
)
from picollm_core.hyper_design import FAMILIES
from picollm_core.hyper_study import CONFOUNDED, Arm
from tests.hyper_values import arm, made_design

COLUMNS = ["n_embd", "n_layer", "learning_rate", "train_loss", "accuracy", "perplexity", "nll"]


def width_arms(narrow=4.3, base=4.2, wide=4.1, seeds=5):
    return {
        family: [arm(family, "base", base, seeds), arm(family, "width 16", narrow, seeds, n_embd=16),
                 arm(family, "width 64", wide, seeds, n_embd=64)]
        for family in FAMILIES
    }  # fmt: skip


def around(mean: float, half: float = 0.01) -> Contrast:
    return Contrast(mean, mean - half, mean + half, 5, 0.01)


def test_a_claim_about_several_places_holds_in_all_fails_in_none_or_depends():
    assert several([around(-0.1), around(-0.2)], "below") == "holds"
    assert several([around(-0.1), around(0.2)], "below") == "depends"
    assert several([around(0.0, 0.5), around(0.2)], "below") == "fails"
    assert several([around(-0.1), around(0.0)], "below") == "open"
    assert several([around(0.0, 0.004), around(0.001, 0.004)], "below") == "fails"  # none by the margin of 0.01
    assert several([around(0.0, 0.004), around(0.001, 0.04)], "below") == "open"


def test_wider_is_better_only_where_every_doubling_is():
    assert judge_widths(width_arms()).verdict == "holds"
    assert judge_widths(width_arms(wide=4.4)).verdict == "depends"
    assert judge_widths(width_arms(narrow=4.0, wide=4.4)).verdict == "fails"
    judged = judge_widths(width_arms())
    assert judged.effect == pytest.approx(-0.1, abs=0.01)
    assert not any(name.startswith("lstm") for name in judged.runs)  # the claim is about the two others
    alone = judge_widths(width_arms(seeds=1))
    assert (alone.verdict, alone.interval) == ("open", None)


def grid(family: str, gelu: float, relu: float, seeds: int = 5) -> dict[tuple[int, str], Arm]:
    losses = {"gelu": gelu, "relu": relu, "silu": 4.0}
    return {
        (width, name): arm(family, f"{name} {width}", loss, seeds, activation=name, n_embd=width)
        for width in (32, 64)
        for name, loss in losses.items()
    }


def test_gelu_and_relu_are_compared_by_width_and_family():
    both = {family: grid(family, 4.0, 4.1) for family in ("kgram", "transformer")}
    assert judge_activations(both).verdict == "holds"
    assert judge_activations(both | {"kgram": grid("kgram", 4.1, 4.0)}).verdict == "depends"
    found = judge_activations({family: grid(family, 4.1, 4.0) for family in ("kgram", "transformer")})
    assert found.verdict == "fails"
    assert found.effect == pytest.approx(0.1, abs=0.01)
    assert "k-gram MLP 64" in found.cause


def test_the_transformer_is_best_only_if_it_beats_both_others_in_both_measures():
    arms = {"kgram": [arm("kgram", "base", 4.2)], "lstm": [arm("lstm", "base", 4.3)]}
    best = arms | {"transformer": [arm("transformer", "base", 4.0, accuracy=0.4)]}
    assert judge_families(best).verdict == "holds"
    assert judge_families(best).effect == pytest.approx(-0.2, abs=0.01)  # against the better of the two
    split = arms | {"transformer": [arm("transformer", "base", 4.25, accuracy=0.31)]}
    assert judge_families(split).verdict == "depends"
    assert judge_families(arms | {"transformer": [arm("transformer", "base", 4.5, accuracy=0.2)]}).verdict == "fails"


def three(**losses) -> dict[str, Arm]:
    return {
        name: Arm("lstm", change, 0.1, {}, arm("lstm", name, losses.get(name.replace(" ", "_"), 4.0)).runs)
        for name, change in CONFOUNDED.items()
    }


def test_three_configurations_rank_their_choices_only_if_each_alone_goes_the_same_way():
    agreeing = {"width_64": 3.8, "block_128": 3.9, "twice_the_rate": 3.7, "large": 3.5, "small": 4.5}
    assert judge_three(three(**agreeing)).verdict == "holds"
    mixed = judge_three(three(**(agreeing | {"block_128": 4.4})))
    assert mixed.verdict == "depends"
    assert "against the ranking: block size." in mixed.cause
    assert mixed.effect == pytest.approx(-1.0, abs=0.02)


def test_all_eight_claims_are_judged_once_and_trace_to_their_runs():
    grids = {family: grid(family, 4.0, 4.1) for family in ("kgram", "transformer")}
    found = claims_hyperparameters(width_arms(), grids, three(), *made_design(), COLUMNS)
    assert len({each.id for each in found}) == len(found) == 8
    assert all(each.id in CLAIMS and each.runs and each.contrast for each in found)
