"""One style: colours everyone can tell apart, labels that never collide, files with stable bytes."""

import itertools
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from picollm_core.figure_style import (
    FAMILY_COLOURS,
    FAMILY_LABELS,
    STYLE,
    family_colour,
    new_figure,
    save_figure,
    settle_layout,
    spread,
    text_page,
    use_style,
)

# Machado, Oliveira and Fernandes (2009), severity 1.0, for linear RGB.
COLOUR_BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: str) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of linear RGB."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = matrix @ rgb.clip(0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", COLOUR_BLINDNESS)
def test_the_three_families_and_the_counts_stay_apart_for_every_eye(kind):
    seen = [
        lab(np.array(COLOUR_BLINDNESS[kind]) @ linear(FAMILY_COLOURS[f]))
        for f in ("kgram", "lstm", "transformer", "counts")
    ]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


@pytest.mark.parametrize("family", FAMILY_COLOURS)
def test_a_label_in_a_family_s_colour_is_readable_on_white(family):
    luminance = linear(family_colour(family)) @ [0.2126, 0.7152, 0.0722]
    assert 1.05 / (luminance + 0.05) >= 2.9, "about 3:1, the limit for large text"
    assert FAMILY_LABELS[family]


def test_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no colour for family 'rnn'; known families: kgram, lstm"):
        family_colour("rnn")


def test_style_ends_with_its_block_and_keeps_text_legible_on_a_slide():
    before = dict(matplotlib.rcParams)
    with use_style():
        assert matplotlib.rcParams["font.size"] == STYLE["font.size"]
    assert dict(matplotlib.rcParams) == before
    assert all(
        value >= 14
        for name, value in STYLE.items()
        if name.endswith(("font.size", "size")) and name != "figure.figsize"
    )


HEIGHTS = st.lists(st.floats(0, 1), min_size=1, max_size=30).map(sorted)


@given(HEIGHTS, st.floats(0.001, 0.2))
def test_spread_labels_keep_order_distance_and_bounds(heights, gap):
    placed = spread(heights, gap, 0.02, 0.98)
    gap = min(gap, 0.96 / max(len(heights) - 1, 1))
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(placed))
    assert min(placed) >= 0.02 - 1e-9
    assert max(placed) <= 0.98 + 1e-9


def test_labels_that_do_not_collide_stay_in_place_and_a_pair_moves_apart_evenly():
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])


def test_long_titles_break_into_lines_of_about_equal_length():
    with use_style():
        figure, _ = new_figure("word " * 18 + "end")
    lengths = [len(line) for line in figure.get_suptitle().splitlines()]
    assert len(lengths) == 2
    assert abs(lengths[0] - lengths[1]) <= 10
    with pytest.raises(ValueError, match="title is empty"):
        new_figure("  ")


def drawn() -> Figure:
    with use_style():
        figure, axes = new_figure("A line goes up & costs 5$ to 6$")
        axes.plot([1, 2, 3], label="line")
    return figure


def test_saving_writes_three_formats_and_a_full_hd_png(tmp_path):
    paths = save_figure(drawn(), "loss_by-step2", tmp_path / "new")
    assert [path.name for path in paths] == ["loss_by-step2.png", "loss_by-step2.svg", "loss_by-step2.pdf"]
    assert sorted(paths) == sorted((tmp_path / "new").iterdir()), "no partial files stay behind"
    head = paths[0].read_bytes()[:24]
    assert (int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")) == (1920, 1080)


def test_the_same_figure_gives_the_same_bytes_in_another_process(tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'tests'); from test_figure_style import drawn; "
        "from picollm_core.figure_style import save_figure; save_figure(drawn(), 'a', sys.argv[1])"
    )
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", code, str(tmp_path / "other")]
    environment = {"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "86400", "PATH": "", "HOME": str(tmp_path)}
    subprocess.run(command, cwd=root, check=True, timeout=120, env=environment)
    for path in save_figure(drawn(), "a", tmp_path):
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes(), path.suffix


@pytest.mark.parametrize(
    "name", ["", "../up", "a/b", "a\\b", ".hidden", "-flag", "UPPER", "a b", "con", "nul", "é", "x" * 81, "a\n"]
)
def test_unsafe_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="figure name"):
        save_figure(drawn(), name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_figure_of_another_shape_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"6\.4 x 4\.8 inches; make it 16:9"):
        save_figure(Figure(figsize=(6.4, 4.8)), "a", tmp_path)


def test_a_page_of_text_is_as_large_as_it_says_and_gives_way_to_a_title_of_two_lines():
    for title, lines in (("T", 1), ("long words " * 9, 2)):
        with use_style():
            figure, axes, width, height = text_page(title, bottom=0.1, top=0.9)
        figure.draw_without_rendering()
        assert figure.get_suptitle().count("\n") == lines - 1
        box = axes.get_window_extent()
        assert (box.width, box.height) == pytest.approx((width * figure.dpi / 72, height * figure.dpi / 72))
        assert box.y0 == pytest.approx(0.1 * figure.bbox.height)
        titles = [text.get_window_extent() for text in figure.texts]
        assert all(box.y1 <= text.y0 for text in titles)
        assert not axes.axison


def test_a_settled_layout_has_rounded_places_that_saving_leaves_alone(tmp_path):
    with use_style():
        figure, axes = new_figure("Several axes")
        axes.remove()
        for axes in figure.subplots(2, 3).flat:
            axes.set_ylabel("an axis")
        settle_layout(figure)
    places = [axes.get_position(original=True).bounds for axes in figure.axes]
    assert np.ravel(places) == pytest.approx(np.ravel(places).round(6), abs=1e-12)
    assert len(set(places)) == 6
    save_figure(figure, "settled", tmp_path)
    assert [axes.get_position(original=True).bounds for axes in figure.axes] == places
