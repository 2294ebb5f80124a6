"""What the playground does, without any widget: models on demand, cached logits, stories that grow in a thread."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tiktoken

from picollm_core.config import SamplingConfig, require
from picollm_core.loading import SHIPPED_DIR, SavedModel, describe_model, list_models, load_model
from picollm_core.models.base import LanguageModel
from picollm_core.next_token import NextToken, PromptLogits, next_token, prompt_logits
from picollm_core.playground_html import ShownToken
from picollm_core.runs import RUNS_DIR, Run
from picollm_core.sampling import encode_prompt, generate, stream

logger = logging.getLogger(__name__)

BARS, TIP_BARS = 10, 8
NEWEST_RUNS = 20
REPAINT_SECONDS = 0.08
BYTES_PER_SECOND = 250_000
"""Repaints slow down to this rate: above 1 MB a second Jupyter's server drops what a kernel sends."""

ModelChoice = str | Path | Run


def explain(error: Exception) -> str:
    """An error as a sentence for the reader; one that nobody foresaw is logged with its traceback as well."""
    if isinstance(error, ValueError):
        return str(error)
    logger.error("unforeseen in the playground", exc_info=error)
    return f"{type(error).__name__}: {error}; run the cell again, and report this if it comes back"


def find_models(
    models: Sequence[ModelChoice] | ModelChoice | None, shipped: Path = SHIPPED_DIR, runs_dir: Path = RUNS_DIR
) -> tuple[list[SavedModel], list[SavedModel]]:
    """The models to choose from and those chosen at first.

    None offers what ships with the project and the newest runs, and chooses the former, else the newest run. Otherwise
    exactly the named ones: runs, folders, or names of folders in `shipped` or `runs_dir`. ValueError for other names.
    """
    if models is None:
        everything = list_models(shipped, runs_dir)
        chosen = [model for model in everything if model.path.parent == Path(shipped)]
        return everything[: len(chosen) + NEWEST_RUNS], chosen or everything[:1]
    named = [models] if isinstance(models, (str, Path, Run)) else list(models)
    require(bool(named), "models is empty; name at least one, or leave it out to take what is on disk")
    found = [describe_model(_folder(choice, Path(shipped), Path(runs_dir))) for choice in named]
    found = list({model.path: model for model in found}.values())  # named twice is shown once
    return found, found


def _folder(choice: ModelChoice, shipped: Path, runs_dir: Path) -> Path:
    if isinstance(choice, Run):
        require(
            choice.directory is not None,
            f"run {choice.fingerprint} is known from its record alone, without weights; train it with refresh=True",
        )
        assert choice.directory is not None
        return choice.directory
    for path in (Path(choice), shipped / choice, runs_dir / choice):
        if path.is_dir():
            return path
    known = ", ".join(model.path.name for model in list_models(shipped, runs_dir)[:12]) or "none yet"
    raise ValueError(
        f"no model is called {str(choice)!r}; name a folder, or one of {known}; `picollm train` makes more"
    )


@dataclass
class ModelShelf:
    """Models and what they say about the current prompt, each computed once and kept.

    `looked` holds the logits after the last prompt only, so its size is that of one vocabulary a model.
    """

    loaded: dict[Path, tuple[LanguageModel, tiktoken.Encoding]] = field(default_factory=dict)
    looked: dict[Path, tuple[str, PromptLogits]] = field(default_factory=dict)

    def load(self, path: Path) -> tuple[LanguageModel, tiktoken.Encoding]:
        """The model and its tokenizer, with the errors of load_model."""
        if path not in self.loaded:
            self.loaded[path] = load_model(path)
        return self.loaded[path]

    def next_token(self, path: Path, prompt: str, sampling: SamplingConfig, count: int = BARS) -> NextToken:
        """The next token after `prompt`: the model runs when the prompt is new, and not when only sampling changes."""
        model, tokenizer = self.load(path)
        if path not in self.looked or self.looked[path][0] != prompt:
            self.looked[path] = (prompt, prompt_logits(model, tokenizer, prompt))
        seen = self.looked[path][1]
        return next_token(seen.logits, tokenizer, sampling, seen.previous, count)

    def story(self, path: Path, prompt: str, sampling: SamplingConfig, length: int, seed: int) -> Iterator[ShownToken]:
        """The tokens of `sampling.stream` one by one, each with the likeliest tokens that it was drawn among.

        Arguments are checked at the call, with the errors of `stream`.
        """
        model, tokenizer = self.load(path)
        previous = encode_prompt(model, tokenizer, prompt)[1:]
        drawn = stream(model, tokenizer, prompt, max_new_tokens=length, sampling=sampling, seed=seed)

        def shown() -> Iterator[ShownToken]:
            for token in drawn:
                source = next_token(token.logits, tokenizer, sampling, previous, TIP_BARS)
                previous.append(token.id)
                ends = token.id == tokenizer.eot_token
                yield ShownToken(token.text, token.id, token.probability, token.rank, source, ends)

        return shown()

    def samples(
        self, models: Sequence[SavedModel], prompt: str, sampling: SamplingConfig, length: int, seed: int
    ) -> list[tuple[str, list[str]]]:
        """For pages without widgets: each model's text, greedy and with `sampling`; a problem as a sentence."""
        ways = {"greedy": SamplingConfig(temperature=0), describe_sampling(sampling): sampling}
        rows = []
        for name, way in ways.items():
            texts = []
            for saved in models:
                try:
                    model, tokenizer = self.load(saved.path)
                    texts.append(generate(model, tokenizer, prompt, sampling=way, max_new_tokens=length, seed=seed))
                except ValueError as error:
                    texts.append(explain(error))
            rows.append((name, texts))
        return rows


def describe_sampling(sampling: SamplingConfig) -> str:
    """The settings that differ from plain sampling, in words: "top-p 0.9, temperature 0.8"."""
    if sampling.temperature == 0:
        return "greedy"
    parts = [f"top-p {sampling.top_p:g}"]
    parts += [f"temperature {sampling.temperature:g}"] if sampling.temperature != 1 else []
    parts += [f"top-k {sampling.top_k}"] if sampling.top_k else []
    parts += [f"min-p {sampling.min_p:g}"] if sampling.min_p else []
    parts += [f"repetition penalty {sampling.repetition_penalty:g}"] if sampling.repetition_penalty != 1 else []
    return ", ".join(parts)


@dataclass
class Story:
    """One model's text while it grows; `stage` is "running", "ended", "full", "stopped" or "failed"."""

    title: str
    prompt: str
    source: Iterator[ShownToken]
    length: int
    tokens: list[ShownToken] = field(default_factory=list)
    stage: str = "running"
    problem: str = ""

    @property
    def text(self) -> str:
        """Prompt and continuation: when the story has ended, what `sampling.generate` returns."""
        return self.prompt + "".join(token.text for token in self.tokens)

    def grow(self) -> None:
        """Draw one more token, if there is one. A failure ends this story and no other."""
        try:
            self.tokens.append(next(self.source))
        except StopIteration:
            self.stage = "full"
        except Exception as error:  # noqa: BLE001  (becomes a sentence where the reader looks; explain() logs the rest)
            self.stage, self.problem = "failed", explain(error)
        else:
            if self.tokens[-1].ends:
                self.stage = "ended"
            elif len(self.tokens) >= self.length:
                self.stage = "full"

    def note(self) -> str:
        """How the story stands, in words."""
        count = f"{len(self.tokens):,} token{'s' * (len(self.tokens) != 1)}"
        how = {
            "running": "writing ...",
            "ended": "the model ended the story (■)",
            "full": "the length slider ended it",
            "stopped": "stopped",
            "failed": self.problem,
        }
        return f"{count}: {how[self.stage]}"


class Generation:
    """Several stories that grow in turn, a token each, in a background thread or in step, until ended or stopped.

    `pace` is the shortest time from one token of a story to its next, in seconds: small models outrun every reader.

    `paint(final)` shows them and says how many bytes that took; it is called at most every 80 ms, less often when the
    pictures grow heavy, and once with final=True at the end, whatever happened. In step, it is called the same way
    but from the caller's own thread.
    """

    def __init__(self, stories: Sequence[Story], paint: Callable[[bool], int], pace: float = 0.0) -> None:
        self.stories, self._paint, self._pace = stories, paint, pace
        self._stopping = threading.Event()
        self.thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """True while the background thread works."""
        return self.thread is not None and self.thread.is_alive()

    def start(self) -> None:
        """Grow the stories in a background thread that ends with them, and with the process."""
        self.thread = threading.Thread(target=self.run, name="picollm-playground", daemon=True)
        self.thread.start()

    def stop(self, wait: float = 2.0) -> None:
        """Ask for the end, which comes after the token being drawn, and wait for it; again and too late are no harm."""
        self._stopping.set()
        thread = self.thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(wait)

    def run(self) -> None:
        """Grow the stories here and now."""
        next_paint, due = 0.0, time.monotonic()
        try:
            while not self._stopping.is_set() and any(story.stage == "running" for story in self.stories):
                for story in self.stories:
                    if story.stage == "running" and not self._stopping.is_set():
                        story.grow()
                if time.monotonic() >= next_paint:
                    size = self._paint(False)
                    next_paint = time.monotonic() + max(REPAINT_SECONDS, size / BYTES_PER_SECOND)
                due = max(due + self._pace, time.monotonic())
                self._stopping.wait(due - time.monotonic() if self._pace else 0)
        finally:
            for story in self.stories:
                story.stage = "stopped" if story.stage == "running" else story.stage
            self._paint(True)
