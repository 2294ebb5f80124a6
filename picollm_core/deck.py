"""The talk: about ten slides for ten minutes and an appendix, from the index of figures, the records and the notebooks.

Nothing is trained or measured. FIGURE_SLIDES says which figure stands on which slide; edit it to change the talk.
"""

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picollm_core.deck_sources import SAMPLER, Facts, answer_of, drawn_in, gather_facts
from picollm_core.figure_index import FIGURES_DIR, INDEX_FILE, REDRAW_COMMAND, FigureEntry, read_index
from picollm_core.figure_style import FAMILY_COLOURS, FAMILY_LABELS, INK, PALE, QUIET
from picollm_core.results import RESULTS_DIR, ResultStore

if TYPE_CHECKING:
    from picollm_core.runs import Run

DECK_FILE = Path("artefacts/deck.pptx")
NAMED_RESULTS = 6
QUESTION = "Which small language model learns best to write a story?"


@dataclass(frozen=True)
class FigureSlide:
    """A slide with one figure: the first in the index that fits `figures`, patterns in order of preference."""

    topic: str
    figures: tuple[str, ...]


FIGURE_SLIDES = (
    FigureSlide("size ablation", ("05_size*", "02_size*", "04_size*")),
    FigureSlide("k-gram", ("02_grid", "02_*")),
    FigureSlide("Transformer", ("04_attention*", "04_*")),
    FigureSlide("top-p", ("03_equal_surprise", "03_nucleus*", "03_*")),
    FigureSlide("comparison", ("05_equal*", "05_curves*", "05_*", "01_bits_per_byte")),
)


@dataclass(frozen=True)
class DeckReport:
    """A deck that was written: its path, the titles of its slides, and the topics that no figure was there for."""

    path: str
    titles: tuple[str, ...]
    appendix: int
    missing: tuple[FigureSlide, ...]

    @property
    def ok(self) -> bool:
        return not self.missing

    def summary(self) -> str:
        """Lines for a terminal."""
        lines = [f"{self.path}: {len(self.titles) - self.appendix} slides and {self.appendix} in the appendix"]
        lines += [
            f"left out: {slide.topic}, because no figure is called {' or '.join(slide.figures)}; "
            f"run `picollm workbook --profile standard --write`, then {REDRAW_COMMAND}"
            for slide in self.missing
        ]
        return "\n".join(lines)


def choose_figures(
    entries: dict[str, FigureEntry], slides: tuple[FigureSlide, ...] = FIGURE_SLIDES
) -> tuple[dict[str, FigureEntry], list[FigureEntry], tuple[FigureSlide, ...]]:
    """(figure of each topic, figures left for the appendix, topics without a figure). No figure is used twice."""
    left, chosen = dict(sorted(entries.items())), {}
    for slide in slides:
        fitting = [name for pattern in slide.figures for name in left if fnmatchcase(name, pattern)]
        if fitting:
            chosen[slide.topic] = left.pop(fitting[0])
    return chosen, list(left.values()), tuple(slide for slide in slides if slide.topic not in chosen)


@dataclass(frozen=True)
class _Sources:
    """Where the deck's content lies."""

    figures: Path
    results: Path
    notebooks: Path

    def record(self, run: "Run") -> str:
        return f"{self.results.as_posix()}/runs/{run.fingerprint}.json"

    def figure_notes(self, entry: FigureEntry) -> str:
        """What to say about a figure: its finding, its notebook's answer with the numbers, and where all of it lies."""
        path = self.notebooks / f"{entry.notebook}.ipynb"
        place, answer = drawn_in(path, entry.name), answer_of(path)
        where = f"{path.as_posix()}" + (f", cell {place[0]}, under “{place[1]}”" if place else "")
        parts = [f"Finding: {entry.title}."]
        if answer is not None:
            parts.append(f"The numbers, from the answer in {path.as_posix()}, cell {answer[0]}:\n{answer[1]}")
        parts.append(f"Source of the figure: {where}; file {(self.figures / entry.files[0]).as_posix()}.")
        named = [f"{self.results.as_posix()}/{name}" for name in entry.results]
        if named:
            more = f"\nand {len(named) - NAMED_RESULTS} more" if len(named) > NAMED_RESULTS else ""
            index = (self.figures / INDEX_FILE).as_posix()
            listing = "\n".join(named[:NAMED_RESULTS]) + more
            parts.append(f"Results that the notebook had looked up by then (all in {index}):\n{listing}")
        return "\n\n".join(parts)

    def figure_source(self, entry: FigureEntry) -> str:
        place = drawn_in(self.notebooks / f"{entry.notebook}.ipynb", entry.name)
        return f"notebook {entry.notebook}" + (f", cell {place[0]}" if place else "")


def _add_question(deck: Any, facts: Facts) -> None:
    from picollm_core import deck_slides as parts

    corpus = facts.best[facts.winner].context["corpora"][0]
    text = {"tinystories": "TinyStories", "storyworld": "the storyworld"}.get(corpus, corpus)
    notes = (
        "The question of this talk. Everything shown is redrawn from recorded results: "
        f"{facts.records} training runs stand behind the figures.\n\nSource: artefacts/figures/{INDEX_FILE} names the "
        "records of every figure; README.md lists the notebooks."
    )
    slide = parts.add_slide(deck, QUESTION, notes, title_box=(parts.MARGIN, 1.3, 11.6, 2.4))
    subtitle = f"k-gram MLPs, LSTMs and Transformers, trained alike on {text}\nand compared on stories they never saw"
    parts.add_text(slide, subtitle, (parts.MARGIN, 4.0, 11.6, 1.2), 26, ink=QUIET)
    across = (parts.WIDTH - 2 * parts.MARGIN - 0.6) / 3
    for rank, family in enumerate(facts.best):
        box = (parts.MARGIN + rank * (across + 0.3), 5.6, across, 0.9)
        shape = parts.add_shape(slide, parts.MSO_SHAPE.ROUNDED_RECTANGLE, box, FAMILY_COLOURS[family])
        parts.write_label(shape, FAMILY_LABELS[family], 26, "#FFFFFF")


def _add_families(deck: Any, facts: Facts, sources: _Sources) -> None:
    from picollm_core.deck_diagram import add_families
    from picollm_core.deck_slides import add_slide

    rows = [
        f"{FAMILY_LABELS[family]}: {run.summary['parameters']:,} weights in its best comparable run "
        f"({sources.record(run)})"
        for family, run in facts.best.items()
    ]
    notes = (
        "All three guess the next token. They differ in what reaches the guess: the k-gram sees the last k tokens, the "
        "current one included; the LSTM everything before, squeezed into one state of fixed size; the Transformer "
        "everything in its window, each token weighed anew.\n\nSource: picollm_core/models/ (kgram.py, lstm.py, "
        "transformer.py).\n" + "\n".join(rows)
    )
    add_families(add_slide(deck, "The families differ in what they keep of the story so far", notes))


def _add_data(deck: Any, facts: Facts, sources: _Sources) -> None:
    from picollm_core import deck_slides as parts

    run, sizes = facts.best[facts.winner], sorted(r.summary["parameters"] for r in facts.best.values())
    corpus, steps = run.context["corpora"][0], f"{run.summary['steps']:,}"
    tokens = f"{run.summary['tokens_seen'] / 1e6:.1f}M"
    trained, held_out = facts.counts or ("", f"{run.summary['n_stories']:,}")
    tiles = [
        (trained or corpus, "stories to learn from" if trained else "to learn from"),
        (held_out, "held-out stories, set apart\nby a hash of their text"),
        (tokens, f"{run.config.data.tokenizer} tokens seen\nin {steps} updates"),
        (f"{sizes[0] / 1e6:.2g}–{sizes[-1] / 1e6:.2g}M", "weights in the best run\nof each family"),
    ]
    records = "\n".join(sources.record(r) for r in facts.best.values())
    notes = (
        f"Text: {corpus}, content hash {', '.join(run.context['corpus_hashes'])}. {trained or 'Some'} training and "
        f"{held_out} held-out stories; {run.summary['n_tokens']:,} held-out tokens, {run.summary['n_bytes']:,} bytes, "
        f"all scored. {steps} updates of {run.config.train.batch_size} windows of {run.config.model.block_size} tokens "
        f"({run.config.data.tokenizer}). Weights: " + ", ".join(f"{size:,}" for size in sizes) + ".\n\n"
        f"Sources: {sources.notebooks.as_posix()}/00_start_here.ipynb (stories); the records\n{records}"
    )
    slide = parts.add_slide(deck, f"Every model reads the same stories for {steps} updates", notes)
    boxes = [parts.fitting_size(number, (0, 0, 3.2, 0.95), (46, 42, 38, 34, 30, 26), bold=True) for number, _ in tiles]
    points = min(size or 26 for size in boxes)
    for rank, (number, caption) in enumerate(tiles):
        left, top = parts.MARGIN + (rank % 2) * 3.4, 1.75 + (rank // 2) * 2.5
        parts.add_text(slide, number, (left, top, 3.2, 0.9), points, bold=True)
        parts.add_text(slide, caption, (left, top + 0.95, 3.2, 0.8), 20, ink=QUIET)
    if facts.story:
        left = parts.MARGIN + 7.1
        parts.add_shape(slide, parts.MSO_SHAPE.RECTANGLE, (left, 1.75, 0.06, 4.6), PALE)
        box = (left + 0.35, 1.75, parts.WIDTH - parts.MARGIN - left - 0.35, 4.6)
        parts.add_text(slide, parts.shortened(facts.story, box, 22), box, 22, italic=True)


def _add_figure(deck: Any, entry: FigureEntry, sources: _Sources, label: str = "") -> None:
    from picollm_core.deck_slides import add_figure, add_slide

    source = " · ".join(part for part in (label, sources.figure_source(entry)) if part)
    slide = add_slide(deck, entry.title, sources.figure_notes(entry), source=source)
    add_figure(slide, sources.figures / f"{entry.name}.png", entry.title_height, entry.title)


def _add_samples(deck: Any, facts: Facts, sources: _Sources) -> None:
    from picollm_core import deck_slides as parts

    best = facts.best[facts.winner]
    prompt, score = best.config.prompt, f"{best.summary['bits_per_byte']:.3f}"
    texts = {family: run.samples[SAMPLER] for family, run in facts.best.items()}
    notes = (
        f"The prompt “{prompt}” continued with {SAMPLER} by the best run of each family among those that saw the same "
        "text, tokenizer and number of tokens. They differ in size; see the heads of the columns. Texts in full:\n\n"
        + "\n\n".join(f"{FAMILY_LABELS[f]} ({sources.record(facts.best[f])}): {text}" for f, text in texts.items())
    )
    title = (
        f"One prompt, the best run of each family: the {FAMILY_LABELS[facts.winner]} leads with {score} bits per byte"
    )
    slide = parts.add_slide(deck, title, notes, source=f"sampled with {SAMPLER}; the prompt is “{prompt}”")
    across = (parts.WIDTH - 2 * parts.MARGIN - 2 * 0.45) / 3
    for rank, (family, run) in enumerate(facts.best.items()):
        left, ink = parts.MARGIN + rank * (across + 0.45), FAMILY_COLOURS[family]
        parts.add_text(slide, FAMILY_LABELS[family], (left, 1.6, across, 0.45), 26, bold=True, ink=ink)
        size = f"{run.summary['parameters']:,} weights, {run.summary['bits_per_byte']:.3f} bits per byte"
        parts.add_text(slide, size, (left, 2.1, across, 0.35), 16, ink=QUIET)
        parts.add_shape(slide, parts.MSO_SHAPE.RECTANGLE, (left, 2.55, across, 0.05), ink)
        box = (left, 2.75, across, 4.1)
        parts.add_text(slide, parts.shortened(" ".join(texts[family].split()), box, 20), box, 20, given=prompt)


def _add_conclusion(deck: Any, facts: Facts, found: dict[str, tuple[int, FigureEntry]], sources: _Sources) -> None:
    from picollm_core import deck_slides as parts

    best = facts.best[facts.winner]
    score = f"{best.summary['bits_per_byte']:.3f}"
    # The updates are said because shorter comparisons, whose slides are listed below, can have another winner.
    steps = f"{best.summary['steps']:,}"
    title = f"After {steps} equal updates the {FAMILY_LABELS[facts.winner]} leads, at {score} bits per byte"
    entry = found["comparison"][1] if "comparison" in found else None
    path = sources.notebooks / f"{entry.notebook}.ipynb" if entry else None
    answer = answer_of(path) if path else None
    notes = f"The fewest bits per byte among comparable runs: {sources.record(best)}.\n\n"
    if answer and path:
        notes += f"From the answer in {path.as_posix()}, cell {answer[0]}:\n{answer[1]}\n\n"
    notes += "Findings, each from its figure:\n" + "\n".join(
        f"{one.title} (slide {page}, notebook {one.notebook})" for page, one in found.values()
    )
    slide = parts.add_slide(deck, title, notes)
    height = 5.1 / max(len(found), 4)
    for rank, (page, one) in enumerate(found.values()):
        top = 1.65 + rank * height
        chip = parts.add_shape(slide, parts.MSO_SHAPE.OVAL, (parts.MARGIN, top + 0.08, 0.6, 0.6), INK)
        parts.write_label(chip, str(page), 18, "#FFFFFF")
        box = (parts.MARGIN + 0.95, top, parts.WIDTH - 2 * parts.MARGIN - 0.95, height - 0.12)
        points = parts.fitting_size(one.title, box, (26, 24, 22, 20, 18)) or 18
        parts.add_text(slide, one.title, (*box[:3], 0.76), points, anchor=parts.MSO_ANCHOR.MIDDLE)


def write_deck(
    path: str | Path = DECK_FILE,
    *,
    figures: str | Path = FIGURES_DIR,
    results: str | Path = RESULTS_DIR,
    notebooks: str | Path = "notebooks",
) -> DeckReport:
    """Write the talk as a 16:9 PowerPoint file: the same bytes for the same figures, records and notebooks.

    Every figure of the index is on one slide; those that FIGURE_SLIDES does not choose are in the appendix. A file that
    was there stays whole until the new one is complete. Raises ValueError, with the way out, when python-pptx, the
    index, a figure's file or a record is missing or of another version, and for a title too long for a slide.
    """
    try:
        from picollm_core.deck_slides import new_presentation, presentation_bytes
    except ImportError as error:
        raise ValueError('the deck needs python-pptx: pip install "picollm[slides]"') from error
    sources = _Sources(Path(figures), Path(results), Path(notebooks))
    entries = read_index(figures)
    if not entries:
        raise ValueError(f"{sources.figures / INDEX_FILE} is missing or names no figure; run {REDRAW_COMMAND}")
    absent = [entry.files[0] for entry in entries.values() if not (sources.figures / entry.files[0]).is_file()]
    if absent:
        raise ValueError(f"{sources.figures} has no {', '.join(absent)}; run {REDRAW_COMMAND}")
    facts = gather_facts(ResultStore(sources.results), entries.values(), sources.notebooks)
    chosen, rest, missing = choose_figures(entries)

    deck = new_presentation()
    _add_question(deck, facts)
    _add_families(deck, facts, sources)
    _add_data(deck, facts, sources)
    found = {}
    for topic, entry in chosen.items():
        _add_figure(deck, entry, sources)
        found[topic] = (len(deck.slides), entry)
    _add_samples(deck, facts, sources)
    _add_conclusion(deck, facts, found, sources)
    for entry in rest:
        _add_figure(deck, entry, sources, "Appendix")

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(presentation_bytes(deck))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return DeckReport(str(path), tuple(slide.shapes.title.text_frame.text for slide in deck.slides), len(rest), missing)
