"""Verdicts on k-grams follow the contrasts at equal width and at equal weights, and say which one decides."""

import pandas as pd
import pytest

from picollm_core.kgram_contrasts import kgram_contrasts
from picollm_core.verdict_arms import Trained
from picollm_core.verdict_kgrams import (
    CONTEXTS,
    EQUAL,
    SIX,
    bend,
    judge_context,
    judge_diversity,
    judge_inputs,
    judge_shrinking,
    judge_smoothness,
    judge_weights,
    kgram_weights,
    roughness,
)
from tests.verdict_values import NOISE, falling, made_run, near


def losses(width=-0.1, weights=0.1, step=-0.3, grown=0.0):
    """k lowers by `step` a time; one-hot less scaled is `width` (and `grown` a step of k more), or `weights`."""
    means = {}
    for place, k in enumerate(CONTEXTS):
        base = 4.0 + step * place
        means[k, "learned", 32] = base
        means[k, "scaled", 32] = base
        means[k, "onehot", 32] = base + width + grown * place
        if k > 1:
            means[k, "scaled", EQUAL[k, "scaled"]] = base
            means[k, "onehot", EQUAL[k, "onehot"]] = base + weights + abs(grown) * place
    return near(means)


def table(**changes) -> pd.DataFrame:
    found = losses(**changes)
    return kgram_contrasts(found, dict.fromkeys(found, 100_000), width=32, equal=EQUAL)


def test_an_advantage_that_only_more_weights_bring_depends():
    lower, grows = judge_inputs(table(grown=-0.05), 5, ("r",))
    assert lower.verdict == "depends"
    assert "at equal width it holds" in lower.cause
    assert "at equal weights it fails" in lower.cause
    assert grows.verdict == "depends"
    assert lower.effect > 0  # shown is the comparison at equal weights


def test_an_advantage_at_equal_weights_too_holds():
    lower, grows = judge_inputs(table(width=-0.1, weights=-0.1), 5, ("r",))
    assert lower.verdict == "holds"
    assert grows.verdict == "open"  # every step of k changes it by the noise alone


def test_every_step_of_k_has_to_lower_the_loss():
    short = {3: [3.7] * 5, 5: [3.8, 3.81, 3.79, 3.8, 3.8]}
    rising, best = judge_context(table(), losses(), short, ("r",))
    assert rising.verdict == "holds"
    assert "more tables need more text" in rising.cause
    assert best.verdict == "depends"  # best of six at equal width, not at equal weights
    worse, _ = judge_context(table(step=0.2), losses(step=0.2), short, ("r",))
    assert worse.verdict == "fails"


def curves(rough: float) -> dict:
    """Runs of both inputs on the same batches; one-hot curves have `rough` nats of noise of their own."""
    noise = NOISE.ravel()[:60] / 0.004
    arms = {}
    for k in CONTEXTS:
        for name, size in (("scaled", 0.05), ("onehot", 0.05 + rough)):
            arms[k, name, 32] = [
                made_run(falling(4.0) + size * (1 + 0.01 * NOISE[k, s]) * noise, s, f"{name}{k}") for s in range(5)
            ]
    return arms


def test_rougher_one_hot_curves_make_scaled_ones_smoother_and_equal_ones_do_not():
    assert roughness(curves(0.05)[3, "onehot", 32][0]) > 1.5 * roughness(curves(0.05)[3, "scaled", 32][0])
    found = judge_smoothness(curves(0.05), ("r",))
    assert found.effect < 0
    assert "by roughness it holds" in found.cause
    assert judge_smoothness(curves(0.0), ("r",)).verdict == "fails"


def test_a_bend_is_what_a_parabola_in_log_updates_misses():
    straight = made_run([8 - 0.8 * place**0.1 for place in range(1, 61)])
    bent = made_run([8 - 0.8 * place**0.1 - (place > 30) for place in range(1, 61)])
    assert bend(bent) > 10 * bend(straight)


def test_diversity_varies_little_only_within_the_margin():
    same = near(dict.fromkeys(SIX, 0.6))
    assert judge_diversity(same, ("r",)).verdict == "holds"
    apart = near({arm: 0.6 + 0.1 * (arm[0] == 5) for arm in SIX})
    found = judge_diversity(apart, ("r",))
    assert found.verdict == "fails"
    assert abs(found.effect) == pytest.approx(0.1, abs=0.02)


def shrinking(pico: float, tiny: float, equal: float):
    means = {}
    for size, lead in (("pico", pico), ("tiny", tiny)):
        means |= {f"{size} scaled": 4.0, f"{size} one-hot": 4.0 - lead}
        means |= {f"{size} scaled, equal": 4.0, f"{size} one-hot, equal": 4.0 - equal}
    values = near(means)
    runs = {name: [made_run([own[s]] * 60, s, name) for s in range(5)] for name, own in values.items()}
    return judge_shrinking(Trained(runs, pd.DataFrame(), {}))


def test_a_lead_shrinks_holds_or_has_nothing_to_shrink():
    assert shrinking(0.3, 0.1, 0.2).verdict == "holds"
    assert shrinking(0.1, 0.3, 0.2).verdict == "fails"
    found = shrinking(0.3, 0.1, -0.2)
    assert found.verdict == "depends"
    assert "no lead that could shrink" in found.cause


def test_weights_are_counted_exactly_at_the_slides_vocabulary():
    counts = kgram_weights()
    assert counts["k = 1, onehot"] == 2 * 32 * 50_257 + 32 + 32 * 33
    assert counts["k = 5, onehot"] == 6 * 32 * 50_257 + 32 + 32 * 33
    assert counts["k = 5, scaled"] == (6 + 32) * 50_257 + 30 * 32 + 32 + 32 * 33
    found = judge_weights(counts, "record")
    assert (found.verdict, found.interval, found.runs) == ("fails", None, ("record",))
    assert found.effect == counts["k = 5, onehot"] / counts["k = 5, scaled"]
    assert "k = 1 alone" in found.cause
