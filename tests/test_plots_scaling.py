"""Figures of scaling laws show every run, the one held out apart, and the fit beside them."""

import numpy as np
import pandas as pd
import pytest

from picollm_core.figure_style import family_colour
from picollm_core.plots_scaling import (
    HELD_OUT,
    plot_families,
    plot_frontier,
    plot_law,
    plot_misses,
    short_number,
    size_colours,
)
from picollm_core.scaling import fit_scaling, forecast


@pytest.fixture(scope="module")
def grid() -> pd.DataFrame:
    places = [(n, d) for n in (30e3, 80e3, 200e3) for d in (1e5, 2e5, 4e5)]
    table = pd.DataFrame(places, columns=["parameters", "tokens"])
    wobble = np.exp(0.002 * np.random.default_rng(0).normal(size=9))
    return table.assign(nll=(2 + 30 / table["parameters"] ** 0.35 + 400 / table["tokens"] ** 0.45) * wobble)


@pytest.fixture(scope="module")
def fitted(grid):
    out = pd.Series(grid.index == 8)
    fit = fit_scaling(grid[~out], resamples=10)
    return fit, forecast(fit, grid[out]), out


def points(axes, marker) -> list[tuple[float, float]]:
    return [xy for line in axes.lines if line.get_marker() == marker for xy in zip(*line.get_data(), strict=True)]


def test_a_law_shows_every_run_and_the_one_held_out_as_a_star_with_its_interval(grid, fitted):
    fit, found, out = fitted
    figure = plot_law(
        grid, fit, "tokens", "parameters", title="t", x_label="x", by_unit="parameters", held_out=out,
        prediction=found, floors={"counts": 3.0},
    )  # fmt: skip
    axes = figure.axes[0]
    assert sorted(points(axes, "o")) == sorted(zip(grid["tokens"][~out], grid["nll"][~out], strict=True))
    assert points(axes, "*") == [(4e5, grid["nll"][8])]
    (bar,) = [path for c in axes.collections for path in c.get_paths()]
    assert sorted(bar.vertices[:, 1]) == pytest.approx([found["low"], found["high"]])
    texts = {text.get_text() for text in axes.texts}
    assert {"30k parameters", "80k parameters", "200k parameters", "counts"} <= texts


def test_curves_are_the_fit_and_dashed_beyond_the_runs_that_it_saw(grid, fitted):
    fit, found, out = fitted
    figure = plot_law(
        grid, fit, "tokens", "parameters", title="t", x_label="x", by_unit="p", held_out=out, prediction=found
    )
    colour = size_colours(sorted(grid["parameters"].unique()))[200e3]
    solid, dashed = [line for line in figure.axes[0].lines if line.get_color() == colour and len(line.get_xdata()) > 9]
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
    assert solid.get_xdata()[-1] == pytest.approx(2e5)
    x, y = dashed.get_xdata()[-1], dashed.get_ydata()[-1]
    assert x == pytest.approx(4e5)
    assert y == pytest.approx(fit.predict(parameters=200e3, tokens=x).value)


def test_misses_are_measured_minus_fitted_in_per_cent(grid, fitted):
    fit, found, out = fitted
    axes = plot_misses(grid, fit, title="t", held_out=out, prediction=found, noise=0.002).axes[0]
    ((x, y),) = points(axes, "*")
    assert x == pytest.approx(found["predicted"])
    assert y == pytest.approx(100 * (found["measured"] / found["predicted"] - 1))
    marks = sum(len(points(axes, mark)) for mark in "os^")
    assert marks == 8


def test_the_frontier_names_its_lines_and_shows_where_the_runs_lie(grid, fitted):
    figure = plot_frontier(grid, fitted[0], title="t", losses=[4.0, 4.5])
    axes = figure.axes[0]
    assert {"4 nats", "4.5 nats"} <= {text.get_text() for text in axes.texts}
    assert len(points(axes, "o")) == 9
    with pytest.raises(ValueError, match="0 losses"):
        plot_frontier(grid, fitted[0], title="t", losses=[])


def test_families_have_their_colours_and_bars_where_there_are_seeds():
    rows = [("lstm", 1e5, seed, 4 + 0.1 * seed) for seed in range(3)] + [("kgram", 1e5, 0, 5.0)]
    table = pd.DataFrame(rows, columns=["family", "tokens", "seed", "nll"])
    axes = plot_families(table, title="t", floors={"counts": 4.5}).axes[0]
    lines = [line for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_color() for line in lines] == [family_colour("lstm"), family_colour("kgram")]
    assert lines[0].get_ydata()[0] == pytest.approx(4.1)
    assert "3 seeds" in axes.get_xlabel()
    assert "seeds" not in plot_families(table[table["seed"] == 0], title="t").axes[0].get_xlabel()


def test_tables_that_cannot_be_drawn_are_refused(grid, fitted):
    fit, found, out = fitted
    with pytest.raises(ValueError, match="no column tokens"):
        plot_misses(grid.drop(columns="tokens"), fit, title="t", held_out=out, prediction=found, noise=0.1)
    with pytest.raises(ValueError, match="the table is empty"):
        plot_families(pd.DataFrame(columns=["family", "tokens", "seed", "nll"]), title="t")
    with pytest.raises(ValueError, match="no colour for family"):
        plot_families(pd.DataFrame({"family": ["rnn"], "tokens": [1e5], "seed": [0], "nll": [4.0]}), title="t")


@pytest.mark.parametrize(
    ("value", "word"), [(155_808, "156k"), (1_638_400, "1.6M"), (12e6, "12M"), (999_900, "1.0M"), (64, "64")]
)
def test_numbers_are_short(value, word):
    assert short_number(value) == word


def test_colours_of_sizes_differ_and_the_held_out_one_is_none_of_them():
    colours = size_colours([1, 2, 3, 4, 5])
    assert len(set(colours.values())) == 5
    assert HELD_OUT.lower() not in colours.values()
