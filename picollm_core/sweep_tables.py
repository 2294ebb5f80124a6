"""Results of a study as one tidy table in artefacts/results: a short header, then one row a run or a case."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from picollm_core.config import RESULTS_VERSION, require
from picollm_core.lab import Lab
from picollm_core.runs import read_json, safe_name, write_json

INFINITIES = {"inf": math.inf, "-inf": -math.inf}
"""How a table writes numbers that JSON lacks, such as the loss of a run that diverged."""
DIGITS = 10  # significant ones of a float: enough for any use, and the same when the table is computed again


def _plain(value: Any) -> Any:
    """The JSON value of a table's cell: None where it is missing."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)
    require(
        isinstance(value, str | int), f"a cell holds {value!r} of type {type(value).__name__}; give numbers and words"
    )
    return value


def _frame(rows: pd.DataFrame | Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows as a table whose index says nothing; a named index becomes columns."""
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if any(name is not None for name in table.index.names):
        table = table.reset_index()
    require(not table.empty, "the table is empty; a study's table needs at least one row")
    columns = [str(column) for column in table.columns]
    double = sorted({column for column in columns if columns.count(column) > 1})
    require(not double, f"the table has several columns {', '.join(double)}; give each its own name")
    return table.set_axis(columns, axis=1)


def _texts(lab: Lab, table: pd.DataFrame) -> list[dict[str, str]]:
    """Names and content hashes of the texts behind the rows: of the runs that they name, else of all that were used."""
    names = [f"runs/{safe_name(str(name))}.json" for name in table.get("fingerprint", [])] or lab.used
    paths = {lab.store.folder / name for name in names if name.startswith("runs/")}
    contexts = [read_json(path)["context"] for path in paths if path.is_file()]
    found = {pair for c in contexts for pair in zip(c["corpus_hashes"], c["corpora"], strict=True)}
    return [{"name": name, "content_hash": content_hash} for content_hash, name in sorted(found)]


def save_table(lab: Lab, name: str, rows: pd.DataFrame | Sequence[Mapping[str, Any]], note: str = "") -> Path | None:
    """Write artefacts/results/<name>.json, atomically, and return its path; None where nothing is to be committed.

    That is in the quick profile, and when figures are redrawn. `rows` is one row a run or a case, hyperparameters and
    results side by side (Sweep.table() is one); `note` says what a row is. Nothing in the file depends on when it was
    written. Raises ValueError for an empty table, cells that are no numbers or words, two columns of one name, and a
    name that is none for a file.
    """
    require(
        safe_name(name) == name and not name.endswith(".json"),
        f"the table's name is {name!r}; use letters, digits, dots, dashes and underscores, without .json",
    )
    table = _frame(rows)
    columns = [[_plain(value) for value in table[column]] for column in table.columns]
    if lab.profile.name == "quick" or lab.redraw_into is not None:
        return None
    path = lab.store.folder / f"{name}.json"
    header = {"table": name, "note": note, "profile": lab.profile.name, "corpora": _texts(lab, table)}
    tidy = [dict(zip(table.columns, row, strict=True)) for row in zip(*columns, strict=True)]
    write_json(path, header | {"version": RESULTS_VERSION, "rows": tidy})
    return path


def load_table(path: Path | str) -> pd.DataFrame:
    """The rows of a file of `save_table`, its header in `attrs`. Raises ValueError when it is not one."""
    content = read_json(Path(path))
    rows = content.get("rows") if isinstance(content, dict) else None
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
        raise ValueError(f"{path} is not a table of results: it has no list of rows")
    table = pd.DataFrame([{name: INFINITIES.get(v, v) if isinstance(v, str) else v for name, v in row.items()}
                          for row in rows])  # fmt: skip
    table.attrs = {name: value for name, value in content.items() if name != "rows"}
    return table
