"""Fronts, perplexity against accuracy, activations: what is drawn is what the table says, and can be read."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from picollm_core.analysis import pareto_front
from picollm_core.figure_style import FAMILY_COLOURS, SIZE_INCHES, save_figure
from picollm_core.plots_analysis import plot_by_activation, plot_pareto, plot_perplexity_accuracy
from picollm_core.plots_arms import mean_interval

FAMILIES = ("kgram", "lstm", "transformer")


def table(n: int = 60, **changes) -> pd.DataFrame:
    """Runs whose loss falls with their parameters, as a random design would have them."""
    generator = np.random.default_rng(0)
    parameters = 10 ** generator.uniform(5.3, 6.8, size=n)
    nll = 2 + (3e5 / parameters) ** 0.3 + 0.1 * generator.normal(size=n)
    columns = {
        "family": [FAMILIES[i % 3] for i in range(n)],
        "shape": [f"{32 * (i % 4 + 1)} x {i % 3 + 1}" for i in range(n)],
        "parameters": parameters,
        "nll": nll,
        "perplexity": np.exp(nll),
        "accuracy": 0.62 - 0.09 * nll,
    }
    return pd.DataFrame(columns | changes)


def activations(seeds: int = 5, families=("kgram", "transformer")) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    rows = [
        (family, name, width, seed, 4 - 0.2 * np.log2(width / 32) + 0.03 * place + 0.01 * generator.normal())
        for family in families
        for place, name in enumerate(("gelu", "relu", "silu"))
        for width in (32, 64, 128)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=["family", "activation", "n_embd", "seed", "nll"])


def seen(figure: Figure) -> list[Text]:
    """The texts that are drawn, those of ticks outside the view left out."""
    figure.draw_without_rendering()
    hidden = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high:
                hidden |= {tick.label1, tick.label2}
    found = (text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip())
    return [text for text in found if text not in hidden]


def require_legible(figure: Figure) -> None:
    """On a page of 16:9, no text is small, cut off, or covered by another."""
    assert tuple(figure.get_size_inches()) == SIZE_INCHES
    boxes = {text: Text.get_window_extent(text) for text in seen(figure)}
    page = figure.bbox
    for text, box in boxes.items():
        assert text.get_fontsize() >= 14, text
        assert page.x0 <= box.x0 < box.x1 <= page.x1, text
        assert page.y0 <= box.y0 < box.y1 <= page.y1, text
    for (a, box_a), (b, box_b) in itertools.combinations(boxes.items(), 2):
        assert not box_a.padded(-2).overlaps(box_b), (a, b)


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in seen(figure))


def points(axes, full: bool) -> np.ndarray:
    """The marks that are rimmed (full) or not, (N, 2)."""
    marks = [line for line in axes.lines if line.get_linestyle() == "None" and (line.get_alpha() is None) == full]
    return np.concatenate([line.get_xydata() for line in marks])


FIGURES = {
    "front": lambda: plot_pareto(table(), "parameters", "nll", title="A finding of some length about " * 3),
    "crowded front": lambda: plot_pareto(
        table(300, nll=5 - np.log10(np.linspace(2e5, 6e6, 300)) / 2, parameters=np.linspace(2e5, 6e6, 300)),
        "parameters", "nll", title="T",
    ),
    "highest": lambda: plot_pareto(table(), "parameters", "accuracy", lower_is_better=False, title="T"),
    "one run": lambda: plot_pareto(table().iloc[:1], "parameters", "nll", title="T"),
    "accuracy": lambda: plot_perplexity_accuracy(table(), title="T"),
    "narrow": lambda: plot_perplexity_accuracy(table(perplexity=np.linspace(20, 23, 60)), title="T"),
    "wide": lambda: plot_perplexity_accuracy(table(perplexity=np.geomspace(10, 5000, 60)), title="T"),
    "activations": lambda: plot_by_activation(activations(), title="T"),
    "one seed": lambda: plot_by_activation(activations(1), title="T"),
    "one width": lambda: plot_by_activation(activations().query("n_embd == 64"), title="T"),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_is_large_enough_on_the_page_and_covers_no_other(name):
    require_legible(FIGURES[name]())


def test_every_run_is_a_mark_and_the_front_alone_is_rimmed():
    data = table()
    axes = plot_pareto(data, "parameters", "nll", title="T").axes[0]
    on_front = pareto_front(data, "parameters", "nll")
    for full, rows in ((True, data[on_front]), (False, data[~on_front])):
        assert sorted(points(axes, full)[:, 0]) == pytest.approx(sorted(rows["parameters"]))
        assert sorted(points(axes, full)[:, 1]) == pytest.approx(sorted(rows["nll"]))
    colours = {to_hex(line.get_color()).upper() for line in axes.lines if line.get_linestyle() == "None"}
    assert colours == {FAMILY_COLOURS[family] for family in FAMILIES}


def test_the_staircase_goes_through_the_front_and_reaches_the_edge():
    data = table()
    axes = plot_pareto(data, "parameters", "nll", title="T").axes[0]
    (stairs,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    front = data[pareto_front(data, "parameters", "nll")].sort_values("parameters")
    assert stairs.get_xdata()[:-1] == pytest.approx(front["parameters"])
    assert stairs.get_ydata()[:-1] == pytest.approx(front["nll"])
    assert stairs.get_ydata()[-1] == front["nll"].iloc[-1]
    assert stairs.get_xdata()[-1] == pytest.approx(axes.get_xlim()[1])


def test_both_ends_of_the_front_are_named_where_there_are_names():
    data = table(shape=[f"run {i}" for i in range(60)])
    front = data[pareto_front(data, "parameters", "nll")].sort_values("parameters")
    shown = words(plot_pareto(data, "parameters", "nll", title="T"))
    assert front["shape"].iloc[0] in shown
    assert front["shape"].iloc[-1] in shown
    assert "run " not in words(plot_pareto(data.drop(columns="shape"), "parameters", "nll", title="T"))


def test_axes_say_what_they_show_and_can_be_told_otherwise():
    shown = words(plot_pareto(table(), "parameters", "nll", title="T"))
    assert "loss on held-out stories (nats per token)" in shown
    assert "k-gram MLP (20)" in shown
    shown = words(plot_pareto(table(), "parameters", "nll", title="T", cost_label="weights", value_label="nats"))
    assert "weights" in shown
    assert "nats" in shown


def test_limits_cut_the_view_and_names_outside_it_are_not_written():
    data = table(shape=[f"run {i}" for i in range(60)])
    figure = plot_pareto(data, "parameters", "nll", title="T", limits=(2.0, 2.6))
    assert figure.axes[0].get_ylim() == (2.0, 2.6)
    cheapest = data.loc[data["parameters"].idxmin()]
    assert cheapest["nll"] > 2.6
    assert cheapest["shape"] not in words(figure).split("\n")


def test_diverged_runs_are_left_out_and_counted():
    losses = table()["nll"].tolist()
    figure = plot_pareto(table(nll=[math.nan, math.inf, *losses[2:]]), "parameters", "nll", title="T")
    assert "2 runs without a finite value left out" in words(figure)
    assert "k-gram MLP (19)" in words(figure)


def test_perplexity_is_logarithmic_accuracy_in_percent_and_their_correlation_is_written():
    data = table()
    figure = plot_perplexity_accuracy(data, title="T")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    rank = data["perplexity"].rank().corr(data["accuracy"].rank())
    assert f"rank correlation {rank:.2f} over 60 runs" in words(figure)
    assert "%" in words(figure)
    assert len(points(axes, full=False)) == 60
    assert "correlation" not in words(plot_perplexity_accuracy(data.iloc[:3], title="T"))


@pytest.mark.parametrize("values", [(20, 23), (20, 60), (10, 500), (10, 50_000)])
def test_a_logarithmic_axis_has_several_numbers_whatever_its_span(values):
    figure = plot_perplexity_accuracy(table(perplexity=np.geomspace(*values, 60)), title="T")
    texts = set(seen(figure))
    labels = [label for label in figure.axes[0].get_xticklabels() if label in texts]
    assert 3 <= len(labels) <= 9


def test_lines_of_activations_are_means_with_students_intervals_in_a_panel_a_family():
    data = activations()
    figure = plot_by_activation(data, title="T")
    assert len(figure.axes) == 2
    for axes, family in zip(figure.axes, ("kgram", "transformer"), strict=True):
        own = data[data["family"] == family]
        lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
        assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}) == 3
        for line, bars, name in zip(lines, axes.collections, ("gelu", "relu", "silu"), strict=True):
            cells = own[own["activation"] == name].groupby("n_embd")["nll"]
            expected = np.array([mean_interval(values.tolist()) for _, values in cells])
            assert line.get_ydata() == pytest.approx(expected[:, 0])
            assert line.get_xdata() == pytest.approx([32, 64, 128], rel=0.1)
            ends = np.array([segment[:, 1] for segment in bars.get_segments()])
            assert ends == pytest.approx(expected[:, 1:])
    assert "95% interval of the mean over seeds" in words(figure)
    assert "GELU" in words(figure)


def test_one_seed_has_no_interval_and_says_so():
    figure = plot_by_activation(activations(1), title="T")
    assert "one seed: no interval" in words(figure)
    assert not any(segment.size for axes in figure.axes for c in axes.collections for segment in c.get_segments()
                   if np.isfinite(segment).all())  # fmt: skip


def test_a_family_without_activations_has_no_panel():
    lstm = pd.DataFrame({"family": ["lstm"], "activation": [None], "n_embd": [32], "seed": [0], "nll": [3.0]})
    figure = plot_by_activation(pd.concat([activations(), lstm]), title="T")
    assert len(figure.axes) == 2
    with pytest.raises(ValueError, match="no run has an activation"):
        plot_by_activation(lstm, title="T")


def test_two_runs_of_one_seed_are_no_two_seeds():
    twice = pd.concat([activations(), activations().iloc[:1]])
    with pytest.raises(ValueError, match="kgram with gelu at n_embd 32 has two runs of seed 0; choose one"):
        plot_by_activation(twice, title="T")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot_pareto(table(), "seconds", "nll", title="T"), "no column seconds; it has family"),
        (lambda: plot_pareto(table().iloc[:0], "parameters", "nll", title="T"), "table is empty"),
        (lambda: plot_pareto(table(family="rnn"), "parameters", "nll", title="T"), "no colour for family 'rnn'"),
        (lambda: plot_pareto(table(parameters=0.0), "parameters", "nll", title="T"), "least parameters is 0"),
        (lambda: plot_pareto(table(nll=math.nan), "parameters", "nll", title="T"), "none of 60 runs has a finite"),
        (lambda: plot_perplexity_accuracy(table().drop(columns="accuracy"), title="T"), "no column accuracy"),
        (lambda: plot_perplexity_accuracy(table(), title=" "), "title is empty"),
        (lambda: plot_by_activation(activations().drop(columns="seed"), title="T"), "no column seed"),
        (lambda: plot_by_activation(activations(1, (*FAMILIES, "linear")), title="T"), "4 families; a slide shows"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_reason(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_figures_can_be_saved(tmp_path):
    assert len(save_figure(FIGURES["front"](), "front", tmp_path)) == 3
