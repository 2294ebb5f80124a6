"""Figures about autoencoders can be read, show what they were given, and refuse what they cannot show honestly."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from picollm_core.figure_style import FAMILY_COLOURS, INK
from picollm_core.plots_autoencoders import KINDS, METRICS, plot_controls, plot_quality
from tests.legible import assert_legible, visible


def quality(kinds=(*KINDS, "neurons", "pca"), levels=(8.0, 16.0, 32.0), seeds=3) -> pd.DataFrame:
    rows = []
    for (place, kind), level in itertools.product(enumerate(kinds), levels):
        for seed in range(seeds if kind in KINDS else 1):
            l0 = level if kind in ("topk", "neurons", "pca") else level * (0.9 + 0.1 * seed)
            fvu = min(0.95, (0.5 + 0.05 * place + 0.01 * seed) * (8 / l0) ** 0.5)
            rows.append((kind, level, seed, l0, fvu, fvu**1.5, 1 - fvu**1.5 / 8, 0.0))
    return pd.DataFrame(rows, columns=["kind", "level", "seed", "l0", "fvu", "added", "recovered_mean", "dead"]).assign(
        subject="transformer"
    )


def controls(subjects=("transformer", "lstm", "kgram"), seeds=3) -> pd.DataFrame:
    rows = []
    for place, name in enumerate(subjects):
        for seed in range(seeds):
            rows.append((name, "topk", seed, 0.1 + 0.05 * place + 0.01 * seed))
            rows.append((f"{name}, untrained", "topk", seed, 0.3 + 0.01 * seed))
        rows += [(name, "neurons", 0, 0.6), (name, "pca", 0, 0.4)]
    return pd.DataFrame(rows, columns=["subject", "kind", "seed", "fvu"])


FIGURES = {
    "two metrics": lambda: plot_quality(quality(), title="T" * 90),
    "recovered": lambda: plot_quality(quality(), title="T", metrics=("fvu", "recovered_mean")),
    "one metric": lambda: plot_quality(quality(), title="T", metrics=["dead"]),
    "one level": lambda: plot_quality(quality(levels=(32.0,), seeds=1), title="T"),
    "wide": lambda: plot_quality(quality(("topk", "relu"), (4.0, 40.0, 400.0)), title="T"),
    "controls": lambda: plot_controls(controls(), title="T" * 90),
    "one seed": lambda: plot_controls(controls(seeds=1), title="T"),
    "one subject": lambda: plot_controls(controls(("a $girl$",)), title="T", label="what it is"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_texts_are_large_stay_on_the_page_and_do_not_overlap(name):
    assert_legible(FIGURES[name]())


def line_of(axes, colour: str, alpha=None):
    lines = [line for line in axes.lines if to_hex(line.get_color()) == colour and line.get_alpha() == alpha]
    assert len(lines) == 1
    return lines[0]


def test_each_panel_has_a_line_of_means_for_every_kind_in_rising_order_of_l0():
    table = quality(("topk", "relu"), (32.0, 8.0, 16.0))
    table.loc[table["kind"] == "relu", "level"] **= -1  # a price: the higher, the fewer features
    figure = plot_quality(table, title="T")
    labels = {text.get_text(): to_hex(text.get_color()) for text in visible(figure)}
    for axes, metric in zip(figure.axes, ("fvu", "added"), strict=True):
        assert axes.get_title("left") == METRICS[metric]
        assert axes.get_xscale() == axes.get_yscale() == "log"
        for kind in ("topk", "relu"):
            means = table[table["kind"] == kind].groupby("level")[["l0", metric]].mean()
            means = means.sort_values("l0")
            line = line_of(axes, labels[KINDS[kind]])
            np.testing.assert_allclose(line.get_xdata(), means["l0"])
            np.testing.assert_allclose(line.get_ydata(), means[metric])
            seeds = line_of(axes, labels[KINDS[kind]], 0.35)
            np.testing.assert_allclose(sorted(seeds.get_ydata()), sorted(table.loc[table["kind"] == kind, metric]))


def test_a_kind_looks_the_same_whatever_stands_beside_it_and_bases_are_dashed_grey():
    alone, among = plot_quality(quality(("relu",)), title="T"), plot_quality(quality(), title="T")
    texts = [{text.get_text(): to_hex(text.get_color()) for text in visible(figure)} for figure in (alone, among)]
    assert texts[0]["ReLU with L1"] == texts[1]["ReLU with L1"]
    assert texts[1]["neurons"] == texts[1]["principal components"]
    assert len({texts[1][name] for name in KINDS.values()}) == len(KINDS)
    assert len([line for line in among.axes[0].lines if line.is_dashed() and line.get_linewidth() == 2]) == 2


def test_seeds_are_explained_only_where_there_are_several():
    assert "3 seeds" in plot_quality(quality(), title="T").get_supxlabel()
    one = plot_quality(quality(seeds=1), title="T")
    assert one.get_supxlabel() == "features active a token (L0)"
    assert len(one.axes[0].lines) == 6
    assert "seeds" not in plot_controls(controls(seeds=1), title="T").axes[0].get_xlabel()


def test_shares_have_a_plain_axis_that_may_start_at_zero():
    axes = plot_quality(quality(), title="T", metrics=["dead"]).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert plot_quality(quality(), title="T", metrics=["recovered_mean"]).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize(
    ("change", "metrics", "message"),
    [
        ({"kind": "gated"}, ("fvu",), "kind gated is unknown; known are topk"),
        ({}, ("loss",), "metric loss is unknown; choose of fvu, added"),
        ({}, (), "0 metrics"),
        ({}, ("fvu", "added", "dead"), "3 metrics"),
        ({"added": -0.01}, ("added",), r"added is -0\.01 in one row, which a logarithmic axis cannot show"),
        ({"l0": 0.0}, ("dead",), "l0 is 0 in one row"),
    ],
)
def test_what_cannot_be_drawn_against_l0_is_named(change, metrics, message):
    with pytest.raises(ValueError, match=message):
        plot_quality(quality().assign(**change), title="T", metrics=metrics)


def test_two_subjects_in_one_figure_of_quality_are_refused():
    both = pd.concat([quality(), quality().assign(subject="lstm")])
    with pytest.raises(ValueError, match="rows of transformer, lstm; draw one subject at a time"):
        plot_quality(both, title="T")
    with pytest.raises(ValueError, match="no column l0"):
        plot_quality(quality().drop(columns="l0"), title="T")
    with pytest.raises(ValueError, match="the table is empty"):
        plot_quality(quality().iloc[:0], title="T")


def test_every_subject_has_its_autoencoder_first_then_its_controls_in_the_colour_of_its_family():
    axes = plot_controls(controls(), title="T").axes[0]
    arms = ["autoencoder", "neurons", "principal components", "autoencoder, untrained model"]
    assert [label.get_text() for label in axes.get_yticklabels()] == 3 * arms
    assert axes.yaxis_inverted()
    headings = {text.get_text(): to_hex(text.get_color()).upper() for text in axes.texts}
    for heading, family in (("Transformer", "transformer"), ("LSTM", "lstm"), ("k-gram MLP", "kgram")):
        assert headings[heading] == FAMILY_COLOURS[family]
    marked = [line for line in axes.lines if line.get_marker() in "os^"]
    for line, row in zip(marked, axes.get_yticks(), strict=True):
        assert np.mean(line.get_ydata()) == pytest.approx(row)
        assert np.abs(np.asarray(line.get_ydata()) - row).max() < 0.3
    assert [len(line.get_xdata()) for line in marked] == 3 * [3, 1, 1, 3]
    assert [to_hex(line.get_markerfacecolor()) == "#ffffff" for line in marked] == 3 * [False, False, False, True]
    assert to_hex(marked[4].get_color()).upper() == FAMILY_COLOURS["lstm"]


def test_the_mean_over_seeds_is_written_and_marked_by_a_bar():
    table = controls(("lstm",))
    axes = plot_controls(table, title="T").axes[0]
    shown = {text.get_text() for text in axes.texts}
    assert {"0.110", "0.600", "0.400", "0.310"} <= shown
    bars = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "None" and len(line.get_xdata()) == 2]
    assert bars == pytest.approx([0.11, 0.31])
    assert "each of 3 seeds" in axes.get_xlabel()


def test_a_subject_of_no_family_is_dark_unless_one_is_given():
    table = controls(("mine",))
    heading = plot_controls(table, title="T").axes[0].texts[0]
    assert (heading.get_text(), heading.get_color()) == ("mine", INK)
    given = plot_controls(table, title="T", families={"mine": "lstm"}).axes[0].texts[0]
    assert given.get_color() == FAMILY_COLOURS["lstm"]
    longer = plot_controls(controls(("k-gram on TinyStories",)), title="T").axes[0].texts[0]
    assert longer.get_color() == FAMILY_COLOURS["kgram"]


def test_any_metric_may_be_shown_also_one_below_zero():
    table = controls().rename(columns={"fvu": "gain"})
    table["gain"] -= 0.5
    axes = plot_controls(table, title="T", metric="gain").axes[0]
    assert axes.get_xlabel().startswith("gain")
    low, high = axes.get_xlim()
    assert low < table["gain"].min() < 0 < table["gain"].max() < high
    assert "−0.390" in {text.get_text() for text in axes.texts}


def test_controls_that_no_slide_can_show_are_refused():
    with pytest.raises(ValueError, match="no column f1"):
        plot_controls(controls(), title="T", metric="f1")
    with pytest.raises(ValueError, match="lstm: autoencoder is there twice with seed 0; choose one kind and one level"):
        plot_controls(pd.concat([controls(("lstm",)), controls(("lstm",))]), title="T")
    with pytest.raises(ValueError, match="kind gated is unknown"):
        plot_controls(controls().assign(kind="gated"), title="T")
    with pytest.raises(ValueError, match="25 rows, headings included; a slide shows 20"):
        plot_controls(controls(tuple("abcde")), title="T")


def test_a_figure_needs_a_title():
    for draw in (plot_quality, plot_controls):
        with pytest.raises(ValueError, match="title is empty"):
            draw(quality() if draw is plot_quality else controls(), title=" ")
