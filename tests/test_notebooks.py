"""The committed notebooks are clean, and all of them run through in the quick profile."""

import ast
from pathlib import Path

import nbformat
import pytest

from picollm_core.notebook_cleaning import clean_notebook
from picollm_core.profiles import project_root
from picollm_core.workbook import run_workbook

ROOT = project_root(Path(__file__).parent)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PLAYGROUND = ROOT / "notebooks" / "06_playground.ipynb"


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_is_clean_and_has_outputs_without_errors(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert clean_notebook(notebook, ROOT) == notebook
    outputs = [output for cell in code_cells(path) for output in cell.outputs]
    assert outputs, "never executed"
    assert not any(output.output_type == "error" for output in outputs)
    assert "profile standard" in str(code_cells(path)[0].outputs), "not the standard profile's outputs"


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path != PLAYGROUND], ids=lambda path: path.stem)
def test_notebook_has_the_common_form(path):
    cells = read(path).cells
    assert 12 <= len(cells) <= 20
    assert cells[0].source.startswith("# ")
    assert cells[-1].source.startswith("## What you may be asked")
    assert any("## Answer" in cell.source for cell in cells)
    definitions = [n for c in code_cells(path) for n in ast.walk(ast.parse(c.source)) if isinstance(n, ast.ClassDef)]
    assert not definitions


def test_the_playgrounds_notebook_is_nothing_but_the_playground():
    cells = read(PLAYGROUND).cells
    assert cells[0].source.startswith("# ")
    assert [cell.cell_type for cell in cells] == ["markdown", "code", "code"]
    shown = [output.data for output in cells[-1].outputs]
    assert any("<table>" in data.get("text/html", "") for data in shown), "no static samples for pages without widgets"


def test_the_set_up_cell_is_the_same_in_every_notebook():
    assert len({code_cells(path)[0].source for path in NOTEBOOKS}) == 1


def test_every_notebook_runs_through_in_the_quick_profile(tmp_path, monkeypatch):
    monkeypatch.delenv("PICOLLM_TINYSTORIES", raising=False)
    before = {path: path.read_bytes() for path in NOTEBOOKS}
    report = run_workbook(ROOT / "notebooks", out=tmp_path / "copies", page=tmp_path / "report.html", progress=False)
    assert report.failures == ()
    assert {path: path.read_bytes() for path in NOTEBOOKS} == before
    assert (tmp_path / "report.html").read_text().count("<img") >= 2
