"""A real JupyterLab on its own port, with its own settings and models, and a real Chromium that looks at it."""

import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from picollm_core.loading import save_model
from picollm_core.models import build_model
from picollm_core.profiles import project_root

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_SECONDS = 60


def missing() -> str:
    """Why no browser can be driven here; empty when one can."""
    if importlib.util.find_spec("playwright") is None:
        return "the Python package playwright is not installed (it is in the extra `test`)"
    if CHROMIUM is None:
        return "there is no chromium on the PATH (on Debian: apt-get install chromium)"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = missing()
    for item in items:
        if reason and item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason=reason))


def _place_models(folder: Path) -> None:
    """Three models with random weights: small, and never at a loss for a next token."""
    torch.manual_seed(0)
    for family in ("kgram", "lstm", "transformer"):
        model = build_model(f"{family}-pico", vocab_size=4096, n_embd=16, block_size=512).eval()
        save_model(model, "stories-4k", folder / family)


def _quiet_settings(folder: Path) -> None:
    """JupyterLab must not ask whether it may fetch news."""
    settings = folder / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def jupyterlab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a copy of notebook 06, opened in a running JupyterLab; the server ends with the tests."""
    root, home = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("home")
    checkout = project_root(Path(__file__).parent)
    shutil.copy(checkout / "notebooks" / "06_playground.ipynb", root)
    _place_models(root / "artefacts" / "models")
    _quiet_settings(home / "settings")
    folders = {
        "HOME": home,
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": home / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": home / "workspaces",
        "IPYTHONDIR": home / "ipython",
        "OMP_NUM_THREADS": "1",
    }
    port, token, log = _free_port(), secrets.token_hex(16), home / "server.log"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}"]
    command += ["--LabApp.collaborative=False"]
    with log.open("w") as output:
        env = os.environ | {name: str(value) for name, value in folders.items()}
        server = subprocess.Popen(command, cwd=root, env=env, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/api?token={token}", server, log)
        yield f"http://127.0.0.1:{port}/lab/tree/06_playground.ipynb?token={token}"
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture
def page(jupyterlab: str) -> Iterator:
    """A browser's page with the notebook open, as on a projector; `page.failures` lists its script errors."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            page = browser.new_page(viewport={"width": 1920, "height": 1080})
            page.set_default_timeout(30_000)
            page.failures = []
            page.on("pageerror", lambda error: page.failures.append(str(error)))
            page.goto(jupyterlab)
            page.wait_for_selector(".jp-Notebook .jp-Cell")
            yield page
        finally:
            browser.close()
