"""Studies of one model's heads hold the scores, sums and interventions that the parts compute, as JSON values."""

import json

import pandas as pd
import pytest
import torch

from picollm_core.interpret.ablation import head_edits
from picollm_core.interpret.attention_maps import REPETITION_SCORES, attention_patterns
from picollm_core.interpret.head_study import prediction_study, repetition_study
from picollm_core.interpret.hooks import hooked
from tests.test_evaluate import BYTES, tiny

PROMPT, ANSWERS = "a cat s", ["a", "t"]


def test_random_tokens_are_scored_for_every_head_beside_its_controls():
    found = repetition_study(tiny("transformer"), BYTES, range(97, 123), length=5, n_rows=6)
    scores = pd.DataFrame(found["scores"])
    assert scores[["layer", "head"]].to_numpy().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert set(found["uniform"]) == set(found["untrained"]) == set(REPETITION_SCORES)
    mean = sum(1 / t for t in range(7, 12)) / 5  # queries 6 to 10 see 7 to 11 tokens
    assert found["uniform"]["induction"] == found["uniform"]["duplicate_token"] == pytest.approx(mean)
    assert found["first"] > 0 < found["second"]
    assert json.loads(json.dumps(found)) == found
    assert repetition_study(tiny("transformer"), BYTES, range(97, 123), length=5, n_rows=6) == found
    other = repetition_study(tiny("transformer"), BYTES, range(97, 123), length=5, n_rows=6, seed=1)
    assert other["scores"] != found["scores"]


@pytest.mark.parametrize("name", ["transformer", "transformer-gla", "transformer-alibi-sandwich"])
def test_the_shares_of_a_prediction_add_up_to_its_logits(name):
    model = tiny(name)
    found = prediction_study(model, BYTES, PROMPT, ANSWERS)
    logits = model(torch.tensor([[BYTES.eot_token, *PROMPT.encode()]]))[0, -1]
    assert found["logits"] == pytest.approx(logits[[97, 116]].tolist())
    assert found["probabilities"] == pytest.approx(logits.softmax(-1)[[97, 116]].tolist())
    assert found["largest_difference"] < 1e-9
    shares = torch.tensor(found["shares"], dtype=torch.float64)
    assert shares.shape == (len(found["parts"]), 2)
    assert (shares.sum(0) + found["mean_logit"]).tolist() == pytest.approx(found["logits"])
    assert json.loads(json.dumps(found)) == found


def test_the_weights_are_those_of_the_last_token_and_tokens_are_named():
    model = tiny("transformer")
    found = prediction_study(model, BYTES, PROMPT, ANSWERS)
    patterns = attention_patterns(model, torch.tensor([[BYTES.eot_token, *PROMPT.encode()]]))
    torch.testing.assert_close(
        torch.tensor(found["weights"], dtype=torch.float64), patterns[:, 0, :, -1], atol=1e-4, rtol=0
    )
    assert found["tokens"] == ["<start>", *PROMPT]


def test_without_a_head_the_probabilities_are_those_of_the_model_with_it_set_to_zero():
    model = tiny("transformer")
    found = prediction_study(model, BYTES, PROMPT, ANSWERS)
    assert [(row["layer"], row["head"]) for row in found["without"]] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    idx = torch.tensor([[BYTES.eot_token, *PROMPT.encode()]])
    with hooked(model, edit=head_edits(model, [(2, 1)])):
        expected = model(idx)[0, -1].softmax(-1)[[97, 116]].tolist()
    assert found["without"][2]["probabilities"] == pytest.approx(expected)
    assert found["without"][2]["probabilities"] != pytest.approx(found["probabilities"])


def test_what_cannot_be_studied_is_refused():
    model = tiny("transformer")
    with pytest.raises(ValueError, match="'at' is 2 tokens of bytes"):
        prediction_study(model, BYTES, PROMPT, ["at"])
    with pytest.raises(ValueError, match="empty"):
        prediction_study(model, BYTES, "", ANSWERS)
    with pytest.raises(ValueError, match="no attention"):
        prediction_study(tiny("lstm"), BYTES, PROMPT, ANSWERS)
    with pytest.raises(ValueError, match="no attention"):
        repetition_study(tiny("kgram-learned"), BYTES, range(97, 123), length=5)
    with pytest.raises(ValueError, match="too few"):
        repetition_study(model, BYTES, range(97, 100), length=5)
