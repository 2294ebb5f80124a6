"""`picollm sweep`: one table, failures named, one line and status 2 for what cannot be, Ctrl-C that loses nothing."""

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import psutil
import pytest

from picollm_core import cli
from picollm_core.cli_sweep import read_configs
from tests.test_sweep import SETTINGS, folder, wait_for  # noqa: F401  (a fixture)

BODY = f"from picollm_core import run_config\nSETTINGS = {SETTINGS!r}\n"


def picollm(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_both_ways_of_writing_configurations_train_and_the_table_is_written(folder, capsys):  # noqa: F811
    (folder / "mine.py").write_text("SEEDS = (1,)\n")
    (folder / "runs.py").write_text(
        BODY
        + "from mine import SEEDS\n"
        + "configs = [run_config('kgram-pico', **SETTINGS), *(('lstm-pico', SETTINGS | {'seed': s}) for s in SEEDS)]\n"
    )
    for name in ("table.csv", "table.json"):
        status, out, _ = picollm(capsys, "sweep", "runs.py", "--n-jobs", "1", "--out", name)
        assert status == 0
    header, *rows = out.splitlines()
    assert header.split()[:1] == ["family"]
    assert {"seed", "nll", "bits_per_byte"} <= set(header.split())
    assert "max_steps" not in header  # the same in both
    assert [row.split()[0] for row in rows] == ["kgram", "lstm"]
    table = pd.read_csv("table.csv")
    assert table["seed"].tolist() == [0, 1]
    stored = json.loads((folder / "table.json").read_text())
    assert [row["fingerprint"] for row in stored] == table["fingerprint"].tolist()
    assert sorted(path.name for path in folder.glob("table*")) == ["table.csv", "table.json"]


def test_failures_are_printed_with_their_configuration_and_status_one(folder, capsys):  # noqa: F811
    (folder / "runs.py").write_text(
        BODY + "configs = [('kgram-pico', SETTINGS), ('kgram-pico', SETTINGS | dict(seed=3, batch_size=999))]\n"
    )
    status, out, _ = picollm(capsys, "sweep", "runs.py", "--n-jobs", "1")
    assert status == 1
    (failed,) = [line for line in out.splitlines() if line.startswith("failed:")]
    assert "kgram on text.txt" in failed
    assert "seed 3" in failed
    assert "a batch needs 999" in failed
    assert any(line.split()[0] == "kgram" for line in out.splitlines())


BAD = {
    "no such file": (None, [], "there is no file runs.py"),
    "syntax": ("x = 1\nconfigs = [\n", [], "runs.py, line 2: '[' was never closed"),
    "error": ("\n\n1 / 0\n", [], "runs.py, line 3: ZeroDivisionError"),
    "bad value": (BODY + "configs = [run_config('huge')]\n", [], "runs.py, line 3: ValueError: unknown preset 'huge'"),
    "no configs": ("runs = []\n", [], "runs.py defines no `configs`"),
    "not a list": ("configs = 3\n", [], "`configs` of runs.py is a int"),
    "empty": ("configs = []\n", [], "the list of configurations is empty"),
    "not a pair": ("configs = ['lstm-pico']\n", [], "configuration 0 is 'lstm-pico'"),
    "bad pair": ("configs = [('lstm-pico', {}), ('lstm-pico', {'colour': 1})]\n", [], "configuration 1: no part of"),
    "duplicates": ("configs = [('lstm-pico', {})] * 2\n", [], "configurations 0 and 1 are the same run"),
    "table": ("configs = [('lstm-pico', {})]\n", ["--out", "table.xls"], "table.xls; its name must end in .csv"),
    "folder": ("configs = [('lstm-pico', {})]\n", ["--out", "no/table.csv"], "no folder no"),
    "n_jobs": (BODY + "configs = [('kgram-pico', SETTINGS)]\n", ["--n-jobs", "0"], "n_jobs is 0"),
    "flag": ("configs = []\n", ["--jobs", "2"], "--jobs"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_status_two(case, folder, capsys):  # noqa: F811
    text, options, shown = BAD[case]
    if text is not None:
        (folder / "runs.py").write_text(text)
    status, _, err = picollm(capsys, "sweep", "runs.py", *options)
    (line,) = [line for line in err.splitlines() if line.startswith("picollm:")]
    assert status == 2
    assert shown in line
    assert not (folder / "artefacts" / "runs").exists() or case == "n_jobs"


def test_a_file_that_imports_its_neighbours_leaves_the_path_as_it_was(folder):  # noqa: F811
    (folder / "runs.py").write_text("configs = [('lstm-pico', {'seed': 4})]\n")
    before = list(sys.path)
    (config,) = read_configs(folder / "runs.py")
    assert (config.model.family, config.train.seed) == ("lstm", 4)
    assert sys.path == before


def test_ctrl_c_says_one_line_keeps_what_has_ended_and_leaves_no_worker(folder):  # noqa: F811
    (folder / "runs.py").write_text(
        BODY + "configs = [('kgram-pico', SETTINGS | dict(max_steps=n)) for n in (6, 10**6)]\n"
    )
    command = [sys.executable, "-c", "from picollm_core.cli import main; main()", "sweep", "runs.py", "--n-jobs", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}  # not so under `make &`
    process = subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes, **heard)
    wait_for(lambda: list(folder.glob("artefacts/runs/*/summary.json")))
    workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # what the terminal does
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130
    said = [line for line in err.replace("\r", "\n").splitlines() if line and not line.startswith("sweep:")]
    assert said == ["picollm: interrupted; finished runs are kept, and the same command goes on"]
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert len(list(folder.glob("artefacts/runs/*/summary.json"))) == 1
