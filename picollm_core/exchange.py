"""Exchange with Hugging Face's transformers: folders that its classes load with equal logits, and the way back.

Written and read with json and safetensors alone; transformers itself is not needed, and nothing is unpickled.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from picollm_core.config import TransformerConfig, require
from picollm_core.exchange_configs import Layout, layout_for, layout_of
from picollm_core.exchange_weights import weights_here, weights_there
from picollm_core.models.base import LanguageModel
from picollm_core.models.saving import CONFIG_FILE, WEIGHTS_FILE
from picollm_core.models.transformer import Transformer
from picollm_core.tokenizers import load_tokenizer

INDEX_FILE = "model.safetensors.index.json"
CARD_FILE = "README.md"
OWN_KEY = "picollm"  # in config.json: what transformers has no name for, which it keeps and passes on
_BUFFERS = re.compile(r"(^|\.)(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)$")  # masks and angles in older files
_CARD = """---
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A language model of {parameters:,} parameters, written by picollm for transformers (version 5).

```python
from transformers import {architecture}

model = {architecture}.from_pretrained("path/to/this/folder")
```

{tokenizer}
"""


def to_transformers(model: LanguageModel, folder: str | Path, tokenizer: str | None = None) -> str:
    """Write `model` as a folder that transformers' class for it loads with equal logits; returns the class's name.

    GPT2LMHeadModel, LlamaForCausalLM or GptOssForCausalLM, whichever computes what the model does; `tokenizer` is the
    name of the model's tokenizer ("gpt2" or "stories-4k"), which config.json and the model card then say. Logits differ
    by rounding alone, dropout by what the class there has a setting for. The files are complete before they replace
    older ones, which a failure leaves as they were; a model card that is there is kept.

    Raises ValueError, before anything is written, when no class there computes what the model does (naming the fields
    and values), when the tokenizer has another vocabulary, and when the folder holds a model in picollm's own layout.
    """
    require(
        isinstance(model, Transformer),
        f"family={model.config.family!r} has no class in transformers; only the family 'transformer' can be exported",
    )
    assert isinstance(model, Transformer)
    layout = layout_for(model.config)
    end = None
    if tokenizer is not None:
        encoding = load_tokenizer(tokenizer)
        end = encoding.eot_token
        require(
            encoding.n_vocab == model.config.vocab_size,
            f"vocab_size={model.config.vocab_size}, but the tokenizer {tokenizer!r} has {encoding.n_vocab} tokens",
        )
    folder = Path(folder)
    require_own_folder(folder, theirs=True)
    settings = {
        "architectures": [layout.architecture],
        "model_type": layout.model_type,
        "dtype": str(model.head.weight.dtype).removeprefix("torch."),
        "vocab_size": model.config.vocab_size,
        "tie_word_embeddings": model.config.tied,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": None,
        **layout.write(model.config),
        OWN_KEY: {"config": model.config.to_dict(), "tokenizer": tokenizer},
    }
    _write(folder, settings, weights_there(model, layout.model_type), _card(model, layout, folder, tokenizer))
    return layout.architecture


def require_own_folder(folder: str | Path, theirs: bool) -> None:
    """ValueError when the config.json of `folder` is one of the other layout: transformers', or picollm's own."""
    try:
        found = json.loads(Path(folder, CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    other, owner = ("family", "picollm") if theirs else ("model_type", "transformers")
    require(
        not (isinstance(found, dict) and other in found),
        f"{folder} holds a model in the layout of {owner}, which would be overwritten; choose another folder",
    )


def _card(model: Transformer, layout: Layout, folder: Path, tokenizer: str | None) -> str:
    if tokenizer is None:
        about = "Which tokenizer it was trained with is not recorded here."
    else:
        about = f"Its token ids are those of picollm's `load_tokenizer({tokenizer!r})`."
        if tokenizer == "gpt2":
            about += ' `AutoTokenizer.from_pretrained("gpt2")` of transformers gives the same ids.'
    return _CARD.format(
        name=folder.resolve().name,
        parameters=model.num_parameters(),
        architecture=layout.architecture,
        tokenizer=about,
    )


def _write(folder: Path, settings: Mapping[str, Any], weights: dict[str, Tensor], card: str) -> None:
    """Write the three files beside the folder's own, then let them replace those."""
    staging = folder / ".saving"
    shutil.rmtree(staging, ignore_errors=True)  # of a save that was killed
    staging.mkdir(parents=True)
    try:
        safetensors.torch.save_file(weights, staging / WEIGHTS_FILE, metadata={"format": "pt"})
        (staging / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (staging / CARD_FILE).write_text(card, encoding="utf-8")
        for name in (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE):
            if name != CARD_FILE or not (folder / name).exists():
                os.replace(staging / name, folder / name)
    except SafetensorError as error:
        raise OSError(f"cannot write {folder / WEIGHTS_FILE}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def from_transformers(folder: str | Path) -> Transformer:
    """The Transformer in a folder that transformers wrote, with equal logits, in float32 and in evaluation mode.

    config.json of model_type gpt2, llama or gpt_oss beside model.safetensors, in one file or in shards. What
    `to_transformers` wrote comes back as it was, with its own order of RoPE's pairs and without biases that are zero.
    Otherwise RoPE's pairs are (i, i + D/2), and one dropout stands for all: resid_pdrop, or attention_dropout.

    Raises ValueError naming key and value for what no model of this package computes, and naming the tensors that are
    missing, unexpected or of another shape.
    """
    folder = Path(folder)
    settings = _read_settings(folder)
    try:
        layout = layout_of(settings)
        config = layout.read(settings)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE} cannot be read as a model of this package: {error}") from error
    config = _remembered(settings, layout, config) or config
    there = _read_weights(folder)
    try:
        here = weights_here(there, config.replace(bias=True), layout.model_type, _absent(settings, layout, config))
    except ValueError as error:
        raise ValueError(f"the weights in {folder} do not fit its {CONFIG_FILE}: {error}") from error
    if not config.bias and any(tensor.any() for name, tensor in here.items() if name.endswith("bias")):
        config = config.replace(bias=True)  # trained on since it left
    with torch.random.fork_rng(devices=[]):
        model = Transformer(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(here[name])
    return model.eval()


def named_tokenizer(folder: str | Path) -> str | None:
    """The tokenizer of a folder that transformers reads, as far as config.json tells; None where it does not.

    The one that `to_transformers` was given, else "gpt2" for a gpt2 model of that vocabulary.
    """
    settings = _read_settings(Path(folder))
    own = settings.get(OWN_KEY)
    name = own.get("tokenizer") if isinstance(own, dict) else None
    if isinstance(name, str):
        return name
    return "gpt2" if (settings.get("model_type"), settings.get("vocab_size", 50_257)) == ("gpt2", 50_257) else None


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    require(path.is_file(), f"{folder} is not a folder of transformers: it has no {CONFIG_FILE}")
    return _read_table(path)


def _read_table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    require(isinstance(table, dict), f"{path} holds a {type(table).__name__} where a table of settings is expected")
    return table


def _remembered(settings: Mapping[str, Any], layout: Layout, config: TransformerConfig) -> TransformerConfig | None:
    """The configuration that `to_transformers` put into config.json, if it still says what the rest of it says."""
    own = settings.get(OWN_KEY)
    try:
        fields = dict(own["config"])  # type: ignore[index]
        fields.pop("family")
        written = TransformerConfig.from_dict(fields)
        said = layout.write(written) | {"vocab_size": written.vocab_size, "tie_word_embeddings": written.tied}
        agrees = not layout.misfits(written) and layout.read(said) == config
    except (ValueError, KeyError, TypeError):
        return None
    return written if agrees else None


def _absent(settings: Mapping[str, Any], layout: Layout, config: TransformerConfig) -> list[str]:
    """Endings of the names of biases that a model of these settings does not have there."""
    if layout.model_type == "gpt2":
        return []
    attention = [f"{name}_proj.bias" for name in "qkvo"]
    mlp = [f"{name}_proj.bias" for name in ("gate", "up", "down")] if layout.model_type == "llama" else []
    absent = [] if settings.get("attention_bias", layout.model_type == "gpt_oss") else attention
    return absent if settings.get("mlp_bias", False) else absent + mlp


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder but for masks and angles. ValueError for other formats, damage and integers."""
    if (folder / WEIGHTS_FILE).is_file():
        files = [WEIGHTS_FILE]
    elif (folder / INDEX_FILE).is_file():
        index = _read_table(folder / INDEX_FILE).get("weight_map")
        files = sorted(set(map(str, index.values()))) if isinstance(index, dict) else []
        require(bool(files), f"{folder / INDEX_FILE} names no files of weights")
    else:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        reason = f", only {pickled[0]}, which is pickled and could run code when read" if pickled else ""
        raise ValueError(
            f"{folder} has no {WEIGHTS_FILE}{reason}; save it with safetensors, as transformers' save_pretrained does"
        )
    tensors: dict[str, Tensor] = {}
    for name in files:
        require(Path(name).name == name, f"{folder / INDEX_FILE} names {name!r}, which is outside the folder")
        try:
            tensors |= safetensors.torch.load_file(folder / name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{folder / name} cannot be read as weights: {error}") from error
    tensors = {name: tensor for name, tensor in tensors.items() if not _BUFFERS.search(name)}
    for name, tensor in tensors.items():
        require(tensor.is_floating_point(), f"{name} in {folder} holds {tensor.dtype}, not floating-point numbers")
    return tensors
