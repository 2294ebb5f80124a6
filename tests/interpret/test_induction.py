"""Rows that repeat, runs that are watched, and the moment that is read off their rows."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from picollm_core.batches import PackedBatches
from picollm_core.config import LSTMConfig
from picollm_core.corpora import load_corpus
from picollm_core.interpret.ablation import head_edits
from picollm_core.interpret.attention_maps import (
    attention_patterns,
    repeated_tokens,
    repetition_loss,
    repetition_scores,
)
from picollm_core.interpret.hooks import hooked
from picollm_core.interpret.induction import (
    LEAST_SCORE,
    WATCHED,
    InductionSetting,
    RepeatedRows,
    find_moment,
    frequent_tokens,
    induction_arms,
    induction_run,
    induction_study,
    moments,
    recorded_ablations,
    recorded_induction,
    watch_heads,
    without_heads,
)
from picollm_core.lab import Lab
from picollm_core.models import build_model
from picollm_core.profiles import PROFILES
from picollm_core.token_store import TokenStore, token_store
from picollm_core.tokenizers import load_tokenizer

LENGTH = 5
SHORT = {
    "max_steps": 5,
    "every": 2,
    "batch_size": 4,
    "length": LENGTH,
    "held_out": 3,
    "periods": (3, 6),
    "pool_size": 40,
}
WIDTH = {"block_size": 20, "n_embd": 16, "n_head": 2}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("stories-4k")


@pytest.fixture(scope="module")
def corpus():
    return load_corpus("storyworld", n_stories=100)


def text_batches(seed=0, batch_size=3, block_size=20):
    store = TokenStore(np.arange(500, dtype=np.uint16) % 50, np.array([0, 500]), 500)
    return PackedBatches(store, block_size, batch_size, seed)


def repeated_rows(seed=0, n_rows=4, periods=(3, 6), tokens=range(100, 140)):
    return RepeatedRows(text_batches(seed), list(tokens), n_rows, periods, seed)


def period_of(row):
    return next(p for p in range(1, len(row)) if all(row[i] == row[i + p] for i in range(len(row) - p)))


def test_a_batch_is_the_texts_rows_and_rows_that_repeat_below_them():
    idx, targets = repeated_rows().next_batch()
    assert idx.shape == targets.shape == (3 + 4, 20)
    assert idx.dtype == targets.dtype == torch.int64
    assert torch.equal(idx[:3], text_batches().next_batch()[0])
    assert torch.equal(targets[:3], text_batches().next_batch()[1])
    assert torch.equal(idx[3:, 1:], targets[3:, :-1]), "every token is the target of the one before"


def test_every_row_has_a_period_of_its_own_and_no_token_twice_in_it():
    loader = repeated_rows(n_rows=50)
    rows = loader.next_batch()[0][3:].tolist()
    periods = [period_of(row) for row in rows]
    assert set(periods) == {3, 4, 5, 6}
    assert all(len(set(row[:period])) == period for row, period in zip(rows, periods, strict=True))
    assert {token for row in rows for token in row} <= set(range(100, 140))
    assert len({tuple(row) for row in rows}) == 50


def test_the_seed_decides_the_rows_and_steps_differ():
    one, same, other = repeated_rows(), repeated_rows(), repeated_rows(seed=1)
    first = one.next_batch()[0]
    assert torch.equal(first, same.next_batch()[0])
    assert not torch.equal(first[3:], other.next_batch()[0][3:])
    assert not torch.equal(first[3:], one.next_batch()[0][3:])


def test_resuming_continues_with_the_batch_that_would_have_come():
    loader = repeated_rows()
    for _ in range(3):
        loader.next_batch()
    state, expected = loader.state_dict(), loader.next_batch()
    resumed = repeated_rows()
    resumed.load_state_dict(json.loads(json.dumps(state)))
    assert all(torch.equal(a, b) for a, b in zip(resumed.next_batch(), expected, strict=True))
    assert resumed.epoch == loader.epoch > 0
    assert resumed.steps_per_epoch == text_batches().steps_per_epoch


@pytest.mark.parametrize("other", [{"seed": 1}, {"n_rows": 5}, {"periods": (3, 7)}, {"tokens": range(100, 150)}])
def test_a_state_of_other_settings_is_refused(other):
    with pytest.raises(ValueError, match="this one has"):
        repeated_rows(**other).load_state_dict(repeated_rows().state_dict())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_rows": 0}, "n_rows is 0"),
        ({"periods": (1, 4)}, "from 1 to 4"),
        ({"periods": (5, 4)}, "from 5 to 4"),
        ({"tokens": range(5)}, "5 different tokens are too few for a period of 6"),
    ],
)
def test_rows_that_cannot_be_drawn_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        repeated_rows(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"repeated": 1.0}, "share"),
        ({"repeated": -0.1}, "share"),
        ({"every": 0}, "every is 0"),
        ({"length": 2}, "is 2"),
    ],
)
def test_settings_that_make_no_run_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        InductionSetting(**changes)


def test_a_batch_keeps_a_row_of_text_however_large_the_share():
    assert InductionSetting(repeated=0.99, batch_size=4).repeated_rows == 3
    assert InductionSetting(repeated=0.0).repeated_rows == 0
    assert InductionSetting(repeated=0.5, batch_size=16).repeated_rows == 8


def test_frequent_tokens_are_those_that_occur_most_but_not_the_end_of_text(corpus, tokenizer):
    counts = np.bincount(token_store(corpus, "train", tokenizer).tokens, minlength=tokenizer.n_vocab)
    chosen = frequent_tokens(corpus, tokenizer, 30).tolist()
    assert len(set(chosen)) == 30
    assert chosen == sorted(chosen)
    assert tokenizer.eot_token not in chosen
    left = set(range(tokenizer.n_vocab)) - {*chosen, tokenizer.eot_token}
    assert min(counts[chosen]) >= max(counts[list(left)])
    everything = frequent_tokens(corpus, tokenizer, tokenizer.n_vocab).tolist()
    assert min(counts[everything]) >= 1, "no token that never occurs"


def test_watching_finds_the_highest_scores_and_whose_they_are():
    torch.manual_seed(0)
    model = build_model(induction_arms(**WIDTH)["2 layers"].replace(vocab_size=60)).eval()
    idx = repeated_tokens(range(1, 60), 8, LENGTH, 0, torch.Generator().manual_seed(0))
    found = watch_heads(model, idx, LENGTH)
    scores = repetition_scores(attention_patterns(model, idx), LENGTH)
    for name in WATCHED:
        assert found[name] == pytest.approx(scores[name].max(), abs=1e-4)
    own = scores[(scores["layer"] == found["layer"]) & (scores["head"] == found["head"])]
    assert own["induction"].item() == scores["induction"].max()
    assert (found["first"], found["second"]) == pytest.approx(repetition_loss(model, idx, LENGTH), abs=1e-4)


def test_without_a_head_the_others_are_scored_and_the_second_copy_is_that_of_the_edited_model():
    torch.manual_seed(0)
    model = build_model(induction_arms(**WIDTH)["2 layers"].replace(vocab_size=60)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    idx = repeated_tokens(range(1, 60), 8, LENGTH, 0, torch.Generator().manual_seed(0))
    rows = pd.DataFrame(without_heads(model, idx, LENGTH)).set_index(["layer", "head"])
    assert rows.index.tolist() == [(0, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    whole = watch_heads(model, idx, LENGTH)
    assert rows.loc[(0, 0)].tolist() == pytest.approx([whole["induction"], whole["second"]], abs=1e-4)
    with hooked(model, edit=head_edits(model, [(1, 2)])):
        scores = repetition_scores(attention_patterns(model, idx), LENGTH).drop(index=1)
        expected = [scores["induction"].max(), repetition_loss(model, idx, LENGTH)[1]]
    assert rows.loc[(1, 2)].tolist() == pytest.approx(expected, abs=1e-4)
    assert rows["second"].nunique() == 5
    assert rows.loc[(whole["layer"], whole["head"]), "induction"] < whole["induction"]


def test_a_run_is_watched_at_its_start_at_every_interval_and_at_its_end(corpus, tokenizer):
    config = induction_arms(**WIDTH)["2 layers"]
    found = induction_run(config, corpus, tokenizer, InductionSetting(**SHORT))
    rows = pd.DataFrame(found["rows"])
    assert rows["step"].tolist() == [0, 2, 4, 5]
    assert math.isnan(rows["loss"][0])
    assert rows["text"][3] < rows["text"][0] < math.log(tokenizer.n_vocab) + 0.1
    assert rows["loss"][1:].between(5, 10).all()
    heads = pd.DataFrame(found["heads"])
    assert heads[["layer", "head"]].to_numpy().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert heads["induction"].max() == rows["induction"][3]
    assert len(found["tokens"]) == 1 + 2 * LENGTH
    assert found["tokens"][1 : 1 + LENGTH] == found["tokens"][1 + LENGTH :]
    patterns = np.array(found["patterns"])
    assert patterns.shape == (2, 2, 1 + 2 * LENGTH, 1 + 2 * LENGTH)
    np.testing.assert_allclose(patterns.sum(-1), 1, atol=0.01)
    assert json.loads(json.dumps(found)) == found


def test_equal_seeds_repeat_a_run_and_other_seeds_and_shares_differ(corpus, tokenizer):
    config = induction_arms(**WIDTH)["1 layer"]
    runs = [
        induction_run(config, corpus, tokenizer, InductionSetting(**(SHORT | {"repeated": share})), seed)["rows"]
        for share, seed in ((0.5, 0), (0.5, 0), (0.5, 1), (0.0, 0))
    ]
    assert runs[0] == runs[1]
    assert runs[0][-1] != runs[2][-1]
    assert runs[0][-1] != runs[3][-1]


def test_held_out_rows_must_fit_the_models_window(corpus, tokenizer):
    with pytest.raises(ValueError, match="exceed the block_size"):
        induction_run(induction_arms(**WIDTH)["1 layer"], corpus, tokenizer, InductionSetting(length=10, max_steps=1))


def test_arms_differ_in_depth_alone():
    arms = induction_arms()
    assert [config.n_layer for config in arms.values()] == [1, 2]
    assert list(arms) == ["1 layer", "2 layers"]
    assert len({config.replace(n_layer=1).fingerprint() for config in arms.values()}) == 1


def test_a_study_has_every_arm_and_seed_and_computes_each_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lab, setting = Lab(PROFILES["quick"]), InductionSetting(**SHORT)
    lab.opened[lab.profile.data] = [load_corpus("storyworld", n_stories=100)]
    arms = induction_arms(**WIDTH)
    table = induction_study(lab, arms, setting, [0, 1])
    assert table.groupby(["arm", "seed"], sort=False)["step"].apply(list).to_dict() == {
        (arm, seed): [0, 2, 4, 5] for arm in arms for seed in (0, 1)
    }
    assert set(table["corpus"]) == {"storyworld"}
    before = lab.redrawn
    pd.testing.assert_frame_equal(induction_study(lab, arms, setting, [0, 1]), table)
    assert lab.redrawn == before + 4
    cut = recorded_ablations(lab, arms["2 layers"], setting, 1)
    last = table[(table["arm"] == "2 layers") & (table["seed"] == 1)].iloc[-1]
    assert cut.iloc[0][["induction", "second"]].tolist() == pytest.approx([last["induction"], last["second"]], abs=1e-3)
    recorded_induction(lab, arms["1 layer"], setting.replace(repeated=0.0), 0)
    assert lab.redrawn == before + 4, "another setting is another measurement"
    with pytest.raises(ValueError, match="0 seeds"):
        induction_study(lab, arms, setting, [])


def made_rows(score=0.8, at=500, width=20, step=20, last=1_000):
    """A run whose head appears around `at`: the second copy's loss falls from 6 to 2 nats there."""
    steps = np.arange(0, last + 1, step)
    done = 1 / (1 + np.exp(-(steps - at) / width))
    training = 6 - 0.001 * steps - 2 * done
    return pd.DataFrame(
        {"step": steps, "induction": score * done, "first": 7.0, "second": 6 - 4 * done, "loss": training}
    )


@pytest.mark.parametrize("at", [300, 500, 700])
def test_the_moment_is_where_half_of_the_score_is_reached_and_losses_fall_fastest(at):
    found = find_moment(made_rows(at=at))
    assert found["score"] == pytest.approx(0.8, abs=0.01)
    assert found["moment"] == pytest.approx(at, abs=20)
    assert found["bump"] == pytest.approx(at, abs=20)
    assert found["gain"] == pytest.approx(5, abs=0.01)
    assert found["second_fall"] == pytest.approx(4 * 0.85, abs=0.1)  # of a logistic, from -2.5 to 2.5 widths
    assert found["fall"] == pytest.approx(0.1 + 2 * 0.85, abs=0.1)
    assert found["fall_before"] == pytest.approx(0.1 + 2 * 0.07, abs=0.06)


def test_a_fall_before_the_head_is_not_taken_for_its_moment():
    rows = made_rows(at=600)
    both = 3 * np.exp(-rows["step"] / 20)  # what every model learns first, on both copies
    found = find_moment(rows.assign(first=rows["first"] + both, second=rows["second"] + both))
    assert found["bump"] == pytest.approx(600, abs=20)


def test_a_run_without_such_a_head_has_no_moment():
    found = find_moment(made_rows(score=LEAST_SCORE / 2))
    assert found["score"] == pytest.approx(LEAST_SCORE / 2)
    assert all(math.isnan(found[name]) for name in ("moment", "bump", "second_fall", "fall", "fall_before"))


def test_the_order_of_rows_does_not_matter_and_a_missing_first_loss_neither():
    rows = made_rows()
    rows.loc[0, "loss"] = math.nan
    assert find_moment(rows.sample(frac=1, random_state=0)) == find_moment(rows)
    assert math.isfinite(find_moment(rows)["fall_before"])


def test_two_rows_show_no_change():
    with pytest.raises(ValueError, match="2 rows"):
        find_moment(made_rows().head(2))


def test_moments_of_all_runs_stand_in_one_table():
    table = pd.concat(
        [made_rows(at=400 + 100 * seed).assign(arm="2 layers", seed=seed) for seed in (0, 1)]
        + [made_rows(score=0.05).assign(arm="1 layer", seed=0)]
    )
    found = moments(table)
    assert found[["arm", "seed"]].to_numpy().tolist() == [["2 layers", 0], ["2 layers", 1], ["1 layer", 0]]
    assert found["moment"].tolist()[:2] == pytest.approx([400, 500], abs=20)
    assert math.isnan(found["moment"][2])


def test_a_family_without_attention_cannot_be_watched():
    model = build_model(LSTMConfig(vocab_size=60, n_embd=8))
    idx = repeated_tokens(range(1, 60), 2, LENGTH, 0)
    with pytest.raises(ValueError, match="lstm model has no attention"):
        watch_heads(model, idx, LENGTH)
