"""The page of the workbook: captions, figures, escaping."""

import base64
import html.parser

from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from picollm_core.workbook_page import NotebookResult, WorkbookReport, illustrations, notebook_title, report_page


def picture(kind="image/png", content="QUJD\n"):
    return new_code_cell("draw()", outputs=[new_output("display_data", data={kind: content, "text/plain": "<Figure>"})])


def test_caption_is_the_nearest_heading_above_and_the_text_below_it():
    notebook = new_notebook(
        cells=[
            new_markdown_cell("# Title\nIntro.\n## Loss `falls`\nSee [the note](http://x/y), **clearly**.\n\nMore."),
            picture(),
            new_markdown_cell("Only text now."),
            new_code_cell("1"),
            picture(),
        ]
    )
    found = [(figure.heading, figure.text) for figure in illustrations(notebook)]
    assert found == [("Loss falls", "See the note, clearly."), ("Loss falls", "Only text now.")]


def test_names_with_underscores_survive_in_captions():
    notebook = new_notebook(cells=[new_markdown_cell("## What n_layer does to val_loss\n*It* _falls_."), picture()])
    assert [(f.heading, f.text) for f in illustrations(notebook)] == [("What n_layer does to val_loss", "It falls.")]


def test_title_is_the_first_top_heading_or_the_given_name():
    assert (
        notebook_title(new_notebook(cells=[picture(), new_markdown_cell("text\n# Real *title*")]), "x") == "Real title"
    )
    assert notebook_title(new_notebook(cells=[new_markdown_cell("## Only a section")]), "00_x") == "00_x"


def test_pictures_become_data_uris_and_svg_cannot_run():
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    png, vector = illustrations(new_notebook(cells=[picture(), picture("image/svg+xml", svg)]))
    assert png.data_uri == "data:image/png;base64,QUJD"
    assert base64.b64decode(vector.data_uri.removeprefix("data:image/svg+xml;base64,")).decode() == svg


class Tags(html.parser.HTMLParser):
    """Collects start tags, end tags and attribute values."""

    def __init__(self):
        super().__init__()
        self.started, self.ended, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.started.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        self.ended.append(tag)


def test_page_is_well_formed_and_text_from_notebooks_stays_text():
    evil = "\"><script>alert('x')</script>&"
    figures = illustrations(new_notebook(cells=[new_markdown_cell(f"# {evil}\n{evil}"), picture(content=evil)]))
    good = NotebookResult("00_a.ipynb", evil, 1.25, 3, 3, "", figures)
    bad = NotebookResult("01_b.ipynb", "B", 0.5, 1, 4, evil, ())
    report = WorkbookReport("quick", (good, bad), "report.html", "copies")
    tags = Tags()
    tags.feed(report_page(report))
    void = {"meta", "img"}
    assert "script" not in tags.started
    assert sorted(tag for tag in tags.started if tag not in void) == sorted(tags.ended)
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert [value for name, value in tags.attributes if name == "href"] == ["#notebook-1", "#notebook-2"]


def test_report_counts_what_ran_and_lists_what_failed():
    good = NotebookResult("00_a.ipynb", "A", 1.0, 3, 3, "", ())
    bad = NotebookResult("01_b.ipynb", "B", 2.0, 1, 4, "01_b.ipynb, cell 2 `x`: ValueError: no", ())
    report = WorkbookReport("quick", (good, bad), "report.html", "copies")
    assert (report.ok, good.status, bad.status) == (False, "ok", "failed")
    assert report.summary().splitlines() == [
        "1 of 2 notebooks ran through with profile quick in 3 s; see report.html",
        "failed: 01_b.ipynb, cell 2 `x`: ValueError: no",
    ]
    assert WorkbookReport("quick", (good,), "report.html", "copies").ok
