"""The study of overfitting: which runs it takes, what is changed in them, and two claims of others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from picollm_core.canary_study import CanarySetting
from picollm_core.config import RunConfig
from picollm_core.contrasts import Contrast, paired_contrast, verdict
from picollm_core.double_descent import DescentSetting
from picollm_core.lab import Lab
from picollm_core.overfit_runs import Arm, Setting, best_rate, overfit_arm
from picollm_core.overfit_tables import loss_table, sample_table
from picollm_core.presets import default_learning_rate
from picollm_core.verdicts import Verdict, Word

FAMILIES = {"kgram": "kgram-pico", "lstm": "lstm-pico", "transformer": "transformer-pico"}
_STORIES: dict[str, Any] = {
    "limit": 10_000, "splits": (98, 1, 1), "batch_size": 8, "max_steps": 300, "eval_every": 50,
    "block_size": 64, "schedule": "constant",
}  # fmt: skip
_LINES: dict[str, Any] = {
    "corpus": "custom", "splits": (60, 20, 20), "batch_size": 4, "max_steps": None, "epochs": 30.0, "eval_every": 7,
    "block_size": 64, "schedule": "constant",
}  # fmt: skip
_RATES = {"kgram": (0.003, 0.01, 0.03), "lstm": (0.01, 0.03, 0.1), "transformer": (0.001, 0.003, 0.01)}


@dataclass(frozen=True)
class Plan:
    """Everything that the study trains.

    `stories_run` and `lines_run` are settings of Lab.config; validation and test lines together are the 40% that are
    held out. `rates` are tried for every family. `stories` are the sizes of the training text, `base` the one at which
    other things are changed, for the families of `changed`.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: _RATES)
    stories_run: Mapping[str, Any] = field(default_factory=lambda: _STORIES)
    lines_run: Mapping[str, Any] = field(default_factory=lambda: _LINES)
    lines: tuple[int, ...] = (43, 20)
    stories: tuple[int, ...] = (16, 64, 512, 4_096)
    base: int = 64
    changed: tuple[str, ...] = tuple(FAMILIES)
    watch: Setting = field(default_factory=lambda: Setting(budget=1_500))
    watch_lines: Setting = field(default_factory=lambda: Setting(held_out=100))
    canaries: CanarySetting = field(default_factory=CanarySetting)
    canary_families: tuple[str, ...] = tuple(FAMILIES)
    descent: DescentSetting = field(default_factory=lambda: DescentSetting(windows=300, updates=600))
    widths: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 16, 64, 256)


def make_plan(lab: Lab) -> Plan:
    """The plan of the lab's profile: with the quick one, fewer and shorter runs of one seed and no tuning."""
    if lab.profile.name != "quick":
        return Plan(seeds=lab.profile.seeds)
    return Plan(
        seeds=lab.profile.seeds,
        rates={"kgram": (0.01,), "lstm": (0.03,), "transformer": (0.003,)},
        stories_run=_STORIES | {"limit": 600, "max_steps": 60, "eval_every": 20},
        lines_run=_LINES | {"epochs": 8.0, "eval_every": 13},
        lines=(43,),
        stories=(8, 256),
        base=8,
        changed=("kgram",),
        watch=Setting(budget=300, held_out=8, sample_length=60),
        canaries=CanarySetting(stories=32, words=10, length=2, times=(4, 64), kept_back=20),
        canary_families=("lstm",),
        descent=DescentSetting(windows=100, test_windows=500, updates=200, every=50),
        widths=(1, 3, 8, 64),
    )


@dataclass(frozen=True)
class Bases:
    """Each family's configuration for stories and for lines, with the learning rate that was best on validation."""

    stories: dict[str, RunConfig]
    lines: dict[str, RunConfig]
    tuned: pd.DataFrame
    """Lowest validation loss (nats per token) of every rate: columns text, family, rate, loss, chosen."""


def tuned_bases(lab: Lab, plan: Plan) -> Bases:
    """Tune every family on `plan.base` stories and on the first number of lines, with a seed of its own."""
    found: dict[str, dict[str, RunConfig]] = {"stories": {}, "lines": {}}
    rows = []
    for text, run, setting in (
        ("stories", plan.stories_run, plan.watch.replace(stories=plan.base)),
        ("lines", {**plan.lines_run, "limit": plan.lines[0]}, plan.watch_lines),
    ):
        for family, preset in FAMILIES.items():
            config = lab.config(preset, **run)
            rate, losses = best_rate(lab, config, setting, plan.rates[family])
            found[text][family] = config.replace(train=config.train.replace(learning_rate=rate))
            rows += [
                {"text": text, "family": family, "rate": tried, "loss": losses.get(tried), "chosen": tried == rate}
                for tried in plan.rates[family]
            ]
    return Bases(found["stories"], found["lines"], pd.DataFrame(rows))


def line_arms(lab: Lab, plan: Plan, bases: Bases) -> dict[int, dict[str, Arm]]:
    """Number of lines -> family -> runs on the first so many hand-written lines, split 60 / 40."""

    def arm(family: str, lines: int) -> Arm:
        config = bases.lines[family]
        config = config.replace(data=config.data.replace(limit=(lines,)))
        return overfit_arm(lab, config, plan.watch_lines, plan.seeds)

    return {lines: {family: arm(family, lines) for family in FAMILIES} for lines in plan.lines}


def story_arms(lab: Lab, plan: Plan, bases: Bases) -> dict[int, dict[str, Arm]]:
    """Number of training stories -> family -> runs, all with the same number of updates and held-out stories."""
    return {
        stories: {
            family: overfit_arm(lab, bases.stories[family], plan.watch.replace(stories=stories), plan.seeds)
            for family in FAMILIES
        }
        for stories in plan.stories
    }


def changed_configs(config: RunConfig) -> dict[str, RunConfig]:
    """What can be changed about model and training, one thing at a time, for the family of `config`, the base.

    A model of another width takes the base's learning rate times the ratio of the package's defaults. k is changed
    for the k-gram alone.
    """
    model, train = config.model, config.train
    wide = model.replace(n_embd=2 * model.n_embd)
    assert train.learning_rate is not None, "a run's configuration names its learning rate"
    rate = train.learning_rate * default_learning_rate(wide) / default_learning_rate(model)
    arms = {
        "width × 2": config.replace(model=wide, train=train.replace(learning_rate=rate)),
        "dropout 0.3": config.replace(model=model.replace(dropout=0.3)),
        "weight decay 1": config.replace(train=train.replace(weight_decay=1.0)),
    }
    if model.family == "kgram":
        k = model.to_dict()["k"]
        arms |= {f"k = {other}": config.replace(model=model.replace(k=other)) for other in (1, 2 * k)}
    return arms


def changed_arms(
    lab: Lab, plan: Plan, bases: Bases, stories: Mapping[int, Mapping[str, Arm]]
) -> dict[str, dict[str, Arm]]:
    """Family -> change -> runs: "base", more stories (of `stories`, the next size), and `changed_configs`."""
    more = min(size for size in plan.stories if size > plan.base)
    setting = plan.watch.replace(stories=plan.base, budget=0)
    return {
        family: {"base": stories[plan.base][family], f"stories × {more // plan.base}": stories[more][family]}
        | {
            name: overfit_arm(lab, config, setting, plan.seeds)
            for name, config in changed_configs(bases.stories[family]).items()
        }
        for family in plan.changed
    }


def _of_families(found: Mapping[str, Contrast], claim: Any, unit: str) -> tuple[Word, str]:
    """One word for the contrasts of several families, and their effects as text."""
    words = {family: verdict(contrast, claim=claim) for family, contrast in found.items()}
    told = "; ".join(
        f"{family} {c.mean:+.3f}" + (f" ({c.low:+.3f} to {c.high:+.3f})" if c.pairs > 1 else "")
        for family, c in found.items()
    )
    same = len(set(words.values())) == 1
    word: Word = next(iter(words.values())) if same else "depends"
    return word, f"by family, {unit}: {told}"


def _weakest(found: Mapping[str, Contrast], claim: str) -> Contrast:
    return min(found.values(), key=lambda c: c.mean if claim == "above" else -c.mean)


def _contrasts(values: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> dict[str, Contrast]:
    """One contrast a family, with intervals that hold together: Bonferroni's share of 5% for each."""
    return {
        family: paired_contrast(first, second, confidence=1 - 0.05 / len(values))
        for family, (first, second) in values.items()
    }


def claims_overfitting(lab: Lab, plan: Plan | None = None) -> list[Verdict]:
    """Verdicts on overfitting-43-sequences and overfitted-text-lacks-diversity, from the recorded runs of the plan."""
    plan = make_plan(lab) if plan is None else plan
    bases = tuned_bases(lab, plan)
    lines, stories = line_arms(lab, plan, bases)[plan.lines[0]], story_arms(lab, plan, bases)
    return [judge_parting(lines, plan.lines[0]), judge_diversity(stories)]


def judge_parting(lines: Mapping[str, Arm], count: int) -> Verdict:
    """Whether the gap has grown in every family from the first look, after one epoch, to the end of training."""
    losses = loss_table(lines).groupby(["arm", "seed"], sort=False)
    first, last, least = losses["gap"].first(), losses["gap"].last(), losses["held_out"].min()
    end = losses["held_out"].last()
    found = _contrasts({family: (last[family].tolist(), first[family].tolist()) for family in lines})
    word, told = _of_families(found, "above", "nats")
    weakest = _weakest(found, "above")
    rises = ", ".join(f"{family} {(end[family] - least[family]).mean():.2f}" for family in lines)
    what = f"gap (held-out minus training loss) after the last epoch minus after the first, {count} lines, least family"
    cause = f"{told}; the held-out loss ends above its lowest by, in nats: {rises}"
    interval = None if weakest.pairs == 1 else (weakest.low, weakest.high)
    runs = tuple(arm.source for arm in lines.values())
    return Verdict("overfitting-43-sequences", what, weakest.mean, interval, "nats per token", runs, word, cause)


def judge_diversity(stories: Mapping[int, Mapping[str, Arm]]) -> Verdict:
    """Whether distinct-2 is lower with the fewest training stories than with the most, in every family."""
    few, many = min(stories), max(stories)
    table = sample_table(stories)
    of = {key: own["distinct_2"].tolist() for key, own in table.groupby(["stories", "arm"])}
    values = {family: (of[few, family], of[many, family]) for family in stories[few]}
    found = _contrasts(values)
    word, told = _of_families(found, "below", "distinct-2")
    weakest = _weakest(found, "below")
    novel = table.groupby(["stories", "arm"])["novel_5"].mean()
    new = ", ".join(f"{family} {novel[few, family]:.2f} and {novel[many, family]:.2f}" for family in values)
    what = f"distinct-2 of samples, equal tokens: {few} training stories minus {many:,}, equal updates, least family"
    models = table[table["arm"] != "people"].groupby("stories")["distinct_2"].mean()
    by_size = ", ".join(f"{size:,} stories {value:.2f}" for size, value in models.items())
    cause = f"{told}; mean of families: {by_size}; people {of[many, 'people'][0]:.2f}"
    cause += f"; share of new 5-grams with few and many stories: {new}"
    interval = None if weakest.pairs == 1 else (weakest.low, weakest.high)
    runs = tuple(arm.source for size in (few, many) for arm in stories[size].values())
    return Verdict("overfitted-text-lacks-diversity", what, weakest.mean, interval, "share", runs, word, cause)
