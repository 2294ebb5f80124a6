"""The workbook runner on tiny notebooks: what it runs, what it reports, what it leaves alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from picollm_core.workbook import run_workbook

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def write_notebook(folder: Path, name: str, *cells) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


def write_endless_notebook(root: Path) -> Path:
    """A notebook 00_slow.ipynb that never ends; gives the file into which it writes its kernel's process id."""
    pid_file = root / "pid"
    record = f"import os, time, pathlib\npathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))"
    write_notebook(root / "notebooks", "00_slow.ipynb", new_code_cell(f"# wait\n{record}\ntime.sleep(600)"))
    return pid_file


def outputs_text(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One execution of a good, a failing, an unreadable and a second good notebook, shared by the tests below."""
    root = tmp_path_factory.mktemp("project")
    folder = root / "notebooks"
    facts = "import os, sys\nprint(os.environ['PICOLLM_PROFILE'], os.getcwd(), sys.executable, sep='|')"
    picture = f"from IPython.display import Image, display\nimport base64\ndisplay(Image(base64.b64decode('{PIXEL}')))"
    write_notebook(
        folder,
        "00_good.ipynb",
        new_markdown_cell("# Loss <b>falls</b> & rests"),
        new_code_cell(facts),
        new_markdown_cell("## A picture\nOne *green* pixel."),
        new_code_cell(picture),
    )
    write_notebook(
        folder,
        "01_broken.ipynb",
        new_markdown_cell("# Broken"),
        new_code_cell("1 + 1"),
        new_code_cell("\nvalue = {}\nvalue['<script>']"),
        new_code_cell("print('never')"),
    )
    (folder / "02_torn.ipynb").write_text('{"cells": [')
    write_notebook(folder, "03_after.ipynb", new_code_cell("print('still ran')"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    environment = dict(os.environ)
    report = run_workbook(folder, profile="quick", progress=False)
    return root, before, dict(os.environ) == environment, report


def test_every_notebook_is_reported_in_reading_order_and_a_failure_stops_only_its_own(run):
    root, _, _, report = run
    assert [(result.name, result.status) for result in report.results] == [
        ("00_good.ipynb", "ok"),
        ("01_broken.ipynb", "failed"),
        ("02_torn.ipynb", "failed"),
        ("03_after.ipynb", "ok"),
    ]
    assert [(result.cells_run, result.cells) for result in report.results] == [(2, 2), (1, 3), (0, 0), (1, 1)]
    copies = root / "artefacts" / "runs" / "workbook" / "quick"
    assert outputs_text(copies / "03_after.ipynb") == "still ran\n"
    assert "never" not in outputs_text(copies / "01_broken.ipynb")


def test_kernel_is_this_interpreter_in_the_project_root_and_alone_sees_the_profile(run):
    root, _, environment_unchanged, report = run
    profile, folder, interpreter = outputs_text(Path(report.copies) / "00_good.ipynb").strip().split("|")
    assert (profile, folder, interpreter) == ("quick", str(root), sys.executable)
    assert environment_unchanged


def test_quick_profile_leaves_the_committed_notebooks_untouched(run):
    root, before, _, _ = run
    assert {path.name: path.read_bytes() for path in (root / "notebooks").iterdir()} == before


def test_failure_names_notebook_cell_first_line_and_error_line(run):
    report = run[3]
    assert not report.ok
    assert report.failures[0] == "01_broken.ipynb, cell 3 `value = {}`: KeyError: '<script>'"
    assert "02_torn.ipynb is not a readable notebook" in report.failures[1]
    assert report.summary().splitlines()[1:] == [f"failed: {line}" for line in report.failures]
    assert report.summary().startswith("2 of 4 notebooks ran through with profile quick")


def test_page_carries_every_figure_with_its_caption_and_needs_no_other_file(run):
    report = run[3]
    page = Path(report.page).read_text()
    assert Path(report.page) == run[0] / "artefacts" / "report.html"
    assert page.count("<img ") == 1
    assert f'src="data:image/png;base64,{PIXEL}"' in page
    assert "<strong>A picture</strong> One green pixel." in page
    assert "http" not in page
    assert "<script" not in page
    assert "<link" not in page


def test_page_escapes_titles_and_errors(run):
    page = Path(run[3].page).read_text()
    assert "Loss &lt;b&gt;falls&lt;/b&gt; &amp; rests" in page
    assert "KeyError: &#x27;&lt;script&gt;&#x27;" in page


def test_cell_that_takes_too_long_is_stopped_and_its_kernel_killed(tmp_path):
    pid_file = write_endless_notebook(tmp_path)
    report = run_workbook(tmp_path / "notebooks", timeout=2, progress=False)
    assert report.failures == ("00_slow.ipynb, cell 1 `# wait`: no end after 2 s; give more time or compute less",)
    assert ends(int(pid_file.read_text()))


def test_kernel_that_dies_is_reported_with_its_cell(tmp_path):
    write_notebook(tmp_path / "notebooks", "00_dies.ipynb", new_code_cell("import os\nos.kill(os.getpid(), 9)"))
    report = run_workbook(tmp_path / "notebooks", progress=False)
    assert len(report.failures) == 1
    assert report.failures[0].startswith("00_dies.ipynb, cell 1 `import os`: its Python process ended")


def ends(pid: int, seconds: float = 60) -> bool:
    """Whether the process ends in time; one that nobody has collected yet counts as ended."""
    try:
        process = psutil.Process(pid)
        for _ in range(int(10 * seconds)):
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            time.sleep(0.1)
    except psutil.NoSuchProcess:
        return True
    return False


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_stops_the_workbook_and_leaves_no_kernel(tmp_path):
    pid_file = write_endless_notebook(tmp_path)
    write_notebook(tmp_path / "notebooks", "01_next.ipynb", new_code_cell("print('never')"))
    script = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs inherit its neglect
        "from picollm_core.workbook import run_workbook\n"
        f"try:\n    run_workbook({str(tmp_path / 'notebooks')!r}, progress=False)\n"
        "except KeyboardInterrupt:\n    raise SystemExit(130)\n"
    )
    root = Path(__file__).resolve().parents[1]
    process = subprocess.Popen([sys.executable, "-c", script], cwd=root, start_new_session=True)
    try:
        for _ in range(1_800):
            if pid_file.exists() and pid_file.read_text():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=180) == 130
    finally:
        process.kill()
    assert ends(int(pid_file.read_text()))
    assert not (tmp_path / "artefacts" / "runs" / "workbook" / "quick" / "01_next.ipynb").exists()


def test_standard_profile_writes_clean_outputs_back_only_on_request(tmp_path):
    folder = tmp_path / "notebooks"
    good = write_notebook(folder, "00_good.ipynb", new_code_cell("import os\nprint(os.getcwd() + '/data/3seqs.txt')"))
    long = write_notebook(folder, "01_long.ipynb", new_code_cell("\n".join(f"a{i} = {i}" for i in range(16))))
    bad = write_notebook(folder, "02_bad.ipynb", new_code_cell("1 / 0"))
    before = {path: path.read_bytes() for path in (long, bad)}
    report = run_workbook(folder, profile="standard", write=True, progress=False)
    assert outputs_text(good) == "data/3seqs.txt\n"
    assert {path: path.read_bytes() for path in before} == before
    assert "01_long.ipynb, cell 1 has 16 lines of code" in report.failures[0]
    assert "ZeroDivisionError: division by zero" in report.failures[1]


def test_only_picks_notebooks_by_number_stem_or_file_name(tmp_path):
    folder = tmp_path / "notebooks"
    for name in ("00_a.ipynb", "01_b.ipynb", "02_c.ipynb"):
        write_notebook(folder, name, new_markdown_cell("# Nothing to run"))
    for only, expected in (("01", ["01_b.ipynb"]), (["02_c", "00_a.ipynb"], ["00_a.ipynb", "02_c.ipynb"])):
        report = run_workbook(folder, only=only, progress=False)
        assert [result.name for result in report.results] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"notebooks": "nowhere"}, "there is no folder nowhere"),
        ({"notebooks": "."}, "holds no notebooks"),
        ({"profile": "slow"}, "unknown profile 'slow'; choose one of quick, standard, full"),
        ({"only": "09"}, "no notebook is called 09; choose from 00_a"),
        ({"only": []}, "choose from 00_a"),
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"write": True}, "only the standard profile"),
    ],
)
def test_wrong_arguments_are_refused_with_the_way_out(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "notebooks", "00_a.ipynb", new_markdown_cell("# A"))
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        run_workbook(**{"notebooks": "notebooks", "progress": False} | arguments)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"a": 1}', json.dumps({"nbformat": 4, "nbformat_minor": 5, "cells": 3})]
)
def test_a_file_that_is_no_notebook_is_named(tmp_path, content):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_odd.ipynb").write_text(content)
    report = run_workbook(tmp_path / "notebooks", progress=False)
    assert "00_odd.ipynb is not a readable notebook" in report.failures[0]


def test_stale_outputs_never_pass_for_results_of_this_run(tmp_path):
    cell = new_code_cell("1 / 0")
    later = new_code_cell("2", outputs=[nbformat.v4.new_output("stream", text="from an earlier run")])
    write_notebook(tmp_path / "notebooks", "00_stale.ipynb", cell, later)
    report = run_workbook(tmp_path / "notebooks", progress=False)
    assert outputs_text(Path(report.copies) / "00_stale.ipynb") == ""
