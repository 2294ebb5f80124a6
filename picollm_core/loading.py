"""Finding and loading trained models on disk, together with their tokenizers."""

from pathlib import Path

import tiktoken

from picollm_core.config import require
from picollm_core.models import LanguageModel
from picollm_core.runs import MODEL_DIR, RUNS_DIR, is_complete, read_json, write_json
from picollm_core.tokenizers import load_tokenizer

TOKENIZER_FILE = "tokenizer.json"


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


def newest_model(runs_dir: str | Path = RUNS_DIR) -> Path:
    """The folder of the run that finished last. ValueError when none has."""
    finished = [folder for folder in Path(runs_dir).glob("*") if is_complete(folder)]
    require(bool(finished), f"no finished run in {runs_dir}; train one with `picollm train`")
    return max(finished, key=lambda folder: (folder / "summary.json").stat().st_mtime)
