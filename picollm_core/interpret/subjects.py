"""Models to look into, with the text they read: trained runs, models that ship with the project, untrained controls.

A subject is known by what determines its weights and its text, before either is loaded, so that what was measured on
it is found again on a machine that has neither.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tiktoken

from picollm_core.batches import Batches, make_batches
from picollm_core.config import DataConfig, require
from picollm_core.interpret.concepts import ConceptData, rule_concepts, storyworld_concepts
from picollm_core.interpret.untrained import untrained_model
from picollm_core.loading import load_model
from picollm_core.models import LanguageModel
from picollm_core.models.saving import WEIGHTS_FILE
from picollm_core.runs import Run
from picollm_core.storyworld import parse_story
from picollm_core.train import load_data, validation_texts

WINDOW, ROWS = 128, 8
"""Tokens of a window, and windows, that a model reads at a time while an autoencoder is trained."""

Loaded = tuple[LanguageModel, tiktoken.Encoding]


@dataclass(frozen=True)
class Subject:
    """`name` is what tables call it, `key` stands for its weights, `data` for its text; `load` gives both."""

    name: str
    key: str
    data: DataConfig
    load: Callable[[], Loaded]

    @property
    def identity(self) -> dict[str, str]:
        """What a measurement on this subject depends on."""
        return {"weights": self.key, "text": self.data.fingerprint()}

    def windows(self, model: LanguageModel, tokenizer: tiktoken.Encoding, seed: int) -> Batches:
        """Training windows in an order that `seed` decides, no longer than the model may read."""
        length = min(WINDOW, model.context_limit or WINDOW)
        return make_batches(load_data(self.data), self.data.weights, tokenizer, length, ROWS, seed)

    def stories(
        self, tokenizer: tiktoken.Encoding, count: int, length: int, text: DataConfig | None = None
    ) -> ConceptData:
        """The first `count` held-out stories of its text, or of another, `length` tokens of each, with their concepts.

        storyworld's come with their ground truth, others with what rules find.
        """
        corpora = load_data(text or self.data)
        texts = validation_texts(corpora)[:count]
        if all(corpus.name == "storyworld" for corpus in corpora):
            return storyworld_concepts((parse_story(text) for text in texts), tokenizer, length)
        return rule_concepts(texts, tokenizer, length)


def run_subject(run: Run, name: str | None = None) -> Subject:
    """The model of a training run."""

    def load() -> Loaded:
        return run.load_model(), run.load_tokenizer()

    return Subject(name or run.family, run.fingerprint, run.config.data, load)


def saved_subject(folder: str | Path, data: DataConfig, name: str | None = None) -> Subject:
    """The model in a folder. ValueError when there is none."""
    weights = Path(folder) / WEIGHTS_FILE
    require(weights.is_file(), f"{folder} holds no model: it has no {WEIGHTS_FILE}")
    key = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    return Subject(name or Path(folder).name, key, data, lambda: load_model(folder))


def untrained(subject: Subject, seed: int = 0) -> Subject:
    """A model of the same configuration with fresh weights, which reads the same text."""

    def fresh() -> Loaded:
        model, tokenizer = subject.load()
        return untrained_model(model, seed), tokenizer

    return Subject(f"{subject.name}, untrained", f"{subject.key}-untrained-{seed}", subject.data, fresh)
