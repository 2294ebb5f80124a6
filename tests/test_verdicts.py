"""A verdict says what was compared and why it came out so; the table covers every claim exactly once."""

import json

import pytest

from picollm_core.claims import CLAIMS
from picollm_core.contrasts import paired_contrast
from picollm_core.train import train
from picollm_core.verdicts import Verdict, fingerprints, judged, require_complete, verdict_table, write_verdicts

LOWER = paired_contrast([1.0, 1.1, 0.9, 1.0, 1.05], [1.5, 1.4, 1.6, 1.5, 1.45])


def one(claim_id: str, **changes) -> Verdict:
    values = {"contrast": "a - b", "effect": -0.5, "interval": (-0.6, -0.4), "unit": "nats a token", "runs": ("b", "a")}
    return Verdict(id=claim_id, **(values | {"verdict": "holds", "cause": ""} | changes))


def test_an_interval_on_the_claimed_side_holds_and_needs_no_cause():
    found = judged(
        "onehot-lower", "one-hot - scaled", LOWER, claim="below", unit="nats", runs=("a",), cause="not needed"
    )
    assert (found.verdict, found.cause) == ("holds", "")
    assert found.effect == pytest.approx(-0.48)
    assert found.interval == pytest.approx((LOWER.low, LOWER.high))


def test_an_interval_on_the_other_side_fails_and_keeps_its_cause():
    found = judged("onehot-lower", "one-hot - scaled", LOWER, claim="above", unit="nats", runs=("a",), cause="unequal")
    assert (found.verdict, found.cause) == ("fails", "unequal")


def test_one_pair_has_no_interval_and_leaves_the_claim_open():
    found = judged(
        "onehot-lower", "x", paired_contrast([1.0], [2.0]), claim="below", unit="nats", runs=(), cause="one seed"
    )
    assert (found.verdict, found.interval) == ("open", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verdict": "true"}, "verdict is 'true'"),
        ({"interval": (-0.4, -0.3)}, "outside its interval"),
        ({"effect": None}, "outside its interval"),
        ({"verdict": "fails"}, "without a cause"),
    ],
)
def test_a_verdict_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        one("onehot-lower", **changes)


def test_a_verdict_on_an_unknown_claim_is_refused():
    with pytest.raises(ValueError, match="no claim 'onehot-better'"):
        one("onehot-better")


def test_missing_and_double_verdicts_are_named():
    names = list(CLAIMS)
    with pytest.raises(ValueError, match=f"without: {names[-1]}; more than one: {names[0]}"):
        require_complete([one(name) for name in [names[0], *names[:-1]]])


def test_the_file_lists_every_claim_once_in_their_order(tmp_path):
    verdicts = [one(name) for name in reversed(CLAIMS)]
    rows = json.loads(write_verdicts(verdicts, tmp_path).read_text())
    assert [row["id"] for row in rows] == list(CLAIMS)
    assert list(rows[0]) == [
        "id", "source", "claim", "contrast", "effect", "interval", "unit", "runs", "verdict", "cause",
    ]  # fmt: skip
    assert rows[0]["runs"] == ["a", "b"]
    assert rows[0]["claim"] == CLAIMS[rows[0]["id"]].claim
    assert list(verdict_table(verdicts)["id"]) == list(CLAIMS)


def test_a_file_without_all_claims_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="need one verdict each"):
        write_verdicts([one("onehot-lower")], tmp_path)
    assert not list(tmp_path.iterdir())


def test_runs_are_named_once(tmp_path):
    settings = {"corpus": "storyworld", "n_stories": 100, "splits": (80, 20, 0), "block_size": 16, "batch_size": 2}
    run = train("kgram-pico", runs_dir=tmp_path, max_steps=1, eval_stories=2, n_embd=8, **settings)
    assert fingerprints([run, run], [run]) == (run.fingerprint,)
