"""Finding and loading trained models on disk, together with their tokenizers."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import safetensors
import tiktoken
from safetensors import SafetensorError

from picollm_core.config import require
from picollm_core.figure_style import FAMILY_LABELS
from picollm_core.models import LanguageModel
from picollm_core.models.saving import CONFIG_FILE, WEIGHTS_FILE
from picollm_core.runs import CONFIG_FILE as RUN_FILE
from picollm_core.runs import MODEL_DIR, RUNS_DIR, SUMMARY_FILE, is_complete, read_json, write_json
from picollm_core.tokenizers import load_tokenizer

SHIPPED_DIR = Path("artefacts/models")
TOKENIZER_FILE = "tokenizer.json"
MODEL_CARD = "README.md"


@dataclass(frozen=True)
class SavedModel:
    """A trained model on disk: the folder that `load_model` reads, and a line that tells it from the others."""

    path: Path
    label: str


def save_model(model: LanguageModel, tokenizer_name: str, folder: Path) -> None:
    """Write weights, configuration and the tokenizer's name to a folder that `load_model` reads."""
    model.save_pretrained(folder)
    write_json(folder / TOKENIZER_FILE, {"tokenizer": tokenizer_name})


def load_model(path: str | Path) -> tuple[LanguageModel, tiktoken.Encoding]:
    """The trained model and its tokenizer from a run's folder or a saved model's, in evaluation mode.

    Raises ValueError when there is no model, no tokenizer beside it, or the two differ in vocabulary.
    """
    path = Path(path)
    require(path.is_dir(), f"{path} is not a folder; name a run or a saved model, or train one with `picollm train`")
    folder = path / MODEL_DIR if (path / MODEL_DIR).is_dir() else path
    model = LanguageModel.from_pretrained(folder)
    require(
        (folder / TOKENIZER_FILE).is_file(),
        f"{folder} has no {TOKENIZER_FILE}, so its tokenizer is unknown; save models with save_model()",
    )
    name = read_json(folder / TOKENIZER_FILE).get("tokenizer")
    tokenizer = load_tokenizer(name)
    require(
        tokenizer.n_vocab == model.config.vocab_size,
        f"{folder} has vocab_size={model.config.vocab_size}, but its tokenizer {name!r} has {tokenizer.n_vocab} tokens",
    )
    return model, tokenizer


def newest_model(runs_dir: str | Path = RUNS_DIR, shipped: str | Path = SHIPPED_DIR) -> Path:
    """The folder of the run that finished last, else the shipped Transformer's. ValueError when there is neither."""
    finished = [folder for folder in Path(runs_dir).glob("*") if is_complete(folder)]
    if finished:
        return max(finished, key=lambda folder: (folder / SUMMARY_FILE).stat().st_mtime)
    model = Path(shipped) / "transformer"
    require(model.is_dir(), f"no finished run in {runs_dir} and no model in {shipped}; train one with `picollm train`")
    return model


def _bits_per_byte(path: Path) -> float | None:
    """What a run's summary or a model card says about the model's quality; None where neither does."""
    if (path / SUMMARY_FILE).is_file():
        return read_json(path / SUMMARY_FILE)["summary"].get("bits_per_byte")
    card = (path / MODEL_CARD).read_text(encoding="utf-8") if (path / MODEL_CARD).is_file() else ""
    found = re.search(r"bits[ _]per[ _]byte\W*(\d+\.\d+)", card)
    return float(found[1]) if found else None


def describe_model(path: str | Path) -> SavedModel:
    """A saved model or finished run with its line: family, number of weights, and bits per byte where they are known.

    Before it stands the folder's name, unless that is the family. Only headers are read, not weights, so it is quick.
    A folder that cannot be read is listed as such: loading it says what is wrong.
    """
    path = Path(path)
    folder = path / MODEL_DIR if (path / MODEL_DIR).is_dir() else path
    parts, family = [], ""
    try:
        family = read_json(folder / CONFIG_FILE)["family"]
        parts.append(FAMILY_LABELS.get(family, family))
        with safetensors.safe_open(folder / WEIGHTS_FILE, framework="np") as weights:
            count = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
        parts.append(f"{count / 1e6:.1f}M weights")
        quality = _bits_per_byte(path)
        corpora = read_json(path / RUN_FILE)["context"]["corpora"] if is_complete(path) else []
        if quality is not None:
            parts.append(" ".join([f"{quality:.3f} bits per byte", *(f"on {corpus}" for corpus in corpora)]))
    except (ValueError, KeyError, TypeError, OSError, SafetensorError):
        parts, family = parts or ["unreadable"], ""
    line = ", ".join(parts)
    return SavedModel(path, line if path.name == family else f"{path.name}: {line}")


def list_models(shipped: str | Path = SHIPPED_DIR, runs_dir: str | Path = RUNS_DIR) -> list[SavedModel]:
    """Every trained model on disk: those that ship with the project by name, then finished runs, the newest first."""
    saved = sorted(path for path in Path(shipped).glob("*") if (path / CONFIG_FILE).is_file())
    runs = [path for path in Path(runs_dir).glob("*") if is_complete(path) and (path / MODEL_DIR).is_dir()]
    runs.sort(key=lambda path: (path / SUMMARY_FILE).stat().st_mtime, reverse=True)
    return [describe_model(path) for path in (*saved, *runs)]
