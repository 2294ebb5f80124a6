"""The small trained models that come with the project: how each was made, its files, its card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData

from picollm_core.config import KGramConfig, LSTMConfig, ModelConfig, RunConfig, TransformerConfig, require
from picollm_core.evaluate import Evaluation, evaluate
from picollm_core.loading import SHIPPED_DIR, load_model, save_model
from picollm_core.presets import run_config
from picollm_core.runs import Run
from picollm_core.train import load_data, train, validation_texts

MAX_DRIFT = 0.001
"""Most bits per byte that half precision may cost; a model that loses more is stored in float32."""

_COMMON: dict[str, Any] = {
    "corpus": "tinystories",
    "tokenizer": "stories-4k",
    "prompt": "Once upon a time, there was a very intelligent",
    "eval_every": 500,
    "checkpoint_every": 500,
}
_MODELS: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "kgram": (
        KGramConfig(n_embd=256, n_layer=2, k=5),
        {"max_steps": 2_000, "learning_rate": 0.006},
    ),
    "lstm": (
        LSTMConfig(n_embd=320),
        {"max_steps": 1_600, "learning_rate": 0.025},
    ),
    "transformer": (
        TransformerConfig(
            n_embd=256,
            n_layer=3,
            n_head=4,
            position="rope",
            qk_norm=True,
            activation="relu2",
        ),
        {"max_steps": 5_000, "optimizer": "muon", "learning_rate": 0.01, "schedule": "linear", "warmup_ratio": 0.05},
    ),
}


def shipped_config(family: str, **changes: Any) -> RunConfig:
    """The run that makes the shipped model of a family. ValueError that names the families."""
    require(family in _MODELS, f"no shipped model is called {family!r}; choose one of {', '.join(_MODELS)}")
    model, settings = _MODELS[family]
    return run_config(model, **(_COMMON | settings | changes))


def ship(family: str, folder: Path = SHIPPED_DIR, **changes: Any) -> Evaluation:
    """Train a shipped model, or take its finished run, and write it to `folder`/family with its card.

    The weights are stored in float16 if that moves the bits per byte by no more than MAX_DRIFT. The figures of the
    card, which are returned, are those of the stored file read back. `changes` are those of `run_config`.
    """
    run = train(shipped_config(family, **changes))
    corpora, tokenizer = load_data(run.config.data), run.load_tokenizer()
    texts, target = validation_texts(corpora), folder / family
    for precision in (torch.float16, torch.float32):
        save_model(run.load_model().to(precision), run.config.data.tokenizer, target)
        result = evaluate(load_model(target)[0], tokenizer, texts)
        if result.bits_per_byte - run.summary["bits_per_byte"] <= MAX_DRIFT:
            break
    stories = ", ".join(f"{corpus.count('train'):,} training stories of {corpus.name}" for corpus in corpora)
    (target / "README.md").write_text(model_card(family, run, result, stories, precision), encoding="utf-8")
    return result


def card(metadata: ModelCardData, title: str, about: str, rows: Mapping[str, str]) -> str:
    """What stands beside weights that ship: Markdown under the metadata block that the Hugging Face hub reads."""
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"---\n{metadata.to_yaml()}\n---\n\n# {title}\n\n{about}\n\n| what | value |\n|---|---|\n{table}\n"


def model_card(family: str, run: Run, result: Evaluation, stories: str, precision: torch.dtype) -> str:
    """The card of a shipped model, Markdown under the metadata block that the Hugging Face hub reads."""
    summary, (low, high) = run.summary, result.bits_per_byte_interval
    metadata = ModelCardData(
        model_name=f"picollm {family}",
        language="en",
        license="mit",
        datasets=["roneneldan/TinyStories"],
        tags=["picollm", run.family],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type="roneneldan/TinyStories",
                dataset_name="TinyStories, held-out stories",
                metric_type="bits_per_byte",
                metric_value=round(result.bits_per_byte, 4),
            )
        ],
    )
    rows = {
        "family": run.family,
        "weights": f"{summary['parameters']:,}, stored in {str(precision).removeprefix('torch.')}",
        "tokenizer": f"{run.config.data.tokenizer} ({run.config.model.vocab_size:,} tokens)",
        "text": f"{stories}, content hash {', '.join(run.context['corpus_hashes'])} (CDLA-Sharing-1.0)",
        "training": f"{summary['steps']:,} updates, {summary['tokens_seen'] / 1e6:.1f} million tokens, "
        f"{summary['train_seconds'] / 60:.0f} minutes on {summary['device']}",
        "bits per byte": f"{result.bits_per_byte:.4f} (95% bootstrap over stories: {low:.3f} to {high:.3f})",
        "perplexity": f"{result.perplexity:.2f} per token, {result.accuracy:.1%} of tokens guessed right",
        "held-out text": f"{result.n_stories:,} stories, {result.n_bytes:,} bytes, none of them in the training text",
        "made by": f"`picollm ship {family}`, run {run.fingerprint}",
    }
    about = (
        "A very small model of children's stories, made to be studied. It writes plain English of that kind and knows "
        "nothing else; what it says about the world is made up."
    )
    return (
        f"{card(metadata, f'The {family} model of picollm', about, rows)}\n"
        f'```sh\npicollm generate "Once upon a time" --model artefacts/models/{family}\n```\n\n'
        f"One sample, greedy:\n\n> {' '.join(run.samples['greedy'].split())}\n"
    )
