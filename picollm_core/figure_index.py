"""The index of figures: for each its notebook, its finding, its files, and the results it was drawn from.

It lies beside the figures as index.json; the deck and the README are written from it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from matplotlib.figure import Figure

from picollm_core.runs import read_json, write_json

FIGURES_DIR = Path("artefacts/figures")
INDEX_FILE = "index.json"
KINDS = ("png", "svg", "pdf")
REDRAW_COMMAND = "`picollm figures`"


@dataclass(frozen=True)
class FigureEntry:
    """One figure. `title` is its finding in one line; `title_height` the share of its height that the title takes.

    `results` names the files below artefacts/results that its notebook had looked up when it was drawn.
    """

    name: str
    notebook: str
    title: str
    title_height: float
    results: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Its files' names: PNG, SVG, PDF."""
        return tuple(f"{self.name}.{kind}" for kind in KINDS)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without the name, which is the key in the index."""
        return {
            "notebook": self.notebook,
            "title": self.title,
            "files": list(self.files),
            "title_height": self.title_height,
            "results": list(self.results),
        }


def describe_figure(
    figure: Figure, name: str, results: tuple[str, ...] = (), notebooks: str = "notebooks"
) -> FigureEntry:
    """The entry of a figure that has been drawn or saved, which is when its title gets its place.

    The notebook is the one in `notebooks` whose number starts the figure's name ("05_sizes": 05_*.ipynb).
    Raises ValueError for a figure without a title.
    """
    title = figure.get_suptitle() or next((axes.get_title() for axes in figure.axes if axes.get_title()), "")
    if not title.strip():
        raise ValueError(f"figure {name!r} has no title; it should say what the figure shows, in one sentence")
    height = 0.0
    for text in figure.texts:  # the title above all axes is one of the figure's texts
        if text.get_text() == figure.get_suptitle():
            height = 1 - text.get_window_extent().y0 / figure.bbox.height
    numbered = sorted(path.stem for path in Path(notebooks).glob(f"{name.partition('_')[0]}_*.ipynb"))
    notebook = numbered[0] if numbered else ""
    return FigureEntry(name, notebook, " ".join(title.split()), round(height, 4), tuple(sorted(set(results))))


def read_index(folder: str | Path) -> dict[str, FigureEntry]:
    """The folder's figures by name, in order of their names; empty without an index.

    Raises ValueError that says what to do for an index that is unreadable or of an older format.
    """
    path = Path(folder) / INDEX_FILE
    if not path.is_file():
        return {}
    try:
        return {
            name: FigureEntry(name, one["notebook"], one["title"], float(one["title_height"]), tuple(one["results"]))
            for name, one in sorted(read_json(path).items())
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not an index of this version ({error}); delete it and run {REDRAW_COMMAND}"
        ) from error


def write_index(folder: str | Path, entries: dict[str, FigureEntry]) -> None:
    """Write the index of `folder`, ordered by name, atomically."""
    write_json(Path(folder) / INDEX_FILE, {name: entries[name].to_dict() for name in sorted(entries)})


def record_figure(folder: str | Path, entry: FigureEntry) -> None:
    """Put one figure into the folder's index; two notebooks may do so at the same time."""
    with FileLock(Path(folder) / ".lock"):
        write_index(folder, read_index(folder) | {entry.name: entry})
