"""Finding and loading trained models, by folder, by name or from the Hugging Face Hub, with their tokenizers."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import safetensors
import tiktoken
from huggingface_hub import hf_hub_download
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


def _run_folders(name: str, runs_dir: Path) -> list[Path]:
    """Runs with a saved model that are called `name` or have it as their fingerprint."""
    named = {runs_dir / name, *runs_dir.glob(f"*-{name}")} if re.fullmatch(r"[\w.-]+", name) else set()
    return sorted(folder for folder in named if (folder / RUN_FILE).is_file())


def hub_name(name: str) -> bool:
    """True when `name` has the form user/model of the Hugging Face Hub."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


def _from_hub(name: str) -> Path:
    """The folder in the Hub's cache that holds the repository's model and tokenizer name, downloaded where needed."""
    try:
        files = [Path(hf_hub_download(name, file)) for file in (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE)]
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{name} is neither a folder here nor a readable hub repository: {reason}") from error
    return files[0].parent


def find_model(
    name: str | Path | None = None,
    *,
    runs_dir: str | Path = RUNS_DIR,
    shipped: str | Path = SHIPPED_DIR,
    local: bool = False,
) -> Path:
    """The folder of the model that `name` means: a folder, a shipped model, a run's name or fingerprint, or user/model.

    They are tried in this order; None means the newest run. A user/model is downloaded from the Hugging Face Hub, into
    its cache, unless `local`. Raises ValueError, naming what was looked for, when there is none, when the run has not
    ended, and when the Hub has no such model or does not answer.
    """
    if name is None:
        return newest_model(runs_dir, shipped)
    text, path = str(name), Path(name)
    if not path.is_dir() and re.fullmatch(r"[\w-]+", text) and (Path(shipped) / text / CONFIG_FILE).is_file():
        path = Path(shipped) / text
    if not path.is_dir():
        runs = _run_folders(text, Path(runs_dir))
        require(len(runs) < 2, f"{text!r} means {' and '.join(run.name for run in runs)}; name one of them in full")
        path = runs[0] if runs else path
    if path.is_dir():
        unfinished = (path / RUN_FILE).is_file() and not is_complete(path)
        require(not unfinished, f"the run in {path} has not ended; train the same configuration again to go on with it")
        return path
    if hub_name(text) and not local:
        return _from_hub(text)
    known = sorted(folder.name for folder in Path(shipped).glob("*") if (folder / CONFIG_FILE).is_file())
    raise ValueError(
        f"{text} is not a folder, nor a model in {shipped} ({', '.join(known) or 'none'}), nor a run in {runs_dir}"
        f"{'' if local else ', nor of the form user/model'}; `picollm runs` lists the runs, `picollm train` makes one"
    )


def load_model(path: str | Path) -> tuple[LanguageModel, tiktoken.Encoding]:
    """The trained model and its tokenizer, in evaluation mode, from all that `find_model` finds.

    Raises ValueError when there is no model, no tokenizer beside it, or the two differ in vocabulary.
    """
    path = find_model(path)
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
