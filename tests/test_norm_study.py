"""The study of norms: three starts, the theorem's slopes, what counts as learning, and who is dearer."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from picollm_core.config import TrainConfig, TransformerConfig
from picollm_core.lab import Lab
from picollm_core.models.transformer import INIT_STD
from picollm_core.norm_study import (
    PLACES,
    by_layer,
    depth_slopes,
    gradient_norms,
    gradient_study,
    norm_arms,
    outcome,
    place_arms,
    predicted_slopes,
    published_arms,
    random_text,
    rate_table,
    slope_table,
    start_model,
    theorem_arms,
    time_ratios,
    training_tokens,
    try_rates,
    word_frequency_loss,
)
from picollm_core.profiles import get_profile
from picollm_core.results import ResultStore
from picollm_core.token_store import TokenStore
from picollm_core.train import train

SMALL = {"vocab_size": 61, "block_size": 16}


def changed(first: TransformerConfig, second: TransformerConfig) -> set[str]:
    one, other = first.to_dict(), second.to_dict()
    return {name for name in one if one[name] != other[name]}


def tokens(shares=(0.5, 0.25, 0.25), count=400) -> TokenStore:
    """Tokens 0, 1, 2, ... in exactly these shares, in a seeded order."""
    ids = np.repeat(np.arange(len(shares)), [round(share * count) for share in shares]).astype(np.uint16)
    np.random.default_rng(0).shuffle(ids)
    return TokenStore(ids, np.array([0, len(ids)]), n_bytes=len(ids))


def test_arms_differ_in_the_norm_and_in_nothing_else():
    arms = norm_arms(3)
    assert list(arms) == ["pre RMSNorm", "post RMSNorm", "sandwich RMSNorm", "pre LayerNorm"]
    first = arms["pre RMSNorm"]
    assert [changed(first, arm) for arm in arms.values()] == [set(), {"norm"}, {"norm"}, {"norm_kind"}]
    assert first.n_layer == 3
    assert list(place_arms(2).values()) == list(norm_arms(2).values())[:3]


def test_published_arms_are_every_place_with_every_position():
    arms = published_arms()
    assert {(arm.norm, arm.position) for arm in arms.values()} == {
        (place, position) for place in ("pre", "post") for position in ("absolute", "rope", "none")
    }
    assert all(changed(arms["pre, absolute"], arm) <= {"norm", "position"} for arm in arms.values())


def test_theorem_arms_have_square_matrices():
    model = start_model(theorem_arms(2)["post"].replace(**SMALL), "xavier", 0)
    block = model.blocks[0]
    for weight in (block.mlp.fc.weight, block.mlp.proj.weight, block.attention.proj.weight):
        assert weight.shape == (64, 64)


def test_starts_have_the_standard_deviations_they_are_named_for():
    config = place_arms(8)["pre"].replace(**SMALL)
    for start, inner, outward in (("package", INIT_STD, INIT_STD / 4), ("one std", INIT_STD, INIT_STD)):
        block = start_model(config, start, 0).blocks[3]
        assert block.mlp.fc.weight.std().item() == pytest.approx(inner, rel=0.05)
        for layer in (block.mlp.proj, block.attention.proj):
            assert layer.weight.std().item() == pytest.approx(outward, rel=0.05)
    model = start_model(config.replace(tied=False), "xavier", 0)
    block = model.blocks[3]
    assert model.embedding.weight.std().item() == pytest.approx(1, rel=0.05)
    assert block.mlp.proj.weight.std().item() == pytest.approx(math.sqrt(2 / (64 + 256)), rel=0.05)
    for matrix in block.attention.qkv.weight.chunk(3):
        assert matrix.std().item() == pytest.approx(1 / 8, rel=0.05)


@pytest.mark.parametrize("start", ["package", "one std", "xavier"])
def test_a_seed_gives_the_same_weights_again_and_leaves_torchs_generator_alone(start):
    config = place_arms(2)["post"].replace(**SMALL, tied=False)
    before = torch.get_rng_state()
    first, again, other = (start_model(config, start, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.mlp.proj.weight"], other["blocks.0.mlp.proj.weight"])


def test_unknown_start_and_a_tied_xavier_start_are_refused():
    config = place_arms(2)["pre"].replace(**SMALL)
    with pytest.raises(ValueError, match="start is 'glorot'; choose"):
        start_model(config, "glorot", 0)
    with pytest.raises(ValueError, match="tied=True do not go with the start 'xavier'"):
        start_model(config, "xavier", 0)
    with pytest.raises(ValueError, match="n_kv_head=2"):
        start_model(config.replace(tied=False, n_kv_head=2), "xavier", 0)


def test_gradient_norms_are_those_of_the_backward_pass():
    model = start_model(theorem_arms(3)["pre"].replace(**SMALL), "xavier", 1)
    idx, targets = random_text(61, 2, 16, 3)
    found = gradient_norms(model, idx, targets)
    loss = torch.nn.functional.cross_entropy(model(idx).flatten(0, 1), targets.flatten())
    loss.backward()
    expected = [block.mlp.proj.weight.grad.norm().item() for block in model.blocks]
    assert found["gradients"] == pytest.approx(expected, rel=1e-3)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-3)
    assert found["loss"] == pytest.approx(math.log(61), abs=0.1)


def test_the_final_norm_changes_nothing_in_post_norm_at_the_start():
    model = start_model(theorem_arms(2)["post"].replace(**SMALL), "xavier", 0)
    batch = random_text(61, 2, 16, 0)
    with_norm = gradient_norms(model, *batch)
    assert with_norm["stream"] == pytest.approx(1, abs=1e-3)
    model.norm = torch.nn.Identity()
    assert gradient_norms(model, *batch)["gradients"] == pytest.approx(with_norm["gradients"], rel=2e-3)


def test_slopes_at_the_start_are_those_of_theory():
    """Few seeds and a small vocabulary, so only what separates the three places by far is asked for."""
    settings = {"paper": (theorem_arms, "xavier"), "flat": (place_arms, "one std"), "ours": (place_arms, "package")}
    parts = []
    for name, (arms, start) in settings.items():
        rows = gradient_study(arms, start, (2, 8), range(4), vocab_size=256, block_size=32)
        parts.append(by_layer(rows).assign(panel=name))
    layers = pd.concat(parts)
    assert len(layers) == 3 * 3 * 4 * (2 + 8)
    table = slope_table(layers, {name: start for name, (_, start) in settings.items()}).set_index(["setting", "arm"])
    slope = table["slope"]
    for setting in ("paper", "flat"):
        assert slope[setting, "pre"] == pytest.approx(-0.5, abs=0.2)
        assert slope[setting, "sandwich"] == pytest.approx(-0.5, abs=0.2)
    assert [slope[setting, "post"] for setting in settings] == pytest.approx([0] * 3, abs=0.1)
    assert slope["ours", "pre"] == pytest.approx(0, abs=0.1)
    assert (table["low"] < slope).all()
    assert table["times_stream"]["paper", "pre"] == pytest.approx(0, abs=0.12)
    stream = layers[(layers["panel"] == "paper") & (layers["arm"] == "sandwich")].groupby("depth")["stream"].mean()
    assert stream.tolist() == pytest.approx([1 + 2 * 2, 1 + 2 * 8], rel=0.1)  # what STREAM_GROWTH says


def test_predicted_slopes_follow_from_how_the_stream_grows():
    assert predicted_slopes("post", (2, 4), "xavier") == (0, 0)
    assert predicted_slopes("pre", (2, 4), "package") == (0, 0)
    assert predicted_slopes("sandwich", (2, 4), "one std") == (-0.5, -0.5)
    low, high = predicted_slopes("pre", (2, 4), "xavier")
    assert low == pytest.approx(-math.log(7 / 4) / math.log(4))
    assert high == pytest.approx(-math.log(3 / 2) / math.log(4))
    assert predicted_slopes("pre", (2**20, 2**21), "xavier") == pytest.approx((-0.5, -0.5), abs=1e-4)


def test_depth_slopes_are_exact_for_powers_and_need_two_depths():
    rows = [("a", seed, depth, 3 * depth ** (-0.5 + seed / 10)) for seed in (0, 1) for depth in (2, 4, 8)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "depth", "gradient"])
    (row,) = depth_slopes(table).to_dict("records")
    assert row["slope"] == pytest.approx(-0.45)
    assert row["low"] < -0.5 < -0.4 < row["high"]  # two seeds: a wide interval
    assert math.isnan(depth_slopes(table[table["seed"] == 0])["low"][0])
    with pytest.raises(ValueError, match=r"depths \[2\] make no line"):
        depth_slopes(table[table["depth"] == 2])


def test_word_frequencies_cost_their_entropy():
    assert word_frequency_loss(tokens((0.5, 0.25, 0.25))) == pytest.approx(1.5 * math.log(2))
    assert word_frequency_loss(tokens((1.0,))) == 0


def test_cells_start_alike_and_report_what_became_of_them():
    config = TransformerConfig(**SMALL, n_embd=16, n_head=2, n_layer=2, position="rope")
    settings = TrainConfig(max_steps=12, batch_size=4, precision="float32", device="cpu")
    rows = try_rates(config, "package", tokens(), (0.03, 1e30), (0.0, 0.5), settings)
    assert [(row["rate"], row["warmup"]) for row in rows] == [(0.03, 0.0), (0.03, 0.5), (1e30, 0.0), (1e30, 0.5)]
    assert len({row["initial"] for row in rows}) == 1
    assert rows[0]["final"] != rows[1]["final"]
    assert rows[0]["final"] < rows[0]["initial"]
    assert [outcome(row, floor=0.0) for row in rows] == ["stuck", "stuck", "diverged", "diverged"]
    with pytest.raises(ValueError, match="max_steps is None"):
        try_rates(config, "package", tokens(), (0.1,), (0.0,), settings.replace(max_steps=None))


def test_outcome_needs_a_clear_step_below_word_frequencies():
    def judged(final, initial=8.0):
        return outcome({"final": final, "initial": initial}, floor=6.0)

    assert [judged(final) for final in (5.8, 5.95, 7.0, 8.1, None)] == [
        "learns",
        "stuck",
        "stuck",
        "diverged",
        "diverged",
    ]
    assert judged(5.0, initial=None) == "diverged"  # not even the first loss was finite


def test_rate_table_measures_every_place_once_and_then_reads_the_record(tmp_path):
    folder, data = tmp_path / "runs", {"corpus": "storyworld", "n_stories": 100, "splits": (80, 20, 0)}
    model = TransformerConfig(n_embd=16, n_head=2, n_layer=2, position="rope")
    run = train(model, runs_dir=folder, max_steps=2, eval_stories=2, block_size=16, batch_size=2, **data)
    lab = Lab(get_profile("quick"))
    lab.store = ResultStore(tmp_path / "results")
    grid = {"steps": 2, "rates": (0.01, 0.1), "warmups": (0.0,)}
    table = rate_table(lab, run, ("package", "xavier"), **grid)
    assert table.groupby(["start", "panel"], sort=False).size().to_dict() == {
        (start, place): 2 for start in ("package", "xavier") for place in PLACES
    }
    assert table["floor"].unique().tolist() == [word_frequency_loss(training_tokens(run))]
    assert set(table["outcome"]) <= {"stuck", "diverged"}
    lab.redraw_into = tmp_path  # from now on only the record may be read
    pd.testing.assert_frame_equal(rate_table(lab, run, ("package", "xavier"), **grid), table)


def test_time_ratios_are_medians_and_quartiles_by_round():
    seconds = {
        "base": [1.0, 2.0, 4.0, 1.0, 10.0],
        "twice": [2.0, 4.0, 8.0, 2.0, 20.0],
        "same": [1.0, 2.0, 4.0, 1.1, 90.0],
    }
    table = time_ratios(seconds, "base", blocks=5)
    assert list(table.index) == ["twice", "same"]
    assert table.loc["twice", ["ratio", "quarter", "three_quarters"]].tolist() == [2, 2, 2]
    assert table["excess"]["twice"].mean == pytest.approx(1)
    assert table["ratio"]["same"] == 1  # one slow round does not move the median
    with pytest.raises(ValueError, match="base is 'other'; choose one of base, twice, same"):
        time_ratios(seconds, "other")
    with pytest.raises(ValueError, match="5 rounds cannot be cut into 6 blocks"):
        time_ratios(seconds, "base", blocks=6)
