"""Linked words of shipped models: measured once, redrawn without weights, and closer than the same words shuffled."""

from dataclasses import replace
from pathlib import Path

import pytest

from picollm_core.config import DataConfig
from picollm_core.interpret.linked_words import linked_words
from picollm_core.interpret.subjects import saved_subject
from picollm_core.lab import Lab
from picollm_core.profiles import PROFILES
from picollm_core.results import ResultStore

SHIPPED = Path(__file__).parents[2] / "artefacts" / "models"


def not_again():
    raise AssertionError("the model was loaded a second time")


def test_shipped_models_keep_linked_words_together_and_the_record_is_redrawn(tmp_path):
    lab = Lab(PROFILES["quick"])
    lab.store = ResultStore(tmp_path)
    subjects = [saved_subject(SHIPPED / name, DataConfig(corpus=("storyworld",))) for name in ("kgram", "transformer")]
    table = linked_words(lab, subjects, n_shuffles=50)
    whole = table[table.kind == "all"].set_index("model")
    assert list(whole.index) == ["kgram", "transformer"]
    assert (whole.cosine > whole.shuffled_high).all()
    assert whole.any_two.between(-1, 1).all()
    assert table.matched.isna().all()
    again = linked_words(lab, [replace(subject, load=not_again) for subject in subjects], n_shuffles=50)
    assert again.cosine.tolist() == table.cosine.tolist()
    with pytest.raises(AssertionError, match="a second time"):
        linked_words(lab, [replace(subjects[0], load=not_again)], n_shuffles=60)
