"""Execute the numbered notebooks with a profile, one after the other, and write one page with every figure.

A notebook that fails stops there and the others still run. A kernel is a process of the running interpreter, learns
the profile through its own environment, and ends with its notebook whatever happens.
"""

import asyncio
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

from picollm_core.notebook_cleaning import clean_notebook
from picollm_core.profiles import DEFAULT, VARIABLE, get_profile, project_root
from picollm_core.workbook_page import NotebookResult, WorkbookReport, illustrations, notebook_title, report_page

__all__ = ["NotebookResult", "WorkbookReport", "clean_notebook", "run_workbook"]

KERNEL_START_SECONDS = 120

# nbclient reports through the exceptions it raises; without a handler Python would print its log lines as well.
_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())


class _OwnKernelManager(AsyncKernelManager):
    """Starts kernels of the running interpreter, whatever is registered as "python3" on this machine."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="picollm", language="python")


@dataclass(frozen=True)
class _Loaded:
    """A notebook that is about to run; `problem` says why it cannot."""

    path: Path
    notebook: NotebookNode
    problem: str

    @property
    def cells(self) -> int:
        """Number of code cells with something to run."""
        return sum(_is_code(cell) for cell in self.notebook.cells)


def _local_channels(manager: AsyncKernelManager, folder: str) -> None:
    """Talk to the kernel through sockets in `folder`: nobody else can listen, no port is taken, no network is needed.

    Windows has no such sockets and a path of theirs is limited to about 100 bytes; there TCP on this machine remains.
    """
    manager.connection_file = os.path.join(folder, "kernel.json")
    if os.name == "posix" and len(os.fsencode(manager.connection_file)) < 90:
        manager.transport = "ipc"
        manager.ip = os.path.join(folder, "kernel-ipc")


def _is_code(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and bool(cell.source.strip())


def _load(path: Path, strict: bool) -> _Loaded:
    """Read a notebook; with `strict`, it must also be fit to be committed once it has run.

    Foreign JSON makes nbformat raise almost anything; all of it means the same to the reader.
    """
    empty = nbformat.v4.new_notebook()
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, nbformat.ValidationError) as error:
        reason = str(error).strip().partition("\n")[0]
        return _Loaded(
            path, empty, f"{path.name} is not a readable notebook: {reason[:200]}; open and save it in JupyterLab"
        )
    if strict:
        try:
            clean_notebook(notebook)
        except ValueError as error:
            return _Loaded(path, notebook, f"{path.name}, {error}")
    return _Loaded(path, notebook, "")


def select_notebooks(folder: Path, only: Sequence[str] | str | None) -> list[Path]:
    """The folder's notebooks in reading order; `only` keeps those named by number, stem or file name."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; name the folder that holds the notebooks")
    paths = sorted(folder.glob("*.ipynb"))
    if not paths:
        raise ValueError(f"{folder} holds no notebooks (*.ipynb); name the folder that holds them")
    if only is None:
        return paths
    wanted = [only] if isinstance(only, str) else list(only)
    names = {path: {path.name, path.stem, path.stem.partition("_")[0]} for path in paths}
    unknown = [name for name in wanted if not any(name in known for known in names.values())]
    if unknown or not wanted:
        choices = ", ".join(path.stem for path in paths)
        raise ValueError(f"no notebook is called {', '.join(unknown) or 'by an empty list'}; choose from {choices}")
    return [path for path in paths if names[path] & set(wanted)]


def _what_happened(error: Exception, timeout: int) -> str:
    if isinstance(error, CellExecutionError):
        return f"{error.ename}: {error.evalue}".strip().partition("\n")[0][:300]
    if isinstance(error, CellTimeoutError):
        return f"no end after {timeout} s; give more time or compute less"
    if isinstance(error, DeadKernelError):
        return "its Python process ended at once; the usual cause is too little memory"
    return f"the kernel did not start: {error}".partition("\n")[0][:300]


async def _execute(
    notebook: NotebookNode, *, env: dict[str, str], cwd: Path, timeout: int, after_cell: Callable[[], object]
) -> tuple[int, Exception | None]:
    """Run the code cells in place; gives the index of the last cell tried (-1: none) and what stopped it, if anything.

    Cancelling (Ctrl-C) kills the kernel and passes on.
    """
    client = NotebookClient(
        notebook,
        kernel_manager_class=_OwnKernelManager,
        timeout=timeout,
        startup_timeout=KERNEL_START_SECONDS,
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
        log=_LOG,
    )
    manager = client.create_kernel_manager()
    assert isinstance(manager, AsyncKernelManager)
    index, finished = -1, False
    folder = tempfile.TemporaryDirectory(prefix="picollm-")
    try:
        _local_channels(manager, folder.name)
        await client.async_start_new_kernel(env=env, cwd=str(cwd))
        await client.async_start_new_kernel_client()
        for index, cell in enumerate(notebook.cells):
            if _is_code(cell):
                await client.async_execute_cell(cell, index, execution_count=client.code_cells_executed + 1)
                after_cell()
        finished = True
        return index, None
    except (CellExecutionError, TimeoutError, RuntimeError) as error:
        # nbclient takes every cancellation for a dead kernel; one that came from outside has to go on its way.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from error
        return index, error
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
        if await manager.is_alive():
            await manager.shutdown_kernel(now=not finished)
        await manager.cleanup_resources()
        folder.cleanup()


def _write(notebook: NotebookNode, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _run_one(
    loaded: _Loaded, variables: Mapping[str, str], root: Path, timeout: int, after_cell: Callable[[], object]
) -> NotebookResult:
    """Execute a loaded notebook in place and tell how it went."""
    notebook, name, error, done = loaded.notebook, loaded.path.name, loaded.problem, 0
    started = time.perf_counter()
    if not loaded.problem and loaded.cells:
        for cell in notebook.cells:
            if cell.cell_type == "code":  # nothing of an earlier run may pass for this one's result
                cell.outputs, cell.execution_count = [], None
        # PYDEVD...: the kernel's debugger would otherwise warn in every notebook about modules it cannot step into.
        env = os.environ | dict(variables) | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        index, stopped = asyncio.run(_execute(notebook, env=env, cwd=root, timeout=timeout, after_cell=after_cell))
        done = sum(_is_code(cell) for cell in notebook.cells[: max(index + (stopped is None), 0)])
        if stopped is not None:
            source = notebook.cells[index].source.strip() if index >= 0 else ""
            place = f", cell {index + 1} `{source.partition(chr(10))[0]}`" if index >= 0 else ""
            error = f"{name}{place}: {_what_happened(stopped, timeout)}"
    seconds = time.perf_counter() - started
    title = notebook_title(notebook, loaded.path.stem)
    return NotebookResult(name, title, seconds, done, loaded.cells, error, illustrations(notebook))


def run_workbook(
    notebooks: str | Path = "notebooks",
    *,
    profile: str = "quick",
    out: str | Path | None = None,
    page: str | Path | None = None,
    only: Sequence[str] | str | None = None,
    timeout: float | None = None,
    write: bool = False,
    progress: bool = True,
    variables: Mapping[str, str] | None = None,
) -> WorkbookReport:
    """Execute the notebooks of a folder in order and write a page with every figure.

    Kernels work in the project's root (outside a checkout: in the folder above the notebooks) with PICOLLM_PROFILE set
    to `profile`. Executed copies go to `out` (default: artefacts/runs/workbook/<profile> below that root), the page to
    `page` (default: artefacts/report.html there). `only` picks notebooks by number, stem or file name. `timeout` is the
    longest a cell may take, in seconds (default: the profile's). `write=True`, for the standard profile alone, also
    puts the cleaned outputs of notebooks that ran through back into the committed files. `variables` are added to the
    environment of the kernels.

    A cell that fails, takes too long or ends its kernel stops that notebook only; see WorkbookReport.failures.
    Raises ValueError for a missing or empty folder, an unknown profile or notebook, or a time-out that is not positive.
    """
    chosen = get_profile(profile)
    if write and profile != DEFAULT:
        raise ValueError(f"write=True with profile {profile!r}: only the {DEFAULT} profile's outputs are committed")
    seconds = chosen.cell_timeout if timeout is None else timeout
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"timeout is {seconds}; a cell needs a finite, positive number of seconds")
    paths = select_notebooks(Path(notebooks), only)
    folder = Path(notebooks).resolve()
    root = project_root(folder) or folder.parent
    copies = Path(out) if out is not None else root / "artefacts" / "runs" / "workbook" / profile
    target = Path(page) if page is not None else root / "artefacts" / "report.html"
    settings = dict(variables or {}) | {VARIABLE: profile}
    loaded = [_load(path, strict=write) for path in paths]
    results = []
    with tqdm(total=sum(one.cells for one in loaded), unit="cell", disable=not progress) as bar:
        for one in loaded:
            bar.set_description(one.path.stem)
            result = _run_one(one, settings, root, math.ceil(seconds), bar.update)
            bar.update(result.cells - result.cells_run)
            results.append(result)
            if not one.problem:
                _write(one.notebook, copies / one.path.name)
            if write and not result.error:
                _write(clean_notebook(one.notebook, root), one.path)
    report = WorkbookReport(profile, tuple(results), str(target), str(copies))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(report_page(report), encoding="utf-8")
    return report
