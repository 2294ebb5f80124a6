"""Finding TinyStories: folder, cache of `datasets`, hub; what is said when it is nowhere."""

import sys
from types import SimpleNamespace

import pyarrow
import pytest
from pyarrow import parquet

from picollm_core import tinystories


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No variable, an empty cache, no network."""
    monkeypatch.delenv("PICOLLM_TINYSTORIES", raising=False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))

    def refuse(*args, **kwargs):
        raise ConnectionError("no network in this test")

    monkeypatch.setattr("requests.head", refuse)


def write_parquet(folder):
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({"text": ["c"]}), folder / "train-00001-of-00002.parquet")
    parquet.write_table(pyarrow.table({"text": ["a", "b"]}), folder / "train-00000-of-00002.parquet")
    parquet.write_table(pyarrow.table({"text": ["v"]}), folder / "validation.parquet")


def write_arrow(folder):
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    paths = {}
    for split in ("train", "validation"):
        table = pyarrow.table({"text": [f"{split} story"]})
        paths[split] = folder / f"tiny_stories-{split}.arrow"
        with pyarrow.OSFile(str(paths[split]), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return paths


@pytest.mark.parametrize("below", ["", "data"])
def test_folder_is_read_directly_or_in_the_layout_of_the_hub(tmp_path, monkeypatch, below):
    write_parquet(tmp_path / "stories" / below)
    monkeypatch.setenv("PICOLLM_TINYSTORIES", str(tmp_path / "stories"))
    readers = tinystories.from_folder()
    assert list(readers["train"]()) == ["a", "b", "c"]
    assert list(readers["validation"]()) == ["v"]


def test_reasons_why_a_folder_cannot_be_used_are_told(tmp_path, monkeypatch):
    with pytest.raises(LookupError, match="PICOLLM_TINYSTORIES is not set"):
        tinystories.from_folder()
    monkeypatch.setenv("PICOLLM_TINYSTORIES", str(tmp_path / "absent"))
    with pytest.raises(LookupError, match="absent', which is not a folder"):
        tinystories.from_folder()
    monkeypatch.setenv("PICOLLM_TINYSTORIES", str(tmp_path))
    with pytest.raises(LookupError, match=r"no train\*\.parquet and validation\*\.parquet"):
        tinystories.from_folder()


def test_the_variable_can_ask_for_the_hubs_stream(tmp_path, monkeypatch):
    class Streamed:
        def __init__(self, split):
            self.split = split

        def iter(self, batch_size):
            yield {"text": [f" {self.split} story ", ""]}

    def load(name, split, streaming):
        assert (name, streaming) == ("roneneldan/TinyStories", True)
        return Streamed(split)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PICOLLM_TINYSTORIES", "stream")
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    readers = tinystories.from_folder()
    assert {split: list(read()) for split, read in readers.items()} == {
        "train": ["train story"],
        "validation": ["validation story"],
    }


def test_a_folder_of_that_name_is_still_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "stream")
    monkeypatch.setenv("PICOLLM_TINYSTORIES", "stream")
    assert list(tinystories.from_folder()["train"]()) == ["a", "b", "c"]


def test_what_datasets_keeps_is_found_without_importing_it(tmp_path):
    assert tinystories.from_datasets_cache() is None
    write_arrow(tmp_path / "datasets" / "roneneldan___tiny_stories" / "default" / "0.0.0" / "abc")
    readers = tinystories.from_datasets_cache()
    assert list(readers["train"]()) == ["train story"]
    assert list(readers["validation"]()) == ["validation story"]


def test_without_network_the_ways_out_are_named():
    with pytest.raises(ValueError, match=r"because.*no network.*set PICOLLM_TINYSTORIES.*'storyworld'"):
        tinystories.from_hub("because")


def test_a_failing_download_is_told_with_its_cause(monkeypatch):
    def fail(name):
        raise ConnectionError("the hub hung up")

    monkeypatch.setattr("requests.head", lambda url, timeout: None)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=fail))
    with pytest.raises(ValueError, match="ConnectionError: the hub hung up"):
        tinystories.from_hub("because")


def test_the_hub_is_loaded_by_datasets_and_read_from_its_files(tmp_path, monkeypatch):
    paths = write_arrow(tmp_path / "loaded")
    loaded = {split: SimpleNamespace(cache_files=[{"filename": str(path)}]) for split, path in paths.items()}
    monkeypatch.setattr("requests.head", lambda url, timeout: None)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset={"roneneldan/TinyStories": loaded}.get))
    assert list(tinystories.from_hub("because")["train"]()) == ["train story"]
