"""Models go to a hub and come back by name with equal logits; what goes is said, and nothing else goes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from picollm_core import save_model, train
from picollm_core.hub import SENT, check_repo, prepare, push
from picollm_core.models import build_model
from tests.hub_stub import running_hub

TOKEN = "hf_" + "c0ffee" * 6
SETTINGS = {"corpus": "storyworld", "n_stories": 100, "max_steps": 2, "eval_stories": 2, "tokenizer": "stories-4k"}

COMMANDS = """
import json, os, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
import picollm_core.hub
from picollm_core.cli import main

picollm_core.hub.PATIENCE = 2.0
for line in sys.stdin:
    out, err = StringIO(), StringIO()
    arguments, os.environ["HF_TOKEN"] = json.loads(line)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            status = end.code
    said = [text for text in err.getvalue().splitlines() if text.startswith("picollm: ")]
    print(json.dumps([status, out.getvalue(), said]), flush=True)
"""

COMPARE = """
import torch
from picollm_core import load_model
from picollm_core.models import LanguageModel

idx = torch.arange(30).reshape(2, 15)
torch.save([LanguageModel.from_pretrained("me/stories")(idx), load_model("me/stories")[0](idx)], "logits.pt")
"""


def client(folder: Path, script: str, hub, text: str = "") -> subprocess.CompletedProcess:
    """A process whose hub is the stub: the real client reads these variables when it is imported."""
    names = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / "hf"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",  # git-lfs, which the stub knows
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", script],
        input=text,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=folder,
        env=os.environ | names,
    )


def picollm(folder: Path, hub, *commands: list[str], tokens: tuple[str, ...] = ()) -> list[tuple[int, str, list[str]]]:
    """Status, output and error lines of each command, with its token, one after the other in a process of their own."""
    rows = zip(commands, tokens or (TOKEN,) * len(commands), strict=True)
    done = client(folder, COMMANDS, hub, "".join(f"{json.dumps(row)}\n" for row in rows))
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with one finished run."""
    folder = tmp_path_factory.mktemp("project")
    runs = folder / "artefacts" / "runs"
    run = train("lstm-pico", runs_dir=runs, progress=False, n_embd=8, block_size=16, sample_tokens=2, **SETTINGS)
    return folder, run


@pytest.fixture
def hub():
    with running_hub(TOKEN) as running:
        yield running


def test_a_run_that_was_pushed_comes_back_by_name_with_equal_logits(project, hub):
    folder, run = project
    pushed, written, scored, again = picollm(
        folder,
        hub,
        ["push", run.fingerprint, "me/stories", "--private"],
        ["generate", "Once upon", "--model", "me/stories", "--max-new-tokens", "3"],
        ["evaluate", "--model", "me/stories", "--corpus", "storyworld", "--max-stories", "2"],
        ["push", run.directory.name, "me/stories", "--private"],
    )
    assert pushed[0] == 0, pushed
    assert pushed[1].startswith(f"{hub.endpoint}/me/stories has:\n")
    assert hub.private == {"me/stories": True}
    assert set(hub.files["me/stories"]) == set(SENT)
    assert any(request.startswith("PUT /lfs/") for request in hub.asked)
    assert written[0] == 0, written
    assert written[1].startswith("Once upon")
    assert scored[0] == 0, scored
    assert scored[1].startswith("me/stories on storyworld (validation, 2 stories")
    assert again[0] == 0, again

    done = client(folder, COMPARE, hub)
    assert done.returncode == 0, done.stderr
    idx = torch.arange(30).reshape(2, 15)
    for logits in torch.load(folder / "logits.pt"):
        assert torch.equal(logits, run.load_model()(idx))

    for file in folder.rglob("*"):  # the client keeps its token to itself
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file
    assert not any(TOKEN.encode() in data for data in hub.files["me/stories"].values())


def test_what_the_hub_refuses_is_one_line_and_status_two(project, hub):
    folder, run = project
    hub.private["me/open"], hub.files["me/open"] = False, {}
    name = run.directory.name
    commands = (
        ["push", name, "you/stories"],
        ["push", name, "me/open", "--private"],
        ["generate", "--model", "me/nothing"],
        ["push", name, "me/stories"],
    )
    tokens = (TOKEN, TOKEN, TOKEN, "hf_wrong")
    foreign, public, absent, unknown = picollm(folder, hub, *commands, tokens=tokens)
    assert foreign[0] == public[0] == absent[0] == unknown[0] == 2
    assert "the token may not write to you/stories" in foreign[2][0]
    assert "me/open exists and is public" in public[2][0]
    assert "me/nothing is neither a folder here nor a readable hub repository" in absent[2][0]
    assert [len(outcome[2]) for outcome in (foreign, public, absent, unknown)] == [1, 1, 1, 1]
    assert hub.files["me/open"] == {}
    assert "the Hub does not accept the token; run `hf auth login` or set HF_TOKEN" in unknown[2][0]


def test_without_a_token_nothing_is_asked_of_the_hub_and_one_that_never_answers_is_given_up(project, hub):
    folder, run = project
    hub.stalls.set()
    command = ["push", run.directory.name, "me/stories"]
    before, stalled = picollm(folder, hub, command, command, tokens=("", TOKEN))
    said = "picollm: not logged in to the Hugging Face Hub; run `hf auth login` or set HF_TOKEN"
    assert (before[0], before[2]) == (2, [said])
    assert (stalled[0], len(stalled[2])) == (2, 1)
    assert "nothing was published as me/stories: " in stalled[2][0]
    assert hub.asked == ["POST /api/repos/create"]


@pytest.mark.parametrize("name", ["stories", "me/", "me/a/b", "me/a b", "me/a--b", "../b", "me/a.git", ""])
def test_a_malformed_name_is_refused(name):
    with pytest.raises(ValueError, match="is not the name of a hub repository"):
        check_repo(name)


def test_a_card_says_how_a_run_was_made_and_how_good_it_is_with_intervals(project):
    folder, run = project
    target = prepare(run.directory, "me/stories", folder=folder / "out", license="cc0-1.0")
    card = (target / "README.md").read_text()
    low, high = run.summary["bits_per_byte_interval"]
    for said in (
        "license: cc0-1.0",
        f"content hash {run.context['corpus_hashes'][0]}",
        "stories-4k (4,096 tokens)",
        f"{run.summary['bits_per_byte']:.4f} (95% bootstrap over texts: {low:.4f} to {high:.4f})",
        f"run {run.fingerprint}",
        'load_model("me/stories")',
        "--model me/stories",
        "what it says about the world is made up",
        '"family": "lstm"',
    ):
        assert said in card, said
    assert sorted(file.name for file in target.iterdir()) == sorted(SENT)


def test_a_card_does_not_say_where_own_texts_lie(tmp_path):
    own = tmp_path / "private-place" / "diary.txt"
    own.parent.mkdir()
    own.write_text("".join(f"On day {day} I saw {day * 7} birds.\n" for day in range(60)))
    settings = SETTINGS | {"corpus": str(own), "splits": (60, 20, 20)}
    run = train("lstm-pico", runs_dir=tmp_path / "runs", progress=False, n_embd=8, block_size=16, **settings)
    card = (prepare(run.directory, "me/diary", folder=tmp_path / "out") / "README.md").read_text()
    assert "diary.txt" in card
    assert "private-place" not in card


def test_a_model_that_ships_keeps_its_card_and_gets_the_name_it_has_on_the_hub(project, tmp_path):
    _, run = project
    save_model(run.load_model(), "stories-4k", tmp_path / "lstm")
    usage = '```sh\npicollm generate "x" --model artefacts/models/lstm\n```'
    written = f"---\ntags:\n- picollm\n---\n\n# Mine\n\n{usage}\n\nEnd.\n"
    (tmp_path / "lstm" / "README.md").write_text(written)
    card = (prepare(tmp_path / "lstm", "me/lstm", folder=tmp_path / "out") / "README.md").read_text()
    assert card.startswith("---\ntags:\n- picollm\n---\n\n# Mine\n")
    assert "artefacts/models" not in card
    assert "--model me/lstm" in card
    assert card.endswith("End.\n")


def test_a_saved_model_without_a_run_gets_a_card_that_says_what_is_not_known(tmp_path):
    save_model(build_model("lstm-pico", vocab_size=4096, n_embd=8), "stories-4k", tmp_path / "mine")
    (tmp_path / "mine" / "README.md").unlink(missing_ok=True)
    card = (prepare(tmp_path / "mine", "me/mine", folder=tmp_path / "out") / "README.md").read_text()
    assert "| text and quality | not recorded with these weights |" in card
    with pytest.raises(ValueError, match="is the model itself"):
        prepare(tmp_path / "mine", "me/mine", folder=tmp_path / "mine")


def test_a_run_that_has_not_ended_is_refused(project, tmp_path):
    _, run = project
    (tmp_path / "lstm-half").mkdir()
    (tmp_path / "lstm-half" / "run.json").write_text((run.directory / "run.json").read_text())
    with pytest.raises(ValueError, match="has not ended; train the same configuration again"):
        prepare("lstm-half", "me/half", runs_dir=tmp_path)


def test_a_folder_without_the_files_is_refused_before_anything_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(ValueError, match=r"has no README\.md and no config\.json"):
        push(tmp_path, "me/stories")
