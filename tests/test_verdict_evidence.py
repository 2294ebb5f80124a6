"""Several contrasts are corrected together, and their verdict is that of the whole intervals."""

import pytest

from picollm_core.contrasts import paired_contrast
from picollm_core.verdict_evidence import Evidence, concluded, paired, spoken, together, told
from tests.verdict_values import five

VALUES = five(base=4.0, lower=3.8, higher=4.2, same=4.0)


def evidence(*names: str) -> Evidence:
    return Evidence({name: paired(VALUES[name], VALUES["base"]) for name in names})


def test_a_claim_holds_fails_or_stays_open_by_all_of_its_contrasts():
    found = evidence("lower", "higher", "same")
    assert found.word(["lower"], "below") == "holds"
    assert found.word(["lower", "higher"], "below") == "fails"
    assert found.word(["lower", "same"], "below") == "open"
    assert found.word(["higher"], "above") == "holds"


def test_a_difference_that_is_clear_alone_may_not_be_clear_among_many():
    edge = paired_contrast([0.10, 0.02, 0.12, 0.06, 0.02], [0.0] * 5)
    assert 0.01 < edge.p_value < 0.05
    alone = Evidence({"edge": edge})
    many = Evidence({"edge": edge} | {f"other {n}": paired_contrast([1, -1, 2, -2, 0.5], [0] * 5) for n in range(5)})
    assert alone.word(["edge"], "above") == "holds"
    assert many.word(["edge"], "above") == "open"
    assert many.corrected["edge"] > alone.corrected["edge"]


def test_the_weakest_contrast_is_the_one_that_speaks_least_for_the_claim():
    found = evidence("lower", "same", "higher")
    assert found.weakest(["lower", "same"], "below")[0] == "same"
    assert found.weakest(["lower", "same", "higher"], "below")[0] == "higher"
    assert found.weakest(["lower", "same", "higher"], "above")[0] == "lower"


def test_the_table_has_every_contrast_with_its_corrected_p():
    table = evidence("lower", "same").table()
    assert table["contrast"].tolist() == ["lower", "same"]
    assert (table["low"] < table["difference"]).all()
    assert table["p_holm"][0] < 0.05 < table["p_holm"][1]


@pytest.mark.parametrize("names", [[], ["lower", "nothing"]])
def test_contrasts_that_are_not_there_are_refused(names):
    with pytest.raises(ValueError, match="no contrast"):
        evidence("lower").word(names, "below")


def test_one_seed_decides_nothing_and_says_so():
    single = paired([3.0], [4.0])
    assert Evidence({"one": single}).word(["one"], "below") == "open"
    found = concluded("lstm-larger-lower", "c", single, "holds", unit="nats", runs=("r",), cause="")
    assert (found.verdict, found.interval) == ("open", None)
    assert "one seed" in found.cause


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "fails"], "depends"),
        (["holds", "open"], "open"),
        (["fails", "open"], "fails"),
        (["depends", "open"], "depends"),
    ],
)
def test_readings_of_one_claim_make_one_word(words, expected):
    assert together(*words) == expected


def test_no_reading_makes_no_word():
    with pytest.raises(ValueError, match="0 words"):
        together()


def test_effects_and_words_are_spoken():
    assert spoken(paired([1.0], [0.5]), "nats") == "+0.500 nats"
    assert spoken(paired([1.0, 1.1], [0.5, 0.5])).startswith("+0.550 (")
    assert (told("open"), told("fails")) == ("stays open", "fails")
