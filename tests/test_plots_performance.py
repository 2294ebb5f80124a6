"""Figures about speed, drawn from small tables."""

import pandas as pd
import pytest

from picollm_core.plots_performance import MISSED, MOST_TARGETS, REACHED, number, plot_sizes, plot_targets
from tests.legible import assert_legible, visible


def targets(count: int = 3) -> pd.DataFrame:
    rows = [
        {"row": f"step-transformer-small-bfloat16-{n}", "ratio": 2.0 + n, "target": ">= 3", "attained": (2.0 + n) / 3,
         "verdict": "reached" if n else "missed", "attained_low": (1.5 + n) / 3, "attained_high": (2.5 + n) / 3}
        for n in range(count)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def sizes() -> pd.DataFrame:
    rows = [
        {"family": family, "size": size, "precision": precision, "tokens_per_second": speed, "share": 0.4, "memory": 5}
        for family in ("transformer", "lstm", "kgram")
        for size, speed in (("pico", 9_000.0), ("tiny", 4_000.0), ("small", 900.0))
        for precision in ("float32", "bfloat16")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_targets_show_ratio_target_and_verdict():
    figure = plot_targets(targets(), title="Two of three targets are reached")
    assert_legible(figure)
    texts = {text.get_text(): text for text in visible(figure)}
    assert texts["2  (target >= 3)"].get_color() == MISSED
    assert texts["3  (target >= 3)"].get_color() != MISSED
    marks = [line for line in figure.axes[0].lines if line.get_marker() in ("o", "X")]
    assert [line.get_color() for line in marks] == [MISSED, REACHED, REACHED]


@pytest.mark.parametrize(
    ("value", "text"), [(1493.0, "1,493"), (2.757, "2.76"), (0.0355, "0.0355"), (6.3e-5, "0.000063")]
)
def test_numbers_are_written_without_exponents(value, text):
    assert number(value) == text


def test_as_many_targets_as_fit_are_legible():
    assert_legible(plot_targets(targets(MOST_TARGETS), title="Many rows and a title that says what was found in them"))


def test_targets_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match=f"at most {MOST_TARGETS} legibly"):
        plot_targets(targets(MOST_TARGETS + 1), title="Too many")
    with pytest.raises(ValueError, match="no column attained"):
        plot_targets(targets().drop(columns="attained"), title="What?")
    with pytest.raises(ValueError, match="the table is empty"):
        plot_targets(targets(0).reindex(columns=targets().columns), title="Nothing")


def test_sizes_are_drawn_for_every_family_and_format():
    columns = {"tokens_per_second": "tokens per second", "share": "share of the peak"}
    figure = plot_sizes(sizes(), columns, title="Small models train slower", logarithmic=("tokens_per_second",))
    assert_legible(figure)
    assert [len(axes.lines) for axes in figure.axes] == [6, 6]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]
    first = figure.axes[0].lines[0]
    assert list(first.get_ydata()) == [9_000.0, 4_000.0, 900.0]


def test_one_size_and_one_family_are_enough():
    one = sizes().query("family == 'transformer' and size == 'pico'")
    figure = plot_sizes(one, {"memory": "peak memory (MB)"}, title="Hardly any memory")
    assert_legible(figure)
    assert figure.axes[0].get_ylim()[0] == 0


def test_sizes_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="0 columns; a slide shows 1 or 2"):
        plot_sizes(sizes(), {}, title="Nothing")
    with pytest.raises(ValueError, match="no column speed"):
        plot_sizes(sizes(), {"speed": "tokens per second"}, title="What?")
    with pytest.raises(ValueError, match="precision is float16"):
        plot_sizes(sizes().assign(precision="float16"), {"share": "share"}, title="What?")
    with pytest.raises(ValueError, match="no colour for family 'rnn'"):
        plot_sizes(sizes().assign(family="rnn"), {"share": "share"}, title="What?")
