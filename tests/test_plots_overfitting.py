"""The figures about overfitting show what they are given and refuse what they cannot show."""

import math

import pandas as pd
import pytest
from matplotlib.colors import to_hex

from picollm_core.figure_style import FAMILY_COLOURS, FAMILY_LABELS, SIZE_INCHES
from picollm_core.plots_overfitting import plot_effects, plot_exposure, plot_line_panels

LABELS = {"title": "T", "x_label": "epochs", "y_label": "nats per token"}
MEASURES = {"gap": "gap", "held_out": "held-out loss"}


def lines(seeds=3, panels=("kgram", "lstm"), arms=("training text", "people")) -> pd.DataFrame:
    rows = [
        (panel, arm, seed, x, 1.0 + place + x / 10 + seed / 100)
        for panel in panels
        for place, arm in enumerate(arms)
        for seed in range(seeds)
        for x in (1, 4, 16)
    ]
    return pd.DataFrame(rows, columns=["panel", "arm", "seed", "x", "y"])


def effects(seeds=True) -> pd.DataFrame:
    rows = [
        (family, change, measure, effect, effect - 0.2, effect + 0.2)
        for family in ("kgram", "lstm")
        for change, effect in (("dropout", -1.0), ("width", 0.1))
        for measure in MEASURES
    ]
    table = pd.DataFrame(rows, columns=["family", "change", "measure", "effect", "low", "high"])
    return table if seeds else table.assign(low=math.nan, high=math.nan)


def exposure(seeds=4) -> pd.DataFrame:
    rows = [
        (arm, s, t, t**0.5 + s / 10) for arm in ("kgram", "never saw any") for s in range(seeds) for t in (0, 1, 64)
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "times", "exposure"])


def marks(axes):
    return [line for line in axes.lines if line.get_marker() == "o"]


def test_every_panel_has_a_line_of_means_an_arm_and_people_are_black():
    figure = plot_line_panels(lines(), "x", "y", **LABELS)
    left, right = figure.axes
    assert [axes.get_title(loc="left") for axes in (left, right)] == [FAMILY_LABELS["kgram"], FAMILY_LABELS["lstm"]]
    trained, people = left.lines
    assert trained.get_ydata().tolist() == pytest.approx([1.11, 1.41, 2.61])
    assert to_hex(people.get_color()) == "#000000"
    assert len(left.collections) == 2
    assert left.get_ylim() == right.get_ylim()
    assert tuple(figure.get_size_inches()) == SIZE_INCHES


def test_logarithmic_axes_and_marks():
    figure = plot_line_panels(lines(), "x", "y", log_x=True, log_y=True, share_y=False, marks={"fit": 4}, **LABELS)
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axes.texts] == ["fit"]
    assert axes.get_xticks().tolist() == [1, 4, 16]


def test_one_panel_alone_may_be_logarithmic():
    figure = plot_line_panels(lines(), "x", "y", log_y=("lstm",), share_y=False, **LABELS)
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log"]
    part = lines().assign(y=lambda table: table.y.where(table.panel == "lstm", 0.0))
    assert plot_line_panels(part, "x", "y", log_y=("lstm",), share_y=False, **LABELS).axes
    with pytest.raises(ValueError, match="more than 0"):
        plot_line_panels(part, "x", "y", log_y=True, **LABELS)


def test_one_seed_has_no_interval_in_the_legend():
    def legend(seeds):
        return [text.get_text() for text in plot_line_panels(lines(seeds), "x", "y", **LABELS).legends[0].get_texts()]

    assert legend(1) == ["training text", "people"]
    assert "95% interval" in legend(3)[-1]


def test_effects_stand_in_rows_with_filled_marks_where_the_interval_leaves_out_0():
    figure = plot_effects(effects(), MEASURES, title="T", label="nats")
    left, right = figure.axes
    assert [axes.get_title(loc="left") for axes in (left, right)] == ["gap", "held-out loss"]
    assert [text.get_text() for text in left.get_yticklabels()] == ["dropout", "width"] * 2
    faces = [to_hex(mark.get_markerfacecolor()) for mark in marks(left)]
    assert faces == [FAMILY_COLOURS["kgram"].lower(), "#ffffff", FAMILY_COLOURS["lstm"].lower(), "#ffffff"]
    assert [mark.get_xdata()[0] for mark in marks(left)] == [-1.0, 0.1, -1.0, 0.1]


def test_effects_of_one_seed_are_all_hollow():
    figure = plot_effects(effects(seeds=False), MEASURES, title="T", label="nats")
    assert {to_hex(mark.get_markerfacecolor()) for mark in marks(figure.axes[0])} == {"#ffffff"}


def test_exposure_has_a_place_for_every_number_of_copies_and_two_lines():
    figure = plot_exposure(exposure(), bits=12.0, chance=1.44, title="T", control="never saw any")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["kept back", "1", "64"]
    family, control = marks(axes)
    assert family.get_ydata().tolist() == pytest.approx([0.15, 1.15, 8.15])
    assert (to_hex(family.get_color()), to_hex(control.get_color())) == (FAMILY_COLOURS["kgram"].lower(), "#000000")
    assert [text.get_text() for text in axes.texts] == ["chance: 1.44", "the most there can be: 12"]
    assert plot_exposure(exposure(seeds=1)[:3], bits=12.0, chance=1.44, title="T").axes


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot_line_panels(lines().drop(columns="arm"), "x", "y", **LABELS), "arm"),
        (lambda: plot_line_panels(lines()[:0], "x", "y", **LABELS), "no rows|empty"),
        (lambda: plot_line_panels(lines(panels="abcd"), "x", "y", **LABELS), "4 panels"),
        (lambda: plot_line_panels(lines().assign(x=0), "x", "y", log_x=True, **LABELS), "more than 0"),
        (lambda: plot_effects(effects(), {"speed": "s"}, title="T", label="nats"), "no measure speed"),
        (lambda: plot_effects(effects().drop(columns="low"), MEASURES, title="T", label="nats"), "low"),
        (lambda: plot_exposure(exposure().drop(columns="times"), bits=1, chance=1, title="T"), "times"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
