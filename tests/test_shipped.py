"""Models that ship: trained by one command, stored small, described by a card; those in the tree are what they say."""

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from picollm_core.loading import SHIPPED_DIR, load_model
from picollm_core.profiles import project_root
from picollm_core.sampling import generate
from picollm_core.shipped import ship, shipped_config

ROOT = project_root(Path(__file__).parent)
FAMILIES = ("kgram", "lstm", "transformer")
TINY_RUN = {
    "corpus": "storyworld",
    "n_stories": 200,
    "max_steps": 8,
    "n_embd": 24,
    "batch_size": 2,
    "block_size": 32,
    "eval_stories": 4,
    "sample_tokens": 8,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_ship_writes_a_model_in_half_precision_with_the_figures_of_the_stored_file(family):
    result = ship(family, **TINY_RUN)
    folder = SHIPPED_DIR / family
    with safe_open(folder / "model.safetensors", "pt") as stored:
        assert {stored.get_tensor(name).dtype for name in stored.keys()} == {torch.float16}  # noqa: SIM118
    model, tokenizer = load_model(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert generate(model, tokenizer, "Once", max_new_tokens=3, temperature=0.0).startswith("Once")
    card = (folder / "README.md").read_text()
    assert f"| bits per byte | {result.bits_per_byte:.4f} (95%" in card
    assert f"`picollm ship {family}`" in card
    assert re.search(r"content hash [0-9a-f]{16}", card)


def test_shipping_again_takes_the_finished_run_and_gives_the_same_file():
    ship("kgram", **TINY_RUN)
    path = SHIPPED_DIR / "kgram" / "model.safetensors"
    first, card = path.read_bytes(), (SHIPPED_DIR / "kgram" / "README.md").read_text()
    ship("kgram", **TINY_RUN)
    assert path.read_bytes() == first
    assert (SHIPPED_DIR / "kgram" / "README.md").read_text() == card


def test_an_unknown_family_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"no shipped model is called 'mamba'; choose one of kgram, lstm, transformer"):
        shipped_config("mamba")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recipe_keeps_to_four_million_weights(family):
    from picollm_core.models import build_model

    assert build_model(shipped_config(family).model).num_parameters() <= 4_000_000


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_in_the_tree_is_small_and_writes_a_story_at_once(family):
    folder = ROOT / SHIPPED_DIR / family
    assert (folder / "model.safetensors").stat().st_size <= 8_000_000
    model, tokenizer = load_model(folder)
    assert model.config == shipped_config(family).model
    text = generate(model, tokenizer, "Once upon a time", max_new_tokens=60, top_p=0.9, seed=1)
    words = re.findall(r"[a-z']+", text.lower())
    assert len(words) > 25
    assert len(set(words) & {"the", "a", "and", "was", "to", "she", "he", "they", "her", "his"}) >= 4
