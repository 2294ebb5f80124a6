"""Redraw the workbook's figures from the committed results: no training, no corpus, no network."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from picollm_core.figure_index import FIGURES_DIR, KINDS, FigureEntry, read_index, write_index
from picollm_core.lab import REDRAW
from picollm_core.profiles import DEFAULT
from picollm_core.workbook import run_workbook, select_notebooks

CELL_SECONDS = 600
DRAWS = "lab.figure("


@dataclass(frozen=True)
class FiguresReport:
    """What a redrawing did: figures by what became of their files, notebooks that failed (one line each), left-overs.

    `left_over` are figures in the folder that no notebook draws any more.
    """

    folder: str
    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    failures: tuple[str, ...]
    left_over: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.failures

    def summary(self) -> str:
        """Lines for a terminal."""
        count = len(self.written) + len(self.unchanged)
        lines = [f"{count} figures in {self.folder}: {len(self.written)} written, {len(self.unchanged)} unchanged"]
        lines += [f"written: {name}" for name in self.written]
        lines += [f"left over: {name}, which no notebook draws any more; delete its files" for name in self.left_over]
        return "\n".join([*lines, *(f"failed: {line}" for line in self.failures)])


def _install(name: str, source: Path, target: Path) -> bool:
    """Move a figure's files that differ from those in `target` there; True when there were any."""
    changed = False
    for kind in KINDS:
        new, old = source / f"{name}.{kind}", target / f"{name}.{kind}"
        content = new.read_bytes()
        if old.is_file() and old.read_bytes() == content:
            continue
        partial = old.with_name(f"{old.name}.{os.getpid()}.tmp")
        try:
            partial.write_bytes(content)
            os.replace(partial, old)
        finally:
            partial.unlink(missing_ok=True)
        changed = True
    return changed


def redraw_figures(
    notebooks: str | Path = "notebooks",
    *,
    folder: str | Path = FIGURES_DIR,
    only: Sequence[str] | str | None = None,
    progress: bool = True,
) -> FiguresReport:
    """Write every figure of the notebooks, and their index, into `folder`, from artefacts/results alone.

    The notebooks run in the standard profile with a lab that looks results up and computes none. A notebook that needs
    what is not recorded fails with a line that says so; its figures and their entries stay as they were. Files with the
    same bytes are not touched. `only` picks notebooks by number, stem or file name.
    Raises ValueError for a missing folder, an unknown notebook, or when no notebook draws a figure.
    """
    paths = select_notebooks(Path(notebooks), only)
    drawing = [path.stem for path in paths if DRAWS in path.read_text(encoding="utf-8", errors="replace")]
    if not drawing:
        raise ValueError(f"{', '.join(path.stem for path in paths)}: no notebook here draws a figure with {DRAWS}...)")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    before = read_index(target)
    with tempfile.TemporaryDirectory(prefix="picollm-figures-") as scratch:
        new = Path(scratch) / "figures"
        report = run_workbook(
            notebooks,
            profile=DEFAULT,
            only=drawing,
            out=Path(scratch) / "notebooks",
            page=Path(scratch) / "page.html",
            timeout=CELL_SECONDS,
            progress=progress,
            variables={REDRAW: str(new), "HF_HUB_OFFLINE": "1"},
        )
        drawn = read_index(new)
        changed = {name: _install(name, new, target) for name in drawn}
    complete = {result.name.removesuffix(".ipynb") for result in report.results if not result.error}
    entries = _merged(before, drawn, complete, {path.stem for path in Path(notebooks).glob("*.ipynb")})
    if entries != before:
        write_index(target, entries)
    return FiguresReport(
        str(folder),
        tuple(name for name, differs in changed.items() if differs),
        tuple(name for name, differs in changed.items() if not differs),
        report.failures,
        tuple(sorted({path.stem for path in target.glob("*.png")} - set(entries))),
    )


def _merged(
    before: dict[str, FigureEntry], drawn: dict[str, FigureEntry], complete: set[str], existing: set[str]
) -> dict[str, FigureEntry]:
    """The new index: what was drawn, and what belongs to notebooks that were not run through."""
    kept = {name: one for name, one in before.items() if one.notebook in existing - complete}
    return kept | drawn
