"""The workbook's page: results of executed notebooks and the self-contained HTML that shows every figure."""

import base64
import re
from dataclasses import dataclass
from html import escape
from typing import Literal

from nbformat import NotebookNode

IMAGE_KINDS = ("image/png", "image/jpeg", "image/svg+xml")
CAPTION_CHARACTERS = 400
STYLE_SHEET = """
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.5rem 4rem; background: #fff; color: #222;
       font: 1.05rem/1.55 system-ui, sans-serif; }
h1 { line-height: 1.2; } h2 { margin-top: 3rem; border-bottom: 2px solid #ddd; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number, th.number { text-align: right; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure img { max-width: 100%; border: 1px solid #e3e3e3; }
figcaption { color: #444; font-size: .95rem; }
a { color: #0072b2; }
.failed { color: #a33c00; font-weight: 600; overflow-wrap: anywhere; }
.quiet { color: #595959; }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; } h2 { break-after: avoid; } }
"""


@dataclass(frozen=True)
class Illustration:
    """A figure that a notebook drew: a complete data URI, the heading above it and the text below that heading."""

    data_uri: str
    heading: str
    text: str


@dataclass(frozen=True)
class NotebookResult:
    """How one notebook went. `error` is empty or one line: notebook, cell number, its first line, what happened."""

    name: str
    title: str
    seconds: float
    cells_run: int
    cells: int
    error: str
    illustrations: tuple[Illustration, ...]

    @property
    def status(self) -> Literal["ok", "failed"]:
        return "failed" if self.error else "ok"


@dataclass(frozen=True)
class WorkbookReport:
    """A run of the workbook: the profile's name, the results in order, where the page and the copies lie."""

    profile: str
    results: tuple[NotebookResult, ...]
    page: str
    copies: str

    @property
    def ok(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each notebook that failed."""
        return tuple(result.error for result in self.results if result.error)

    def summary(self) -> str:
        """Lines for a terminal: how many ran, how long they took, where the page is, and what failed."""
        good, total = len(self.results) - len(self.failures), len(self.results)
        seconds = sum(result.seconds for result in self.results)
        first = (
            f"{good} of {total} notebooks ran through with profile {self.profile} in {seconds:.0f} s; see {self.page}"
        )
        return "\n".join([first, *(f"failed: {line}" for line in self.failures)])


def _plain(markdown: str) -> str:
    """Markdown without its marks: links by their text, no emphasis, no code quotes, one space between words."""
    linked = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    return " ".join(re.sub(r"\*\*|__|`|(?<!\w)[*_]|[*_](?!\w)", "", linked).split())


def notebook_title(notebook: NotebookNode, otherwise: str) -> str:
    """The text of the first top-level heading; `otherwise` where there is none."""
    for cell in notebook.cells:
        found = re.search(r"^#\s+(.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None
        if found:
            return _plain(found[1])
    return otherwise


def _caption(notebook: NotebookNode, index: int) -> tuple[str, str]:
    """Heading and first paragraph of the nearest markdown cell above cell `index`; the heading may lie further up."""
    heading, text = "", ""
    for cell in reversed(notebook.cells[:index]):
        if cell.cell_type != "markdown":
            continue
        *before, last = re.split(r"^(#{1,6}\s+.+)$", cell.source, flags=re.MULTILINE)
        text = text or _plain(last.strip().partition("\n\n")[0])
        if before:
            heading = _plain(before[-1].lstrip("#"))
            break
    return heading, text if len(text) <= CAPTION_CHARACTERS else text[:CAPTION_CHARACTERS].rpartition(" ")[0] + " …"


def _data_uri(kind: str, content: str) -> str:
    """A data URI. SVG arrives as text and becomes base64 too, so a browser treats it as an image and runs nothing."""
    encoded = base64.b64encode(content.encode()).decode() if kind == "image/svg+xml" else "".join(content.split())
    return f"data:{kind};base64,{encoded}"


def illustrations(notebook: NotebookNode) -> tuple[Illustration, ...]:
    """Every image among the outputs, in order, with what the notebook says just above it."""
    found = []
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            kind = next((kind for kind in IMAGE_KINDS if kind in data), None)
            if kind:
                found.append(Illustration(_data_uri(kind, data[kind]), *_caption(notebook, index)))
    return tuple(found)


def _figure(picture: Illustration, title: str) -> str:
    heading, text = escape(picture.heading or title), escape(picture.text)
    return (
        f'<figure><img src="{escape(picture.data_uri)}" alt="{heading}">'
        f"<figcaption><strong>{heading}</strong> {text}</figcaption></figure>"
    )


def _row(number: int, result: NotebookResult) -> str:
    state = '<span class="failed">failed</span>' if result.error else "ok"
    return (
        f'<tr><td><a href="#notebook-{number}">{escape(result.title)}</a></td><td>{state}</td>'
        f'<td class="number">{result.cells_run} of {result.cells}</td><td class="number">{result.seconds:.1f}</td>'
        f'<td class="number">{len(result.illustrations)}</td></tr>'
    )


def _section(number: int, result: NotebookResult) -> str:
    head = f'<h2 id="notebook-{number}">{escape(result.title)}</h2>'
    facts = f'<p class="quiet">{escape(result.name)}, {result.seconds:.1f} s, {result.cells_run} code cells</p>'
    error = f'<p class="failed">Failed: {escape(result.error)}</p>' if result.error else ""
    figures = [_figure(picture, result.title) for picture in result.illustrations]
    return "\n".join([head, facts, error, *(figures or ['<p class="quiet">No figures.</p>'])])


def report_page(report: WorkbookReport) -> str:
    """The whole page as HTML: a table of the notebooks, then each notebook's figures. Needs no other file."""
    numbered = list(enumerate(report.results, start=1))
    good = len(report.results) - len(report.failures)
    head = f"{good} of {len(report.results)} notebooks ran through with the profile {escape(report.profile)}."
    columns = '<th>notebook</th><th>status</th><th class="number">code cells</th>'
    columns += '<th class="number">seconds</th><th class="number">figures</th>'
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>picollm workbook: {escape(report.profile)}</title>",
            f"<style>{STYLE_SHEET}</style></head>\n<body>\n<h1>picollm workbook</h1>",
            f"<p>{head} The executed notebooks lie in {escape(report.copies)}.</p>",
            f"<table><thead><tr>{columns}</tr></thead><tbody>",
            *(_row(number, result) for number, result in numbered),
            "</tbody></table>",
            *(_section(number, result) for number, result in numbered),
            "</body>\n</html>\n",
        ]
    )
