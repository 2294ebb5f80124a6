"""Make an executed notebook fit to be committed: no widget state, no time stamps, no machine paths, no huge outputs."""

import copy
import os
import re
import sysconfig
import tempfile
from pathlib import Path

from nbformat import NotebookNode

from picollm_core.profiles import project_root

MAX_CODE_LINES = 15
MAX_TEXT = 20_000
MAX_DATA = 1_000_000
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def _places(root: Path) -> list[tuple[str, str]]:
    """Folders that say something about this machine and what stands for them, the longest first."""
    named = {
        str(root): ".",
        sysconfig.get_path("purelib"): "<site-packages>",
        sysconfig.get_path("stdlib"): "<python>",
        tempfile.gettempdir(): "<tmp>",
        str(Path.home()): "~",
    }
    for variable in ("PICOLLM_TINYSTORIES", "TIKTOKEN_CACHE_DIR"):
        if os.environ.get(variable):
            named.setdefault(os.path.abspath(os.environ[variable]), f"${variable}")
    resolved = {str(Path(place).resolve()): sign for place, sign in named.items()}
    pairs = [(place, sign) for place, sign in (resolved | named).items() if len(Path(place).parts) > 1]
    return sorted(pairs, key=lambda pair: -len(pair[0]))


def _without_places(text: str, places: list[tuple[str, str]]) -> str:
    for place, sign in places:
        # A place starts where a word could not go on, or right after a terminal colour code such as ESC[32m.
        start = rf"(?:(?<![\w.-])|(?<=[\d;]m)){re.escape(place)}"
        inside = "" if sign == "." else f"{sign}/"  # below the project's root a path is simply relative
        text = re.sub(rf"{start}[/\\](?=\w|\.\w)", inside, text)
        text = re.sub(rf"{start}(?![\w-])", sign, text)
    return re.sub(r"<tmp>[/\\]ipykernel_\d+[/\\]\d+\.py", "<cell>", text)


def _shortened(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    head, tail = text[: MAX_TEXT // 2], text[-MAX_TEXT // 4 :]
    return f"{head}\n[... {len(text) - len(head) - len(tail):,} characters left out ...]\n{tail}"


def _clean_data(data: dict, places: list[tuple[str, str]]) -> dict:
    """A display's data by MIME type: widgets go, texts lose machine paths, what is too large leaves a note."""
    kept = {}
    for kind, content in data.items():
        if kind == WIDGET_VIEW:
            continue
        if isinstance(content, str) and not (kind.startswith("image/") and kind != "image/svg+xml"):
            content = _without_places(content, places)
        if kind == "text/plain":
            content = _shortened(content)
        size = len(content) if isinstance(content, str) else len(repr(content))
        if size > MAX_DATA:
            kept["text/plain"] = f"[{kind} of {size / 1e6:.1f} MB left out; run the cell to see it]"
        elif not (kind == "text/plain" and kind in kept):
            kept[kind] = content
    return kept


def _clean_output(output: NotebookNode, places: list[tuple[str, str]]) -> NotebookNode:
    if "text" in output:
        # A progress bar rewrites its line: only what it showed last is kept, as on a terminal.
        lines = re.sub(r"^[^\n]*\r(?!\n)", "", output.text, flags=re.MULTILINE)
        output.text = _shortened(_without_places(lines, places))
    if "data" in output:
        output.data = NotebookNode(_clean_data(output.data, places))
    for name in ("evalue", "traceback"):
        if name in output:
            value = output[name]
            output[name] = (
                [_without_places(line, places) for line in value]
                if isinstance(value, list)
                else _without_places(value, places)
            )
    return output


def clean_notebook(notebook: NotebookNode, root: str | Path | None = None) -> NotebookNode:
    """A copy of `notebook` fit to be committed; a clean notebook comes back equal to itself.

    Widget state, execution times and all metadata but cell tags go. In outputs the project's `root` (default: the
    checkout around the working directory) vanishes from paths and other folders of this machine get stand-ins; texts
    over 20,000 characters are shortened and other outputs over 1 MB left out, both visibly.
    Raises ValueError for a code cell of more than 15 lines, which only its author can shorten.
    """
    places = _places(Path(root).resolve() if root is not None else project_root() or Path.cwd())
    clean = copy.deepcopy(notebook)
    clean.metadata = NotebookNode(copy.deepcopy(NOTEBOOK_METADATA))
    for number, cell in enumerate(clean.cells, start=1):
        tags = cell.metadata.get("tags")
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            lines = len(cell.source.splitlines())
            if lines > MAX_CODE_LINES:
                raise ValueError(
                    f"cell {number} has {lines} lines of code, {MAX_CODE_LINES} at most: move a part elsewhere"
                )
            outputs = [_clean_output(output, places) for output in cell.outputs]
            cell.outputs = [o for o in outputs if "text" not in o or o.text.strip()]  # a finished progress bar is blank
    return clean
