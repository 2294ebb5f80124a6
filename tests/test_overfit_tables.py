"""Tables of the study of overfitting: stopping, effects and ends by hand."""

import pandas as pd
import pytest

from picollm_core.contrasts import paired_contrast
from picollm_core.overfit_study import FAMILIES
from picollm_core.overfit_tables import (
    early_stopping,
    effect_table,
    end_table,
    final_losses,
    loss_table,
    novelty_lines,
    sample_table,
    span,
    stopping_summary,
    stopping_table,
    sweep_rows,
    tuning_table,
)
from tests.overfit_arms import arm, samples


def looks(validation, test=None) -> pd.DataFrame:
    test = [10 * loss for loss in validation] if test is None else test
    return pd.DataFrame({"step": range(10, 10 * len(validation) + 1, 10), "validation": validation, "test": test})


def test_stopping_waits_for_patience_and_keeps_the_lowest():
    rows = looks([5, 3, 4, 3.5, 2, 6])
    found = early_stopping(rows, patience=2)
    assert found == {"chosen": 20, "stop": 40, "best": 50, "last": 60, "test": 30, "best_test": 20, "last_test": 60}
    assert early_stopping(rows, patience=3)["chosen"] == 50  # long enough to get over the hill
    assert early_stopping(rows, patience=1)["stop"] == 30


def test_a_loss_that_falls_to_the_end_is_never_stopped():
    found = early_stopping(looks([3, 2, 1]), patience=1)
    assert (found["chosen"], found["stop"], found["last"]) == (30, 30, 30)
    assert found["test"] == found["last_test"] == found["best_test"]


def test_the_test_loss_has_no_say_in_the_choice():
    one, other = (early_stopping(looks([2, 1, 3], test), 1) for test in ([1, 2, 3], [9, 8, 7]))
    assert one["chosen"] == other["chosen"] == 20
    assert (one["test"], other["test"]) == (2, 8)


def test_stopping_refuses_no_patience_and_no_looks():
    with pytest.raises(ValueError, match="patience is 0"):
        early_stopping(looks([1]), 0)
    with pytest.raises(ValueError, match="0 looks"):
        early_stopping(looks([]), 1)


def test_the_gap_is_held_out_minus_training_loss():
    table = loss_table({"a": arm("a", [3, 1], [4, 5], seeds=2, spread=0)})
    assert table["gap"].tolist() == [1, 4, 1, 4]
    assert table["seed"].tolist() == [0, 0, 1, 1]
    assert stopping_table(table, 1)["chosen"].tolist() == [10, 10]
    with pytest.raises(ValueError, match="0 arms"):
        loss_table({})


def test_the_end_is_tabled_over_seeds_with_the_lowest_held_out_loss_and_where_it_was():
    more = {
        "repeated": {"train": {"exact": 0.5}, "held_out": {"exact": None}},
        "counts": {"train": 26, "held_out": 17, "tokens": 900},
    }
    table = end_table({43: {"lstm": arm("a", [3, 2, 1], [4, 3.5, 5], spread=0, **more)}})
    row = table.iloc[0]
    assert (row["size"], row["family"], row["texts"], row["held_out_texts"]) == (43, "lstm", 26, 17)
    assert (row["train"], row["held_out"], row["gap"], row["lowest"], row["lowest_epoch"]) == (1, 5, 4, 3.5, 2)
    assert row["exact"] == 0.5
    assert pd.isna(row["exact_held_out"])


def test_effects_are_paired_differences_with_holm_over_all():
    arms = {"base": arm("b", [3, 1], [4, 5]), "more": arm("m", [3, 2], [4, 4.5], spread=0.02)}
    table = effect_table({"kgram": arms}, patience=1).set_index("measure")
    assert table.loc["gap", "effect"] == pytest.approx(-1.5)
    assert table.loc["held_out", "effect"] == pytest.approx(-0.5)
    assert table.loc["stopped", "effect"] == pytest.approx(0)  # both stop at the first look
    wiggle = [0.01 * (seed - 2) for seed in range(5)]
    expected = paired_contrast([-0.5 + w for w in wiggle], [0] * 5)
    assert (table.loc["held_out", "low"], table.loc["held_out", "high"]) == pytest.approx((expected.low, expected.high))
    assert (table["p_holm"] >= table["p"]).all()
    with pytest.raises(ValueError, match="no 'base'"):
        effect_table({"lstm": {"more": arms["more"]}}, 1)


def test_one_seed_has_effects_without_intervals():
    arms = {name: arm(name, [3, 1], [4, 5], seeds=1) for name in ("base", "more")}
    table = effect_table({"kgram": arms}, 1)
    assert table["effect"].notna().all()
    assert table[["low", "high", "p", "p_holm"]].isna().all().all()


def test_samples_of_people_stand_once_for_each_number_of_stories():
    table = sample_table({16: {f: samples(0.4, 0.2, seeds=3) for f in FAMILIES}})
    assert table["arm"].value_counts().to_dict() == {"kgram": 3, "lstm": 3, "transformer": 3, "people": 1}
    assert table.loc[table["arm"] == "people", "distinct_2"].tolist() == [0.7]


def test_what_stopping_saves_is_the_end_minus_the_rule_over_pairs():
    table = stopping_summary({16: {"lstm": arm("a", [3, 2, 1], [4, 3, 5], spread=0)}}, patience=1)
    row = table.iloc[0]
    assert (row["stories"], row["family"], row["chosen"], row["stop"]) == (16, "lstm", 20, 30)
    assert (row["at its stop"], row["at the end"], row["lost"], row["cost"]) == (3.5, 5.5, 2, 0)
    assert (row["low"], row["high"]) == (2, 2)


def test_tuning_says_what_was_tried_taken_and_at_the_edge():
    tuned = pd.DataFrame(
        [("lines", "lstm", 0.1, 7.0, True), ("lines", "lstm", 0.2, 8.0, False), ("stories", "lstm", 0.1, None, True)],
        columns=["text", "family", "rate", "loss", "chosen"],
    )
    table = tuning_table(tuned)
    assert table["tried"].tolist() == ["0.1: 7.00, 0.2: 8.00", "0.1"]
    assert table["taken"].tolist() == [0.1, 0.1]
    assert table["at the edge"].tolist() == [True, False]


def test_every_run_has_one_row_with_its_end_and_its_measurement():
    runs = {family: arm(family, [3, 1], [4, 5], seeds=2, spread=0) for family in FAMILIES}
    changed = {
        "lstm": {"base": runs["lstm"], "stories × 8": runs["lstm"], "dropout 0.3": arm("d", [3, 2], [4, 4.5], seeds=2)}
    }
    table = sweep_rows({43: runs}, {16: runs, 64: runs}, changed)
    assert len(table) == 2 * (3 + 6 + 1)
    assert table["change"].value_counts().to_dict() == {"": 18, "dropout 0.3": 2}
    assert not table.duplicated(["text", "size", "family", "change", "seed"]).any()
    assert table.iloc[0][["text", "size", "family", "seed", "train", "held_out", "gap"]].tolist() == [
        "lines",
        43,
        "kgram",
        0,
        1,
        5,
        4,
    ]
    assert set(table["measurement"]) == {f"measurements/{name}.json" for name in (*FAMILIES, "d")}


def test_final_losses_are_the_last_rows_of_every_size():
    table = final_losses({16: {"lstm": arm("a", [3, 1], [4, 5], 1, 0)}, 64: {"lstm": arm("b", [3, 2], [4, 3], 1, 0)}})
    assert table[["stories", "arm", "step", "gap"]].to_numpy().tolist() == [[16, "lstm", 20, 4], [64, "lstm", 20, 1]]


def test_novelty_lines_put_people_of_the_largest_text_into_every_panel():
    sizes = {
        16: {f: samples(0.4, 0.2, seeds=2) for f in FAMILIES},
        512: {f: samples(0.5, 0.8, seeds=2) for f in FAMILIES},
    }
    table = sample_table(sizes)
    table.loc[(table.arm == "people") & (table.stories == 16), "novel_5"] = 0.0
    lines = novelty_lines(table)
    assert lines.groupby(["panel", "arm"]).size().to_dict() == {
        (family, name): count
        for family in FAMILIES
        for name, count in (("16 stories", 2), ("512 stories", 2), ("people", 1))
    }
    assert set(lines["n"]) == {5}
    assert set(lines.loc[lines.arm == "people", "new"]) == {0.8}


def test_a_span_of_one_number_is_that_number():
    assert span(1.23, 3.42) == "1.2 to 3.4"
    assert span(1.23, 1.24) == "1.2"
    assert span(1.23, 1.24, 2) == "1.23 to 1.24"
