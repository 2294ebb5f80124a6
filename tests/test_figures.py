"""Figures are redrawn from records alone, with the same bytes, and what is missing is said in one line."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from picollm_core.figure_index import FigureEntry, read_index, write_index
from picollm_core.figures import FiguresReport, redraw_figures
from picollm_core.lab import Lab
from picollm_core.profiles import PROFILES

DRAW = """from picollm_core.lab import open_lab
from picollm_core.plots import plot_bars
import pandas as pd
lab = open_lab()
value = lab.measure("height", lambda: 1 / 0, of={of!r})
bars = pd.DataFrame([{{"model": "a", "family": "lstm", "metres": value}}])
lab.figure(plot_bars(bars, "metres", "model", unit="m", title=f"It is {{value}} m high", family="family"), {name!r})"""


def write_notebook(root: Path, name: str, source: str) -> None:
    (root / "notebooks").mkdir(exist_ok=True)
    cells = [new_markdown_cell("# A question?"), new_code_cell(source)]
    nbformat.write(new_notebook(cells=cells), root / "notebooks" / f"{name}.ipynb")


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory) -> tuple[Path, FiguresReport, FiguresReport]:
    """A project of four notebooks, redrawn twice: the second time the recorded one alone."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        Lab(PROFILES["standard"]).measure("height", lambda: 7, of="tree")
        write_notebook(root, "01_recorded", DRAW.format(of="tree", name="01_tree"))
        write_notebook(root, "02_missing", DRAW.format(of="house", name="02_house"))
        write_notebook(root, "03_no_figure", "raise RuntimeError('never run')")
        folder = root / "artefacts" / "figures"
        folder.mkdir(parents=True)
        (folder / "00_old.png").touch()
        write_index(
            folder,
            {
                "00_old": FigureEntry("00_old", "00_gone", "Of a notebook that is gone", 0.1),
                "01_old": FigureEntry("01_old", "01_recorded", "No longer drawn", 0.1),
                "02_house": FigureEntry("02_house", "02_missing", "As it was", 0.1),
            },
        )
        first = redraw_figures(progress=False)
        second = redraw_figures(only="01", progress=False)
    return root, first, second


def test_a_recorded_figure_is_written_in_every_format_and_enters_the_index(redrawn):
    root, first, _ = redrawn
    folder = root / "artefacts" / "figures"
    assert first.written == ("01_tree",)
    assert all((folder / f"01_tree.{kind}").stat().st_size > 1_000 for kind in ("png", "svg", "pdf"))
    entry = read_index(folder)["01_tree"]
    assert (entry.title, entry.notebook) == ("It is 7 m high", "01_recorded")
    (result,) = entry.results
    assert (root / "artefacts" / "results" / result).is_file()


def test_drawn_again_the_bytes_are_the_same_and_the_files_are_not_touched(redrawn):
    _, _, second = redrawn
    assert (second.written, second.unchanged, second.failures) == ((), ("01_tree",), ())


def test_what_is_not_recorded_is_one_line_with_the_way_out_and_computes_nothing(redrawn):
    _, first, _ = redrawn
    (line,) = first.failures
    assert line.startswith("02_missing.ipynb, cell 2")
    assert "no record of the measurement 'height'" in line
    assert "picollm workbook --profile standard --write" in line
    assert "ZeroDivisionError" not in line
    assert not first.ok
    assert "failed: 02_missing" in first.summary()


def test_the_entry_of_a_notebook_that_failed_stays_and_others_not_drawn_any_more_go(redrawn):
    root, first, _ = redrawn
    index = read_index(root / "artefacts" / "figures")
    assert set(index) == {"01_tree", "02_house"}
    assert index["02_house"].title == "As it was"
    assert first.left_over == ("00_old",)
    assert "left over: 00_old" in first.summary()


def test_nothing_else_is_left_in_the_project(redrawn):
    root, _, _ = redrawn
    assert sorted(path.name for path in (root / "artefacts").iterdir()) == ["figures", "results"]
    assert not list(root.rglob("*.tmp"))


def test_notebooks_that_draw_nothing_are_named(redrawn, monkeypatch):
    root, _, _ = redrawn
    monkeypatch.chdir(root)
    with pytest.raises(ValueError, match="03_no_figure: no notebook here draws a figure"):
        redraw_figures(only="03", progress=False)
    with pytest.raises(ValueError, match="no notebook is called 77"):
        redraw_figures(only="77", progress=False)
