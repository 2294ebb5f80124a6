"""The figures about concepts show the numbers they are given and refuse what a slide cannot hold."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from picollm_core.figure_style import SIZE_INCHES
from picollm_core.plots_arms import arm_look
from picollm_core.plots_concepts import (
    CONTROL,
    TRAINED,
    UNTRAINED,
    plot_ablation_matrix,
    plot_concept_scores,
    plot_probes,
    plot_steering,
)


def scores(seeds: int = 1) -> pd.DataFrame:
    rows = [
        {"concept": concept, "arm": arm, "f1": f1 * share + 0.02 * seed, "floor": 0.1, "f1_low": 0.3, "f1_high": 0.97}
        for concept, f1 in (("b", 0.5), ("a", 0.9), ("c", 0.7))
        for arm, share in (("features", 1.0), ("neurons", 0.4))
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def probes(concepts=("a", "b"), sites=("embedding", "hidden")) -> pd.DataFrame:
    rows = [
        {"site": site, "weights": weights, "concept": concept, "auroc": 0.6 + 0.1 * s + 0.05 * (weights == "trained"),
         "control_auroc": 0.55 + 0.01 * s}
        for weights in ("trained", "untrained")
        for concept in concepts
        for s, site in enumerate(sites)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def curve(**changes) -> pd.DataFrame:
    table = pd.DataFrame({"amount": [2.0, -1.0, 0.0], "mass": [0.3, 0.1, 0.2]})
    return table.assign(low=table["mass"] - 0.05, high=table["mass"] + 0.05, monotone=True, **changes)


def effects() -> pd.DataFrame:
    rows = [
        {"feature": feature, "concept": concept, "difference": value, "difference_low": value - 0.1,
         "difference_high": value + 0.1}
        for feature, values in (("f1", (0.4, -0.001)), ("f2", (-0.2, np.nan)))
        for concept, value in zip(("pronoun:female", "quote:inside"), values, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def marks(axes, marker: str) -> list[tuple[float, float]]:
    found = [line for line in axes.lines if line.get_marker() == marker]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in found]


def test_concepts_stand_in_the_order_of_the_first_arm_with_a_mark_for_each_arm_and_the_floor():
    figure = plot_concept_scores(scores(), title="T")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "c", "b"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
    look = arm_look(["features", "neurons"])
    first = marks(axes, look["features"]["marker"])
    assert [x for x, _ in first] == pytest.approx([0.9, 0.7, 0.5])
    assert [round(y) for _, y in first] == [0, 1, 2]
    assert [x for x, _ in marks(axes, look["neurons"]["marker"])] == pytest.approx([0.36, 0.28, 0.2])
    assert marks(axes, "|") == [(pytest.approx(0.1), k) for k in range(3)]
    assert tuple(figure.get_size_inches()) == SIZE_INCHES


def test_f1_of_nine_tenths_is_marked():
    (axes,) = plot_concept_scores(scores(), title="T").axes
    assert [0.9, 0.9] in [list(line.get_xdata()) for line in axes.lines]


def whiskers(axes) -> set[tuple[float, float]]:
    found = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
    return {tuple(round(float(x), 3) for x in ends) for ends in found}


def test_lines_are_the_interval_of_one_seed_or_the_range_of_several_and_the_axis_says_which():
    (one,), (three,) = (plot_concept_scores(scores(seeds), title="T").axes for seeds in (1, 3))
    assert (0.3, 0.97) in whiskers(one)
    assert "95% interval over stories" in one.get_xlabel()
    assert (0.9, 0.94) in whiskers(three)
    assert (0.3, 0.97) not in whiskers(three)
    assert "lowest to highest of 3 seeds" in three.get_xlabel()
    assert marks(three, arm_look(["features"])["features"]["marker"])[0][0] == pytest.approx(0.92)


def test_without_intervals_no_line_is_drawn_and_none_is_explained():
    (axes,) = plot_concept_scores(scores().drop(columns=["f1_low", "f1_high"]), title="T").axes
    assert "lines" not in axes.get_xlabel()


def test_an_arm_may_lack_a_concept():
    table = scores().drop(index=4)  # the first arm's "c"
    (axes,) = plot_concept_scores(table, title="T").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert len(marks(axes, arm_look(["features"])["features"]["marker"])) == 2


def test_probes_have_a_panel_a_concept_with_trained_untrained_and_control_lines():
    figure = plot_probes(probes(), title="T", site_names={"embedding": "token embeddings"})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    lines = {line.get_color(): list(line.get_ydata()) for line in figure.axes[1].lines}
    assert lines[TRAINED] == pytest.approx([0.65, 0.75])
    assert lines[UNTRAINED] == pytest.approx([0.6, 0.7])
    assert lines[CONTROL] == pytest.approx([0.55, 0.56])
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == ["token embeddings", "hidden"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "trained model", "untrained model", "random label for each word", "chance",
    ]  # fmt: skip


def test_the_legend_does_not_promise_an_untrained_model_that_is_not_there():
    table = probes()
    figure = plot_probes(table[table["weights"] == "trained"], title="T", chance=None)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "trained model",
        "random label for each word",
    ]


def test_five_concepts_leave_the_sixth_place_empty():
    figure = plot_probes(probes(tuple("abcde")), title="T")
    assert [axes.get_visible() for axes in figure.axes] == [True] * 5 + [False]


def test_a_steering_curve_runs_by_amount_from_zero_upwards_with_its_interval():
    figure = plot_steering(curve(), title="T")
    (axes,) = figure.axes
    line = next(line for line in axes.lines if len(line.get_xdata()) == 3)
    assert line.get_xdata().tolist() == [-1, 0, 2]
    assert line.get_ydata().tolist() == [0.1, 0.2, 0.3]
    (band,) = axes.collections
    assert band.get_paths()[0].get_extents().ymax == pytest.approx(0.35)
    assert axes.get_ylim()[0] == 0
    assert [text.get_text() for text in axes.texts] == ["model as it is"]


def test_several_steered_features_are_named_at_their_ends():
    table = pd.concat([curve(arm="she"), curve(arm="random").assign(mass=0.1)])
    (axes,) = plot_steering(table, title="T").axes
    assert {text.get_text() for text in axes.texts} == {"she", "random", "model as it is"}
    assert len(axes.collections) == 2


def test_the_matrix_outlines_the_own_concept_and_colours_by_sign():
    (axes,) = plot_ablation_matrix(effects(), {"f1": "pronoun:female", "f2": "quote:inside"}, title="T").axes
    patches = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    frames = [patch.get_xy() for patch in patches if not patch.get_fill()]
    assert frames == [pytest.approx((-0.46, -0.46))]  # f2's own cell has no number
    shades = {patch.get_xy(): to_rgb(patch.get_facecolor()) for patch in patches if patch.get_fill()}
    up, none, down = shades[-0.5, -0.5], shades[0.5, -0.5], shades[-0.5, 0.5]
    assert up[0] > up[2] + 0.2
    assert down[2] > down[0] + 0.1
    assert min(none) > 0.97


def test_numbers_are_bold_where_the_interval_holds_no_zero_and_never_minus_nothing():
    (axes,) = plot_ablation_matrix(effects(), {}, title="T").axes
    assert [(text.get_text(), text.get_fontweight()) for text in axes.texts] == [
        ("0.40", "bold"), ("0.00", "normal"), ("−0.20", "bold"),
    ]  # fmt: skip
    assert "bold" in axes.get_xlabel()
    bare = effects().drop(columns=["difference_low", "difference_high"])
    assert "bold" not in plot_ablation_matrix(bare, {}, title="T").axes[0].get_xlabel()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="floor"):
        plot_concept_scores(scores().drop(columns="floor"), title="T")
    with pytest.raises(ValueError, match=r"f1 goes from 0.2 to 1.9"):
        plot_concept_scores(scores().assign(f1=[1.9, 0.2, 0.3, 0.4, 0.5, 0.6]), title="T")
    many = pd.concat([scores().assign(concept=f"c{i}") for i in range(21)])
    with pytest.raises(ValueError, match="21 concepts"):
        plot_concept_scores(many, title="T")
    with pytest.raises(ValueError, match="7 concepts"):
        plot_probes(probes(tuple("abcdefg")), title="T")
    with pytest.raises(ValueError, match="9 sites"):
        plot_probes(probes(sites=tuple("abcdefghi")), title="T")
    with pytest.raises(ValueError, match="site embedding, weights trained, concept a occurs twice"):
        plot_probes(pd.concat([probes(), probes()]), title="T")
    with pytest.raises(ValueError, match=r"arm she, amount 2.0 occurs twice"):
        plot_steering(pd.concat([curve(arm="she")] * 2), title="T")
    wide = pd.concat([effects().assign(concept=f"c{i}").drop_duplicates("feature") for i in range(11)])
    with pytest.raises(ValueError, match="a matrix of 2 x 11"):
        plot_ablation_matrix(wide, {}, title="T")
    with pytest.raises(ValueError, match="no number in its column 'difference'"):
        plot_ablation_matrix(effects().assign(difference=np.nan), {}, title="T")
