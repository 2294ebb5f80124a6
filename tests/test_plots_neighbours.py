"""Figures of token vectors can be read, show what they were given, and refuse what no slide can hold."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from picollm_core.interpret.neighbours import pca_view
from picollm_core.interpret.word_lists import WORD_GROUPS, WORD_PAIRS
from picollm_core.plots_neighbours import plot_similarity, plot_token_map
from tests.legible import assert_legible, visible

LABELS = [(word, group) for group, words in WORD_GROUPS.items() for word in words]


def view(spread: float = 1.0):
    """Forty words in six heaps, narrow ones for a small `spread`."""
    generator = torch.Generator().manual_seed(0)
    places = {group: 2 * torch.randn(2, generator=generator) for group in WORD_GROUPS}
    vectors = [places[group] + spread * torch.randn(2, generator=generator) for _, group in LABELS]
    return pca_view(torch.stack(vectors), *zip(*LABELS, strict=True))


def table(models=("k-gram MLP", "LSTM", "Transformer"), kinds=(*WORD_PAIRS, "all"), matched=True) -> pd.DataFrame:
    random = np.random.default_rng(0)
    rows = []
    for model, kind in itertools.product(models, kinds):
        row = {"model": model, "kind": kind, "pairs": 12, "cosine": random.uniform(0.2, 0.9)}
        row |= {"low": row["cosine"] - 0.1, "high": row["cosine"] + 0.1}
        for control in ("shuffled", "matched"):
            middle = random.uniform(0, 0.2) if matched or control == "shuffled" else np.nan
            row |= {control: middle, f"{control}_low": middle - 0.05, f"{control}_high": middle + 0.05}
        rows.append(row)
    return pd.DataFrame(rows)


def pairs_only(models: tuple[str, ...]) -> Figure:
    return plot_similarity(table(models, matched=False), title="T")


FIGURES = {
    "map": lambda: plot_token_map(*view(), title="T"),
    "crowded map": lambda: plot_token_map(*view(0.3), title="T" * 90),
    "map of one group": lambda: plot_token_map(view().points.assign(group="words"), (0.5, 0.2), title="T"),
    "similarity": lambda: plot_similarity(table(), title="T"),
    "similarity of one model": lambda: pairs_only(("LSTM",)),
    "similarity of four": lambda: pairs_only(("LSTM", "k-gram", "Transformer", "untrained")),
}


@pytest.mark.parametrize("name", FIGURES)
def test_texts_are_large_stay_on_the_page_and_do_not_overlap(name):
    assert_legible(FIGURES[name]())


@pytest.mark.parametrize("dpi", [100, 150])
def test_words_stand_beside_their_marks_or_a_line_leads_to_them_at_any_resolution(dpi):
    found = view(0.3)
    figure = plot_token_map(*found, title="T")
    figure.set_dpi(dpi)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    words = {text.get_text(): text for text in axes.findobj(Annotation)}
    assert set(words) == set(found.points["label"])
    lines = [axes.transData.transform(line.get_xydata()) for line in axes.lines if len(line.get_xydata()) == 2]
    assert lines
    marks = axes.transData.transform(found.points[["x", "y"]])
    boxes = {word: Text.get_window_extent(text) for word, text in words.items()}
    for word, mark in zip(found.points["label"], marks, strict=True):
        box = boxes[word].padded(3 * dpi / 72)
        gap = np.linalg.norm(np.clip(mark, box.min, box.max) - mark) * 72 / dpi
        led = [line for line in lines if np.allclose(line[0], mark, atol=0.5) and box.contains(*line[1])]
        assert gap < 12 or led, word
    for word, (x, y) in itertools.product(words, marks):
        assert not boxes[word].padded(-1).contains(x, y), word


def test_groups_have_a_colour_and_a_mark_each_and_axes_name_their_share():
    figure = plot_token_map(view().points, (0.314, 0.159), title="T")
    shown = [text.get_text() for text in visible(figure)]
    assert {*WORD_GROUPS, *(word for word, _ in LABELS)} <= set(shown)
    assert "first principal component (31% of the variance)" in shown
    assert "second principal component (16%)" in shown
    (axes,) = figure.axes
    looks = {(line.get_color(), line.get_marker()) for line in axes.lines if line.get_label() in WORD_GROUPS}
    assert len(looks) == len(WORD_GROUPS)


def drawn_at(axes: Axes, marker: str) -> list[float]:
    return [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == marker]


def test_pairs_and_controls_stand_at_their_values_in_the_order_of_the_first_model():
    numbers = table()
    figure = plot_similarity(numbers.sample(frac=1, random_state=0).sort_values("model", kind="stable"), title="T")
    order = [text.get_text().rpartition(" (")[0] for text in figure.axes[0].get_yticklabels()]
    assert sorted(order) == sorted({*WORD_PAIRS, "all"})
    for axes in figure.axes:
        own = numbers[numbers["model"] == axes.get_title()].set_index("kind").loc[order]
        assert drawn_at(axes, "o") == pytest.approx(list(own["cosine"]))
        assert sorted(drawn_at(axes, "|")) == pytest.approx(sorted([*own["shuffled"], *own["matched"]]))
        ends = [tuple(line.get_xdata()) for line in axes.lines if line.get_marker() == "None"]
        for low, high in [("low", "high"), ("shuffled_low", "shuffled_high"), ("matched_low", "matched_high")]:
            assert set(zip(own[low], own[high], strict=True)) <= set(ends)


def test_a_control_that_was_not_measured_is_not_drawn_and_not_named():
    with_it, without = (
        {text.get_text() for text in visible(plot_similarity(table(matched=matched), title="T"))}
        for matched in (True, False)
    )
    assert with_it - without == {"equally frequent words, middle 95%"}


def test_what_does_not_fit_or_is_missing_is_refused():
    points, shares = view()
    for bad, message in (
        (points.drop(columns="group"), "no column group"),
        (points.iloc[:0], "empty"),
        (pd.concat([points, points]), "80 words; at most 60"),
        (points.assign(x=np.nan), "not finite"),
        (points.assign(group=[str(i % 9) for i in range(40)]), "at most 8"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_token_map(bad, shares, title="T")
    for bad, message in (
        (table().drop(columns="model"), "no column model"),
        (table(tuple("abcdefg")), "7 models"),
        (table(kinds=tuple("abcdefghi")), "9 kinds"),
        (table().iloc[1:], "every model needs each"),
        (table().assign(cosine=np.nan), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_similarity(bad, title="T")
