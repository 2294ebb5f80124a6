"""Runs for scaling laws: Transformers over widths and token budgets, rivals of equal size, and one change at a time.

Sizes are two-layer Transformers with RoPE and tied tables, in heads of width 16; the width alone changes. Every budget
is a training of its own with a whole schedule: in the middle of a longer one the learning rate has not come down yet.
All hidden matrices are trained with Muon: in a few hundred updates of AdamW small Transformers hardly learn more than
how frequent words are, and there would be no law to see.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from picollm_core.arms import at_the_edge, best_rates, tune_arms
from picollm_core.config import KGramConfig, LSTMConfig, ModelConfig, RunConfig, TransformerConfig, require
from picollm_core.lab import Lab
from picollm_core.models import build_model
from picollm_core.runs import Run
from picollm_core.scaling import ScalingFit, fit_scaling

HEAD_WIDTH, LAYERS, VOCAB, BLOCK = 16, 2, 4_096, 64
TOLERANCE = 0.02
EARLY = 0.3
"""Share of a run after which a team's held-out loss was flat."""
CONSTANT = "constant rate"
CHANGES: dict[str, dict[str, Any]] = {
    "a quarter of the rate": {},
    "post-norm": {"norm": "post"},
    "learned positions": {"position": "absolute"},
}
"""One hyperparameter changed each, as settings of `Lab.config`."""
PUBLISHED = {("floor", "N"): 0.34, ("floor", "D"): 0.28, ("line", "N"): 0.076, ("line", "D"): 0.095}
"""Exponents in parameters N and tokens D: Hoffmann et al. 2022, eq. 10, and Kaplan et al. 2020, eqs. 1.1 and 1.2."""
LABELS = {"transformer": "Transformer", "lstm": "LSTM", "kgram": "k-gram"}


def sized(width: int) -> TransformerConfig:
    """The study's Transformer of one width. ValueError for one above 16 that is no multiple of it."""
    heads = max(1, width // HEAD_WIDTH)
    require(heads == 1 or width == heads * HEAD_WIDTH, f"width is {width}; take a multiple of {HEAD_WIDTH}, or less")
    return TransformerConfig(
        vocab_size=VOCAB, block_size=BLOCK, n_embd=width, n_layer=LAYERS, n_head=heads, position="rope"
    )


def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """Trained numbers of a model: all, and those without embeddings.

    The second leaves out every table with a row a token (input and head, which are one in a tied model) and learned
    positions, as Kaplan et al. count (2020, arXiv 2001.08361, table 1). Hoffmann et al. (2022) count all.
    """
    with torch.device("meta"):  # no memory for weights that are only counted
        model = build_model(config)
    whole = model.num_parameters()
    tables = [p.numel() for name, p in model.named_parameters() if config.vocab_size in p.shape or "positions" in name]
    return whole, whole - sum(tables)


def equal_width(config: ModelConfig, target: int) -> ModelConfig:
    """`config` at the width whose number of parameters is nearest to `target`; ValueError when that is over 2% off."""

    def count(width: int) -> int:
        return count_parameters(config.replace(n_embd=width))[0]

    width = 1
    while count(width + 1) <= target:
        width += 1
    near = min((width, width + 1), key=lambda own: abs(count(own) - target))
    require(
        abs(count(near) / target - 1) <= TOLERANCE,
        f"a {config.family} of width {near} has {count(near):,} parameters, {count(near) / target - 1:+.1%} from "
        f"{target:,}; choose another size",
    )
    return config.replace(n_embd=near)


def family_arms(width: int) -> dict[str, ModelConfig]:
    """The Transformer of this width, and an LSTM (tied as well) and a k-gram with as many parameters, within 2%."""
    transformer = sized(width)
    target = count_parameters(transformer)[0]
    shape: dict[str, Any] = {"vocab_size": VOCAB, "block_size": BLOCK}
    return {
        "transformer": transformer,
        "lstm": equal_width(LSTMConfig(**shape, tied=True), target),
        "kgram": equal_width(KGramConfig(**shape), target),
    }


@dataclass(frozen=True)
class Plan:
    """How much of the study a profile does. A budget is a number of updates, each of `batch` windows of 64 tokens."""

    widths: tuple[int, ...] = (8, 16, 32, 64, 96)
    budgets: tuple[int, ...] = (75, 150, 300, 600)
    again: tuple[tuple[int, int], ...] = ((8, 75), (8, 300), (16, 300))
    """Width and budget of Transformers that are trained with a second seed as well."""
    rival_width: int = 32
    """Of the Transformer that LSTM and k-gram are as large as."""
    changed_widths: tuple[int, int] = (16, 64)
    constant_budget: int = 300
    rates: tuple[float, ...] = (0.03, 0.06, 0.12)
    rival_rates: tuple[float, ...] = (0.06, 0.12, 0.24)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    batch: int = 16
    eval_stories: int = 40
    final_stories: int = 200
    watched_from: int = 300
    """Runs of so many updates are evaluated ten times on the way, shorter ones twice."""

    def settings(self, steps: int) -> dict[str, Any]:
        """Settings of `Lab.config` for a run of `steps` updates."""
        return {
            "max_steps": steps,
            "optimizer": "muon",
            "batch_size": self.batch,
            "block_size": BLOCK,
            "eval_every": math.ceil(steps / (10 if steps >= self.watched_from else 2)),
            "eval_stories": self.eval_stories,
            "final_stories": self.final_stories,
            "sample_tokens": 1,  # nobody reads the samples, and drawing them takes as long as some of the trainings
        }


def study_plan(lab: Lab) -> Plan:
    """The whole study, or in the quick profile its least: one seed, no tuning, trainings too short to learn much."""
    if lab.profile.name != "quick":
        return Plan(seeds=lab.profile.seeds)
    return Plan(
        widths=(8, 16, 32), budgets=(20, 40, 80), again=(), changed_widths=(8, 32), constant_budget=40, rates=(0.03,),
        rival_rates=(0.03,), seeds=lab.profile.seeds, batch=8, eval_stories=10, final_stories=20, watched_from=40,
    )  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """Learning rates and what they were chosen by: `tuned` has a row an arm and a column a rate (nats per token)."""

    tuned: pd.DataFrame
    by_width: Mapping[int, float]
    rivals: Mapping[str, float]
    edges: Sequence[str] = field(default=())

    def of(self, family: str, width: int) -> float:
        """The rate of a family, and for Transformers of a width.

        Between the tuned widths, the narrowest and the widest, it lies on a straight line in logarithms.
        """
        if family != "transformer":
            return self.rivals[family]
        low, high = min(self.by_width), max(self.by_width)
        share = math.log(width / low) / math.log(high / low) if high > low else 0.0
        return float(f"{self.by_width[low] * (self.by_width[high] / self.by_width[low]) ** share:.2g}")


def tune(lab: Lab, plan: Plan) -> Rates:
    """Rates by the second budget, for the narrowest and the widest Transformer and for its rivals."""
    rivals = {name: config for name, config in family_arms(plan.rival_width).items() if name != "transformer"}
    ends = {str(width): sized(width) for width in (min(plan.widths), max(plan.widths))}
    if len(plan.rates) == len(plan.rival_rates) == 1:
        one = {int(width): plan.rates[0] for width in ends}
        return Rates(pd.DataFrame(), one, dict.fromkeys(rivals, plan.rival_rates[0]))
    settings = plan.settings(plan.budgets[1])
    steps = settings.pop("max_steps")
    by_width = tune_arms(lab, ends, plan.rates, steps=steps, **settings)
    by_family = tune_arms(lab, rivals, plan.rival_rates, steps=steps, **settings)
    names = {width: f"Transformer, width {width}" for width in ends}
    edges = [names[width] for width in at_the_edge(by_width)] + [LABELS[name] for name in at_the_edge(by_family)]
    tuned = pd.concat([by_width.rename(index=names), by_family.rename(index=LABELS)])
    return Rates(tuned, {int(w): rate for w, rate in best_rates(by_width).items()}, best_rates(by_family), edges)


@dataclass(frozen=True)
class Arm:
    """One training of the study; `change` names what differs from the plain one."""

    family: str
    width: int
    """Of the Transformer; rivals have the parameters of the Transformer of this width."""
    steps: int
    seed: int
    change: str = ""


def grid_arms(plan: Plan) -> list[Arm]:
    """What the law is fitted to: every width at every budget, the first seed, and some again with the next one."""
    first, *others = plan.seeds
    grid = [Arm("transformer", width, steps, first) for width in plan.widths for steps in plan.budgets]
    return grid + [Arm("transformer", width, steps, seed) for width, steps in plan.again for seed in others[:1]]


def rival_arms(plan: Plan) -> list[Arm]:
    """Families of equal parameters: LSTM and Transformer at the ends of the budgets with all seeds, else with one."""
    ends = (min(plan.budgets), max(plan.budgets))
    paired = [
        Arm(name, plan.rival_width, s, seed) for name in ("transformer", "lstm") for s in ends for seed in plan.seeds
    ]
    single = [Arm(name, plan.rival_width, s, plan.seeds[0]) for name in ("lstm", "kgram") for s in plan.budgets]
    return list(dict.fromkeys(paired + single))


def changed_arms(plan: Plan) -> list[Arm]:
    """One hyperparameter changed, at a small and at a large width, for the smallest budget and all seeds."""
    steps = min(plan.budgets)
    return [Arm("transformer", w, steps, s, c) for w in plan.changed_widths for c in ("", *CHANGES) for s in plan.seeds]


def constant_arms(plan: Plan) -> list[Arm]:
    """Trainings whose learning rate never comes down, with all seeds."""
    return [Arm("transformer", plan.rival_width, plan.constant_budget, seed, CONSTANT) for seed in plan.seeds]


def arm_config(lab: Lab, plan: Plan, rates: Rates, arm: Arm) -> RunConfig:
    """The configuration of an arm. ValueError for a change that the study does not have."""
    require(arm.change in ("", CONSTANT, *CHANGES), f"change is {arm.change!r}; choose '', {CONSTANT!r} or of CHANGES")
    settings = plan.settings(arm.steps) | CHANGES.get(arm.change, {}) | {"seed": arm.seed}
    settings["learning_rate"] = rates.of(arm.family, arm.width) * (0.25 if arm.change.startswith("a quarter") else 1)
    if arm.change == CONSTANT:
        settings["schedule"] = "constant"
    model = sized(arm.width) if arm.family == "transformer" else family_arms(arm.width)[arm.family]
    return lab.config(model, **settings)


def _watched(run: Run) -> dict[str, float]:
    """Held-out loss at EARLY of a run (to a twentieth of it) and at its end, on the same stories; NaN without one."""
    seen = run.history[["step", "val_loss"]].dropna().set_index("step")["val_loss"]
    steps = int(run.summary["steps"])
    nearest = min(seen.index, key=lambda step: abs(step - EARLY * steps))
    early = seen[nearest] if abs(nearest - EARLY * steps) <= steps / 20 else math.nan
    return {"early": float(early), "last": float(seen[steps])}


def run_row(arm: Arm, run: Run) -> dict[str, Any]:
    """One run as a row: the arm, parameters (all) and bare (without embeddings), tokens trained on, losses in nats per
    token (nll of the final evaluation with low and high, its 95% bootstrap interval over stories; early and last),
    seconds and fingerprint."""
    whole, bare = count_parameters(run.config.model)
    low, high = (math.log(end) for end in run.summary["perplexity_interval"])
    return {
        "family": arm.family,
        "width": arm.width,
        "steps": arm.steps,
        "seed": arm.seed,
        "change": arm.change,
        "rate": run.config.train.learning_rate,
        "parameters": whole,
        "bare": bare,
        "tokens": run.summary["tokens_seen"],
        "nll": run.summary["nll"],
        "low": low,
        "high": high,
        **_watched(run),
        "seconds": run.summary["train_seconds"],
        "fingerprint": run.fingerprint,
    }


def train_study(lab: Lab, plan: Plan, rates: Rates, arms: Iterable[Arm], n_jobs: int | None = None) -> dict[Arm, Run]:
    """The runs of some arms; what is not known yet trains in `n_jobs` processes, left out: one a core."""
    wanted = list(dict.fromkeys(arms))
    runs = lab.sweep([arm_config(lab, plan, rates, arm) for arm in wanted], n_jobs).complete()
    return dict(zip(wanted, runs, strict=True))


def study_table(trained: Mapping[Arm, Run]) -> pd.DataFrame:
    """One `run_row` a run. ValueError without runs."""
    require(len(trained) > 0, "there are 0 runs; train some arms first")
    return pd.DataFrame([run_row(arm, run) for arm, run in trained.items()])


def whole_study(lab: Lab, plan: Plan, rates: Rates) -> dict[Arm, Run]:
    """All runs of the study."""
    arms = [*grid_arms(plan), *rival_arms(plan), *changed_arms(plan), *constant_arms(plan)]
    return train_study(lab, plan, rates, arms)


def largest(table: pd.DataFrame) -> pd.Series:
    """One truth value a row: the runs of the most parameters trained on the most tokens, which a fit leaves out."""
    return (table["width"] == table["width"].max()) & (table["steps"] == table["steps"].max())


def law_fits(grid: pd.DataFrame, resamples: int = 200) -> dict[str, ScalingFit]:
    """Fits to plain Transformers (rows of `study_table`) by name, those in two variables without the `largest` run.

    "N, D" counts all parameters and "bare N, D" those without embeddings, both with a floor. "N at the largest D" and
    "D at the largest N" are straight lines on logarithmic axes, left out where there are fewer than 4 points.
    """
    known = grid[~largest(grid)]
    fits = {
        "N, D": fit_scaling(known, ("parameters", "tokens"), resamples=resamples),
        "bare N, D": fit_scaling(known, ("bare", "tokens"), resamples=resamples),
    }
    wide, long = grid["width"] == grid["width"].max(), grid["steps"] == grid["steps"].max()
    lines = {
        "N at the largest D": (grid[long], "parameters"),
        "bare N at the largest D": (grid[long], "bare"),
        "D at the largest N": (grid[wide], "tokens"),
    }
    return fits | {
        name: fit_scaling(rows, [variable], floor=False, resamples=resamples)
        for name, (rows, variable) in lines.items()
        if rows[variable].nunique() >= 4
    }


def exponent_table(fits: Mapping[str, ScalingFit]) -> pd.DataFrame:
    """One row a fit and variable: fit, variable, exponent with its interval (low, high), floor, and the exponent that
    was published for such a law: Hoffmann et al. 2022 (approach 3) with a floor, Kaplan et al. 2020 without."""
    rows = []
    for name, fit in fits.items():
        for variable in fit.variables:
            of, kind = fit.exponent(variable), "D" if variable == "tokens" else "N"
            published = PUBLISHED["floor" if fit.has_floor else "line", kind]
            rows.append(
                (name, kind, of.value, of.low, of.high, fit.floor.value if fit.has_floor else math.nan, published)
            )
    return pd.DataFrame(rows, columns=["fit", "variable", "exponent", "low", "high", "floor", "published"])


def seed_noise(table: pd.DataFrame) -> float:
    """Standard deviation of log loss between seeds of one arm, pooled over the arms that have several; NaN for none."""
    logs = table.assign(log=np.log(table["nll"])).groupby(["family", "width", "steps", "change"])["log"]
    squares, freedom = (logs.var() * (logs.size() - 1)).sum(), (logs.size() - 1).sum()
    return float(math.sqrt(squares / freedom)) if freedom else math.nan
