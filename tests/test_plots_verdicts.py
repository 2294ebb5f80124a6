"""The closing figures show every claim with mark and word, legibly, and refuse what does not fit on a page."""

import pandas as pd
import pytest

from picollm_core.claims import CLAIMS
from picollm_core.plots_verdicts import (
    LOOK,
    MOST_ROWS,
    counted,
    effect_words,
    pages,
    plot_verdict_map,
    plot_verdict_rows,
    verdict_counts,
)
from tests.legible import assert_legible, visible

TITLE = "Of all these conclusions some hold and some fail, and several depend on what is kept equal in the comparison"


def table() -> pd.DataFrame:
    """All claims, the verdicts in turn."""
    rows = [
        {"id": c.id, "source": c.source, "claim": c.claim, "verdict": list(LOOK)[n % 4], "effect": -0.2657,
         "interval": [-0.2791, -0.2534] if n % 3 else None, "unit": "nats per token"}
        for n, c in enumerate(CLAIMS.values())
    ]  # fmt: skip
    return pd.DataFrame(rows)


def shown(figure) -> str:
    return " ".join(" ".join(text.get_text() for text in visible(figure)).split())


def test_the_map_names_every_claim_and_counts_the_verdicts():
    figure = plot_verdict_map(table(), title=TITLE)
    assert_legible(figure)
    words = shown(figure)
    for row in table().itertuples():
        assert all(part in words for part in row.id.split("-"))
    for word, count in verdict_counts(table()).items():
        assert f"{word}: {count}" in words
    marks = [line.get_marker() for line in figure.axes[0].lines]
    assert len(marks) == len(CLAIMS)
    assert len({(LOOK[word]["marker"], LOOK[word]["color"]) for word in LOOK}) == len(LOOK)


def test_every_page_is_legible_and_together_they_hold_all_rows():
    found = pages(table())
    assert sum(map(len, found.values())) == len(CLAIMS)
    for own in found.values():
        assert len(own) <= MOST_ROWS
        figure = plot_verdict_rows(own, title=TITLE)
        assert_legible(figure)
        words = shown(figure)
        assert all(row.claim in words for row in own.itertuples())
        assert "\N{MINUS SIGN}0.266 nats" in words


def test_pages_of_one_source_are_of_nearly_equal_length():
    lengths = [len(own) for name, own in pages(table()).items() if name.startswith("slides")]
    assert max(lengths) - min(lengths) <= 1
    assert "page" in pages(table())
    with pytest.raises(ValueError, match="most is 0"):
        pages(table(), most=0)


def test_counts_become_part_of_a_sentence():
    assert counted({"holds": 2, "fails": 1, "depends": 3, "open": 1}) == "2 hold, 1 fails, 3 depend, 1 stays open"


def test_effects_become_words():
    assert effect_words(0.1, [0.05, 0.15], "share of 2-grams") == "+0.1 of 2-grams (+0.05 to +0.15)"
    assert effect_words(5.05, None, "ratio") == "5.05 ratio"
    assert effect_words(None, None, "nats") == effect_words(float("nan"), None, "nats") == "no single number"


def test_what_does_not_fit_or_has_no_mark_is_refused():
    everything = table()
    with pytest.raises(ValueError, match="at most 10"):
        plot_verdict_rows(everything, title=TITLE)
    with pytest.raises(ValueError, match="draw fewer"):
        plot_verdict_map(pd.concat([everything] * 2), title=TITLE)
    for plot in (plot_verdict_map, plot_verdict_rows):
        with pytest.raises(ValueError, match="maybe"):
            plot(everything.head(2).assign(verdict="maybe"), title=TITLE)
        with pytest.raises(ValueError, match="verdict"):
            plot(everything.head(2).drop(columns="verdict"), title=TITLE)
        with pytest.raises(ValueError, match="empty"):
            plot(everything.head(0), title=TITLE)
