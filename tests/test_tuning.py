"""Learning rates come from one grid, tried for the same number of updates by every family."""

import pytest

from picollm_core.lab import Lab
from picollm_core.profiles import get_profile
from picollm_core.tuning import RATES, tried_rates, tune

FAMILIES, SIZES = ("kgram", "lstm", "transformer"), ("pico", "tiny", "small")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_model_searches_neighbouring_values_of_the_one_grid(family, size):
    rates, _ = tried_rates(Lab(get_profile("standard")), family, size)
    start = RATES.index(rates[0])
    assert rates == RATES[start : start + len(rates)]
    assert len(rates) >= 2


def test_all_families_are_tried_for_equally_many_updates():
    lab = Lab(get_profile("standard"))
    assert all(len({tried_rates(lab, family, size)[1] for family in FAMILIES}) == 1 for size in SIZES)


def test_tune_gives_a_loss_for_each_rate_and_passes_settings_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lab = Lab(get_profile("quick"))
    losses = tune(lab, "kgram", "pico", n_embd=8, n_stories=200, block_size=32, batch_size=2, eval_stories=4)
    assert set(losses) == set(tried_rates(lab, "kgram", "pico")[0])
    assert all(0 < loss < 9 for loss in losses.values())
    assert len(set(losses.values())) == len(losses)


def test_a_span_without_a_rate_of_the_grid_is_refused():
    with pytest.raises(ValueError, match="no learning rate between 2 and 3 is on the grid of lstm-tiny"):
        tune(Lab(get_profile("quick")), "lstm", "tiny", span=(2, 3))


@pytest.mark.parametrize(("family", "size", "said"), [("mamba", "pico", "'mamba'"), ("lstm", "base", "size 'base'")])
def test_what_has_no_entry_is_refused_by_name(family, size, said):
    with pytest.raises(ValueError, match=said):
        tried_rates(Lab(get_profile("quick")), family, size)
