"""Figures about heads can be read, show what they were given, and refuse what they cannot show honestly."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.text import Text

from picollm_core.figure_style import FAMILY_COLOURS
from picollm_core.plots_attention import WEIGHTS
from picollm_core.plots_heads import (
    LATER,
    plot_attribution,
    plot_head_ablation,
    plot_head_scores,
    plot_story_attention,
)
from tests.legible import assert_legible, visible

BLUE, ORANGE = FAMILY_COLOURS["transformer"], FAMILY_COLOURS["kgram"]
NAMES = ["previous_token", "duplicate_token", "induction", "first_token", "entropy"]
STORY = [
    "<start>",
    *" Tom saw a ball . He gave it to Lily .\n Then Tom hugged Lily .".replace(" ", "| ").split("|")[1:],
]


def scores(n_layer=2, n_head=3) -> pd.DataFrame:
    table = pd.DataFrame(
        list(itertools.product(range(1, n_layer + 1), range(1, n_head + 1))), columns=["layer", "head"]
    )
    values = np.random.default_rng(0).random((len(table), len(NAMES)))
    return table.assign(**dict(zip(NAMES, values.T, strict=True))).assign(entropy=values[:, 4] * 6)


def weights(focus=15, length=17) -> np.ndarray:
    values = np.zeros(length)
    values[: focus + 1] = np.random.default_rng(1).random(focus + 1)
    values[[1, 8, 10]] = 4, 5, 3
    values[focus + 1 :] = 0
    return values / values.sum()


def effects(n_layer=3, n_head=4, kinds=("zero", "mean")) -> pd.DataFrame:
    rows = list(itertools.product(kinds, range(1, n_layer + 1), range(1, n_head + 1)))
    effect = np.random.default_rng(2).normal(0.2, 0.2, len(rows))
    table = pd.DataFrame(rows, columns=["kind", "layer", "head"])
    return table.assign(effect=effect, standard_error=np.abs(effect) / 5)


def shares(n=3) -> tuple[list[str], np.ndarray]:
    names = ["embedding", *(f"layer {i} {part}" for i in (1, 2, 3) for part in ("head 1", "head 2", "head 3", "MLP"))]
    return names, np.random.default_rng(3).normal(0, 4, (len(names), n))


FIGURES = {
    "scores": lambda: plot_head_scores(scores(), NAMES, title="T" * 90, controls=dict.fromkeys(NAMES, 0.02)),
    "six scores": lambda: plot_head_scores(scores(6, 6).assign(six=0.5), [*NAMES, "six"], title="T"),
    "one score": lambda: plot_head_scores(scores(3, 4), ["induction"], title="T"),
    "twelve by twelve": lambda: plot_head_scores(scores(12, 12), NAMES, title="T"),
    "story": lambda: plot_story_attention(STORY, weights(), 15, title="T", note="layer 3, head 1"),
    "long story": lambda: plot_story_attention(STORY * 8, weights(130, 136), 130, title="T" * 90),
    "neighbours": lambda: plot_story_attention(list("abcdefg"), [0.1, 0.1, 0.2, 0.2, 0.3, 0.1, 0], 5, title="T"),
    "ablation": lambda: plot_head_ablation(effects(), title="T"),
    "most heads": lambda: plot_head_ablation(effects(6, 8, ("mean",)), title="T"),
    "attribution": lambda: plot_attribution(*shares(3), [" Tom", "\n", " $girl$"], title="T"),
    "one token": lambda: plot_attribution(*shares(1), [" Tom"], title="T", top=15),
}


@pytest.mark.parametrize("name", FIGURES)
def test_texts_are_large_stay_on_the_page_and_do_not_overlap(name):
    assert_legible(FIGURES[name]())


def texts(figure) -> list[str]:
    return [text.get_text() for text in visible(figure)]


def test_every_score_is_a_map_of_its_own_with_the_highest_head_named():
    table = scores()
    figure = plot_head_scores(table, NAMES, title="T", controls={"induction": 0.125})
    maps = [axes for axes in figure.axes if axes.images]
    for axes, name in zip(maps, NAMES, strict=True):
        values = table[name].to_numpy().reshape(2, 3)
        np.testing.assert_allclose(axes.images[0].get_array(), values)
        assert [text.get_text() for text in axes.texts] == [f"{value:.2f}" for value in values.ravel()]
        best = table.loc[table[name].idxmax()]
        wanted = f"highest: {best[name]:.2f} (layer {best['layer']:.0f}, head {best['head']:.0f})"
        assert wanted in axes.get_xlabel()
        assert ("untrained at most: 0.12" in axes.get_xlabel()) == (name == "induction")
        assert axes.images[0].get_clim() == (0, 1 if name != "entropy" else pytest.approx(best[name]))
    assert [axes.get_title("left") for axes in maps][:2] == ["previous token", "duplicate token"]
    assert maps[4].get_title("left") == "entropy (bits)"


def test_names_may_be_given_and_unknown_values_are_grey_and_not_the_highest():
    table = scores().assign(entropy=[1.0, math.nan, 3.0, 2.0, math.nan, 1.0])
    axes = plot_head_scores(table, {"entropy": "how widely"}, title="T").axes[0]
    assert axes.get_title("left") == "how widely"
    assert axes.images[0].get_array().mask.ravel().tolist() == [False, True, False, False, True, False]
    assert [text.get_text() for text in axes.texts][1] == "–"
    assert "highest: 3.00 (layer 1, head 3)" in axes.get_xlabel()
    assert plot_head_scores(table.assign(entropy=math.nan), ["entropy"], title="T").axes[0].get_xlabel() == "head"


def test_layers_keep_their_numbers_and_many_heads_have_no_room_for_values():
    table = scores(4, 3)
    axes = plot_head_scores(table[table["layer"] >= 3], ["induction"], title="T").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["3", "4"]
    assert not plot_head_scores(scores(7, 7), ["induction"], title="T").axes[0].texts


def test_scores_that_no_slide_can_show_are_refused():
    with pytest.raises(ValueError, match="no column copying"):
        plot_head_scores(scores(), ["copying"], title="T")
    with pytest.raises(ValueError, match="0 scores"):
        plot_head_scores(scores(), [], title="T")
    with pytest.raises(ValueError, match="13 layers of 2 heads"):
        plot_head_scores(scores(13, 2), NAMES, title="T")
    with pytest.raises(ValueError, match="5 rows for 2 layers of 3 heads"):
        plot_head_scores(scores().iloc[:5], NAMES, title="T")
    with pytest.raises(ValueError, match="12 rows for 2 layers"):
        plot_head_scores(pd.concat([scores(), scores()]), NAMES, title="T")


def test_each_token_is_shaded_by_its_weight_and_only_later_ones_are_grey():
    values = weights()
    axes = plot_story_attention(STORY, values, 15, title="T").axes[0]
    shaded = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_fill()]
    expected = [to_hex(WEIGHTS(value / values.max())) for value in values[:16]]
    assert [to_hex(patch.get_facecolor()) for patch in shaded] == expected
    words = [text for text in axes.texts if not text.get_text().endswith("%")]
    assert "".join(text.get_text() for text in words).replace(" ", "") == "".join(STORY).replace(" ", "").replace(
        "\n", "↵"
    )
    assert [text.get_color() == LATER for text in words] == [i > 15 for i in range(len(STORY))]
    for text, patch in zip(words, shaded, strict=False):
        assert text.get_position()[0] == patch.get_x()


def test_the_chosen_token_has_a_frame_and_arrows_to_the_three_it_looks_at_most():
    values = weights()
    figure = plot_story_attention(STORY, values, 15, title="T")
    axes = figure.axes[0]
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle) and not patch.get_fill()]
    assert [to_hex(frame.get_edgecolor()).upper() for frame in frames] == [ORANGE]
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_fill()]
    assert frames[0].get_xy() == boxes[15].get_xy()
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    ends = {round(float(arrow._path_original.vertices[-1][0]), 6) for arrow in arrows}
    assert ends == {boxes[i].get_x() + boxes[i].get_width() / 2 for i in (1, 8, 10)}
    shown = sorted(text for text in texts(figure) if text.endswith("%") and text[0] != "0")
    assert {f"{100 * values[i]:.0f}%" for i in (1, 8, 10)} <= set(shown)
    assert not [p for p in plot_story_attention(STORY, values, 15, title="T", arrows=0).axes[0].patches
                if isinstance(p, FancyArrowPatch)]  # fmt: skip


def test_the_first_token_may_be_the_chosen_one_and_no_arrow_leads_to_weight_zero():
    axes = plot_story_attention(["<start>", "Tom"], [1.0, 0.0], 0, title="T").axes[0]
    assert not any(isinstance(patch, FancyArrowPatch) for patch in axes.patches)
    axes = plot_story_attention(["<start>", "Tom", " ran"], [0.0, 0.5, 0.5], 2, title="T").axes[0]
    assert sum(isinstance(patch, FancyArrowPatch) for patch in axes.patches) == 1


def test_letters_stay_in_their_boxes():
    figure = plot_story_attention(STORY, weights(), 15, title="T")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_fill()]
    words = [text for text in axes.texts if not text.get_text().endswith("%")]
    for text, box in zip(words, boxes, strict=False):
        inner, outer = Text.get_window_extent(text), box.get_window_extent()
        assert outer.x0 - 1 <= inner.x0 < inner.x1 <= outer.x1 + 1, text
        assert outer.y0 - 1 <= inner.y0 < inner.y1 <= outer.y1 + 1, text


def test_weights_that_are_none_of_this_story_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\) do not go with 17 tokens"):
        plot_story_attention(STORY, [0.2, 0.3, 0.5], 2, title="T")
    with pytest.raises(ValueError, match="each >= 0"):
        plot_story_attention(["a", "b"], [-0.5, 1.5], 1, title="T")
    with pytest.raises(ValueError, match="focus is 2, but there are 2 tokens"):
        plot_story_attention(["a", "b"], [0.5, 0.5], 2, title="T")
    with pytest.raises(ValueError, match=r"weight 0\.5 on token 1, which comes after the focus 0"):
        plot_story_attention(["a", "b"], [0.5, 0.5], 0, title="T")
    with pytest.raises(ValueError, match="show a part of the story"):
        plot_story_attention(STORY * 50, weights(15, 850), 15, title="T")


def test_bars_are_the_effects_and_lines_their_intervals():
    table = effects(2, 2)
    table.loc[0, "standard_error"] = math.nan  # one text: no interval
    figure = plot_head_ablation(table.sample(frac=1, random_state=0), title="T")
    axes = figure.axes[0]
    for container, kind in zip(
        axes.containers[::2], dict.fromkeys(table.sample(frac=1, random_state=0).kind), strict=True
    ):
        drawn = sorted((bar.get_x(), bar.get_height()) for bar in container)
        assert [height for _, height in drawn] == pytest.approx(table[table.kind == kind].effect.tolist())
    segments = [s for c in axes.collections for s in c.get_segments()]
    lengths = sorted(float(np.ptp(segment[:, 1])) for segment in segments)
    expected = sorted(2 * 1.96 * table.standard_error.fillna(0))
    assert lengths == pytest.approx(expected)
    shown = texts(figure)
    assert {"layer 1", "layer 2", "output set to zero", "output set to its mean"} <= set(shown)
    assert any("95% interval" in text for text in shown)


def test_one_kind_needs_no_legend_and_what_does_not_fit_is_refused():
    assert not plot_head_ablation(effects(kinds=("mean",)), title="T").legends
    with pytest.raises(ValueError, match="no column standard_error"):
        plot_head_ablation(effects().drop(columns="standard_error"), title="T")
    with pytest.raises(ValueError, match="layer 1, head 1 is there twice with kind 'zero'"):
        plot_head_ablation(pd.concat([effects(), effects().head(1)]), title="T")
    with pytest.raises(ValueError, match="288 bars of 2 kinds"):
        plot_head_ablation(effects(12, 12), title="T")


def test_bars_of_an_attribution_add_up_to_what_is_written_above():
    names, values = shares(2)
    figure = plot_attribution(names, values, [" Tom", "."], title="T", top=5)
    for axes, column, token in zip(figure.axes, values.T, ("␣Tom", "."), strict=True):
        drawn = [bar.get_width() for bar in axes.patches]
        assert len(drawn) == 6
        assert sum(drawn) == pytest.approx(column.sum())
        signed = f"{column.sum():+.1f}".replace("-", "−")
        assert axes.get_title("left") == f"{token}  (sum {signed})"
        assert [to_hex(bar.get_facecolor()).upper() for bar in axes.patches] == [
            BLUE if w > 0 else ORANGE for w in drawn
        ]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    largest = np.argsort(-np.abs(values).max(1))[:5]
    assert labels == [*(names[i] for i in sorted(largest)), "all 8 others"]
    assert [bar.get_width() for bar in figure.axes[1].patches][:5] == pytest.approx(values[sorted(largest), 1].tolist())
    assert figure.axes[0].yaxis_inverted()  # the first part on top


def test_nothing_is_summed_where_all_parts_have_room():
    names, values = shares(1)
    for top in (12, 13, 15):  # thirteen parts: one alone is named rather than called "others"
        figure = plot_attribution(names, values, ["a"], title="T", top=top)
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names


def test_a_share_that_rounds_to_zero_has_no_sign():
    shown = [
        text.get_text() for text in plot_attribution(["a", "b"], [[0.01], [-0.01]], ["x"], title="T").axes[0].texts
    ]
    assert shown == ["0.0", "0.0"]


def test_contributions_of_another_shape_are_refused():
    names, values = shares(2)
    with pytest.raises(ValueError, match=r"\(13, 2\) do not go with 13 parts and 1 tokens"):
        plot_attribution(names, values, ["a"], title="T")
    with pytest.raises(ValueError, match="for 1 to 3 tokens"):
        plot_attribution(names, np.zeros((13, 4)), list("abcd"), title="T")
    with pytest.raises(ValueError, match="top is 0"):
        plot_attribution(names, values, ["a", "b"], title="T", top=0)


def test_a_figure_needs_a_title():
    for draw in (
        lambda: plot_head_scores(scores(), NAMES, title=" "),
        lambda: plot_story_attention(STORY, weights(), 15, title=" "),
        lambda: plot_head_ablation(effects(), title=" "),
        lambda: plot_attribution(*shares(1), ["a"], title=" "),
    ):
        with pytest.raises(ValueError, match="title is empty"):
            draw()


def test_axes_of_unused_places_are_empty():
    figure = plot_head_scores(scores(), NAMES, title="T")
    assert [axes.axison for axes in figure.findobj(Axes)].count(False) == 1
