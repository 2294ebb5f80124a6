"""`picollm export` and `picollm import`: models as folders of Hugging Face's transformers, and back."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class ExportCommand:
    """Write a trained Transformer as a folder that transformers loads with equal logits."""

    model: tyro.conf.Positional[Path]
    """A run or a saved model's folder."""
    folder: tyro.conf.Positional[Path]
    """The folder to write."""

    def run(self) -> int:
        from picollm_core.exchange import to_transformers
        from picollm_core.loading import load_model

        model, tokenizer = load_model(self.model)
        architecture = to_transformers(model, self.folder, tokenizer.name)
        print(f"{self.folder}: {architecture}, {model.num_parameters():,} parameters")
        return 0


@dataclass(frozen=True)
class ImportCommand:
    """Save a folder of transformers (gpt2, llama or gpt_oss, in safetensors) as a model of this package."""

    folder: tyro.conf.Positional[Path]
    """A folder with config.json and model.safetensors, whole or in shards."""
    model: tyro.conf.Positional[Path]
    """The folder to write, which `--model` of the other commands then takes."""
    tokenizer: str | None = None
    """gpt2 or stories-4k; left out, what the folder says. Without one, no text can be generated."""

    def run(self) -> int:
        from picollm_core.config import require
        from picollm_core.exchange import from_transformers, named_tokenizer, require_own_folder
        from picollm_core.loading import save_model
        from picollm_core.tokenizers import load_tokenizer

        require_own_folder(self.model, theirs=False)
        model = from_transformers(self.folder)
        name = self.tokenizer or named_tokenizer(self.folder)
        if name is None:
            model.save_pretrained(self.model)
        else:
            n_vocab = load_tokenizer(name).n_vocab
            require(
                n_vocab == model.config.vocab_size,
                f"{self.folder} has vocab_size={model.config.vocab_size}, but the tokenizer {name!r} has {n_vocab} "
                "tokens; name another with --tokenizer",
            )
            save_model(model, name, self.model)
        known = f"tokenizer {name}" if name else "its tokenizer is unknown, so it cannot write text"
        print(f"{self.model}: {model.num_parameters():,} parameters, {known}")
        return 0
