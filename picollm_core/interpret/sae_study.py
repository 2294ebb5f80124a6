"""Autoencoders on several models: trained once and kept, measured beside their controls, row by row.

Every row is one measurement of the lab, so that a study that was interrupted goes on where it stopped and a notebook
is redrawn without weights or texts. L0 is the number of features that are not zero, a token.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import tiktoken
import torch

from picollm_core.config import DataConfig, require
from picollm_core.config_base import Config
from picollm_core.interpret.baselines import Basis, neuron_basis, pca_basis
from picollm_core.interpret.concepts import ConceptData
from picollm_core.interpret.feature_scores import CONCEPT_COLUMNS, concept_scores, feature_codes
from picollm_core.interpret.hooks import site_width
from picollm_core.interpret.sae import SparseAutoencoder
from picollm_core.interpret.sae_metrics import measure_dictionary
from picollm_core.interpret.sae_training import EXPANSION, stream_activations, train_sae
from picollm_core.interpret.sparsity import ACTIVATION_KINDS, BatchTopK, JumpReLU, ReLU, SparseActivation, TopK
from picollm_core.interpret.subjects import Subject
from picollm_core.lab import Lab
from picollm_core.models import LanguageModel
from picollm_core.models.saving import CONFIG_FILE
from picollm_core.runs import RUNS_DIR, read_json, write_json

AUTOENCODERS_DIR = RUNS_DIR / "autoencoders"
TRAINING_FILE = "training.json"
BASIS_TOKENS, BASIS_BATCH = 20_000, 1_000
"""Tokens of training text that a basis is made from, and how many are drawn at a time: 16 such draws are mixed."""
MIN_STORIES = 20

BasisKind = Literal["neurons", "pca"]


@dataclass(frozen=True)
class Recipe(Config):
    """How an autoencoder is made. `level` is the k of topk and batchtopk, the target of jumprelu, the price of relu."""

    site: str
    kind: str = "topk"
    level: float = 32.0
    expansion: int = EXPANSION
    n_tokens: int = 1_000_000
    seed: int = 0

    def validate(self) -> None:
        require(
            self.kind in ACTIVATION_KINDS, f"kind {self.kind!r} is unknown; choose of {', '.join(ACTIVATION_KINDS)}"
        )

    def activation(self) -> SparseActivation:
        """A new activation of this kind and level."""
        if self.kind == "relu":
            return ReLU(self.level)
        if self.kind == "jumprelu":
            return JumpReLU(self.level)
        return (TopK if self.kind == "topk" else BatchTopK)(round(self.level))


@dataclass(frozen=True)
class BasisRecipe(Config):
    """A basis of the site in place of an autoencoder: its neurons or principal components, k of them a token.

    With `fixed` the first k components serve every token, else each token has its own k.
    """

    site: str
    basis: BasisKind = "neurons"
    k: int = 32
    fixed: bool = False


@dataclass(frozen=True)
class Reading(Config):
    """Which held-out stories figures come from: how many, `length` tokens of each, of the subject's text or another."""

    stories: int
    length: int = 256
    text: DataConfig | None = None

    def of(self, subject: Subject, tokenizer: tiktoken.Encoding) -> ConceptData:
        """The stories with their concepts."""
        return subject.stories(tokenizer, self.stories, self.length, self.text)


def _fit(subject: Subject, recipe: Recipe, model: LanguageModel, tokenizer: tiktoken.Encoding, folder: Path) -> None:
    """Train an autoencoder and leave it in `folder`, with the seconds that it took."""
    started = time.perf_counter()
    sae, history = train_sae(
        model,
        recipe.site,
        subject.windows(model, tokenizer, recipe.seed),
        n_tokens=recipe.n_tokens,
        dict_size=recipe.expansion * site_width(model, recipe.site),
        activation=recipe.activation(),
        seed=recipe.seed,
        progress=False,
    )
    seconds = round(time.perf_counter() - started, 1)
    write_json(folder / TRAINING_FILE, {"seconds": seconds, "history": history.to_dict("list")})
    sae.save_pretrained(folder)


def autoencoder(
    subject: Subject, recipe: Recipe, runs_dir: Path = AUTOENCODERS_DIR
) -> tuple[LanguageModel, tiktoken.Encoding, SparseAutoencoder, float]:
    """The subject's model, its tokenizer, the autoencoder of this recipe, trained now or before, and its seconds."""
    name = hashlib.sha256(f"{subject.identity} {recipe.fingerprint()}".encode()).hexdigest()[:16]
    folder, (model, tokenizer) = runs_dir / name, subject.load()
    if not (folder / CONFIG_FILE).is_file():
        _fit(subject, recipe, model, tokenizer, folder)
    seconds = read_json(folder / TRAINING_FILE)["seconds"]
    return model, tokenizer, SparseAutoencoder.from_pretrained(folder), seconds


def basis(subject: Subject, recipe: BasisRecipe, model: LanguageModel, tokenizer: tiktoken.Encoding) -> Basis:
    """The basis of this recipe, from what passes at the site on training text."""
    stream = stream_activations(
        model, recipe.site, subject.windows(model, tokenizer, 0), BASIS_BATCH, torch.Generator().manual_seed(0)
    )
    x = torch.cat([next(stream) for _ in range(BASIS_TOKENS // BASIS_BATCH)]).float()
    if recipe.basis == "neurons":
        return neuron_basis(x.mean(0), recipe.k, recipe.site)
    return pca_basis(x, recipe.k, recipe.site, count=recipe.k if recipe.fixed else None)


def dictionary_of(
    subject: Subject, recipe: Recipe | BasisRecipe
) -> tuple[LanguageModel, tiktoken.Encoding, SparseAutoencoder | Basis, float]:
    """Model, tokenizer, dictionary and the seconds its training took (0 for a basis)."""
    if isinstance(recipe, Recipe):
        return autoencoder(subject, recipe)
    model, tokenizer = subject.load()
    return model, tokenizer, basis(subject, recipe, model, tokenizer), 0.0


def json_rows(table: pd.DataFrame, digits: int) -> list[dict[str, Any]]:
    """The rows of a table as JSON values, rounded; None where there is no number."""
    table = table.round(digits)
    return table.astype(object).where(table.notna(), None).to_dict("records")


def table_of(rows: Sequence[dict[str, Any]], columns: Iterable[str] | None = None) -> pd.DataFrame:
    """The table that `json_rows` was given; `columns` are its columns also where there is no row."""
    table = pd.DataFrame(rows, columns=None if columns is None else list(columns))
    return table.fillna(math.nan).infer_objects()


def quality_rows(lab: Lab, arms: Iterable[tuple[Subject, Recipe | BasisRecipe]], reading: Reading) -> pd.DataFrame:
    """One row an arm: subject, kind, level, seed, seconds, and the figures of sae_metrics.Quality on held-out text."""

    def figures(subject: Subject, recipe: Recipe | BasisRecipe) -> dict[str, Any]:
        model, tokenizer, dictionary, seconds = dictionary_of(subject, recipe)
        data = reading.of(subject, tokenizer)
        found = measure_dictionary(model, dictionary, data.idx, data.mask)
        return found.to_dict() | {"seconds": seconds, "dict_size": dictionary.dict_size}

    rows = []
    for subject, recipe in arms:
        found = _measured(lab, "dictionary quality", figures, subject, recipe, reading)
        rows.append({"subject": subject.name, "site": recipe.site, **describe(recipe), **found})
    return table_of(rows)


def concept_rows(lab: Lab, arms: Iterable[tuple[Subject, Recipe | BasisRecipe]], reading: Reading) -> pd.DataFrame:
    """One row an arm and concept: the best single feature with what feature_scores.concept_scores says of it.

    Concepts are those that at least MIN_STORIES of the stories have.
    """

    def scores(subject: Subject, recipe: Recipe | BasisRecipe) -> list[dict[str, Any]]:
        model, tokenizer, dictionary, _ = dictionary_of(subject, recipe)
        data = reading.of(subject, tokenizer).common(MIN_STORIES)
        z = feature_codes(model, dictionary, data)
        signed = isinstance(dictionary, Basis)
        table = concept_scores(z, data.flat_labels, data.groups, data.names, signed=signed, n_bootstrap=400)
        return json_rows(table, 4)

    tables = []
    for subject, recipe in arms:
        found = table_of(_measured(lab, "concept scores", scores, subject, recipe, reading), CONCEPT_COLUMNS)
        tables.append(found.assign(subject=subject.name, site=recipe.site, **describe(recipe)))
    return pd.concat(tables, ignore_index=True)


def describe(recipe: Recipe | BasisRecipe) -> dict[str, Any]:
    """The columns that name a recipe in a table."""
    if isinstance(recipe, Recipe):
        return {"kind": recipe.kind, "level": recipe.level, "seed": recipe.seed}
    return {"kind": recipe.basis, "level": float(recipe.k), "seed": 0}


def _measured(
    lab: Lab,
    name: str,
    compute: Callable[[Subject, Recipe | BasisRecipe], Any],
    subject: Subject,
    recipe: Recipe | BasisRecipe,
    reading: Reading,
) -> Any:
    key = {"recipe": recipe.fingerprint(), "kind": type(recipe).__name__, "reading": reading.fingerprint()}
    return lab.measure(name, partial(compute, subject, recipe), **subject.identity, **key)
