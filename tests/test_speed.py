"""The speed of a configuration is measured apart from this process."""

import time

import pytest

from picollm_core import speed
from picollm_core.presets import run_config
from picollm_core.speed import core_speed, training_speed
from picollm_core.trainer import Trainer


def test_speed_and_memory_are_those_of_a_process_of_its_own():
    config = run_config("kgram-pico", n_embd=8, block_size=16, batch_size=2)
    ballast = bytearray(800_000_000)  # this process's own memory must not count
    found = training_speed(config, updates=2)
    assert found["tokens_per_second"] > 0
    assert 100 < found["peak_memory_mb"] < 800 < len(ballast)


def test_at_least_one_update_is_needed():
    with pytest.raises(ValueError, match="updates is 0"):
        training_speed(run_config("kgram-pico"), updates=0)
    with pytest.raises(ValueError, match="updates is 0"):
        core_speed(run_config("kgram-pico"), updates=0)


def test_waiting_costs_no_core_seconds(monkeypatch):
    config = run_config("kgram-pico", n_embd=8, block_size=16, batch_size=2)
    advance = Trainer.advance

    def waiting(trainer):
        time.sleep(0.2)
        return advance(trainer)

    monkeypatch.setattr(Trainer, "advance", waiting)
    by_the_clock, by_the_core = (speed._tokens_per_second(config, 3, c) for c in (time.perf_counter, time.process_time))
    assert by_the_clock < 2 * 16 / 0.2 < by_the_core


def test_core_seconds_are_measured_apart_too():
    assert core_speed(run_config("kgram-pico", n_embd=8, block_size=16, batch_size=2), updates=2) > 0
