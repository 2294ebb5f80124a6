"""Verdicts on claims about many runs at once: they follow from the table of the random design, and turn with it."""

import pytest

from picollm_core.hyper_design_claims import (
    accuracy_of_last_batch,
    judge_context_of_lstm,
    judge_correlation,
    judge_design,
    judge_residuals,
)
from tests.hyper_values import made_design

COLUMNS = ["n_embd", "n_layer", "learning_rate", "train_loss", "accuracy", "perplexity", "nll"]


@pytest.fixture
def design():
    return made_design()


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
