"""`picollm figures` and `picollm deck`: what they print and how they exit."""

import sys

import pytest

pytest.importorskip("pptx", reason='the deck needs python-pptx: pip install "picollm[slides]"')

from picollm_core import cli
from picollm_core.figure_index import read_index, write_index
from tests.deck_project import write_project


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path)
    return tmp_path


def picollm(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_ship_refuses_a_wrong_name_before_any_training(project, capsys):
    status, out, err = picollm(capsys, "ship", "kgram", "gpt5")
    assert (status, out) == (2, "")
    assert "no shipped model is called 'gpt5'; choose one of kgram, lstm, transformer" in err
    assert not (project / "artefacts" / "runs").exists()


def test_deck_writes_the_file_and_says_how_many_slides(project, capsys):
    status, out, _ = picollm(capsys, "deck")
    assert (status, out) == (0, "artefacts/deck.pptx: 10 slides and 1 in the appendix\n")
    assert (project / "artefacts" / "deck.pptx").is_file()


def test_deck_goes_where_it_is_asked_to(project, capsys):
    assert picollm(capsys, "deck", "--out", "talks/mine.pptx")[0] == 0
    assert (project / "talks" / "mine.pptx").is_file()


def test_an_incomplete_deck_is_status_one_and_names_the_topic(project, capsys):
    entries = read_index("artefacts/figures")
    write_index("artefacts/figures", {name: one for name, one in entries.items() if name != "04_attention"})
    status, out, _ = picollm(capsys, "deck")
    assert status == 1
    assert "left out: Transformer" in out


def test_deck_without_figures_is_one_line_and_status_two(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, _, err = picollm(capsys, "deck")
    assert status == 2
    assert err.count("\n") == 1
    assert "run `picollm figures`" in err


def test_deck_without_python_pptx_is_one_line_and_status_two(project, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "pptx" or "deck_slides" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pptx", None)
    status, _, err = picollm(capsys, "deck")
    assert (status, err) == (2, 'picollm: the deck needs python-pptx: pip install "picollm[slides]"\n')


def test_figures_without_notebooks_or_drawing_is_one_line_and_status_two(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert picollm(capsys, "figures")[0] == 2
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_a.ipynb").write_text("{}")
    status, _, err = picollm(capsys, "figures")
    assert status == 2
    assert err == "picollm: 01_a: no notebook here draws a figure with lab.figure(...)\n"


def test_figures_of_a_notebook_that_cannot_be_redrawn_is_status_one_with_the_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_a.ipynb").write_text('"lab.figure("')
    status, out, _ = picollm(capsys, "figures")
    assert status == 1
    assert "0 figures in artefacts/figures" in out
    assert "failed: 01_a.ipynb is not a readable notebook" in out
