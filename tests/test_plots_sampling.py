"""Figures about sampling can be read, say what their marks mean, and refuse what they cannot draw honestly."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from picollm_core.figure_style import FAMILY_COLOURS, SIZE_INCHES
from picollm_core.plots_sampling import SAMPLER_LOOKS, plot_nucleus_strip, plot_plane, plot_surprise

WORDS = [" Once", " upon", " a", " time", ",", " there", " lived", " Extraordinary"] * 5
LONG = "Low surprise is no quality: greedy text repeats 25% to 71% of its 4-grams, and human text hardly any of them"
P = (0.0, 0.5, 0.8, 0.9, 1.0)


def families():
    rows = []
    for shift, family in enumerate(("kgram", "lstm", "transformer")):
        for p in P:
            nll = 1.5 + 2.5 * p + 0.2 * shift
            setting = f"top-p {p:g}" if p else "greedy"
            rows.append({"family": family, "setting": setting, "p": p, "nll": nll, "nll_low": nll - 0.1,
                         "nll_high": nll + 0.1, "distinct_2": 0.6 * math.sqrt(p)})  # fmt: skip
    return pd.DataFrame(rows)


def samplers():
    values = {
        "top-p": (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1),
        "top-k": (2, 5, 20),
        "min-p": (0.4, 0.1),
        "temperature": (1,),
    }
    rows = [{"sampler": name, "setting": f"{name} {value:g}", "nll": 2 + rank, "distinct_2": 0.1 * rank}
            for name, own in values.items() for rank, value in enumerate(own)]  # fmt: skip
    return pd.DataFrame(rows)


def plane(table=None, **changes):
    arguments = {
        "x": "nll",
        "y": "distinct_2",
        "line": "family",
        "title": LONG,
        "x_label": "surprise to the judge (nats per token)",
        "y_label": "different 2-grams (share)",
        "human": (3.5, 0.5),
        "interval": ("nll_low", "nll_high"),
        "interval_means": "95% bootstrap over stories",
        "marked": ("greedy", "top-p 0.9"),
        "percent": True,
    }
    return plot_plane(families() if table is None else table, **arguments | changes)


def surprise(**changes):
    arguments = {"title": LONG, "human": (3.5, 3.4, 3.6), "crossings": {"kgram": 0.8, "lstm": math.inf}}
    return plot_surprise(changes.pop("table", families()), **arguments | changes)


def strip(**changes):
    sizes = {"transformer": [1, 900, 30, 4] * 10, "kgram": [2, 700, 3, 4] * 10}
    arguments = {"sizes": sizes, "tokens": WORDS, "title": LONG, "p": 0.9, "vocab_size": 4096}
    return plot_nucleus_strip(**arguments | changes)


FIGURES = {
    "strip": strip,
    "surprise": surprise,
    "families": plane,
    "samplers": lambda: plane(samplers(), line="sampler", interval=None, marked=()),
}


@pytest.fixture(scope="module", params=FIGURES)
def figure(request):
    drawn = FIGURES[request.param]()
    drawn.draw_without_rendering()
    return drawn


def visible(figure):
    """The texts a reader sees, without ticks outside the view."""
    hidden = set()
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high:
                hidden |= {tick.label1, tick.label2}
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]


def texts(figure):
    figure.draw_without_rendering()
    return [text.get_text() for text in visible(figure)]


def test_every_figure_is_16_to_9_and_its_letters_reach_the_back_of_the_room(figure):
    assert tuple(figure.get_size_inches()) == SIZE_INCHES
    assert all(text.get_fontsize() >= 14 for text in visible(figure))


def test_no_text_leaves_the_page_and_no_two_overlap(figure):
    boxes = {text: Text.get_window_extent(text) for text in visible(figure)}
    for text, box in boxes.items():
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text
    for (a, box_a), (b, box_b) in itertools.combinations(boxes.items(), 2):
        assert not box_a.padded(-2).overlaps(box_b), (a, b)


def test_the_strip_stands_on_a_logarithmic_scale_over_every_token():
    axes = strip().axes[0]
    line = next(line for line in axes.lines if to_hex(line.get_color()).upper() == FAMILY_COLOURS["transformer"])
    assert 10 ** np.asarray(line.get_ydata()) == pytest.approx([1, 900, 30, 4] * 10)
    assert [label.get_text() for label in axes.get_xticklabels()][:5] == ["␣Once", "␣upon", "␣a", "␣time", ","]
    assert {"1", "10", "100", "1,000", "tokens in the nucleus (p = 0.9)"} <= set(texts(strip()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": WORDS[:3]}, "transformer has 40 sizes, the smallest 1, for 3 tokens"),
        ({"sizes": {"lstm": [0] * 40}}, "lstm has 40 sizes, the smallest 0"),
        ({"sizes": {}}, "sizes is empty"),
        ({"tokens": []}, "0 tokens; a slide shows 1 to 48"),
        ({"tokens": ["a"] * 49}, "49 tokens; a slide"),
        ({"sizes": {"rnn": [1] * 40}}, "no colour for family 'rnn'"),
    ],
)
def test_strips_refuse_what_they_cannot_draw(change, message):
    with pytest.raises(ValueError, match=message):
        strip(**change)


def test_a_ring_marks_the_p_of_equal_surprise_where_there_is_one():
    axes = surprise().axes[0]
    rings = [line for line in axes.lines if line.get_markersize() == 14]
    assert [(ring.get_xdata()[0], ring.get_ydata()[0]) for ring in rings] == [(0.8, 3.5)]
    assert {"greedy", "human text", "k-gram MLP", "LSTM", "Transformer"} <= set(texts(surprise()))


def test_surprise_refuses_a_table_without_its_columns():
    with pytest.raises(ValueError, match="no column nll_low"):
        surprise(table=families().drop(columns="nll_low"))
    with pytest.raises(ValueError, match="table is empty"):
        surprise(table=families().iloc[:0])


def test_the_plane_marks_human_text_and_the_named_settings_and_says_what_whiskers_are():
    drawn = plane()
    axes = drawn.axes[0]
    star = next(line for line in axes.lines if line.get_marker() == "*")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (3.5, 0.5)
    assert sum(line.get_markersize() == 14 for line in axes.lines) == 6, "two settings of three families"
    shown = texts(drawn)
    assert {"greedy", "top-p 0.9", "human text", "k-gram MLP"} <= set(shown)
    assert "top-p 0.5" not in shown
    assert any("whiskers: 95% bootstrap over stories" in text for text in shown)


def test_samplers_differ_in_colour_marker_and_line_and_the_legend_lists_their_settings():
    drawn = FIGURES["samplers"]()
    assert {"top-k:\n2, 5, 20", "min-p:\n0.4, 0.1", "temperature:\n1"} <= set(texts(drawn))
    for attribute in zip(*SAMPLER_LOOKS.values(), strict=True):
        assert len(set(attribute)) == len(SAMPLER_LOOKS)


def test_rows_that_were_not_measured_are_left_out_of_the_plane():
    table = families()
    table.loc[table["setting"] == "greedy", "distinct_2"] = np.nan
    axes = plane(table).axes[0]
    line = next(line for line in axes.lines if to_hex(line.get_color()).upper() == FAMILY_COLOURS["lstm"])
    assert len(line.get_xdata()) == len(P) - 1


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        (families(), {"interval_means": ""}, "whiskers need interval_means"),
        (families().drop(columns="setting"), {}, "no column setting"),
        (families(), {"y": "repetition"}, "no column repetition"),
        (families().assign(distinct_2=np.nan), {}, "no row has a finite nll and distinct_2"),
        (families().assign(family="rnn"), {}, "'rnn' is neither a family .* nor a sampler"),
        (families(), {"marked": list("abcdefg")}, "7 marked settings, but there are 6 markers"),
        (families(), {"title": " "}, "title is empty"),
    ],
)
def test_planes_refuse_what_they_cannot_draw(table, change, message):
    with pytest.raises(ValueError, match=message):
        plane(table, **change)
