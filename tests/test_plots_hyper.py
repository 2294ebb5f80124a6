"""The tornado: every change once, the largest on top, effects beyond the view as numbers, and bad tables refused."""

import math

import pandas as pd
import pytest

from picollm_core.plots_hyper import plot_tornado


def effects(**changes) -> pd.DataFrame:
    rows = [
        {"family": family, "change": change, "effect": effect, "low": effect - 0.02, "high": effect + 0.02}
        for change, by_family in changes.items()
        for family, effect in by_family.items()
    ]
    return pd.DataFrame(rows)


TABLE = effects(
    dropout={"kgram": 0.01, "lstm": 0.02},
    sgd={"kgram": 2.0, "lstm": 1.9, "transformer": 0.3},
    width={"kgram": -0.1, "lstm": -0.2, "transformer": -0.25},
)


def test_the_largest_effects_stand_on_top_and_every_family_has_its_mark():
    figure = plot_tornado(TABLE, title="SGD is worst", shown=0.75)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sgd", "width", "dropout"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
    assert {text.get_text() for text in axes.texts} == {"+2.00", "+1.90"}
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["k-gram MLP", "LSTM", "Transformer"]
    assert "95% interval" in axes.get_xlabel()
    edge = axes.get_xlim()[1]
    assert 0.3 < edge < 1.9


def test_one_seed_has_marks_and_no_bars():
    figure = plot_tornado(TABLE.assign(low=math.nan, high=math.nan), title="one seed", shown=1.0)
    (axes,) = figure.axes
    assert "one seed, no intervals" in axes.get_xlabel()
    points = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert len(points) == len(TABLE)
    assert not axes.texts


def test_tables_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="low"):
        plot_tornado(TABLE.drop(columns="low"), title="t")
    with pytest.raises(ValueError, match="occur twice"):
        plot_tornado(pd.concat([TABLE, TABLE]), title="t")
    with pytest.raises(ValueError, match="27 changes"):
        plot_tornado(effects(**{f"c{n}": {"lstm": 0.1} for n in range(27)}), title="t")
