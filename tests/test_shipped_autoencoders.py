"""The shipped autoencoders fit their models, say how they were made, and can be made again."""

import shutil
from pathlib import Path

import pytest
import torch

from picollm_core import cli, shipped_autoencoders
from picollm_core.config import DataConfig
from picollm_core.interpret.hooks import activations
from picollm_core.interpret.sae import SparseAutoencoder, list_autoencoders
from picollm_core.interpret.sae_study import Reading, Recipe
from picollm_core.loading import load_model
from picollm_core.shipped_autoencoders import RECIPES, ship_autoencoder

SHIPPED = Path(__file__).parents[1] / "artefacts" / "models"


@pytest.mark.parametrize("family", RECIPES)
def test_every_shipped_model_has_an_autoencoder_that_explains_it(family):
    (folder,) = list_autoencoders(SHIPPED / family)
    sae, (model, tokenizer) = SparseAutoencoder.from_pretrained(folder), load_model(SHIPPED / family)
    sae.require_fits(model, RECIPES[family].site)
    assert sae.dict_size == 8 * sae.activation_dim
    text = "Once upon a time, there was a little girl named Lily. She loved to play with her red ball in the park."
    x = activations(model, torch.tensor([[tokenizer.eot_token, *tokenizer.encode(text)]]), [sae.site])[sae.site][0, 1:]
    z = sae.encode(x)
    assert 1 < (z > 0).sum(-1).float().mean() <= 32
    assert (x - sae.decode(z)).square().sum() < 0.35 * (x - x.mean(0)).square().sum()
    assert f"`picollm ship {family} --autoencoders`" in (folder / "README.md").read_text(encoding="utf-8")
    assert max(file.stat().st_size for file in folder.iterdir()) < 9_000_000


def test_an_autoencoder_is_made_beside_its_model_and_measured_as_stored(tmp_path, monkeypatch):
    shutil.copytree(SHIPPED / "kgram", tmp_path / "kgram", ignore=shutil.ignore_patterns("autoencoders"))
    monkeypatch.setitem(RECIPES, "kgram", Recipe("hidden", level=4, expansion=1, n_tokens=4_096))
    monkeypatch.setattr(shipped_autoencoders, "READING", Reading(3, 64))
    text = DataConfig(corpus=("storyworld",), n_stories=300)
    found = ship_autoencoder("kgram", tmp_path, text, tmp_path / "runs")
    (folder,) = list_autoencoders(tmp_path / "kgram")
    assert folder.name == "hidden"
    assert f"| variance left unexplained (FVU) | {found.fvu:.3f} |" in (folder / "README.md").read_text()
    assert found.l0 <= 4
    assert ship_autoencoder("kgram", tmp_path, text, tmp_path / "runs").fvu == found.fvu


def test_a_family_without_one_is_refused(capsys):
    with pytest.raises(ValueError, match="no autoencoder is made for 'gpt5'; choose one of kgram, lstm, transformer"):
        ship_autoencoder("gpt5")
    with pytest.raises(SystemExit) as stop:
        cli.main(["ship", "gpt5", "--autoencoders"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
