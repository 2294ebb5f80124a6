"""What cleaning takes out of an executed notebook, and what it leaves."""

from pathlib import Path
from tempfile import gettempdir

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from picollm_core.notebook_cleaning import MAX_DATA, MAX_TEXT, WIDGET_VIEW, clean_notebook


def one_output(output, root="/srv/checkout"):
    """The only output of a one-cell notebook after cleaning."""
    notebook = new_notebook(cells=[new_code_cell("run()", outputs=[output])])
    return clean_notebook(notebook, root).cells[0].outputs[0]


def stream_text(text: str, root="/srv/checkout") -> str:
    return one_output(new_output("stream", text=text), root).text


def test_metadata_goes_but_for_cell_tags():
    cell = new_code_cell(
        "1", metadata={"tags": ["parameters"], "execution": {"iopub.status.busy": "2024"}, "colab": {}}
    )
    note = new_markdown_cell("# A", metadata={"id": "x"})
    notebook = new_notebook(cells=[note, cell], metadata={"widgets": {"state": {}}, "colab": {"user": "x"}})
    clean = clean_notebook(notebook)
    assert set(clean.metadata) == {"kernelspec", "language_info"}
    assert [dict(cell.metadata) for cell in clean.cells] == [{}, {"tags": ["parameters"]}]
    assert "widgets" in notebook.metadata, "the notebook that was given stays as it was"
    nbformat.validate(clean)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("saved /srv/checkout/artefacts/a.png\n", "saved artefacts/a.png\n"),
        ("file:///srv/checkout/data/x.txt", "file://data/x.txt"),
        ("in '/srv/checkout'", "in '.'"),
        ("/srv/checkout/.venv/bin/python", ".venv/bin/python"),
        ("/srv/checkout2/a and https://host/srv/checkout/a", "/srv/checkout2/a and https://host/srv/checkout/a"),
        (f"{gettempdir()}/ipykernel_71/305.py:3: UserWarning: careful", "<cell>:3: UserWarning: careful"),
        ("File \x1b[32m/srv/checkout/a.py:3\x1b[39m, in f", "File \x1b[32ma.py:3\x1b[39m, in f"),
    ],
)
def test_machine_paths_vanish_from_streams(raw, expected):
    assert stream_text(raw) == expected


def test_home_and_installation_paths_get_stand_ins(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/users/someone")
    monkeypatch.setenv("PICOLLM_TINYSTORIES", "/mnt/big/tinystories")
    assert stream_text("/users/someone/.cache/x") == "~/.cache/x"
    assert stream_text("/mnt/big/tinystories/train.parquet") == "$PICOLLM_TINYSTORIES/train.parquet"
    assert stream_text(f"{nbformat.__file__}:1").startswith("<site-packages>/nbformat/")
    assert str(Path(pytest.__file__).parent) not in stream_text(pytest.__file__)


def test_paths_vanish_from_displays_and_tracebacks():
    shown = one_output(
        new_output("display_data", data={"text/html": "<b>/srv/checkout/a</b>", "text/plain": "/srv/checkout/a"})
    )
    assert dict(shown.data) == {"text/html": "<b>a</b>", "text/plain": "a"}
    failed = one_output(new_output("error", ename="E", evalue="/srv/checkout/a", traceback=["in /srv/checkout/b.py"]))
    assert (failed.evalue, failed.traceback) == ("a", ["in b.py"])


def test_widget_views_go_and_their_text_stays():
    shown = one_output(new_output("display_data", data={WIDGET_VIEW: {"model_id": "1"}, "text/plain": "slider"}))
    assert dict(shown.data) == {"text/plain": "slider"}


def test_progress_bar_keeps_its_last_state_only():
    assert stream_text("10%\r50%\r100%\ndone\r\n") == "100%\ndone\r\n"


def test_long_text_is_shortened_and_says_so():
    text = stream_text("a" * (MAX_TEXT + 5_000))
    assert len(text) <= MAX_TEXT
    assert "characters left out" in text
    assert stream_text("a" * MAX_TEXT) == "a" * MAX_TEXT


def test_huge_picture_is_left_out_visibly_and_small_ones_stay_as_they_are():
    shown = one_output(new_output("display_data", data={"image/png": "A" * (MAX_DATA + 1), "text/plain": "<Figure>"}))
    assert dict(shown.data) == {"text/plain": "[image/png of 1.0 MB left out; run the cell to see it]"}
    small = {"image/png": "/tmp/AAAA", "text/plain": "<Figure>"}
    assert dict(one_output(new_output("display_data", data=small)).data) == small


@pytest.mark.parametrize(("lines", "allowed"), [(15, True), (16, False)])
def test_code_cell_over_15_lines_is_refused_with_its_number(lines, allowed):
    notebook = new_notebook(cells=[new_markdown_cell("\n" * 30), new_code_cell("\n".join(["x = 1"] * lines))])
    if allowed:
        assert clean_notebook(notebook).cells[1].source == notebook.cells[1].source
    else:
        with pytest.raises(ValueError, match="cell 2 has 16 lines of code, 15 at most"):
            clean_notebook(notebook)


PIECES = [
    "/srv/checkout",
    "/srv/checkout/data",
    "/",
    "~/x",
    "10%\r50%",
    "\n",
    "\r\n",
    ".",
    "/tmp/a.txt",
    "é",
    "a" * 15_000,
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join))
def test_a_clean_notebook_comes_back_equal(text):
    outputs = [
        new_output("stream", text=text),
        new_output("display_data", data={"text/plain": text, "text/html": text}),
    ]
    once = clean_notebook(new_notebook(cells=[new_code_cell("1", outputs=outputs)]), "/srv/checkout")
    assert clean_notebook(once, "/srv/checkout") == once
