"""What the README files point at is there: links, notebooks, commands and examples."""

import re
from pathlib import Path
from typing import get_args

import pytest

from picollm_core.cli import Command
from tests.rank_processes import ROOT

PAGES = sorted(ROOT.glob("README.md")) + sorted(ROOT.glob("*/README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_into_the_project_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_notebook_is_in_the_readme_s_table():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = [path.name for path in sorted(Path(ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
    assert len(names) > 10
    assert [name for name in names if f"](notebooks/{name})" not in text] == []


def test_every_command_that_the_readme_names_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`|bin/)picollm ([a-z-]+)", text, flags=re.MULTILINE))
    assert len(named) > 5
    commands = {get_args(part)[1].name for part in get_args(Command)}
    assert named <= commands
