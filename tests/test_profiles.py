"""Profiles and the set-up that every notebook calls."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from picollm_core.figure_style import STYLE
from picollm_core.profiles import PROFILES, current_profile, get_profile, project_root, setup_notebook


@pytest.fixture
def restored(monkeypatch):
    """Puts working directory and figure style back after a test that sets up a notebook."""
    folder = os.getcwd()
    with matplotlib.rc_context():
        yield monkeypatch
    os.chdir(folder)


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "standard"), ("", "standard"), ("quick", "quick"), ("full", "full")]
)
def test_variable_chooses_the_profile_and_unset_means_standard(monkeypatch, value, expected):
    monkeypatch.delenv("PICOLLM_PROFILE", raising=False)
    if value is not None:
        monkeypatch.setenv("PICOLLM_PROFILE", value)
    assert current_profile() is PROFILES[expected]


def test_unknown_profile_is_refused_with_the_choices(monkeypatch):
    monkeypatch.setenv("PICOLLM_PROFILE", "fast")
    with pytest.raises(ValueError, match="unknown profile 'fast'; choose one of quick, standard, full"):
        current_profile()


def test_quick_needs_no_download_and_full_is_the_seeds_set_up():
    quick, full = get_profile("quick"), get_profile("full")
    assert quick.data.corpus == ("storyworld",)
    assert quick.data.tokenizer == "stories-4k"
    assert (full.data.limit, full.data.splits, full.data.tokenizer) == ((1_000_000,), (98, 1, 1), "gpt2")
    train = full.train
    assert (train.epochs, train.max_steps, train.batch_size, train.learning_rate) == (5, None, 64, 3e-4)
    assert (train.optimizer, train.schedule, train.warmup_ratio) == ("adamw", "cosine", 0.1)
    assert all(len(get_profile(name).seeds) >= 5 for name in ("standard", "full"))


@pytest.mark.parametrize("name", PROFILES)
def test_profile_shows_itself_in_one_line(name):
    line = repr(get_profile(name))
    assert line.startswith(f"profile {name} (")
    assert "\n" not in line
    assert len(line) < 200


def test_project_root_is_found_from_below_and_nowhere_else(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    assert project_root(tmp_path / "notebooks") is None, "someone else's project"
    (tmp_path / "picollm_core").mkdir()
    assert project_root(tmp_path / "notebooks") == tmp_path.resolve()


def test_setup_moves_to_the_project_root_sets_the_style_and_returns_the_profile(restored, tmp_path):
    for folder in ("notebooks", "picollm_core"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pyproject.toml").touch()
    restored.chdir(tmp_path / "notebooks")
    restored.setenv("PICOLLM_PROFILE", "quick")
    matplotlib.rcParams["font.size"] = 7
    assert setup_notebook() is PROFILES["quick"]
    assert Path.cwd() == tmp_path.resolve()
    assert matplotlib.rcParams["font.size"] == STYLE["font.size"]


def test_setup_outside_a_checkout_stays_where_it_is(restored, tmp_path):
    restored.chdir(tmp_path)
    restored.setenv("PICOLLM_PROFILE", "quick")
    setup_notebook()
    assert Path.cwd() == tmp_path.resolve()


def test_a_figure_shows_itself_in_ipython_at_its_own_size(restored, tmp_path):
    from IPython.core.interactiveshell import InteractiveShell

    restored.chdir(tmp_path)
    shell = InteractiveShell.instance()
    try:
        setup_notebook()
        figure = Figure(figsize=(4, 3), dpi=50)
        figure.add_subplot().plot([1, 2])
        data, _ = shell.display_formatter.format(figure)
    finally:
        InteractiveShell.clear_instance()
    assert data["image/png"].startswith(b"\x89PNG")
    width, height = (int.from_bytes(data["image/png"][i : i + 4], "big") for i in (16, 20))
    assert (width, height) == (200, 150)


def test_importing_is_silent_and_opens_no_figure_window_code():
    code = "import sys, picollm_core.profiles, picollm_core.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
