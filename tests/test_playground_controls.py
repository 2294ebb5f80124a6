"""Sliders stand where they were set, inside their ranges, and give back the sampling that they show."""

import pytest

from picollm_core.config import SamplingConfig
from picollm_core.playground_controls import RANGES, SAMPLING, sampling_of, sampling_sliders, slider


def test_sliders_give_back_the_sampling_they_were_set_to():
    for sampling in (SamplingConfig(), SamplingConfig(0.5, 0.9, 40, 0.1, 1.25), SamplingConfig(temperature=0)):
        assert sampling_of(sampling_sliders(sampling)) == sampling


@pytest.mark.parametrize("name", SAMPLING)
@pytest.mark.parametrize("end", [0, 1])
def test_sampling_is_valid_at_both_ends_of_every_slider(name, end):
    sliders = sampling_sliders(SamplingConfig())
    sliders[name].value = RANGES[name][end]
    assert sampling_of(sliders)


def test_top_k_at_zero_is_off():
    sliders = sampling_sliders(SamplingConfig(top_k=5))
    sliders["top_k"].value = 0
    assert sampling_of(sliders).top_k is None


@pytest.mark.parametrize(("name", "value"), [("length", 0), ("seed", 100), ("temperature", 2.5), ("top_p", 0)])
def test_a_start_outside_the_range_is_refused_with_the_range(name, value):
    with pytest.raises(ValueError, match=rf"{name} is {value}; the playground's slider goes from"):
        slider(name, value)


def test_every_slider_has_a_label():
    assert all(slider(name, RANGES[name][0]).description for name in RANGES)
