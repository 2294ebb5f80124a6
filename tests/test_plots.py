"""Plots take tables and return figures that can be read, and refuse what they cannot draw honestly."""

import itertools
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from picollm_core.figure_style import FAMILY_COLOURS, SIZE_INCHES
from picollm_core.plots import plot_bars, plot_distribution, plot_loss_curves, plot_per_position


def history(runs=(("kgram-pico", "kgram", 3.6), ("lstm-pico", "lstm", 3.05), ("transformer-pico", "transformer", 3.0))):
    """Loss curves that fall from ln V = 10.8 to the given end, with a validation loss at every tenth step."""
    step = np.arange(0, 101)
    rows = []
    for run, family, end in runs:
        loss = end + (10.8 - end) * np.exp(-step / 8)
        values = {"loss": loss, "val_loss": np.where(step % 10 == 0, loss + 0.05, np.nan)}
        rows.append(pd.DataFrame({"run": run, "family": family, "step": step, "tokens": step * 4096, **values}))
    return pd.concat(rows, ignore_index=True)


def bars(**changes):
    table = {
        "model": ["a", "b"],
        "loss": [1.234, 1.5],
        "low": [1.2, 1.4],
        "high": [1.3, 1.6],
        "family": ["lstm", "kgram"],
    }
    return pd.DataFrame(table | changes)


def visible(figure: Figure) -> list[Text]:
    """The texts a reader sees; ticks just outside the view exist for matplotlib but are not drawn."""
    figure.draw_without_rendering()
    hidden = set()
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high:
                hidden |= {tick.label1, tick.label2}
    found = (text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip())
    return [text for text in found if text not in hidden]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in visible(figure)]


FIGURES = {
    "curves": lambda: plot_loss_curves(history(), title="T", floors={"Kneser-Ney order 4": 3.19, "bigram counts": 3.7}),
    "position": lambda: plot_per_position(
        {"lstm-a": [5, 4, 3.01], "kgram-b": [5, 4, np.nan], "lstm-c": [5, 4, 3]}, title="T"
    ),
    "bars": lambda: plot_bars(
        bars(), "loss", "model", unit="nats", title="T", interval=("low", "high"), interval_means="95%", family="family"
    ),
    "distribution": lambda: plot_distribution([0.5, 0.3, 0.15, 0.05], list("abcd"), cut=2, title="T"),
    "flat": lambda: plot_distribution(np.full(100, 0.01), [f" w{i}" for i in range(100)], cut=14, title="T"),
}


@pytest.fixture(scope="module", params=FIGURES)
def figure(request):
    return FIGURES[request.param]()


def test_every_figure_is_16_to_9_and_its_letters_reach_the_back_of_the_room(figure):
    assert tuple(figure.get_size_inches()) == SIZE_INCHES
    assert all(text.get_fontsize() >= 14 for text in visible(figure))


def test_no_text_leaves_the_page_and_texts_of_the_plot_do_not_overlap(figure):
    page = figure.bbox
    boxes = {text: Text.get_window_extent(text) for text in visible(figure)}
    for text, box in boxes.items():
        assert page.x0 <= box.x0 < box.x1 <= page.x1, text
        assert page.y0 <= box.y0 < box.y1 <= page.y1, text
    for (a, box_a), (b, box_b) in itertools.combinations(boxes.items(), 2):
        assert not box_a.padded(-2).overlaps(box_b), (a, b)


def test_plots_never_touch_pyplot():
    for draw in FIGURES.values():
        draw()
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_curves_have_the_family_s_colour_named_axes_and_a_name_at_every_end():
    figure = plot_loss_curves(history(), title="The Transformer wins", floors={"Kneser-Ney order 4": 3.19})
    shown = texts(figure)
    assert {"The Transformer wins", "training tokens", "loss (nats per token)", "Kneser-Ney order 4"} <= set(shown)
    for run, family in (("kgram-pico", "kgram"), ("lstm-pico", "lstm"), ("transformer-pico", "transformer")):
        label = next(text for text in figure.axes[0].texts if text.get_text() == run)
        assert to_hex(label.get_color()).upper() == FAMILY_COLOURS[family]


def test_validation_is_the_thick_line_and_drawn_where_it_was_measured():
    axes = plot_loss_curves(history(), title="T", x="step").axes[0]
    thick = [line for line in axes.lines if line.get_linewidth() >= 3]
    thin = [line for line in axes.lines if line.get_linewidth() < 1.5]
    assert [len(line.get_xdata()) for line in thick] == [11, 11, 11]
    assert [len(line.get_xdata()) for line in thin] == [101, 101, 101]


def test_runs_of_one_family_differ_in_line_style():
    axes = plot_loss_curves(history([("a", "lstm", 3.0), ("b", "lstm", 3.2)]), title="T").axes[0]
    first, second = (line for line in axes.lines if line.get_linewidth() >= 3)
    assert first.get_color() == second.get_color()
    assert first.get_linestyle() != second.get_linestyle()


def test_view_leaves_out_the_first_fall_unless_told_otherwise():
    assert plot_loss_curves(history(), title="T").axes[0].get_ylim()[1] < 7
    assert plot_loss_curves(history(), title="T", y_max=11).axes[0].get_ylim()[1] == 11
    low, high = plot_loss_curves(history(), title="T", floors={"unigram": 8.0, "entropy": 1.5}).axes[0].get_ylim()
    assert low < 1.5 < 8.0 < high, "floors are always in view"


def test_many_runs_are_named_by_family():
    runs = [(f"{family}-{seed}", family, 3.0) for family in ("kgram", "lstm") for seed in range(8)]
    shown = texts(plot_loss_curves(history(runs), title="T"))
    assert {"k-gram MLP (8 runs)", "LSTM (8 runs)"} <= set(shown)
    assert "lstm-3" not in shown


def test_curves_work_with_either_loss_alone_and_for_a_run_without_validation():
    table = history()
    assert "loss of the training batch (nats per token)" in texts(
        plot_loss_curves(table.drop(columns="val_loss"), title="T")
    )
    plot_loss_curves(table.drop(columns="loss"), title="T")
    table.loc[table["run"] == "lstm-pico", "val_loss"] = np.nan
    assert "lstm-pico" in texts(plot_loss_curves(table, title="T"))


@pytest.mark.parametrize(
    ("table", "arguments", "message"),
    [
        (history().drop(columns="family"), {}, "no column family; it has run, step"),
        (history().iloc[:0], {}, "table is empty"),
        (history().drop(columns=["loss", "val_loss"]), {}, "neither loss nor val_loss"),
        (history(), {"x": "hours"}, "x is 'hours'; choose one of tokens, step, seconds"),
        (history(), {"x": "seconds"}, "no column seconds"),
        (history([("a", "rnn", 3.0)]), {}, "no colour for family 'rnn'"),
        (history(), {"title": " "}, "title is empty"),
    ],
)
def test_curves_refuse_what_they_cannot_draw(table, arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_loss_curves(table, **{"title": "T"} | arguments)


def test_positions_start_at_one_and_labels_stand_at_the_last_scored_one():
    axes = plot_per_position(
        {"lstm": [5.0, 4.0, np.nan], "mine": [3.0, 2.0, 1.0]}, title="T", families={"mine": "human"}
    ).axes[0]
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3]
    ends = {text.get_text(): tuple(text.xy) for text in axes.texts}
    assert ends == {"lstm": (2, 4.0), "mine": (3, 1.0)}


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({}, "losses is empty"),
        ({"lstm": [np.nan]}, "'lstm' has no finite loss"),
        ({"mine": [1.0]}, "no colour for family 'mine'"),
    ],
)
def test_positions_refuse_what_they_cannot_draw(losses, message):
    with pytest.raises(ValueError, match=message):
        plot_per_position(losses, title="T")


def test_bars_print_values_define_whiskers_and_put_the_first_row_on_top():
    figure = FIGURES["bars"]()
    axes = figure.axes[0]
    assert {"1.23", "1.50", "loss (nats); whiskers: 95%", "LSTM", "k-gram MLP"} <= set(texts(figure))
    heights = [axes.transData.transform((0, row))[1] for row in (0, 1)]
    assert heights[0] > heights[1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_xlim()[0] == 0, "bars start at zero"
    colours = [to_hex(patch.get_facecolor()).upper() for patch in axes.patches]
    assert colours == [FAMILY_COLOURS["lstm"], FAMILY_COLOURS["kgram"]]


def test_negative_bars_have_their_number_on_the_far_side():
    table = bars(loss=[-0.5, 0.5], low=[-0.7, 0.4], high=[-0.4, 0.6])
    axes = plot_bars(
        table, "loss", "model", unit="nats", title="T", interval=("low", "high"), interval_means="95%"
    ).axes[0]
    assert [(text.get_text(), text.xy[0], text.get_ha()) for text in axes.texts] == [
        ("-0.50", -0.7, "right"),
        ("0.50", 0.6, "left"),
    ]


@pytest.mark.parametrize(
    ("table", "arguments", "message"),
    [
        (bars(), {"x": "nll"}, "no column nll"),
        (bars().iloc[:0], {}, "table is empty"),
        (bars(), {"interval": ("low", "high")}, "interval_means"),
        (bars(loss=[1.0, np.nan]), {}, "rows without a finite value: b"),
        (bars(low=[np.inf, 1.0]), {"interval": ("low", "high"), "interval_means": "95%"}, "without a finite value: a"),
        (pd.concat([bars()] * 11), {}, "22 bars"),
        (bars(family=["lstm", "rnn"]), {"family": "family"}, "no colour for family 'rnn'"),
    ],
)
def test_bars_refuse_what_they_cannot_draw(table, arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_bars(table, **{"x": "loss", "y": "model", "unit": "nats", "title": "T"} | arguments)


def test_distribution_ranks_tokens_and_marks_the_nucleus():
    figure = plot_distribution([0.1, 0.6, 0.25], [" b", "a\n", "$x$"], cut=2, title="T", family="lstm")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a\\n", "$x$", "␣b"]
    assert [to_hex(patch.get_facecolor()).upper() == FAMILY_COLOURS["lstm"] for patch in axes.patches] == [
        True,
        True,
        False,
    ]
    assert "nucleus: 2 tokens, 85.0% of the mass" in texts(figure)
    assert [line.get_ydata()[0] for line in axes.lines] == [1.5], "the border lies between the second and the third bar"


def test_distribution_tells_how_much_is_not_drawn():
    shown = " ".join(texts(plot_distribution([0.5, 0.2, 0.1], list("abc"), title="T", top=2)))
    assert "tokens not drawn: 30.0%" in shown
    assert "nucleus" not in shown


@pytest.mark.parametrize(
    ("probabilities", "tokens", "arguments", "message"),
    [
        ([0.5, 0.5], ["a"], {}, r"shape \(2,\) do not go with 1 tokens"),
        ([], [], {}, "give one each"),
        ([[0.5, 0.5]], ["a"], {}, r"shape \(1, 2\)"),
        ([2.0, -1.0], ["a", "b"], {}, "not probabilities: smallest -1"),
        ([0.9, 0.9], ["a", "b"], {}, "sum 1.8; apply a softmax first"),
        ([np.nan, 0.5], ["a", "b"], {}, "not probabilities"),
        ([0.5, 0.5], ["a", "b"], {"cut": 0}, "cut is 0"),
        ([0.5, 0.5], ["a", "b"], {"top": 21}, "top is 21"),
    ],
)
def test_distribution_refuses_what_is_none(probabilities, tokens, arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_distribution(probabilities, tokens, title="T", **arguments)
