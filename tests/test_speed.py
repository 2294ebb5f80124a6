"""The speed of a configuration is measured apart from this process."""

import pytest

from picollm_core.presets import run_config
from picollm_core.speed import training_speed


def test_speed_and_memory_are_those_of_a_process_of_its_own():
    config = run_config("kgram-pico", n_embd=8, block_size=16, batch_size=2)
    ballast = bytearray(800_000_000)  # this process's own memory must not count
    found = training_speed(config, updates=2)
    assert found["tokens_per_second"] > 0
    assert 100 < found["peak_memory_mb"] < 800 < len(ballast)


def test_at_least_one_update_is_needed():
    with pytest.raises(ValueError, match="updates is 0"):
        training_speed(run_config("kgram-pico"), updates=0)
