"""What a talk is made from is read from records and notebooks, and only what can be compared is compared."""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from picollm_core.deck_sources import answer_of, drawn_in, gather_facts
from picollm_core.figure_index import FigureEntry, read_index
from picollm_core.results import ResultStore
from tests.deck_project import HASH, make_run, write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return root, write_project(root), ResultStore(root / "artefacts" / "results")


def entry_of(*runs) -> FigureEntry:
    return FigureEntry("05_x", "05_model_comparison", "t", 0.1, tuple(f"runs/{run.fingerprint}.json" for run in runs))


def test_the_best_comparable_run_of_each_family_is_found_and_named_as_winner(project):
    root, runs, store = project
    facts = gather_facts(store, read_index(root / "artefacts" / "figures").values(), root / "notebooks")
    assert {family: run.fingerprint for family, run in facts.best.items()} == {
        family: run.fingerprint for family, run in runs.items()
    }
    assert facts.winner == "transformer"
    assert facts.records == 5


def test_counts_and_story_come_from_notebook_00(project):
    root, _, store = project
    facts = gather_facts(store, read_index(root / "artefacts" / "figures").values(), root / "notebooks")
    assert facts.counts == ("12,662", "816")
    assert facts.story.startswith("Once upon a time there was a cow.")


def test_counts_of_another_text_than_the_records_are_not_used(project, tmp_path):
    root, _, store = project
    source = (root / "notebooks" / "00_start_here.ipynb").read_text().replace(HASH, "0" * 16)
    (tmp_path / "00_start_here.ipynb").write_text(source)
    facts = gather_facts(store, read_index(root / "artefacts" / "figures").values(), tmp_path)
    assert (facts.counts, facts.story) == (None, "")


def test_without_notebook_00_the_records_are_enough(project, tmp_path):
    root, _, store = project
    assert gather_facts(store, read_index(root / "artefacts" / "figures").values(), tmp_path).counts is None


def test_runs_that_cannot_be_compared_are_refused_with_the_way_out(project):
    _, runs, store = project
    with pytest.raises(ValueError, match=r"no story runs of kgram, lstm, transformer .* run `picollm workbook"):
        gather_facts(store, [entry_of(runs["kgram"], runs["lstm"])], Path("nowhere"))
    short = make_run("transformer", 0.5, tokens=4_096, seed=9)
    store.save_run(short)
    with pytest.raises(ValueError, match="no story runs"):
        gather_facts(store, [entry_of(runs["kgram"], runs["lstm"], short)], Path("nowhere"))


def test_a_record_that_the_index_names_and_nobody_has_is_reported(project):
    _, runs, store = project
    gone = make_run("lstm", 1.0, seed=77)
    with pytest.raises(ValueError, match=re.escape(f"{gone.fingerprint}.json; run `picollm workbook")):
        gather_facts(store, [entry_of(*runs.values(), gone)], Path("nowhere"))


def test_an_answer_is_plain_text_with_its_cell_and_missing_where_there_is_none(project, tmp_path):
    root, _, _ = project
    assert answer_of(root / "notebooks" / "05_model_comparison.ipynb") == (5, "In notebook 05 it was 05.5 nats.")
    assert answer_of(root / "notebooks" / "00_start_here.ipynb") is None
    assert answer_of(tmp_path / "nothing.ipynb") is None
    text = "## Answer\n\nSee [the *slides*](x.md): **two** of `a_b` won.\n\n- one\n- two"
    output = new_output("execute_result", data={"text/markdown": text})
    nbformat.write(new_notebook(cells=[new_code_cell("x", outputs=[output])]), tmp_path / "n.ipynb")
    assert answer_of(tmp_path / "n.ipynb") == (1, "See the slides: two of a_b won.\n\n- one\n- two")


def test_the_cell_that_draws_a_figure_is_found_under_its_heading(project):
    root, _, _ = project
    path = root / "notebooks" / "05_model_comparison.ipynb"
    assert drawn_in(path, "05_sizes") == (4, "What was seen")
    assert drawn_in(path, "05_nothing") is None


def test_a_file_that_is_no_notebook_is_named(tmp_path):
    (tmp_path / "x.ipynb").write_text("{")
    with pytest.raises(ValueError, match=r"x\.ipynb cannot be read as a notebook"):
        answer_of(tmp_path / "x.ipynb")
