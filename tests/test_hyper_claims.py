"""Verdicts on claims about hyperparameters follow from the numbers: turned round, they turn the verdict round."""

import numpy as np
import pandas as pd
import pytest

from picollm_core.analysis import comparison_table
from picollm_core.claims import CLAIMS
from picollm_core.config import RunConfig
from picollm_core.contrasts import Contrast
from picollm_core.hyper_claims import (
    claims_hyperparameters,
    judge_activations,
    judge_families,
    judge_three,
    judge_widths,
    several,
)
from picollm_core.hyper_design import BASE, FAMILIES, Change, whole_design
from picollm_core.hyper_design_claims import (
    accuracy_of_last_batch,
    judge_context_of_lstm,
    judge_correlation,
    judge_design,
    judge_residuals,
)
from picollm_core.hyper_study import CONFOUNDED, Arm
from picollm_core.presets import run_config
from picollm_core.runs import Run

NOISE = np.random.default_rng(0).normal(0, 0.002, 5)
COLUMNS = ["n_embd", "n_layer", "learning_rate", "train_loss", "accuracy", "perplexity", "nll"]


def run(family: str, name: str, seed: int, nll: float, accuracy: float = 0.3, **settings) -> Run:
    config = run_config(RunConfig(model=BASE[family]), seed=seed, learning_rate=0.1 + seed / 1e4, **settings)
    summary = {"nll": nll, "perplexity": np.exp(nll), "accuracy": accuracy, "train_loss": 4.0, "steps": 40,
               "tokens_seen": 1_000, "n_stories": 3, "n_bytes": 9}  # fmt: skip
    context = {"fingerprint": f"{family} {name} {seed}", "corpora": ["x"], "corpus_hashes": ["y"]}
    return Run(config, context, summary, {}, pd.DataFrame())


def arm(family: str, label: str, nll: float, seeds: int = 5, accuracy: float = 0.3, **settings) -> Arm:
    runs = [
        run(family, label, s, nll + NOISE[s] * (1 + len(label) % 3), accuracy + s / 1e4, **settings)
        for s in range(seeds)
    ]
    return Arm(family, None if label == "base" else Change("x", label), 0.1, {}, tuple(runs))


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


@pytest.fixture
def design() -> tuple[pd.DataFrame, list[Run]]:
    """Runs of the real design whose loss follows width and family; accuracy is the loss seen with noise."""
    generator = np.random.default_rng(1)
    runs = []
    for number, row in enumerate(whole_design(16).to_dict("records")):
        given = {
            k: v if isinstance(v, str) else int(v)
            for k, v in row.items()
            if v == v and k not in ("rate_factor", "seed")
        }
        family = given.pop("family")
        nll = 5 - 0.2 * np.log2(given["n_embd"]) + {"kgram": 0, "lstm": 0.5, "transformer": 0.1}[family]
        nll += generator.normal(0, 0.05)
        made = run(family, "design", number, nll, 0.9 - 0.13 * nll + generator.normal(0, 0.002), **given)
        made.summary["train_loss"] = nll + generator.normal(0, 0.5)
        runs.append(made)
    table = comparison_table(runs)
    return table.assign(relative_rate=whole_design(16)["rate_factor"].to_numpy()), runs


def test_all_eight_claims_are_judged_once_and_trace_to_their_runs(design):
    grids = {family: grid(family, 4.0, 4.1) for family in ("kgram", "transformer")}
    found = claims_hyperparameters(width_arms(), grids, three(), *design, COLUMNS)
    assert len({each.id for each in found}) == len(found) == 8
    assert all(each.id in CLAIMS and each.runs and each.contrast for each in found)


def test_k_fails_for_a_family_that_has_none_and_dealt_labels_show_no_effect_on_average(design):
    found = judge_context_of_lstm(*design)
    assert found.verdict == "fails"
    assert abs(found.effect) < 0.05
    low, high = found.interval
    assert low < -0.1 < 0.1 < high
    assert len(found.runs) == 16


def test_accuracy_is_the_strongest_only_if_no_other_number_may_be_as_strong(design):
    table, runs = design
    found = judge_correlation(table, runs, COLUMNS)
    assert found.verdict == "holds"
    assert found.effect < -0.9
    assert "-0.80 lies outside" in found.cause
    assert found.effect < accuracy_of_last_batch(table) < 0  # 56 tokens blur it
    stronger = table.assign(
        train_loss=table["nll"], accuracy=table["accuracy"].sample(frac=1, random_state=0).to_numpy()
    )
    assert judge_correlation(stronger, runs, COLUMNS).verdict == "fails"


def test_correlated_settings_are_a_matter_of_the_list(design):
    table, runs = design
    assert judge_design(table, runs).verdict == "depends"
    together = table.assign(
        block_size=table["n_embd"], n_layer=table["n_embd"].rank(), batch_size=table["n_embd"] + table["seed"] / 100
    )
    assert judge_design(together, runs).verdict == "holds"


def test_the_bias_of_a_family_is_that_of_a_regression_that_leaves_families_out(design):
    table, runs = design
    found = judge_residuals(table, runs)
    assert found.effect > 0.2  # LSTM runs were made 0.5 worse and the fit cannot know it
    assert found.interval[0] > 0
    assert "it is 0.00 by construction" in found.cause
    least = table.assign(nll=table["nll"] - 0.3 * (table["family"] == "lstm") + 0.6 * (table["family"] == "kgram"))
    assert judge_residuals(least, runs).verdict == "fails"
