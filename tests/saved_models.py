"""Tiny models on disk, with the shipped vocabulary."""

import dataclasses
from pathlib import Path

import torch

from picollm_core.config import DataConfig, ModelConfig
from picollm_core.interpret.subjects import Subject, saved_subject
from picollm_core.loading import save_model
from picollm_core.models import build_model
from picollm_core.trainer import seeded

DECIDED = 20.0
"""Times the head's weights: untrained models are undecided, and sliders and edits need something to act on."""


def save_families(folder: Path, n_embd: int, block_size: int, scale: float = 1.0) -> Path:
    """`folder`, with a model of each family in a folder of its name."""
    torch.manual_seed(0)
    for family in ("kgram", "lstm", "transformer"):
        model = build_model(f"{family}-pico", vocab_size=4096, n_embd=n_embd, block_size=block_size)
        model.head.weight.data.mul_(scale)
        save_model(model, "stories-4k", folder / family)
    return folder


def save_subject(folder: Path, config: ModelConfig, scale: float = 1.0) -> Subject:
    """A model in a folder that reads storyworld."""
    with seeded(5):
        model = build_model(config)
    model.head.weight.data.mul_(scale)
    save_model(model, "stories-4k", folder)
    return saved_subject(folder, DataConfig(corpus=("storyworld",), n_stories=120, splits=(50, 50, 0)), config.family)


def lost(subject: Subject) -> Subject:
    """The same subject on a machine that has neither its weights nor its text."""

    def load():
        raise AssertionError("loaded")

    return dataclasses.replace(subject, load=load)
