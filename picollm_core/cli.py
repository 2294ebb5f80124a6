"""The `picollm` command: train models, sweep, generate, evaluate, run the workbook, publish, exchange."""

import contextlib
import io
import logging
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from picollm_core.cli_exchange import ExportCommand, ImportCommand
from picollm_core.cli_publish import DeckCommand, FiguresCommand, PushCommand, ShipCommand
from picollm_core.cli_sweep import SweepCommand
from picollm_core.cli_train import TrainCommand
from picollm_core.config import SamplingConfig


@dataclass(frozen=True)
class GenerateCommand:
    """Continue a prompt with a trained model; the text appears as it is drawn."""

    prompt: tyro.conf.Positional[str] = "Once upon a time"
    """The beginning of the text."""
    model: str | None = None
    """A shipped model's name, a run's name, fingerprint or folder, a saved model's folder, or user/model of the
    Hugging Face Hub; left out, the newest finished run."""
    sampling: tyro.conf.OmitArgPrefixes[SamplingConfig] = field(default_factory=SamplingConfig)
    max_new_tokens: int = 200
    """Longest continuation, in tokens; a story may end sooner."""
    seed: int = 0
    """The same seed gives the same text."""

    def run(self) -> int:
        from picollm_core.loading import find_model, load_model
        from picollm_core.sampling import stream

        model, tokenizer = load_model(find_model(self.model))
        length, sampling = self.max_new_tokens, self.sampling
        tokens = stream(model, tokenizer, self.prompt, max_new_tokens=length, sampling=sampling, seed=self.seed)
        print(self.prompt, end="", flush=True)
        for token in tokens:
            print(token.text, end="", flush=True)
        print()
        return 0


@dataclass(frozen=True)
class EvaluateCommand:
    """Perplexity, bits per byte and accuracy of a trained model on held-out stories, with 95% intervals."""

    model: str | None = None
    """A shipped model's name, a run's name, fingerprint or folder, a saved model's folder, or user/model of the
    Hugging Face Hub; left out, the newest finished run."""
    corpus: str = "auto"
    """A corpus name, a text file or a folder of text files."""
    split: Literal["train", "validation", "test"] = "validation"
    max_stories: int | None = None
    """Evaluate at most this many stories."""

    def run(self) -> int:
        from picollm_core.corpora import load_corpus
        from picollm_core.evaluate import evaluate
        from picollm_core.loading import find_model, load_model

        path = find_model(self.model)
        model, tokenizer = load_model(path)
        corpus = load_corpus(self.corpus)
        if corpus.note:
            print(corpus.note)
        result = evaluate(model, tokenizer, corpus, split=self.split, max_stories=self.max_stories)
        size = f"{result.n_stories:,} stories, {result.n_tokens:,} tokens"
        print(f"{self.model or path} on {corpus.name} ({self.split}, {size})")
        for name, value in result.to_dict().items():
            if isinstance(value, float):
                print(f"  {name:<24} {value:,.4f}")
            elif name.endswith("interval"):
                print(f"  {name:<24} {value[0]:,.4f} to {value[1]:,.4f}")
        return 0


@dataclass(frozen=True)
class RunsCommand:
    """A table of the finished runs."""

    folder: Path = Path("artefacts/runs")
    """Where the runs are."""
    columns: tuple[str, ...] = ("run", "corpus", "tokenizer", "parameters", "steps", "perplexity", "bits_per_byte")
    """Which columns to print; every hyperparameter and every final figure has one."""

    def run(self) -> int:
        from picollm_core.runs import run_table

        table = run_table(self.folder)
        if table.empty:
            print(f"no finished run in {self.folder}; `picollm train` makes one")
            return 0
        unknown = [name for name in self.columns if name not in table.columns]
        if unknown:
            raise ValueError(f"no column {', '.join(unknown)}; there are {', '.join(table.columns)}")
        print(table[list(self.columns)].to_string(index=False))
        return 0


@dataclass(frozen=True)
class WorkbookCommand:
    """Execute the notebooks in order and write artefacts/report.html with every figure."""

    profile: Literal["quick", "standard", "full"] = "quick"
    """How much to compute; quick takes about a minute a notebook."""
    only: tuple[str, ...] = ()
    """Beginnings of notebook names, such as 01; left out, all of them."""
    write: bool = False
    """With the standard profile: put the outputs into notebooks/ itself."""
    timeout: int | None = None
    """Longest time for one cell, in seconds; left out, the profile's."""

    def run(self) -> int:
        from picollm_core.workbook import run_workbook

        report = run_workbook(profile=self.profile, only=self.only or None, write=self.write, timeout=self.timeout)
        print(report.summary())
        return 0 if report.ok else 1


@dataclass(frozen=True)
class BenchCommand:
    """Measure speed side by side with what people would use instead, and write artefacts/results/bench.json."""

    only: tuple[str, ...] = ()
    """Beginnings of row names; left out, all but workbook and tests, which take minutes."""
    repetitions: int = 5
    """Measurements of each side; the median ratio is reported with its range."""

    def run(self) -> int:
        import runpy

        script = Path("benchmarks/bench.py")
        if not script.is_file():
            raise ValueError(f"{script} is not here; run `picollm bench` in the project's folder")
        return runpy.run_path(str(script))["main"](self.only, self.repetitions)


Command = (
    Annotated[TrainCommand, tyro.conf.subcommand("train")]
    | Annotated[SweepCommand, tyro.conf.subcommand("sweep")]
    | Annotated[GenerateCommand, tyro.conf.subcommand("generate")]
    | Annotated[EvaluateCommand, tyro.conf.subcommand("evaluate")]
    | Annotated[RunsCommand, tyro.conf.subcommand("runs")]
    | Annotated[WorkbookCommand, tyro.conf.subcommand("workbook")]
    | Annotated[FiguresCommand, tyro.conf.subcommand("figures")]
    | Annotated[DeckCommand, tyro.conf.subcommand("deck")]
    | Annotated[ShipCommand, tyro.conf.subcommand("ship")]
    | Annotated[PushCommand, tyro.conf.subcommand("push")]
    | Annotated[BenchCommand, tyro.conf.subcommand("bench")]
    | Annotated[ExportCommand, tyro.conf.subcommand("export")]
    | Annotated[ImportCommand, tyro.conf.subcommand("import")]
)


class Unparsed(ValueError):
    """Arguments that make no command."""


def _parse(arguments: list[str] | None) -> Command:
    """The command that the arguments ask for. Unparsed, in one line, where tyro would draw a box."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(Command, prog="picollm", description=__doc__, args=arguments)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        lines = [line.strip("│╭╮╰╯─ ") for line in said.getvalue().splitlines()]
        text = " ".join(line for line in lines[1:] if line)
        text = re.sub(r"Error parsing \S+: ", "", text).split(" For full helptext")[0]
        raise Unparsed(f"{text} (picollm --help shows what can be asked)") from None


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exits 0, 1 when a notebook or a sweep's run failed, 2 with one line on stderr for unusable input."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    follows = os.environ.get("RANK", "0") != "0"  # torchrun started a first process, which says what both would say
    try:
        status = _parse(arguments).run()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except (ValueError, RuntimeError, OSError) as error:
        repeats = follows and isinstance(error, Unparsed)
        if not repeats:
            print(f"picollm: {' '.join(str(error).split())}", file=sys.stderr)
        status = 0 if repeats else 2
    except KeyboardInterrupt:
        if not follows:
            print("picollm: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        status = 130
    sys.exit(status)
