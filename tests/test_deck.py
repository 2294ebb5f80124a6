"""The talk: every figure once, a finding above each, notes with numbers and sources, the same bytes every time."""

import re
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("pptx", reason='the deck needs python-pptx: pip install "picollm[slides]"')

from pptx import Presentation
from pptx.enum.shapes import MSO_SHAPE_TYPE

from picollm_core.deck import FIGURE_SLIDES, FigureSlide, choose_figures, write_deck
from picollm_core.deck_slides import HEIGHT, WIDTH
from picollm_core.figure_index import FigureEntry, read_index, write_index
from tests.deck_project import FIGURES, write_project


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project, the report of its deck, and the deck opened again."""
    root = tmp_path_factory.mktemp("talk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        runs = write_project(root)
        report = write_deck()
    return root, runs, report, Presentation(root / "artefacts" / "deck.pptx")


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Path:
    """A copy of the project to spoil."""
    shutil.copytree(made[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def plain(text: str) -> str:
    return text.replace("\u2011", "-").replace("\xa0", " ")


def titles(deck) -> list[str]:
    return [plain(slide.shapes.title.text_frame.text) for slide in deck.slides]


def notes(slide) -> str:
    return slide.notes_slide.notes_text_frame.text


def pictures(slide) -> list:
    return [shape for shape in slide.shapes if shape.shape_type == MSO_SHAPE_TYPE.PICTURE]


def test_ten_slides_in_order_and_then_the_appendix(made):
    _, _, report, deck = made
    assert report.ok
    assert (len(deck.slides), report.appendix) == (11, 1)
    found = titles(deck)
    assert found[0].endswith("?")
    assert found[3:8] == [
        FIGURES[name] for name in ("05_sizes", "02_grid", "04_attention", "03_equal_surprise", "05_bits_per_byte")
    ]
    assert found[10] == FIGURES["06_extra"]
    assert list(map(plain, report.titles)) == found


def test_every_figure_is_on_exactly_one_slide_with_its_finding_as_title_and_as_alternative_text(made):
    _, _, _, deck = made
    shown = [
        (title, picture) for slide, title in zip(deck.slides, titles(deck), strict=True) for picture in pictures(slide)
    ]
    assert sorted(title for title, _ in shown) == sorted(FIGURES.values())
    for title, picture in shown:
        assert picture._element.nvPicPr.cNvPr.get("descr") == title


def test_a_figure_loses_its_own_title_keeps_its_proportions_and_fills_the_slide(made):
    _, _, _, deck = made
    for slide in deck.slides:
        for picture in pictures(slide):
            assert 0.08 <= picture.crop_top < 0.11
            assert picture.width / picture.height == pytest.approx(16 / 9 / (1 - picture.crop_top), rel=0.01)
            assert picture.width > 0.7 * deck.slide_width


def test_nothing_leaves_the_slide_and_every_title_is_large(made):
    _, _, _, deck = made
    assert deck.slide_width / deck.slide_height == pytest.approx(WIDTH / HEIGHT)
    for slide in deck.slides:
        assert slide.shapes.title.text_frame.paragraphs[0].runs[0].font.size.pt >= 22
        for shape in slide.shapes:
            assert shape.left >= 0
            assert shape.top >= 0
            assert shape.left + shape.width <= deck.slide_width + 10_000
            assert shape.top + shape.height <= deck.slide_height


def test_every_slide_has_notes_that_name_a_source_that_exists(made):
    root, _, _, deck = made
    for slide in deck.slides:
        named = re.findall(r"(?:artefacts|notebooks)/[\w./-]+\.(?:json|ipynb|png)", notes(slide))
        assert named, titles(deck)
        assert all((root / name).is_file() for name in named)


def test_a_figure_s_notes_hold_its_notebook_s_answer_and_the_cell_that_draws_it(made):
    _, _, _, deck = made
    text = notes(deck.slides[4])
    assert "In notebook 02 it was 02.5 nats." in text
    assert "notebooks/02_kgram_variants.ipynb, cell 3, under “What was seen”" in text
    assert "artefacts/results/runs/" in text


def test_samples_are_those_of_the_best_run_of_each_family_under_equal_training(made):
    _, runs, _, deck = made
    slide = deck.slides[8]
    text = "\n".join(plain(shape.text_frame.text) for shape in slide.shapes if shape.has_text_frame)
    for family, run in runs.items():
        assert f"Once upon a time the {plain(family)} met a friend." in text
        assert f"runs/{run.fingerprint}.json" in notes(slide)
    assert "1.100 bits per byte" in text
    assert "0.900" not in text, "a run on fewer tokens is no rival"


def test_the_conclusion_lists_each_finding_with_its_slide(made):
    _, _, _, deck = made
    text = "\n".join(plain(shape.text_frame.text) for shape in deck.slides[9].shapes if shape.has_text_frame)
    assert all(FIGURES[name] in text for name in FIGURES if name != "06_extra")
    assert all(f"\n{page}\n" in text for page in range(4, 9))
    assert "Transformer leads, at 1.100 bits per byte" in text


def test_data_slide_shows_the_numbers_of_notebook_and_records(made):
    _, _, _, deck = made
    text = "\n".join(shape.text_frame.text for shape in deck.slides[2].shapes if shape.has_text_frame)
    assert all(number in text for number in ("12,662", "816", "8.2M", "2,000 updates"))


def test_the_same_sources_give_the_same_bytes(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made[0])
    write_deck(tmp_path / "again.pptx")
    assert (tmp_path / "again.pptx").read_bytes() == (made[0] / "artefacts" / "deck.pptx").read_bytes()


def test_a_topic_without_a_figure_is_left_out_and_said(project):
    entries = read_index("artefacts/figures")
    write_index("artefacts/figures", {name: one for name, one in entries.items() if not name.startswith("03_")})
    report = write_deck()
    assert not report.ok
    assert [slide.topic for slide in report.missing] == ["top-p"]
    assert "left out: top-p, because no figure is called 03_" in report.summary()
    assert len(Presentation("artefacts/deck.pptx").slides) == 10


def test_a_preferred_figure_wins_and_none_is_used_twice():
    entries = {name: FigureEntry(name, "n", name, 0.1) for name in ("05_a", "05_size", "05_b")}
    slides = (FigureSlide("all", ("05_b", "05_*")), FigureSlide("sizes", ("05_size*",)), FigureSlide("rest", ("05_*",)))
    chosen, rest, missing = choose_figures(entries, (*slides, FigureSlide("none", ("05_*",))))
    assert {topic: entry.name for topic, entry in chosen.items()} == {"all": "05_b", "sizes": "05_size", "rest": "05_a"}
    assert rest == []
    assert [slide.topic for slide in missing] == ["none"]
    assert len({slide.topic for slide in FIGURE_SLIDES}) == len(FIGURE_SLIDES)


SPOILED = {
    "no index": (lambda: Path("artefacts/figures/index.json").unlink(), r"index\.json is missing .* `picollm figures`"),
    "index of another format": (lambda: Path("artefacts/figures/index.json").write_text("[]"), "not an index of this"),
    "no file": (lambda: Path("artefacts/figures/02_grid.png").unlink(), r"has no 02_grid\.png; run `picollm figures`"),
    "no records": (lambda: shutil.rmtree("artefacts/results"), r"no record .* run `picollm workbook"),
    "old record": (
        lambda: next(Path("artefacts/results/runs").iterdir()).write_text('{"version": 0}'),
        r"is not a record of this version .* delete it, then run `picollm workbook",
    ),
    "broken notebook": (
        lambda: Path("notebooks/05_model_comparison.ipynb").write_text("{"),
        "cannot be read as a notebook",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_what_cannot_be_used_is_named_and_the_old_deck_stays(project, case):
    spoil, message = SPOILED[case]
    old = Path("artefacts/deck.pptx").read_bytes()
    spoil()
    with pytest.raises(ValueError, match=message):
        write_deck()
    assert Path("artefacts/deck.pptx").read_bytes() == old
    assert not list(Path("artefacts").glob("*.tmp"))


def test_a_title_too_long_for_a_slide_is_refused(project):
    entries = read_index("artefacts/figures")
    long = FigureEntry("06_extra", "06_more", "A finding of many words " * 12, 0.1)
    write_index("artefacts/figures", entries | {"06_extra": long})
    with pytest.raises(ValueError, match=r"A finding of many words .* does not fit on a slide; shorten it"):
        write_deck()


def test_without_python_pptx_the_way_out_is_one_line(project, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "pptx" or "deck_slides" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pptx", None)
    with pytest.raises(ValueError, match=r'pip install "picollm\[slides\]"'):
        write_deck()
