"""Training: one loop for every family, resumable to the bit, cached by what determines the result."""

import json
import logging
import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import tiktoken
import torch
from tqdm import tqdm

from picollm_core import runs
from picollm_core.batches import make_batches
from picollm_core.checkpoints import load_checkpoint, save_checkpoint
from picollm_core.config import DataConfig, ModelConfig, RunConfig, SamplingConfig, require
from picollm_core.corpora import Corpus, load_corpus
from picollm_core.devices import device_name
from picollm_core.evaluate import Evaluation, evaluate
from picollm_core.loading import save_model
from picollm_core.models import build_model
from picollm_core.presets import run_config
from picollm_core.runs import Run
from picollm_core.sampling import encode_prompt, generate
from picollm_core.tokenizers import load_tokenizer
from picollm_core.trainer import Trainer, seeded

logger = logging.getLogger(__name__)

SAMPLERS = {
    "greedy": SamplingConfig(temperature=0.0),
    "top-p 0.95": SamplingConfig(top_p=0.95),
    "top-p 1.0": SamplingConfig(top_p=1.0),
}


def evaluation_row(result: Evaluation) -> dict[str, float | None]:
    """The history's names for what the evaluator measured."""
    return {
        "val_loss": result.nll,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "token_accuracy": result.accuracy,
    }


def load_data(config: DataConfig) -> list[Corpus]:
    """The corpora of a configuration, in its order."""
    limits = config.limit or (None,) * len(config.corpus)
    return [
        load_corpus(name, splits=config.splits, limit=limit, n_stories=config.n_stories)
        for name, limit in zip(config.corpus, limits, strict=True)
    ]


def train(
    model: str | ModelConfig | RunConfig,
    *,
    resume: bool = True,
    refresh: bool = False,
    progress: bool = True,
    runs_dir: str | Path = runs.RUNS_DIR,
    **settings: Any,
) -> Run:
    """Train one model, or return the finished run of the same configuration, corpus content and package version.

    `model` and `settings` are those of `run_config`. An interrupted run goes on from its last checkpoint unless
    `resume=False`; `refresh=True` trains a finished one again. Raises ValueError for impossible settings and
    TrainingDiverged when the loss is no longer finite; the last checkpoint and the history stay on disk.
    """
    config = run_config(model, **settings)
    corpora = load_data(config.data)
    for note in {corpus.note for corpus in corpora if corpus.note}:
        logger.warning(note)
    return train_on(corpora, config, resume=resume, refresh=refresh, progress=progress, runs_dir=runs_dir)


def train_on(
    corpora: Sequence[Corpus],
    config: RunConfig,
    *,
    resume: bool = True,
    refresh: bool = False,
    progress: bool = True,
    runs_dir: str | Path = runs.RUNS_DIR,
) -> Run:
    """What `train` does, for a whole configuration whose corpora `load_data` has opened; many runs can share them."""
    tokenizer = load_tokenizer(config.data.tokenizer)
    require(
        tokenizer.n_vocab == config.model.vocab_size,
        f"the model has vocab_size={config.model.vocab_size} but tokenizer {config.data.tokenizer!r} has "
        f"{tokenizer.n_vocab} tokens",
    )
    hashes = [corpus.content_hash for corpus in corpora]
    fingerprint = runs.run_fingerprint(config, hashes)
    names = [corpus.name for corpus in corpora]
    context = {"corpora": names, "corpus_hashes": hashes, "fingerprint": fingerprint}
    directory = runs.run_directory(config, fingerprint, runs_dir)
    if runs.is_complete(directory) and not refresh:
        return runs.load_run(directory)
    with runs.writer_lock(directory), seeded(config.train.seed):
        if runs.is_complete(directory) and not refresh:  # another process has just ended it
            return runs.load_run(directory)
        for leftover in directory.glob("*.tmp"):  # of a save that was killed
            leftover.unlink()
        if refresh or not resume:
            for name in (runs.SUMMARY_FILE, runs.CHECKPOINT_FILE, runs.HISTORY_FILE):
                (directory / name).unlink(missing_ok=True)
        _train_in(directory, config, context, corpora, tokenizer, progress)
    return runs.load_run(directory)


def _train_in(
    directory: Path,
    config: RunConfig,
    context: dict,
    corpora: Sequence[Corpus],
    tokenizer: tiktoken.Encoding,
    progress: bool,
) -> None:
    """Train inside a locked directory and leave a finished run there."""
    batches = make_batches(
        corpora, config.data.weights, tokenizer, config.model.block_size, config.train.batch_size, config.train.seed
    )
    trainer = Trainer(build_model(config.model), batches, config.train)
    encode_prompt(trainer.model, tokenizer, config.prompt)  # one that cannot be continued is refused before training
    runs.write_json(directory / runs.CONFIG_FILE, {"config": config.to_dict(), "context": context})
    checkpoint, history = directory / runs.CHECKPOINT_FILE, directory / runs.HISTORY_FILE
    if checkpoint.is_file():
        trainer.restore(load_checkpoint(checkpoint, trainer.model, trainer.optimizers))
    _rewind(history, trainer.step)
    validation = validation_texts([c for c, weight in zip(corpora, config.data.weights, strict=True) if weight > 0])
    watched = validation[: config.train.eval_stories]
    bar = tqdm(
        total=trainer.total_steps,
        initial=trainer.step,
        desc=config.model.family,
        unit="step",
        leave=False,
        disable=not progress,
    )
    with bar, history.open("a", encoding="utf-8") as log:
        while trainer.step < trainer.total_steps:
            row: dict[str, float | None] = {**trainer.advance()}
            last = trainer.step == trainer.total_steps
            if trainer.step % config.train.eval_every == 0 or last:
                row |= evaluation_row(evaluate(trainer.model, tokenizer, watched, n_bootstrap=1))
            log.write(json.dumps(row) + "\n")
            bar.update()
            bar.set_postfix(loss=f"{row['loss']:.3f}", tok_s=f"{row['tokens_per_second']:,.0f}", refresh=False)
            if trainer.step % config.train.checkpoint_every == 0 or last:
                log.flush()
                save_checkpoint(checkpoint, trainer.model, trainer.optimizers, trainer.progress())
    _finish(directory, config, trainer, validation, tokenizer)


def _rewind(history: Path, step: int) -> None:
    """Drop what was logged after the checkpoint that training goes on from."""
    rows = runs.read_history(history, step)
    lines = [json.dumps({k: v for k, v in row.items() if not math.isnan(v)}) for row in rows.to_dict("records")]
    temporary = history.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    temporary.replace(history)


def validation_texts(corpora: list[Corpus]) -> list[str]:
    """The validation examples of all corpora in turn, so that the first few come from each. ValueError without any."""
    rounds = zip_longest(*(corpus.texts("validation") for corpus in corpora))
    texts = [text for texts in rounds for text in texts if text is not None]
    names = ", ".join(corpus.name for corpus in corpora)
    require(bool(texts), f"{names} has no validation examples; ask for a larger share, such as splits=(60, 20, 20)")
    return texts


def _finish(
    directory: Path, config: RunConfig, trainer: Trainer, validation: list[str], tokenizer: tiktoken.Encoding
) -> None:
    """Evaluate on the validation texts, sample, save the weights, and write the summary, which ends the run."""
    model = trainer.model
    result = evaluate(model, tokenizer, validation[: config.train.final_stories])
    samples = {
        name: generate(model, tokenizer, config.prompt, max_new_tokens=config.sample_tokens, seed=0, sampling=sampler)
        for name, sampler in SAMPLERS.items()
    }
    history = runs.read_history(directory / runs.HISTORY_FILE)
    summary = result.to_dict() | {
        "parameters": model.num_parameters(),
        "steps": trainer.step,
        "tokens_seen": trainer.tokens,
        "train_seconds": round(trainer.seconds, 3),
        "train_loss": float(history["loss"].tail(20).mean()),
        "tokens_per_second": float(history["tokens_per_second"].median()),
        "peak_memory_mb": float(history["memory_mb"].max()),
        "device": device_name(trainer.device),
        "precision": str(trainer.precision).removeprefix("torch."),
        "torch": torch.__version__,
    }
    save_model(model, config.data.tokenizer, directory / runs.MODEL_DIR)
    runs.write_json(directory / runs.SUMMARY_FILE, {"summary": summary, "samples": samples})
    (directory / runs.CHECKPOINT_FILE).unlink(missing_ok=True)
