"""The playground as a reader meets it: notebook 06 in JupyterLab, by keyboard and mouse, in Chromium."""

import contextlib
import os
import re
import time
from pathlib import Path

import pytest

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


def slider(page, name):
    """The handle of the slider whose label begins with `name`."""
    return page.locator(".widget-slider", has_text=re.compile(f"^{re.escape(name)}")).locator("[role=slider]")


def drawn_tokens(page):
    return page.locator(".pico-token").count()


def run_all_cells(page):
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_selector(".pico table")


def screenshot(page, tmp_path, name):
    folder = Path(os.environ.get("PICOLLM_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")
    assert (folder / f"{name}.png").stat().st_size > 10_000


def collapse_file_browser(page):
    page.keyboard.press("Control+b")


def stop_in_the_middle(page):
    """Press Stop while stories are written; again with new ones if they had all ended before the click."""
    from playwright.sync_api import TimeoutError as StillDisabled
    from playwright.sync_api import expect

    generate, stop = (page.get_by_role("button", name=name) for name in ("Generate", "Stop"))
    for _ in range(5):
        with contextlib.suppress(StillDisabled):
            stop.click(timeout=5_000)
        expect(stop).to_be_disabled(timeout=60_000)
        if "tokens: stopped" in page.inner_text("body"):
            return
        generate.click()
    raise AssertionError("five times all stories had ended before Stop could be pressed")


@pytest.fixture
def playground(page):
    run_all_cells(page)
    return page


def test_the_playground_lives_in_jupyterlab(playground, tmp_path):
    page = playground
    collapse_file_browser(page)
    bars = page.locator(".pico:has(table)").first

    before = bars.inner_text()
    slider(page, "top-p").focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "before => document.querySelector('.pico table').parentNode.innerText !== before", arg=before
    )
    page.get_by_text("Sampling: top-p 0.9.").wait_for()
    screenshot(page, tmp_path, "next_token")

    slider(page, "length").focus()
    page.keyboard.press("End")
    page.get_by_role("button", name="Generate").click()
    page.wait_for_function("document.querySelectorAll('.pico-token').length > 3")
    early = drawn_tokens(page)
    page.wait_for_function("n => document.querySelectorAll('.pico-token').length > n + 20", arg=early)
    slider(page, "temperature").focus()  # sliders stay usable while tokens arrive
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.querySelectorAll('.pico-token').length > 100")
    stop_in_the_middle(page)
    stopped = drawn_tokens(page)
    time.sleep(0.5)
    assert drawn_tokens(page) == stopped < 3 * 500

    page.locator(".pico-token").nth(20).hover()
    tip = page.locator(".pico-tip").nth(20)
    assert tip.is_visible()
    assert re.search(r"probability .*%, rank [\d,]+, drawn from [\d,]+ of 4,096 tokens", tip.inner_text())
    assert tip.locator("i, s").count() >= 8
    screenshot(page, tmp_path, "stopped")

    page.mouse.move(5, 5)
    page.locator(".pico-token").nth(5).focus()
    page.keyboard.press("Tab")
    assert page.locator(".pico-tip").nth(6).is_visible(), "by keyboard too"

    page.locator(".pico-copy button").click()
    page.get_by_text("Copied.").wait_for()
    page.get_by_role("textbox", name="prompt").fill("")
    page.get_by_text("the prompt is empty").first.wait_for()
    page.get_by_role("textbox", name="prompt").press("Control+v")
    page.wait_for_function("document.querySelector('textarea[placeholder]').value.includes('Once upon a time')")

    page.get_by_role("textbox", name="prompt").fill(HOSTILE)
    page.get_by_role("button", name="Generate").click()
    page.wait_for_function("document.querySelector('.pico-prompt').innerText.includes('<script>')")
    assert HOSTILE in page.locator(".pico-prompt").first.inner_text()
    assert page.evaluate("window.hacked") is None
    stop_in_the_middle(page)

    assert page.failures == []


def test_after_a_restart_the_page_says_what_to_do(playground, tmp_path):
    page = playground
    assert not page.locator(".pico-dead").first.is_visible()
    page.get_by_role("button", name="Generate").click()
    page.wait_for_function("document.querySelectorAll('.pico-token').length > 3")
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.keyboard.press("Escape")
    page.keyboard.press("0")
    page.keyboard.press("0")
    page.locator(".jp-Dialog button", has_text="Restart").click()
    page.locator(".pico-dead").first.wait_for(state="visible")
    screenshot(page, tmp_path, "restarted")
    run_all_cells(page)
    page.wait_for_function("!document.body.innerText.includes('Python was restarted')")
    assert page.failures == []
