"""The command line: one line and status 2 for bad input, status 0 and useful text otherwise."""

import json
import os
import subprocess
import sys

import pytest

from picollm_core import cli
from picollm_core.runs import load_run

SEEDS_FLAGS = [
    *("--tinystories_weight", "0.0", "--input_files", "numbers.txt", "--prompt", "0 1 2 3 4", "--block_size", "32"),
    *("--max_steps_per_epoch", "1", "--kgram_k", "2", "--embed_size", "64", "--device_id", "cpu"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PICOLLM_TINYSTORIES", raising=False)
    lines = [" ".join(str(n + k) for k in range(12)) for n in range(300)]
    (tmp_path / "numbers.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def picollm(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_the_courses_command_trains_three_families_with_falling_loss_and_three_samples(folder, capsys):
    status, out, _ = picollm(capsys, "train", *SEEDS_FLAGS)
    assert status == 0
    blocks = out.strip().split("\n\n")
    assert len(blocks) == 3
    for block in blocks:
        losses = [float(x) for x in block.splitlines()[1].removeprefix("  loss (nats per token)").split("->")]
        assert losses[-1] < losses[0]
        assert [sum(line.strip().startswith(s) for line in block.splitlines()) for s in ("greedy", "top-p")] == [1, 2]
        assert "'0 1 2 3 4" in block
    runs = [load_run(path.parent) for path in folder.glob("artefacts/runs/*/summary.json")]
    assert {run.config.model.n_embd for run in runs} == {64}
    assert {run.config.model.block_size for run in runs} == {32}
    assert next(run.config.model.k for run in runs if run.family == "kgram") == 2
    assert {run.summary["steps"] for run in runs} == {3}


def test_dashes_and_underscores_are_the_same_flag(folder):
    with_dashes = [flag.replace("_", "-") if flag.startswith("--") else flag for flag in SEEDS_FLAGS]
    assert cli._parse(["train", *with_dashes]) == cli._parse(["train", *SEEDS_FLAGS])


def test_a_finished_run_can_be_sampled_evaluated_and_listed(folder, capsys):
    assert picollm(capsys, "train", *SEEDS_FLAGS, "--models", "lstm-pico")[0] == 0
    options = ["--max-new-tokens", "8", "--seed", "3"]
    first = picollm(capsys, "generate", "0 1 2", *options)
    assert first[0] == 0
    assert first[1].startswith("0 1 2")
    assert picollm(capsys, "generate", "0 1 2", *options) == first
    status, out, _ = picollm(capsys, "evaluate", "--corpus", "numbers.txt")
    assert status == 0
    assert "bits_per_byte" in out
    assert "interval" in out
    status, out, _ = picollm(capsys, "runs")
    assert status == 0
    assert "lstm-" in out
    assert "numbers.txt" in out


BAD = {
    "unknown preset": (["train", "--models", "lstm-huge"], "lstm-huge"),
    "unknown flag": (["train", "--nope", "1"], "--nope"),
    "unknown command": (["trian"], "trian"),
    "not a number": (["train", "--learning-rate", "fast"], "fast"),
    "zero batch": (["train", "--batch-size", "0"], "batch_size is 0"),
    "k below 1": (["train", "--models", "kgram-pico", "--kgram-k", "0"], "k is 0"),
    "heads": (["train", "--models", "transformer-pico", "--set", "n_head=5"], "n_head=5 does not divide n_embd=64"),
    "no setting of that name": (["train", "--set", "colour=red"], "colour"),
    "setting without value": (["train", "--set", "k"], "name=value"),
    "no text left": (["train", "--tinystories-weight", "0"], "no text is left"),
    "missing file": (["train", "--input-files", "nope.txt"], "nope.txt"),
    "empty file": (["train", "--input-files", "empty.txt"], "empty.txt"),
    "binary file": (["train", "--input-files", "binary.txt"], "binary.txt"),
    "not UTF-8": (["train", "--input-files", "latin.txt"], "latin.txt"),
    "folder without text": (["train", "--input-dir", "bare"], "bare"),
    "too small": (["train", "--input-files", "small.txt", "--tinystories-weight", "0"], "a batch needs 16"),
    "no GPU": (["train", "--device", "cuda:0", "--input-files", "numbers.txt", "--tinystories-weight", "0"], "cuda"),
    "no run yet": (["generate", "Once"], "picollm train"),
    "no such model": (["generate", "Once", "--model", "nowhere"], "nowhere"),
    "top_p above 1": (["generate", "Once", "--top-p", "1.5"], "top_p is 1.5"),
    "temperature below 0": (["generate", "Once", "--temperature", "-1"], "temperature is -1"),
    "no notebooks": (["workbook"], "notebooks"),
    "unknown column": (["runs", "--columns", "height"], "height"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_status_two(case, folder, capsys, monkeypatch):
    (folder / "bare").mkdir()
    (folder / "empty.txt").write_text("")
    (folder / "binary.txt").write_bytes(b"fine\nab\x00cd\n")
    (folder / "latin.txt").write_bytes("fine\ncaf\xe9\n".encode("latin-1"))
    (folder / "small.txt").write_text("one\ntwo\nthree\n")
    if case == "no GPU":
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    if case == "unknown column":
        picollm(capsys, "train", *SEEDS_FLAGS, "--models", "kgram-pico")
    arguments, shown = BAD[case]
    status, _, err = picollm(capsys, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("picollm:")]
    assert status == 2
    assert len(lines) == 1
    assert shown in lines[0]
    assert "Traceback" not in err


def test_an_empty_prompt_is_refused(folder, capsys):
    picollm(capsys, "train", *SEEDS_FLAGS, "--models", "kgram-pico")
    status, _, err = picollm(capsys, "generate", "")
    assert (status, "prompt is empty" in err) == (2, True)


def test_help_exits_with_status_zero(capsys):
    status, out, _ = picollm(capsys, "--help")
    assert status == 0
    assert all(name in out for name in ("train", "generate", "evaluate", "runs", "workbook", "bench"))


def test_the_installed_command_prints_no_traceback(folder):
    code = "from picollm_core.cli import main; main()"
    environment = os.environ | {"PYTHONWARNINGS": "error::UserWarning"}
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", "x", "--model", "nowhere"],
        capture_output=True, text=True, env=environment, cwd=folder, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert json.dumps(done.stdout) == '""'
