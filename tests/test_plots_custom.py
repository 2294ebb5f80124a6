"""Panels: one a setting, a colour an arm, a style a kind, bands only over seeds."""

import pandas as pd
import pytest

from picollm_core.plots_custom import plot_panels

COLOURS = {"LSTM": "#009E73", "gpt-oss": "#0072B2"}
TEXT = {"title": "one finding", "x_label": "updates", "y_label": "nats per token", "colours": COLOURS}


def table(seeds=3) -> pd.DataFrame:
    rows = [
        (panel, arm, kind, seed, step, 5.0 + seed / 10 + step)
        for panel in ("few", "many")
        for arm in COLOURS
        for kind in ("training", "held out")
        for seed in range(seeds)
        for step in (0, 1, 10)
    ]
    return pd.DataFrame(rows, columns=["panel", "arm", "kind", "seed", "step", "loss"])


def test_panels_lines_and_legend_name_everything_that_is_drawn():
    figure = plot_panels(table(), "step", "loss", **TEXT)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["few", "many"]
    for axes in figure.axes:
        assert len(axes.lines) == 4
        assert {line.get_color() for line in axes.lines} == set(COLOURS.values())
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == [*COLOURS, "training", "held out", "95% interval of the mean over seeds (3)"]
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx([5.1, 6.1, 15.1])


def test_one_seed_has_no_band_and_one_kind_needs_no_key():
    own = table(seeds=1)
    figure = plot_panels(own[own["kind"] == "training"], "step", "loss", **TEXT)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(COLOURS)


def test_a_logarithmic_axis_has_a_place_for_no_update():
    figure = plot_panels(table(), "step", "loss", x_scale="log", log_y=True, floors={"chance": 8.3}, **TEXT)
    assert figure.axes[0].get_xscale() == "symlog"
    assert figure.axes[0].get_yscale() == "log"
    assert figure.axes[0].get_xticks().tolist() == [0, 1, 10]
    assert "chance" in [text.get_text() for text in figure.axes[0].texts]


def test_numbers_that_would_overlap_are_left_out_but_never_the_last():
    crowded = pd.concat([table().assign(step=step) for step in (1, 10, 290, 300, 400)])
    figure = plot_panels(crowded, "step", "loss", x_scale="log", **TEXT)
    assert figure.axes[0].get_xticks().tolist() == [1, 10, 400]


def test_the_legend_counts_the_seeds_of_every_point():
    rows = table()
    figure = plot_panels(rows[(rows["step"] < 10) | (rows["seed"] < 2)], "step", "loss", **TEXT)
    assert figure.legends[0].get_texts()[-1].get_text().endswith("(2 to 3)")


def test_missing_values_are_left_out():
    own = table()
    own.loc[own["step"] == 10, "loss"] = float("nan")
    assert figure_places(plot_panels(own, "step", "loss", **TEXT)) == [0, 1]


def figure_places(figure) -> list[float]:
    return figure.axes[0].lines[0].get_xdata().tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colours": {"LSTM": "#009E73"}}, "no colour for gpt-oss"),
        ({"x_scale": "sqrt"}, "choose 'linear' or 'log'"),
    ],
)
def test_arguments_that_cannot_be_drawn_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        plot_panels(table(), "step", "loss", **(TEXT | change))


def test_too_many_panels_and_kinds_and_missing_columns_are_refused():
    for column, message in (("panel", "a slide shows 1 to 3"), ("kind", "at most 4 line styles")):
        many = pd.concat([table(1).assign(**{column: str(n)}) for n in range(5)])
        with pytest.raises(ValueError, match=message):
            plot_panels(many, "step", "loss", **TEXT)
    with pytest.raises(ValueError, match="kind"):
        plot_panels(table().drop(columns="kind"), "step", "loss", **TEXT)
