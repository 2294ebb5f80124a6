"""The autoencoders beside the shipped models, for the feature browser: how each was made, its files, its card."""

from pathlib import Path

import torch
from huggingface_hub import ModelCardData

from picollm_core.config import DataConfig, require
from picollm_core.interpret.sae import FOLDER, SparseAutoencoder
from picollm_core.interpret.sae_metrics import Quality, measure_dictionary
from picollm_core.interpret.sae_study import AUTOENCODERS_DIR, Reading, Recipe, autoencoder
from picollm_core.interpret.subjects import saved_subject
from picollm_core.loading import SHIPPED_DIR
from picollm_core.runs import safe_name
from picollm_core.shipped import card

TEXT = DataConfig(corpus=("tinystories",))
READING = Reading(stories=400, length=256)
RECIPES = {
    "kgram": Recipe("hidden", n_tokens=600_000),
    "lstm": Recipe("rnn.h.0", n_tokens=600_000),
    "transformer": Recipe("blocks.1", n_tokens=600_000),
}


def ship_autoencoder(
    family: str, folder: Path = SHIPPED_DIR, text: DataConfig = TEXT, runs_dir: Path = AUTOENCODERS_DIR
) -> Quality:
    """Train the autoencoder of a shipped model, or take it where it is trained, and write it beside the model.

    The weights are stored in float16. The figures, which the card holds too, are those of the stored file read back, on
    held-out stories. ValueError for a family without one, and where the model or its text is not at hand.
    """
    require(family in RECIPES, f"no autoencoder is made for {family!r}; choose one of {', '.join(RECIPES)}")
    subject, recipe = saved_subject(folder / family, text), RECIPES[family]
    model, tokenizer, sae, _ = autoencoder(subject, recipe, runs_dir)
    target = folder / family / FOLDER / safe_name(recipe.site)
    sae.to(torch.float16).save_pretrained(target)
    data = READING.of(subject, tokenizer)
    quality = measure_dictionary(model, SparseAutoencoder.from_pretrained(target), data.idx, data.mask)
    (target / "README.md").write_text(autoencoder_card(family, recipe, quality, sae.dict_size), encoding="utf-8")
    return quality


def autoencoder_card(family: str, recipe: Recipe, quality: Quality, dict_size: int) -> str:
    """The card of a shipped autoencoder."""
    tags = ["picollm", "sparse-autoencoder", family]
    metadata = ModelCardData(language="en", license="mit", datasets=["roneneldan/TinyStories"], tags=tags)
    rows = {
        "reads": f"`{recipe.site}` of the {family} model",
        "features": f"{dict_size:,}, {recipe.kind} {recipe.level:g}",
        "training": f"{recipe.n_tokens:,} tokens of TinyStories",
        "held-out text": f"{quality.tokens:,} tokens",
        "active features a token (L0)": f"{quality.l0:.1f}",
        "variance left unexplained (FVU)": f"{quality.fvu:.3f}",
        "cross-entropy recovered": f"{quality.recovered_mean:.3f} of the mean-ablation, {quality.added:.3f} nats lost",
        "features that never fired": f"{quality.dead:.1%}",
        "made by": f"`picollm ship {family} --autoencoders`",
    }
    about = (
        "It writes what passes at one site of the model as a sum of few of its features. Notebook 12_monosemanticity "
        "shows what they stand for, and where they don't."
    )
    return card(metadata, f"A sparse autoencoder for the {family} model of picollm", about, rows)
