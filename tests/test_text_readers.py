"""Text out of files, and a clear error for every file that is not text."""

import random
import subprocess
import sys

import pyarrow
import pytest
from pyarrow import parquet

from picollm_core.text_readers import (
    arrow_texts,
    file_texts,
    has_separators,
    parquet_texts,
    streamed_texts,
    text_files,
)


def test_a_text_file_has_one_example_a_line_and_blank_lines_are_left_out(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes(b"\xef\xbb\xbf first \r\n\r\n   \nsecond line\nthird without newline")
    assert list(file_texts([path])) == ["first", "second line", "third without newline"]
    assert not has_separators(path)


def test_separators_make_stories_that_span_lines(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("One\nstory.\n<|endoftext|>\n\nTwo<|endoftext|>Three\n<|endoftext|>\n")
    assert has_separators(path)
    assert list(file_texts([path])) == ["One\nstory.", "Two", "Three"]


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n"])
def test_empty_file_is_named(tmp_path, content):
    path = tmp_path / "empty.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"empty\.txt is empty"):
        list(file_texts([path]))


def test_binary_file_is_named_with_line(tmp_path):
    path = tmp_path / "image.txt"
    path.write_bytes(b"text\nmore\n\x89PNG\x00\x01\n")
    with pytest.raises(ValueError, match=r"image\.txt, line 3: a NUL byte"):
        list(file_texts([path]))


def test_file_that_is_not_utf8_is_named_with_line_and_byte(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("plain\ncafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt, line 2: byte 0xe9 at column 4 is not UTF-8"):
        list(file_texts([path]))


def test_folder_is_searched_recursively_in_sorted_order_without_hidden_files(tmp_path):
    for name in ("b.txt", "a/z.txt", ".ipynb_checkpoints/b.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert text_files(tmp_path) == [tmp_path / "a/z.txt", tmp_path / "b.txt"]
    assert text_files(tmp_path / "notes.md") == [tmp_path / "notes.md"]


def test_folder_without_text_files_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no \*\.txt file"):
        text_files(tmp_path)


def test_parquet_column_is_streamed_without_empty_rows(tmp_path):
    path = tmp_path / "stories.parquet"
    texts = [f" story {i} " for i in range(3000)]
    parquet.write_table(pyarrow.table({"text": [*texts, "", None]}), path)
    assert list(parquet_texts([path, path])) == [text.strip() for text in texts] * 2


def test_parquet_without_a_text_column_is_named_with_its_columns(tmp_path):
    path = tmp_path / "other.parquet"
    parquet.write_table(pyarrow.table({"story": ["x"], "id": [1]}), path)
    with pytest.raises(
        ValueError, match=r"other\.parquet has the columns story, id but no column 'text'.*PICOLLM_TINY"
    ):
        list(parquet_texts([path]))


def test_damaged_parquet_is_named(tmp_path):
    path = tmp_path / "cut.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match=r"cut\.parquet is not a readable parquet file"):
        list(parquet_texts([path]))


def test_arrow_files_of_datasets_are_read(tmp_path):
    path = tmp_path / "tiny_stories-train.arrow"
    table = pyarrow.table({"text": ["one", "two "]})
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert list(arrow_texts([path])) == ["one", "two"]


MEASURE = """
import sys
import pyarrow
from pathlib import Path
from picollm_core.text_readers import parquet_texts
rows = sum(1 for _ in parquet_texts([Path(sys.argv[1])]))
print(rows, pyarrow.default_memory_pool().max_memory())
"""


def test_a_row_group_as_large_as_the_file_is_not_held_in_memory(tmp_path):
    path = tmp_path / "one_group.parquet"
    texts = [random.Random(i).randbytes(1_000).hex() for i in range(15_000)]  # 30 MB that hardly compress
    parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=len(texts), use_dictionary=False)
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    rows, most = map(int, done.stdout.split())
    assert rows == len(texts)
    assert path.stat().st_size > 14e6
    assert most < 0.7 * path.stat().st_size


def test_a_dataset_is_streamed_from_its_files(tmp_path):
    paths = []
    for number in range(2):
        paths.append(str(tmp_path / f"part{number}.parquet"))
        parquet.write_table(pyarrow.table({"text": [f" story {number} ", "", None, "next"]}), paths[-1])
    streamed = streamed_texts("parquet", "train", data_files={"train": paths})
    assert next(streamed) == "story 0"
    assert list(streamed) == ["next", "story 1", "next"]


def test_a_stream_that_cannot_be_read_says_what_is_kept(tmp_path):
    with pytest.raises(ValueError, match=r"stream of parquet \(train\).*FileNotFoundError.*tokenised are kept"):
        list(streamed_texts("parquet", "train", data_files={"train": str(tmp_path / "absent.parquet")}))
    parquet.write_table(pyarrow.table({"story": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="KeyError: 'text'"):
        list(streamed_texts("parquet", "train", data_files={"train": str(tmp_path / "other.parquet")}))
