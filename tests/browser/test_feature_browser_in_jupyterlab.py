"""The feature browser as a reader meets it: a notebook in JupyterLab, by keyboard and mouse, in Chromium."""

import json
import os
import re
import urllib.request
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import nbformat
import pytest

CELLS = (
    """
import torch
from picollm_core.interpret.sae import SparseAutoencoder
from picollm_core.interpret.sparsity import TopK
from picollm_core.loading import load_model
model, _ = load_model("artefacts/models/transformer")
made = torch.Generator().manual_seed(0)
sae = SparseAutoencoder(model.config.n_embd, 64, TopK(4), "blocks.0", made)
sae.save_pretrained("artefacts/models/transformer/autoencoders/tiny")
foreign = SparseAutoencoder(48, 64, TopK(4), "blocks.0", made)
foreign.save_pretrained("artefacts/models/transformer/autoencoders/wrong")
""",
    """
from picollm_core.interpret.feature_browser import feature_browser
from picollm_core.storyworld import generate_stories
feature_browser("transformer", texts=generate_stories(40))
""",
)
SHOWN = ".pico h4:has-text('Feature')"


def put_notebook(lab: str, name: str) -> str:
    """Write the cells as a notebook into the running JupyterLab; the address that opens it."""
    parts = urlsplit(lab)
    (token,) = parse_qs(parts.query)["token"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip()) for source in CELLS])
    notebook.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    body = json.dumps({"type": "notebook", "content": notebook}).encode()
    headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}
    server = f"{parts.scheme}://{parts.netloc}"
    request = urllib.request.Request(f"{server}/api/contents/{name}", body, headers, method="PUT")
    urllib.request.urlopen(request, timeout=30).close()
    return f"{server}/lab/workspaces/features/tree/{name}?token={token}"  # tabs of other tests stay out of sight


def screenshot(page, tmp_path, name):
    folder = Path(os.environ.get("PICOLLM_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")
    assert (folder / f"{name}.png").stat().st_size > 10_000


def control(page, name, kind):
    """The control of the widget whose label is `name`."""
    return page.locator(f".widget-{kind}", has_text=re.compile(f"^{re.escape(name)}")).first


def status(page):
    return page.locator(".pico-root .pico-status").first


def wrote(page):
    """The texts that stand side by side."""
    return page.locator(".pico-wrote").all_inner_texts()


def written(page, count):
    """Wait until that many texts stand there: the kernel empties both before it writes."""
    page.wait_for_function("count => document.querySelectorAll('.pico-wrote').length == count", arg=count)


@pytest.fixture
def browser(page, jupyterlab):
    page.goto(put_notebook(jupyterlab, "features.ipynb"))
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.keyboard.press("Control+b")
    page.wait_for_selector(SHOWN, timeout=90_000)
    return page


def test_the_feature_browser_lives_in_jupyterlab(browser, tmp_path):
    page = browser
    screenshot(page, tmp_path, "opened")
    title = page.locator(SHOWN)
    assert "tiny: 64 features of residual stream after layer 1" in title.inner_text()
    assert page.locator(".pico-peak").count() >= 8
    first = title.inner_text()

    page.get_by_role("button", name="Next").click()
    page.wait_for_function("old => !document.body.innerText.includes(old)", arg=first)
    second = title.inner_text()
    page.locator(".widget-select option").nth(4).click()
    page.wait_for_function("old => !document.body.innerText.includes(old)", arg=second)

    written(page, 1)
    handle = control(page, "steer", "slider").locator("[role=slider]")
    handle.focus()
    page.keyboard.press("End")
    written(page, 2)
    page.get_by_text("Steered: +3 x its maximum").wait_for()
    plain, steered = wrote(page)
    assert plain.startswith("Once upon a time")
    assert steered.startswith("Once upon a time")
    assert plain != steered
    assert (
        page.locator(".pico-wrote mark").inner_text() == steered[-len(page.locator(".pico-wrote mark").inner_text()) :]
    )
    screenshot(page, tmp_path, "feature_browser")

    page.get_by_role("button", name="Ablate").click()
    page.locator(".pico h4", has_text="Ablated").wait_for()
    written(page, 2)
    assert wrote(page)[0] == plain

    page.locator("input[type=number]").first.fill("64")
    page.keyboard.press("Enter")
    status(page).get_by_text("has features 0 to 63").wait_for()
    page.locator("input[type=number]").first.fill("7")
    page.keyboard.press("Enter")
    page.locator(".pico h4", has_text="Feature 7 of 64").wait_for()
    status(page).get_by_text("has features").wait_for(state="detached")

    page.get_by_role("textbox", name="prompt").fill("")
    page.keyboard.press("Tab")
    status(page).get_by_text("the prompt is empty").wait_for()

    page.get_by_role("combobox", name="features").select_option(
        label="wrong: 64 features of residual stream after layer 1"
    )
    status(page).get_by_text("it was made for another model").wait_for()
    page.locator(SHOWN).wait_for(state="detached")

    assert "Traceback" not in page.locator("body").inner_text()
    assert page.failures == []
