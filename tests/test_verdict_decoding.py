"""What is said of greedy choice, p = 0.9 and p = 1 is judged against human text and between samplers."""

import pandas as pd
import pytest

from picollm_core.text_scores import Difference
from picollm_core.verdict_decoding import ALL, GREEDY, NUCLEUS, judge_decoding, less_human, step, table_of, values_of
from tests.verdict_values import NOISE

HUMAN = {"nll": 2.3, "repetition": 0.01, "distinct_2": 0.6}


def table(**changes) -> pd.DataFrame:
    """Three arms as the slides have them, five seeds each; `LSTM_greedy_repetition=0.0` and so on change one mean."""
    means = {
        GREEDY: {"nll": 1.2, "repetition": 0.7, "distinct_2": 0.1},
        NUCLEUS: {"nll": 2.8, "repetition": 0.05, "distinct_2": 0.5},
        ALL: {"nll": 4.0, "repetition": 0.01, "distinct_2": 0.7},
    }
    rows = []
    for place, arm in enumerate(("k-gram, learned", "LSTM", "Transformer, RoPE")):
        for setting, own in means.items():
            short = f"{arm.partition(',')[0]} {setting}".replace("top-p ", "p").replace(" ", "_").replace("-", "")
            values = {m: changes.get(f"{short}_{m}".replace(".", ""), v) for m, v in own.items()}
            rows += [(arm, s, setting, *(v + NOISE[place, s] / 10 for v in values.values())) for s in range(5)]
    rows.append(("human", 0, "human", *HUMAN.values()))
    return pd.DataFrame(rows, columns=["arm", "seed", "setting", "nll", "repetition", "distinct_2"])


def words(found: pd.DataFrame) -> dict[str, str]:
    return {each.id: each.verdict for each in judge_decoding(found, ("r",))}


def test_what_the_slides_saw_holds_on_text_that_is_so():
    assert words(table()) == {
        "greedy-repeats": "holds",
        "p-raises-diversity": "holds",
        "p1-incoherent": "holds",
        "transformer-greedy-collapses": "holds",
        "kgram-incoherent-at-any-p": "depends",  # greedy text surprises less than human text
    }


def test_each_statement_turns_with_the_text_it_is_about():
    assert words(table(LSTM_greedy_repetition=0.0))["greedy-repeats"] == "depends"
    assert words(table(LSTM_p1_distinct_2=0.3))["p-raises-diversity"] == "depends"
    assert words(table(LSTM_p1_nll=2.0))["p1-incoherent"] == "depends"
    assert words(table(Transformer_greedy_repetition=0.2))["transformer-greedy-collapses"] == "fails"
    assert words(table(kgram_greedy_nll=3.0))["kgram-incoherent-at-any-p"] == "holds"


def test_contrasts_are_paired_over_seeds():
    found = table()
    assert len(values_of(found, "LSTM", GREEDY, "nll")) == 5
    assert step(found, "LSTM", ALL, GREEDY, "nll").mean == pytest.approx(2.8)
    assert less_human(found, "LSTM", GREEDY, "repetition").mean == pytest.approx(0.69, abs=0.01)


def test_records_become_rows_and_the_human_text_is_last():
    record = {"nats": [20.0, 22.0], "tokens": [10, 10], "count_nats": [1.0, 1.0], "repetition": [0.1, 0.3],
              "variety": [0.5, 0.5], "distinct": [0.4, 0.7, 0.9, 1.0, 1.0]}  # fmt: skip
    found = table_of({"LSTM": [{GREEDY: record}, {GREEDY: record}]}, record)
    assert found["arm"].tolist() == ["LSTM", "LSTM", "human"]
    assert found.iloc[1].tolist() == ["LSTM", 1, GREEDY, 2.1, 0.2, 0.7]


def test_texts_that_ended_early_leave_their_pair_out():
    found = table()
    lstm = (found["arm"] == "LSTM") & (found["setting"] == GREEDY)
    found.loc[lstm & (found["seed"] == 3), "distinct_2"] = float("nan")
    assert step(found, "LSTM", NUCLEUS, GREEDY, "distinct_2").pairs == 4
    assert step(found, "LSTM", NUCLEUS, GREEDY, "repetition").pairs == 5
    found.loc[lstm, "distinct_2"] = float("nan")
    with pytest.raises(ValueError, match="sample longer texts"):
        judge_decoding(found, ("r",))


def test_models_of_longer_training_are_a_second_reading_of_greedy_repeats():
    loops, varied = Difference(0.3, 0.2, 0.4), Difference(0.0, -0.01, 0.01)
    for longer, expected in (({"lstm": loops}, "holds"), ({"lstm": loops, "kgram": varied}, "depends")):
        found = judge_decoding(table(), ("r",), longer)[0]
        assert (found.id, found.verdict) == ("greedy-repeats", expected)
        assert "models that ship" in found.cause
