"""Compiling and what it saves, measured with the real compiler where there is one."""

import math
import shutil

import pytest

from picollm_core.compile_study import compile_costs, compile_table
from picollm_core.lab import Lab
from picollm_core.presets import run_config
from picollm_core.profiles import PROFILES

TINY = run_config("kgram-pico", tokenizer="stories-4k", n_embd=8, block_size=8, batch_size=2)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a processor")
def test_compiling_takes_far_longer_than_an_update_and_both_ways_are_timed():
    costs = compile_costs(TINY, updates=4)
    assert costs["compiling"] > costs["compiled"] > 0
    assert costs["plain"] > 0


def test_the_break_even_is_compiling_over_what_an_update_saves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lab = Lab(PROFILES["quick"])
    found = iter(
        [{"compiling": 20.0, "compiled": 0.25, "plain": 0.5}, {"compiling": 20.0, "compiled": 0.5, "plain": 0.25}]
    )
    monkeypatch.setattr("picollm_core.compile_study.compile_costs", lambda config, updates: next(found))
    other = run_config(TINY, batch_size=3)
    table = compile_table(lab, {"pays": TINY, "never": other})
    assert table["break_even"].tolist() == [80, math.inf]
    assert table["gain"].tolist() == pytest.approx([2, 0.5])
    again = compile_table(lab, {"pays": TINY, "never": other})  # recorded: nothing is left to measure
    assert again.equals(table)


def test_too_few_updates_and_no_configurations_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="updates is 2"):
        compile_costs(TINY, updates=2)
    with pytest.raises(ValueError, match="configs is empty"):
        compile_table(Lab(PROFILES["quick"]), {})
