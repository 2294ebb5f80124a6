"""Correlation maps, residuals and heat maps: every number in its place, and legible."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from picollm_core.analysis import correlation_matrix, heat_map_table, regress, residual_bias
from picollm_core.figure_style import FAMILY_COLOURS
from picollm_core.plots_analysis_maps import plot_correlations, plot_heat_maps, plot_residuals, spoken
from tests.test_plots_analysis import require_legible, words

FAMILIES = ("kgram", "lstm", "transformer")
COLUMNS = (
    "n_embd", "n_layer", "k", "n_head", "block_size", "batch_size", "learning_rate", "max_steps", "dropout",
    "parameters", "tokens_seen", "train_seconds", "grad_norm_mean", "accuracy", "nll",
)  # fmt: skip


def design(n: int = 60) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    table = pd.DataFrame({name: generator.normal(size=n) for name in COLUMNS})
    table["n_embd"] = generator.choice([32, 64, 128], size=n)
    table["n_layer"] = generator.integers(1, 5, size=n)
    table["family"] = [FAMILIES[i % 3] for i in range(n)]
    table["k"] = np.where(table["family"] == "kgram", generator.integers(1, 6, size=n).astype(float), math.nan)
    table["dropout"] = 0.0
    offset = table["family"].map({"kgram": 0.4, "lstm": 0.0, "transformer": 0.1})
    table["nll"] = 3 - 0.2 * np.log2(table["n_embd"] / 32) + offset + 0.05 * generator.normal(size=n)
    return table


def residuals(held_out: bool = True, **settings) -> Figure:
    table = design()
    return plot_residuals(regress(table, "nll", ["n_embd"]), table["family"], title="T", held_out=held_out, **settings)


FIGURES = {
    "15 variables": lambda: plot_correlations(correlation_matrix(design(), COLUMNS), title="A finding " * 12),
    "2 variables": lambda: plot_correlations(correlation_matrix(design(), ["n_embd", "nll"]), title="T"),
    "18 variables": lambda: plot_correlations(
        correlation_matrix(design().assign(gap=1.0, seed=range(60), perplexity=range(60)),
                           [*COLUMNS, "gap", "seed", "perplexity"]), title="T"),
    "residuals": residuals,
    "fitted": lambda: residuals(False),
    "maps": lambda: plot_heat_maps(heat_map_table(design(), "n_embd", "n_layer", "nll"), title="A finding " * 12),
    "one map": lambda: plot_heat_maps(heat_map_table(design(), "n_embd", "k", "nll"), title="T"),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_is_large_enough_on_the_page_and_covers_no_other(name):
    require_legible(FIGURES[name]())


def test_each_correlation_stands_below_its_column_s_name_and_left_of_its_row_s():
    matrix = correlation_matrix(design(), ["n_embd", "n_layer", "nll"])
    axes = plot_correlations(matrix, title="T").axes[0]
    placed = {text.get_position(): text.get_text() for text in axes.texts}
    for y, x in ((1, 0), (2, 0), (2, 1)):
        assert float(placed[(x, y)]) == pytest.approx(matrix.iloc[y, x], abs=0.005)
    names = {y: text for (x, y), text in placed.items() if x == pytest.approx(y - 0.42)}
    assert names == {0: "width", 1: "layers", 2: "held-out loss"}


def test_strong_correlations_are_bold_and_pairs_without_one_are_grey_and_explained():
    matrix = pd.DataFrame([[1, -0.8, np.nan], [-0.8, 1, 0.1], [np.nan, 0.1, 1]], list("abc"), list("abc"))
    figure = plot_correlations(matrix, title="T")
    weights = {text.get_text(): text.get_fontweight() for text in figure.axes[0].texts}
    assert weights["-.80"] == "bold"
    assert weights[".10"] == "normal"
    assert len(weights) == 5
    assert "grey: none" in words(figure)
    assert "grey" not in words(plot_correlations(matrix.iloc[:2, :2], title="T"))


def test_signs_have_hues_and_letters_stand_on_them():
    matrix = pd.DataFrame([[1.0, -1.0, 1.0], [-1.0, 1.0, 0.0], [1.0, 0.0, 1.0]], list("abc"), list("abc"))
    boxes = [p for p in plot_correlations(matrix, title="T").axes[0].patches if isinstance(p, Rectangle)]
    negative, positive, none = (np.array(box.get_facecolor()[:3]) for box in boxes)
    assert negative[0] > negative[2]
    assert positive[2] > positive[0]
    assert none == pytest.approx(1.0, abs=0.01)
    assert min(negative @ (0.2126, 0.7152, 0.0722), positive @ (0.2126, 0.7152, 0.0722)) > 0.45


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (pd.DataFrame(np.eye(3)).iloc[:2], "2 x 3; rows and columns must be the same"),
        (pd.DataFrame([[1, 0.5], [0.2, 1]]), "must be symmetric"),
        (pd.DataFrame([[1, 2.0], [2.0, 1]]), r"values in \[-1, 1\]"),
        (pd.DataFrame(np.eye(19)), "19 variables; a slide shows 2 to 18"),
    ],
)
def test_what_is_no_correlation_matrix_is_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        plot_correlations(matrix, title="T")


@pytest.mark.parametrize("held_out", [True, False])
def test_residuals_stand_over_predictions_and_biases_beside_them(held_out):
    table = design()
    fit = regress(table, "nll", ["n_embd"])
    cloud, right = plot_residuals(fit, table["family"], title="T", held_out=held_out).axes
    marks = [line for line in cloud.lines if line.get_linestyle() == "None"]
    drawn = np.concatenate([line.get_xydata() for line in marks])
    expected = (fit.loo_fitted, fit.loo_residuals) if held_out else (fit.fitted, fit.residuals)
    assert np.array(sorted(drawn.tolist())) == pytest.approx(np.array(sorted(zip(*expected, strict=True))))
    assert [line.get_color() for line in marks] == [FAMILY_COLOURS[family] for family in FAMILIES]
    biases = residual_bias(fit, table["family"], held_out)
    assert [text.get_text() for text in right.texts] == [f"{bias:+.2f}" for bias in biases["bias"]]
    bars = [tuple(line.get_ydata()) for line in right.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 4]
    assert np.array(bars) == pytest.approx(biases[["low", "high"]].to_numpy())


def test_axes_of_residuals_name_the_unit_and_where_the_prediction_comes_from():
    assert "predicted by the fit without this run (bits)" in words(residuals(unit="bits"))
    assert "by the fit to all runs" in words(residuals(False))


def test_a_family_of_one_run_has_no_interval_and_an_unknown_one_is_refused():
    table = design().iloc[:20]
    fit = regress(table, "nll", ["n_embd"])
    alone = pd.Series(["linear", *["lstm"] * 19], index=table.index)
    assert "where there are several runs" in words(plot_residuals(fit, alone, title="T"))
    with pytest.raises(ValueError, match="rnn"):
        plot_residuals(fit, alone.replace("linear", "rnn"), title="T")


def cells(axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_fill()]


def test_maps_share_one_scale_of_shades():
    maps = {
        "kgram": pd.DataFrame([[3.0, 2.0]], index=pd.Index([32], name="n_embd"), columns=pd.Index([1, 2], name="k")),
        "lstm": pd.DataFrame([[2.0, 4.0]], index=pd.Index([32], name="n_embd"), columns=pd.Index([1, 2], name="k")),
    }
    first, second = plot_heat_maps(maps, title="T").axes
    shade = {"3": cells(first)[0], "2": cells(first)[1], "2b": cells(second)[0], "4": cells(second)[1]}
    assert shade["2"].get_facecolor() == shade["2b"].get_facecolor()
    lightness = [np.mean(shade[name].get_facecolor()[:3]) for name in ("2", "3", "4")]
    assert lightness == sorted(lightness, reverse=True)


@pytest.mark.parametrize(("best", "count"), [("low", 3), ("high", 3), (None, 0)])
def test_numbers_stand_in_their_cells_and_the_best_of_each_family_is_outlined(best, count):
    maps = heat_map_table(design(), "n_embd", "n_layer", "nll")
    figure = plot_heat_maps(maps, title="T", best=best)
    outlines = 0
    for axes, table in zip(figure.axes, maps.values(), strict=True):
        for text in axes.texts:
            x, y = text.get_position()
            assert text.get_text() == f"{table.iloc[int(y), int(x)]:.2f}"
        assert len(axes.texts) == table.notna().to_numpy().sum()
        rims = [patch for patch in axes.patches if not patch.get_fill()]
        outlines += len(rims)
        if best:
            value = table.iloc[round(rims[0].get_y() + 0.46), round(rims[0].get_x() + 0.46)]
            assert value == (table.min().min() if best == "low" else table.max().max())
    assert outlines == count
    assert ("outlined" in words(figure)) == (count > 0)


def test_places_that_were_not_run_are_grey_and_levels_have_no_needless_decimals():
    figure = plot_heat_maps(heat_map_table(design().iloc[:12], "n_embd", "k", "nll"), title="T")
    assert "grey: not run" in words(figure)
    levels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert levels == [f"{k:g}" for k in sorted(design().iloc[:12]["k"].dropna().unique())]
    assert "width" in words(figure)


@pytest.mark.parametrize(
    ("maps", "settings", "message"),
    [
        ({}, {}, "there are 0 maps"),
        ({"lstm": pd.DataFrame([[1.0]])}, {"best": "lowest"}, "best is 'lowest'"),
        ({"lstm": pd.DataFrame([[math.nan]])}, {}, "no map has a finite value"),
        ({"rnn": pd.DataFrame([[1.0]])}, {}, "no colour for family 'rnn'"),
        ({"lstm": pd.DataFrame(np.ones((9, 2)))}, {}, "9 rows and 2 columns in all"),
        ({"lstm": pd.DataFrame(np.ones((2, 16)))}, {}, "2 rows and 16 columns in all"),
    ],
)
def test_maps_that_cannot_be_drawn_are_refused(maps, settings, message):
    with pytest.raises(ValueError, match=message):
        plot_heat_maps(maps, title="T", **settings)


def test_columns_have_names_that_say_their_unit():
    assert spoken("nll") == "loss on held-out stories (nats per token)"
    assert spoken("my_own_column") == "my own column"
