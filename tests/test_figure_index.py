"""The index says what each figure found, where it is drawn, and which results stand behind it."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from matplotlib.figure import Figure

from picollm_core.figure_index import FigureEntry, describe_figure, read_index, record_figure, write_index
from picollm_core.figure_style import new_figure, save_figure, use_style

LONG = "A finding that is long enough to need two lines above its figure, because it says all there is to say"


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    for name in ("04_attention.ipynb", "05_comparison.ipynb"):
        (tmp_path / "notebooks" / name).touch()
    return tmp_path


def saved_figure(folder, name: str, title: str) -> Figure:
    with use_style():
        figure, _ = new_figure(title)
        save_figure(figure, name, folder)
    return figure


def test_an_entry_has_the_finding_in_one_line_its_notebook_and_its_results(project):
    figure = saved_figure(project, "05_sizes", LONG)
    assert "\n" in figure.get_suptitle()
    entry = describe_figure(figure, "05_sizes", ("runs/b.json", "runs/a.json", "runs/b.json"))
    assert (entry.title, entry.notebook) == (LONG, "05_comparison")
    assert entry.results == ("runs/a.json", "runs/b.json")
    assert entry.files == ("05_sizes.png", "05_sizes.svg", "05_sizes.pdf")


def test_the_title_s_height_grows_with_its_lines_and_leaves_most_of_the_figure(project):
    short = describe_figure(saved_figure(project, "one", "Short"), "one").title_height
    long = describe_figure(saved_figure(project, "two", LONG), "two").title_height
    assert 0.03 < short < long < 0.2


def test_a_figure_whose_number_no_notebook_has_belongs_to_none(project):
    assert describe_figure(saved_figure(project, "99_x", "t"), "99_x").notebook == ""


def test_the_title_of_an_axes_stands_in_and_a_figure_without_any_is_refused():
    figure = Figure()
    with pytest.raises(ValueError, match="'05_x' has no title"):
        describe_figure(figure, "05_x")
    figure.add_subplot().set_title("Of the axes")
    assert describe_figure(figure, "05_x").title == "Of the axes"


def test_what_is_written_is_read_back_in_order_with_the_same_bytes(tmp_path):
    entries = {name: FigureEntry(name, "n", f"Title “{name}”", 0.1, ("runs/a.json",)) for name in ("02_b", "01_a")}
    write_index(tmp_path, entries)
    first = (tmp_path / "index.json").read_bytes()
    assert list(read_index(tmp_path)) == ["01_a", "02_b"]
    assert read_index(tmp_path) == entries
    write_index(tmp_path, read_index(tmp_path))
    assert (tmp_path / "index.json").read_bytes() == first
    assert json.loads(first)["01_a"]["files"] == ["01_a.png", "01_a.svg", "01_a.pdf"]


def test_recording_replaces_one_figure_and_keeps_the_others(tmp_path):
    record_figure(tmp_path, FigureEntry("01_a", "n", "old", 0.1))
    record_figure(tmp_path, FigureEntry("01_b", "n", "kept", 0.1))
    record_figure(tmp_path, FigureEntry("01_a", "n", "new", 0.1))
    assert {name: entry.title for name, entry in read_index(tmp_path).items()} == {"01_a": "new", "01_b": "kept"}


def test_figures_recorded_at_the_same_time_are_all_there(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: record_figure(tmp_path, FigureEntry(f"01_{n}", "n", "t", 0.1)), range(24)))
    assert len(read_index(tmp_path)) == 24


@pytest.mark.parametrize("content", ["{", "[]", '{"01_a": {"title": "t"}}', '{"01_a": 3}', '{"01_a": null}'])
def test_an_unreadable_or_older_index_is_named_with_the_way_out(tmp_path, content):
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index\.json is not an index of this version .* run `picollm figures`"):
        read_index(tmp_path)


def test_without_an_index_there_are_no_figures(tmp_path):
    assert read_index(tmp_path) == {}
