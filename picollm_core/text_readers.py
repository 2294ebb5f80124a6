"""Streams of texts: parquet and Arrow tables with a `text` column, text files, folders of them, datasets of the hub.

Every reader is a function of paths that yields texts without surrounding white space and without empty ones; a file
that is not what it claims to be raises ValueError with its name, and a text file with the line too.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from picollm_core.tokenizers import END_OF_TEXT


def _clean(texts: Iterable[str | None]) -> Iterator[str]:
    """Texts without surrounding white space; empty ones are left out."""
    return (stripped for text in texts if text and (stripped := text.strip()))


PARQUET_BUFFER = 1 << 20
"""Bytes of a parquet column read ahead; without a limit pyarrow takes in a whole row group, perhaps a whole file."""


def parquet_texts(paths: Sequence[Path]) -> Iterator[str]:
    """Column `text` of parquet files, a thousand rows in memory at a time. ValueError: not parquet, no such column.

    Memory is flat in the number of rows and in the size of the row groups.
    """
    import pyarrow
    from pyarrow import parquet

    for path in paths:
        try:
            file = parquet.ParquetFile(path, buffer_size=PARQUET_BUFFER, pre_buffer=False)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path} is not a readable parquet file: {error}") from error
        with file:
            if "text" not in file.schema_arrow.names:
                raise ValueError(
                    f"{path} has the columns {', '.join(file.schema_arrow.names)} but no column 'text'; "
                    "expected one story a row in a column of that name (for TinyStories, in every parquet file of the "
                    "folder that PICOLLM_TINYSTORIES names)"
                )
            for batch in file.iter_batches(batch_size=1024, columns=["text"]):
                yield from _clean(batch["text"].to_pylist())


def arrow_texts(paths: Sequence[Path]) -> Iterator[str]:
    """Stories out of the memory-mapped Arrow files that `datasets` keeps."""
    import pyarrow

    for path in paths:
        with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as stream:
            for batch in stream:
                yield from _clean(batch["text"].to_pylist())


def streamed_texts(dataset: str, split: str, **source: Any) -> Iterator[str]:
    """Column `text` of a dataset that `datasets` streams: nothing is kept on disk, every pass fetches it again.

    `source` goes to load_dataset: streamed_texts("parquet", "train", data_files={"train": paths}) streams files that
    lie anywhere `datasets` can read. Raises ValueError when the dataset cannot be reached or breaks off.
    """
    from datasets import load_dataset

    try:
        for batch in load_dataset(dataset, split=split, streaming=True, **source).iter(batch_size=1024):
            yield from _clean(batch["text"])
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"the stream of {dataset} ({split}) cannot be read or broke off ({type(error).__name__}: {error}); stories "
            "that are tokenised are kept: start again when the network is back, or let `datasets` download the whole"
        ) from error


def _decoded_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file; ValueError names file and line of what is not text."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if b"\0" in line:
                raise ValueError(f"{path}, line {number}: a NUL byte, so this is not UTF-8 text but binary or UTF-16")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: byte 0x{line[error.start]:02x} at column {error.start + 1} is not UTF-8; "
                    "save the file as UTF-8"
                ) from error


def has_separators(path: Path) -> bool:
    """Whether `<|endoftext|>` stands in the file, as in the published TinyStories .txt files."""
    with path.open("rb") as file:
        return any(END_OF_TEXT.encode() in line for line in file)


def _separated(lines: Iterable[str]) -> Iterator[str]:
    """Stories between separators, each of which may span many lines."""
    held: list[str] = []
    for line in lines:
        *ended, rest = line.split(END_OF_TEXT)
        for part in ended:
            yield "".join([*held, part])
            held = []
        held.append(rest)
    yield "".join(held)


def file_texts(paths: Sequence[Path]) -> Iterator[str]:
    """Texts of UTF-8 files: one a line, or the stories between separators. ValueError: empty, binary, not UTF-8."""
    for path in paths:
        empty = True
        lines = _decoded_lines(path)
        for text in _clean(_separated(lines) if has_separators(path) else lines):
            empty = False
            yield text
        if empty:
            raise ValueError(f"{path} is empty (it has no line that is not blank); remove it or write a line")


def text_files(path: Path) -> list[Path]:
    """The file itself, or every *.txt under a folder in sorted order, hidden ones (.ipynb_checkpoints) left out."""
    if path.is_file():
        return [path]
    found = (p for p in sorted(path.rglob("*.txt")) if p.is_file())
    files = [p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    if not files:
        raise ValueError(f"folder {path} has no *.txt file (subfolders included); put text files there, one line each")
    return files
