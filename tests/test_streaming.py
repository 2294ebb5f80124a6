"""The benchmark of memory against stories: its synthetic files, its watch on memory, its line to a million."""

import json

import numpy as np
import pytest
from pyarrow import parquet

from benchmarks import streaming


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A few synthetic stories in several files, and the environment that measure() sets put back afterwards."""
    monkeypatch.setenv("PICOLLM_TINYSTORIES", "")
    monkeypatch.setenv("PICOLLM_CACHE", "")
    monkeypatch.setattr(streaming, "STORIES_A_FILE", 60)
    monkeypatch.setattr(streaming, "VALIDATION_STORIES", 12)
    streaming.write_stories(tmp_path, 150)
    return tmp_path


def test_synthetic_stories_have_the_size_of_the_real_ones_and_one_row_group_a_file(folder):
    files = [parquet.ParquetFile(path) for path in sorted(folder.glob("train-*.parquet"))]
    assert [(file.metadata.num_rows, file.metadata.num_row_groups) for file in files] == [(60, 1), (60, 1), (30, 1)]
    texts = [text for file in files for text in file.read()["text"].to_pylist()]
    assert len(set(texts)) > 0.9 * len(texts)
    assert all(text.endswith((".", "!")) for text in texts)
    assert 700 < np.mean([len(text.encode()) for text in texts]) < 950


def test_a_row_covers_opening_tokenising_and_training(folder):
    row = streaming.measure(str(folder), 100, "stories-4k", steps=2)
    assert row["stories"] == 100
    assert row["token_file_mb"] == pytest.approx(row["tokens"] * 2 / 1e6, abs=0.1)
    for phase in streaming.PHASES:
        assert row[f"{phase}_seconds"] >= 0  # rounded, and a hundred stories are opened in no time
        assert row[f"{phase}_anon_mb"] > 50  # torch alone takes more
    assert row["tokens_per_second"] > 0
    json.dumps(row)


def test_memory_that_is_held_in_a_phase_is_seen_in_that_phase_alone():
    watch = streaming.Watch()
    with watch.phase("before"):
        pass
    with watch.phase("busy"):
        block = np.ones(20_000_000)  # 160 MB
    del block
    with watch.phase("after"):
        pass
    assert watch.anon["busy"] > watch.anon["before"] + 140
    assert watch.anon["after"] < watch.anon["busy"] - 140


def rows_on_a_line():
    return [
        {
            "stories": n,
            "open_seconds": n / 1e5,
            "tokenise_seconds": n / 1e4,
            "token_file_mb": n / 1e3,
            "text_mb": n / 1e3,
        }
        | {f"{phase}_anon_mb": 300.0 + n * 2e-6 for phase in streaming.PHASES}
        for n in (1_000, 5_000, 20_000)
    ]


def test_the_line_to_a_million_is_marked_and_gives_bytes_a_story():
    row = streaming.extrapolate(rows_on_a_line())
    assert row["extrapolated"] is True
    assert (row["stories"], row["open_seconds"], row["tokenise_seconds"]) == (1_000_000, 10.0, 100.0)
    assert row["open_anon_mb"] == 302.0
    assert row["train_anon_bytes_a_story"] == 2.0
    with pytest.raises(ValueError, match="1 row of measurements"):
        streaming.extrapolate(rows_on_a_line()[:1])


def test_the_table_marks_what_was_not_measured():
    rows = rows_on_a_line()
    lines = streaming.table_lines([*rows, streaming.extrapolate(rows)])
    assert len(lines) == 5
    assert "~1,000,000" in lines[-1]
    assert not any("~" in line for line in lines[:-1])


def test_too_few_stories_and_steps_are_refused():
    with pytest.raises(ValueError, match=r"stories is 10 .*steps is 5"):
        streaming.main(10, 5)
    with pytest.raises(ValueError, match="steps is 0"):
        streaming.main(5_000, 0)
