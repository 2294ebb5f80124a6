"""What others claimed about norms, beside what was measured here: effects with intervals, and verdicts."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from picollm_core.config import require
from picollm_core.contrasts import Contrast, equivalence, paired_contrast, verdict
from picollm_core.norm_study import published_arms

Values = Mapping[str, Sequence[float]]
"""One value a seed for every arm, the seeds of all arms in one order; a table of seeds x arms is one too."""

_BEST = "pre, absolute"


def _pre_less_post(values: Values) -> dict[str, Contrast]:
    """pre - post among the published arms, by the way they tell positions."""
    positions = [name.removeprefix("pre, ") for name in published_arms() if name.startswith("pre, ")]
    return {name: paired_contrast(values[f"pre, {name}"], values[f"post, {name}"]) for name in positions}


def _best_less_others(values: Values) -> dict[str, Contrast]:
    others = [name for name in published_arms() if name != _BEST]
    return {name: paired_contrast(values[_BEST], values[name]) for name in others}


def _off(slopes: pd.DataFrame, place: str, theory: float) -> Contrast:
    """How far the fitted slope of a place lies from that of the theory."""
    rows = slopes[slopes["arm"] == place]
    require(len(rows) == 1, f"{len(rows)} slopes for {place!r}; give those of one setting")
    row = rows.iloc[0]
    return Contrast(row["slope"] - theory, row["low"] - theory, row["high"] - theory, int(row["seeds"]))


def with_interval(mean: float, low: float = math.nan, high: float = math.nan) -> str:
    """A signed number to three decimals, and its interval in brackets where there is one."""
    return f"{mean:+.3f}" + (f" ({low:+.3f} to {high:+.3f})" if low <= high else "")


def bullets(parts: Mapping[str, Sequence[str]]) -> str:
    """Markdown: every name in bold, and below it its lines as a list."""
    return "\n\n".join(f"**{name}**\n\n" + "\n".join(f"- {line}" for line in lines) for name, lines in parts.items())


def _effects(contrasts: Mapping[str, Contrast]) -> str:
    """Each contrast behind its name, with its interval where it has one."""
    return "; ".join(f"{name}: {with_interval(c.mean, c.low, c.high)}" for name, c in contrasts.items())


def judge_norm_claims(
    *,
    course: Values,
    end: Values,
    distinct: Values,
    deep: Values,
    cost: Contrast,
    slopes: pd.DataFrame,
    margin: float,
    slope_margin: float,
) -> pd.DataFrame:
    """Claims about norms, a row each: claim, source, measured (what the effect is), effect, verdict.

    `course` and `end` are losses of `published_arms` in nats per token (mean over the training, and after it),
    `distinct` their distinct-2, `deep` the final losses of `norm_arms`, `cost` by how much an update with LayerNorm
    takes longer than with RMSNorm (share), `slopes` a table of `depth_slopes` in the setting of the theorem. What is
    claimed to make no difference holds within `margin` nats, or `slope_margin` for a slope. Intervals are 95%; one seed
    has none, and leaves everything open. Raises ValueError when `slopes` has no or several rows for a place, KeyError
    for a missing arm.
    """
    same, final = _pre_less_post(course), _pre_less_post(end)
    best, varied = _best_less_others(end), _best_less_others(distinct)
    places = {"pre - post": paired_contrast(deep["pre RMSNorm"], deep["post RMSNorm"])}
    slides, paper = "a project's slides", "Xiong et al. 2020"
    rows = [
        ("minimal variance of the validation curves across norms", slides,
         f"pre - post by position, mean over training, nats; none is within {margin:g}",
         same, equivalence(*same.values(), margin=margin)),
        ("minimal variance of the perplexities across norms", slides,
         f"pre - post by position, at the end, nats; none is within {margin:g}",
         final, equivalence(*final.values(), margin=margin)),
        ("pre-norm with absolute positions has the lowest perplexity", slides,
         "it minus the other five, nats", best, verdict(*best.values(), claim="below")),
        ("pre-norm with absolute positions is most diverse", slides,
         "it minus the other five, distinct-2", varied, verdict(*varied.values(), claim="above")),
        ("pre-norm, as modern Transformers have it, converges better than post-norm", "the assignment, as we read it",
         "pre - post, deep models, nats", places, verdict(*places.values(), claim="below")),
        ("LayerNorm costs more than RMSNorm", "a project's plan, as we read it",
         "excess of an update's time, share", {"LayerNorm": cost}, verdict(cost, claim="above")),
    ]  # fmt: skip
    for place, theory in (("pre", -0.5), ("post", 0.0)):
        off = _off(slopes, place, theory)
        rows.append((f"the last layer's gradient has slope {theory:g} in depth, {place}-norm", paper,
                     f"fitted slope minus {theory:g}; none is within {slope_margin:g}",
                     {place: off}, equivalence(off, margin=slope_margin)))  # fmt: skip
    table = [(claim, source, what, _effects(found), judged) for claim, source, what, found, judged in rows]
    return pd.DataFrame(table, columns=["claim", "source", "measured", "effect", "verdict"])
