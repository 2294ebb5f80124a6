"""What a talk is made from: recorded runs, the committed notebooks' answers, the cells that draw the figures."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from picollm_core.figure_index import FigureEntry
from picollm_core.results import ResultStore
from picollm_core.runs import Run

FAMILIES = ("kgram", "lstm", "transformer")
SAMPLER = "top-p 0.95"


@dataclass(frozen=True)
class Facts:
    """Numbers for the slides without a figure.

    `best` has, for each family, the run with the fewest bits per byte among all that saw the same text, tokenizer and
    number of tokens. `counts` are the numbers of training and held-out stories, and `story` is an example; they are
    None and empty where notebook 00 did not print them.
    """

    best: dict[str, Run]
    records: int
    counts: tuple[str, str] | None
    story: str

    @property
    def winner(self) -> str:
        """The family with the fewest bits per byte."""
        return min(self.best, key=lambda family: self.best[family].summary["bits_per_byte"])


def read_notebook(path: Path) -> NotebookNode:
    """A committed notebook. Raises ValueError that names it when it is missing or unreadable."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as a notebook: {str(error).partition(chr(10))[0][:200]}") from error


def _output_texts(notebook: NotebookNode) -> list[tuple[int, str]]:
    """(cell number from 1, text) of every text or markdown output."""
    found = []
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            text = output.get("text") or output.get("data", {}).get("text/markdown") or ""
            if text:
                found.append((number, "".join(text)))
    return found


def _without_marks(markdown: str) -> str:
    """Markdown as plain text: no emphasis, no code quotes, no heading signs; paragraphs stay."""
    linked = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    return re.sub(r"\*\*|__|`|^#+ *|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w)", "", linked, flags=re.MULTILINE).strip()


def answer_of(path: Path) -> tuple[int, str] | None:
    """(cell number, text) of a notebook's computed answer, without its heading; None where it has none."""
    for number, text in _output_texts(read_notebook(path)) if path.is_file() else []:
        if text.lstrip().startswith("## Answer"):
            return number, _without_marks(text.lstrip().removeprefix("## Answer"))
    return None


def drawn_in(path: Path, figure: str) -> tuple[int, str] | None:
    """(cell number, heading above it) of the cell that saves `figure`; None where no cell names it."""
    heading = ""
    for number, cell in enumerate(read_notebook(path).cells if path.is_file() else [], start=1):
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE)
            heading = _without_marks(headings[-1]) if headings else heading
        elif f'"{figure}"' in cell.source or f"'{figure}'" in cell.source:
            return number, heading
    return None


def _comparable(runs: Iterable[Run]) -> list[Run]:
    """The largest group of story runs with the same text, tokenizer and tokens seen that has every family."""
    groups: dict[tuple, list[Run]] = defaultdict(list)
    for run in runs:
        if run.context["corpora"] != ["three_sequences"] and SAMPLER in run.samples and run.summary.get("tokens_seen"):
            data = run.config.data
            groups[run.summary["tokens_seen"], data.tokenizer, *run.context["corpora"], run.config.prompt].append(run)
    whole = [group for group in groups.values() if {run.family for run in group} >= set(FAMILIES)]
    # Most tokens first, then most runs: the comparison that most work went into.
    return max(whole, key=lambda group: (group[0].summary["tokens_seen"], len(group)), default=[])


def gather_facts(store: ResultStore, entries: Iterable[FigureEntry], notebooks: Path) -> Facts:
    """The facts behind the figures `entries`.

    Raises ValueError, with the way out, for a record that is missing or of another version, and when no recorded runs
    of the three families can be compared.
    """
    names = sorted({name for entry in entries for name in entry.results if name.startswith("runs/")})
    runs = _comparable([store.load_run(Path(name).stem) for name in names])
    if not runs:
        raise ValueError(
            f"{store.folder} has no story runs of {', '.join(FAMILIES)} with the same tokenizer and tokens among those "
            "that the figures name; run `picollm workbook --profile standard --write`, then `picollm figures`"
        )
    best = {}
    for family in FAMILIES:
        own = [run for run in runs if run.family == family]
        best[family] = min(own, key=lambda run: (run.summary["bits_per_byte"], run.fingerprint))
    return Facts(best, len(names), *_text_facts(notebooks, best[FAMILIES[0]].context["corpus_hashes"][0]))


def _text_facts(notebooks: Path, content_hash: str) -> tuple[tuple[str, str] | None, str]:
    """(numbers of training and held-out stories, a story) as notebook 00 printed them, if it read this very text."""
    counts, story = None, ""
    for path in sorted(notebooks.glob("00_*.ipynb"))[:1]:
        for _, text in _output_texts(read_notebook(path)):
            found = re.search(r"([\d,]+) training and ([\d,]+) validation stories", text)
            if found and content_hash in text:
                counts = found[1], found[2]
            if counts and not story and re.match(r"(Once|One day|There)\b", text):
                story = " ".join(text.split())
    return counts, story
