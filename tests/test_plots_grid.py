"""The grid shows every number it is given, marks the best, and refuses what it cannot draw honestly."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from picollm_core.figure_style import SIZE_INCHES
from picollm_core.plots_grid import plot_grid

LABELS = {"title": "T", "value_label": "perplexity on held-out stories"}


def cells(**changes):
    places = [(k, e) for k in (1, 3, 5) for e in ("onehot", "learned", "scaled", "conv")]
    table = {
        "k": [k for k, _ in places],
        "embedding": [e for _, e in places],
        "perplexity": [40.25 - 3 * k + 0.5 * i for i, (k, _) in enumerate(places)],
        "half": [0.25] * 12,
    }
    return pd.DataFrame(table | changes)


def grid(table=None, value="perplexity", **settings) -> Figure:
    return plot_grid(cells() if table is None else table, "k", "embedding", value, **(LABELS | settings))


def shown(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def boxes(figure: Figure, filled: bool = True) -> list[Rectangle]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and patch.get_fill() == filled]


def shades(figure: Figure) -> list[float]:
    """Lightness of the cells that hold a number, in the order of the table; the first boxes are the background."""
    count = len(shown(figure))
    return [float(np.mean(box.get_facecolor()[:3])) for box in boxes(figure)[-count:]]


def test_every_number_stands_in_its_own_cell_in_the_order_of_the_table():
    table = cells()
    axes = grid(table).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["onehot", "learned", "scaled", "conv"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "3", "5"]
    placed = {text.get_position(): text.get_text() for text in axes.texts}
    assert placed[(2, 1)] == f"{table.perplexity[6]:.2f}"
    assert len(placed) == 12
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is on top


def test_shuffled_rows_keep_their_numbers_and_any_index_will_do():
    table = cells().sample(frac=1, random_state=0).set_index(pd.Index([7] * 12))
    axes = grid(table).axes[0]
    names = [[label.get_text() for label in labels] for labels in (axes.get_xticklabels(), axes.get_yticklabels())]
    wanted = {(str(r.embedding), str(r.k)): f"{r.perplexity:.2f}" for r in cells().itertuples()}
    for text in axes.texts:
        x, y = text.get_position()
        assert text.get_text() == wanted[names[0][int(x)], names[1][int(y)]]


def test_darker_means_higher_and_equal_values_get_one_shade():
    table = cells()
    found = shades(grid(table))
    assert [found[i] for i in table.perplexity.argsort()] == sorted(found, reverse=True)
    assert len(set(shades(grid(cells(perplexity=[2.0] * 12))))) == 1


def test_letters_are_readable_on_the_darkest_cell():
    assert min(shades(grid())) > 0.6


@pytest.mark.parametrize(("best", "place"), [("low", (0, 2)), ("high", (3, 0))])
def test_the_best_cell_is_outlined_and_the_axis_says_so(best, place):
    table = cells(perplexity=[30.0] * 12)
    table.loc[8, "perplexity"] = 20.0  # K = 5, one-hot
    table.loc[3, "perplexity"] = 40.0  # K = 1, conv
    figure = grid(table, best=best)
    (outline,) = boxes(figure, filled=False)
    assert (round(outline.get_x() + 0.46), round(outline.get_y() + 0.46)) == place
    assert f"outlined: the {best}est" in figure.axes[0].get_xlabel()


def test_a_tie_at_the_written_precision_outlines_both_and_none_outlines_nothing():
    table = cells(perplexity=[20.001, 20.004, *[30.0] * 10])
    assert len(boxes(grid(table), filled=False)) == 2
    assert len(boxes(grid(table, value_format=".3f"), filled=False)) == 1
    figure = grid(table, best=None)
    assert not boxes(figure, filled=False)
    assert "outlined" not in figure.axes[0].get_xlabel()


def test_intervals_are_written_below_the_numbers_and_explained():
    figure = grid(interval="half", interval_means="95% interval over 5 seeds")
    assert shown(figure).count("±0.25") == 12
    assert "± 95% interval over 5 seeds" in figure.axes[0].get_xlabel()


def test_a_place_that_the_table_leaves_out_stays_empty():
    figure = grid(cells().drop(index=5))
    assert len(shown(figure)) == 11
    assert len(boxes(figure)) == 12 + 11  # background and numbers


def test_percentages_can_be_drawn():
    assert "20.0%" in shown(grid(cells(perplexity=[0.2, *[0.5] * 11]), value_format=".1%"))


@pytest.mark.parametrize("settings", [{}, {"interval": "half", "interval_means": "95% interval over 5 seeds"}])
def test_it_is_16_to_9_and_no_text_leaves_the_page_or_covers_another(settings):
    long_names = cells().assign(embedding=[f"{e} with a long name" for e in cells().embedding])
    figure = plot_grid(
        long_names, "k", "embedding", "perplexity", row_label="tokens the model sees, K", column_label="input",
        **LABELS, **settings,
    )  # fmt: skip
    assert tuple(figure.get_size_inches()) == SIZE_INCHES
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    assert all(text.get_fontsize() >= 14 for text in texts)
    for a, b in itertools.combinations([text.get_window_extent() for text in texts], 2):
        assert not a.padded(-2).overlaps(b)
    assert all(figure.bbox.x0 <= t.get_window_extent().x0 and t.get_window_extent().x1 <= figure.bbox.x1 for t in texts)


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (cells(), {"value": "nll"}, "no column nll; it has k, embedding"),
        (cells().iloc[:0], {}, "empty"),
        (pd.concat([cells(), cells().iloc[[6]]]), {}, "k 3 and embedding scaled occur twice"),
        (cells(perplexity=[np.nan, *[1.0] * 11]), {}, "k 1, embedding onehot has a value that is not finite"),
        (cells(half=[-0.5, *[1.0] * 11]), {"interval": "half", "interval_means": "x"}, "smallest half is -0.5"),
        (cells(), {"interval": "half"}, "say what it is"),
        (cells(), {"best": "lowest"}, "best is 'lowest'; choose low, high or None"),
        (cells(), {"title": " "}, "title is empty"),
        (cells(embedding=[str(i) for i in range(12)]), {}, "3 x 12 cells; a slide shows at most 8"),
    ],
)
def test_what_cannot_be_drawn_honestly_is_refused_with_the_reason(table, settings, message):
    with pytest.raises(ValueError, match=message):
        grid(table, **settings)


def test_a_cell_without_a_known_interval_shows_its_number_alone():
    table = cells(half=[np.nan, *[0.25] * 11])
    figure = grid(table, interval="half", interval_means="95% interval over 5 seeds")
    assert shown(figure).count("±0.25") == 11
    assert f"{table.perplexity[0]:.2f}" in shown(figure)
