"""Training: one loop for every family, resumable to the bit, cached by what determines the result.

`python -m picollm_core.train PRESET [flags]` is `picollm train --models PRESET [flags]`, and what torchrun starts to
train one model in several processes (picollm_core.distributed).
"""

import json
import logging
import math
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import tiktoken
import torch
from tqdm import tqdm

from picollm_core import runs
from picollm_core.batches import make_batches
from picollm_core.checkpoints import Checkpoint, read_checkpoint, save_checkpoint
from picollm_core.config import DataConfig, ModelConfig, RunConfig, SamplingConfig, require
from picollm_core.corpora import Corpus, load_corpus
from picollm_core.devices import device_name
from picollm_core.distributed import ALONE, Alone
from picollm_core.evaluate import Evaluation, evaluate
from picollm_core.loading import save_model
from picollm_core.models import build_model
from picollm_core.presets import run_config
from picollm_core.runs import Run
from picollm_core.sampling import encode_prompt, generate
from picollm_core.tokenizers import load_tokenizer
from picollm_core.trainer import Trainer, number_format, seeded

if TYPE_CHECKING:
    from picollm_core.trackers import Tracker

logger = logging.getLogger(__name__)
# With -m Python reads this file a second time, as __main__, which is meant: there it only calls the command.
warnings.filterwarnings("ignore", r"'picollm_core\.train' found in sys\.modules", RuntimeWarning)

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
    track: Sequence[str] = (),
    ranks: Alone = ALONE,
    **settings: Any,
) -> Run:
    """Train one model, or return the finished run of the same configuration, corpus content and package version.

    `model` and `settings` are those of `run_config`. An interrupted run goes on from its last checkpoint unless
    `resume=False`; `refresh=True` trains a finished one again. Raises ValueError for impossible settings and
    TrainingDiverged when the loss is no longer finite; the last checkpoint and the history stay on disk.

    `track` names where else the history goes (picollm_core.trackers). `ranks`, from `distributed.open_ranks`, lets
    several processes train the one model together: each calls this, rank 0 writes, and all get the run.
    """
    with ranks.meeting():
        if track:
            from picollm_core.trackers import check_trackers  # what it needs is optional, and few runs are tracked

            check_trackers(track)  # before any text is read
        config = run_config(model, **settings)
        corpora = load_data(config.data)
    for note in {corpus.note for corpus in corpora if corpus.note and ranks.leads}:
        logger.warning(note)
    return train_on(
        corpora,
        config,
        resume=resume,
        refresh=refresh,
        progress=progress,
        runs_dir=runs_dir,
        track=track,
        ranks=ranks,
    )


def train_on(
    corpora: Sequence[Corpus],
    config: RunConfig,
    *,
    resume: bool = True,
    refresh: bool = False,
    progress: bool = True,
    runs_dir: str | Path = runs.RUNS_DIR,
    track: Sequence[str] = (),
    ranks: Alone = ALONE,
) -> Run:
    """What `train` does, for a whole configuration whose corpora `load_data` has opened; many runs can share them."""
    with ranks.meeting():
        tokenizer = load_tokenizer(config.data.tokenizer)
        require(
            tokenizer.n_vocab == config.model.vocab_size,
            f"the model has vocab_size={config.model.vocab_size} but tokenizer {config.data.tokenizer!r} has "
            f"{tokenizer.n_vocab} tokens",
        )
        hashes = [corpus.content_hash for corpus in corpora]
        fingerprint = runs.run_fingerprint(config, hashes)
    ranks.agree("configuration or text", fingerprint)
    names = [corpus.name for corpus in corpora]
    context = {"corpora": names, "corpus_hashes": hashes, "fingerprint": fingerprint}
    directory = runs.run_directory(config, fingerprint, runs_dir)
    with ExitStack() as stack:
        if not ranks.from_leader(lambda: _claim(stack, directory, resume, refresh)):
            stack.enter_context(seeded(config.train.seed))
            _train_in(directory, config, context, corpora, tokenizer, progress, track, ranks)
    return ranks.from_leader(lambda: runs.load_run(directory))


def _claim(stack: ExitStack, directory: Path, resume: bool, refresh: bool) -> bool:
    """True for a finished run that stays; else hold its directory's lock until `stack` ends, and tidy it up."""
    if runs.is_complete(directory) and not refresh:
        return True
    stack.enter_context(runs.writer_lock(directory))
    if runs.is_complete(directory) and not refresh:  # another process has just ended it
        return True
    for leftover in directory.glob("*.tmp"):  # of a save that was killed
        leftover.unlink()
    if refresh or not resume:
        for name in (runs.SUMMARY_FILE, runs.CHECKPOINT_FILE, runs.HISTORY_FILE):
            (directory / name).unlink(missing_ok=True)
    return False


def _begin(directory: Path, config: RunConfig, context: dict) -> Checkpoint | None:
    """Write down what the run is, and read the checkpoint that it goes on from, where there is one."""
    runs.write_json(directory / runs.CONFIG_FILE, {"config": config.to_dict(), "context": context})
    checkpoint = directory / runs.CHECKPOINT_FILE
    return read_checkpoint(checkpoint) if checkpoint.is_file() else None


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


@dataclass(frozen=True)
class _Journal:
    """What rank 0 keeps of the training as it goes: history, progress bar, trackers, evaluations, checkpoints."""

    trainer: Trainer
    tokenizer: tiktoken.Encoding
    watched: list[str]
    checkpoint: Path
    log: TextIO
    bar: tqdm
    tracker: "Tracker | None"

    def record(self, update: dict[str, float], evaluates: bool, saves: bool) -> None:
        """Record one update, after an evaluation where one is due and before a checkpoint where one is."""
        trainer, row = self.trainer, dict[str, float | None](update)
        if evaluates:
            row |= evaluation_row(evaluate(trainer.model, self.tokenizer, self.watched, n_bootstrap=1))
        self.log.write(json.dumps(row) + "\n")
        if self.tracker is not None:
            self.tracker.log(row, trainer.step)
        self.bar.update()
        self.bar.set_postfix(loss=f"{row['loss']:.3f}", tok_s=f"{row['tokens_per_second']:,.0f}", refresh=False)
        if saves:
            self.log.flush()
            save_checkpoint(self.checkpoint, trainer.model, trainer.optimizers, trainer.progress())


def _open_journal(
    stack: ExitStack,
    directory: Path,
    config: RunConfig,
    trainer: Trainer,
    tokenizer: tiktoken.Encoding,
    watched: list[str],
    progress: bool,
    track: Sequence[str],
) -> _Journal:
    """The journal of a run that goes on from the trainer's step; `stack` closes what it holds open."""
    _rewind(directory / runs.HISTORY_FILE, trainer.step)
    log = stack.enter_context((directory / runs.HISTORY_FILE).open("a", encoding="utf-8"))
    bar = tqdm(
        total=trainer.total_steps,
        initial=trainer.step,
        desc=config.model.family,
        unit="step",
        leave=False,
        disable=not progress,
    )
    tracker = None
    if track:
        from picollm_core.trackers import open_tracker

        values = runs.hyperparameters(config)
        tracker = stack.enter_context(open_tracker(track, directory, directory.name, values, resume=trainer.step > 0))
    checkpoint = directory / runs.CHECKPOINT_FILE
    return _Journal(trainer, tokenizer, watched, checkpoint, log, stack.enter_context(bar), tracker)


def _train_in(
    directory: Path,
    config: RunConfig,
    context: dict,
    corpora: Sequence[Corpus],
    tokenizer: tiktoken.Encoding,
    progress: bool,
    track: Sequence[str],
    ranks: Alone,
) -> None:
    """Train inside a directory that rank 0 has locked, and leave a finished run there."""
    chosen = config.train
    with ranks.meeting():
        batches = make_batches(
            corpora, config.data.weights, tokenizer, config.model.block_size, chosen.batch_size, chosen.seed
        )
        trainer = Trainer(build_model(config.model), batches, chosen, ranks)
        encode_prompt(trainer.model, tokenizer, config.prompt)  # refused now where it cannot be continued later
        validation = validation_texts([c for c, weight in zip(corpora, config.data.weights, strict=True) if weight > 0])
    ranks.agree("number format", number_format(trainer.precision))
    saved = ranks.from_leader(lambda: _begin(directory, config, context))
    with ExitStack() as stack:
        journal = None
        with ranks.meeting():
            if saved is not None:
                trainer.restore(saved.restore(trainer.model, trainer.optimizers))
                del saved  # as large as the model and its optimizer
            if ranks.leads:
                watched = validation[: chosen.eval_stories]
                journal = _open_journal(stack, directory, config, trainer, tokenizer, watched, progress, track)
        ranks.equalise(list(trainer.model.parameters()))
        while trainer.step < trainer.total_steps:
            row, last = trainer.advance(), trainer.step == trainer.total_steps
            evaluates, saves = (
                last or trainer.step % every == 0 for every in (chosen.eval_every, chosen.checkpoint_every)
            )
            with ranks.meeting() if evaluates or saves else nullcontext():  # the others wait where it takes long
                if journal is not None:
                    journal.record(row, evaluates, saves)
        with ranks.meeting():
            if journal is not None:
                summary = _finish(directory, config, trainer, validation, tokenizer)
                if journal.tracker is not None:
                    journal.tracker.finish(summary)


def _finish(
    directory: Path, config: RunConfig, trainer: Trainer, validation: list[str], tokenizer: tiktoken.Encoding
) -> dict[str, Any]:
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
        "precision": number_format(trainer.precision),
        "torch": torch.__version__,
    }
    if trainer.ranks.size > 1:
        summary["processes"] = trainer.ranks.size
    save_model(model, config.data.tokenizer, directory / runs.MODEL_DIR)
    runs.write_json(directory / runs.SUMMARY_FILE, {"summary": summary, "samples": samples})
    (directory / runs.CHECKPOINT_FILE).unlink(missing_ok=True)
    return summary


if __name__ == "__main__":
    from picollm_core.cli import main

    named = list(takewhile(lambda argument: not argument.startswith("-"), sys.argv[1:]))
    main(["train", *(["--models", *named] if named else []), *sys.argv[1 + len(named) :]])
