"""The figure of the defects: a bar an effect, in one unit, and few enough to be read."""

import math

import pandas as pd
import pytest

from picollm_core.plots_defects import headlines, plot_defects
from tests.legible import assert_legible


def table(rows: int = 3, unit: str = "nats") -> pd.DataFrame:
    effects = [1.2, -0.4, 0.02, 0.5] * 4
    return pd.DataFrame(
        {"defect": f"defect {n // 2}", "measured": f"loss reported, less the right one, case {n}", "effect": effects[n],
         "low": effects[n] - 0.1, "high": effects[n] + 0.1, "unit": unit} for n in range(rows)
    )  # fmt: skip


def test_every_effect_has_a_bar_of_its_size_and_a_label():
    figure = plot_defects(table(), title="Three effects")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [1.2, -0.4, 0.02]
    assert [text.get_text() for text in axes.texts] == ["+1.200", "-0.400", "+0.020"]
    assert axes.get_yticklabels()[0].get_text().startswith("DEFECT 0\nloss reported")
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top


def test_exact_numbers_have_no_whisker_and_the_label_promises_none():
    exact = table(2).assign(low=math.nan, high=math.nan)
    axes = plot_defects(exact, title="t").axes[0]
    assert "95%" not in axes.get_xlabel()
    assert len(axes.lines) == 1  # the line at 0
    assert "95%" in plot_defects(table(2), title="t").axes[0].get_xlabel()


def test_headlines_are_the_first_effect_of_every_defect_that_fits():
    rows = pd.concat([table(4), table(1).assign(defect="huge", effect=229.0), table(1, "share").assign(defect="other")])
    assert headlines(rows)["measured"].tolist() == [
        "loss reported, less the right one, case 0",
        "loss reported, less the right one, case 2",
    ]
    with pytest.raises(ValueError, match="no effect in 'bits'"):
        headlines(rows, "bits")


def test_mixed_units_no_rows_too_many_rows_and_missing_columns_are_refused():
    with pytest.raises(ValueError, match="nats, share"):
        plot_defects(pd.concat([table(1), table(1, "share")]), title="t")
    with pytest.raises(ValueError, match="8 effects are too many"):
        plot_defects(table(8), title="t")
    with pytest.raises(ValueError, match="table is empty"):
        plot_defects(table().head(0), title="t")
    with pytest.raises(ValueError, match="effect"):
        plot_defects(table().drop(columns="effect"), title="t")


def test_as_many_rows_as_are_taken_stay_legible_with_long_labels():
    assert_legible(plot_defects(table(7), title="Seven effects of known defects, in nats per token, with intervals"))
