"""What choices outside gradient descent do to loss, speed and text: the runs of the study, and tables of their effects.

Shape legend: arms x seeds tables have a row a seed and a column an arm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from picollm_core.arms import TUNING_SEED
from picollm_core.config import ModelConfig, require
from picollm_core.hyper_design import ACTIVATIONS, BASE, Change, changes, equal_tokens, whole_design
from picollm_core.lab import Lab
from picollm_core.runs import Run
from picollm_core.trainer import TrainingDiverged

EVALUATION = {"eval_every": 200, "eval_stories": 20, "final_stories": 100}
"""How the study's many brief runs are evaluated: the same 100 held-out stories for all."""
GRIDS = {"kgram": (0.03, 0.1, 0.3), "lstm": (0.1, 0.3, 1.0), "transformer": (0.003, 0.01, 0.03)}
"""Learning rates that a family's base and its retuned changes choose from; Adam and Muon take steps of like size."""
SGD_GRID = (0.3, 1.0, 3.0, 10.0)
_EVERY_SEED = ("width", "activation", "learning rate", "k")


@dataclass(frozen=True)
class Plan:
    """How much the study runs: tokens a run sees, tokens a first try of a learning rate sees, seeds, changes, design.

    Rates whose first tries end within `close` nats of the best are tried again with the tokens of a run.
    Changes of the LSTM and the Transformer that no claim rests on are run with the first `few` seeds; `knobs` keeps
    only changes of these knobs (None: all), `grids` maps a family to its rates, and `per_family` is the number of runs
    of the random design in each family.
    """

    tokens: int = 163_840
    tuning_tokens: int = 81_920
    close: float = 0.2
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    few: int = 3
    knobs: tuple[str, ...] | None = None
    grids: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: GRIDS)
    sgd_grid: tuple[float, ...] = SGD_GRID
    widths: tuple[int, ...] = (32, 64)
    per_family: int = 16

    def changes(self, family: str) -> tuple[Change, ...]:
        """The changes of a family that this plan runs."""
        return tuple(c for c in changes(family) if self.knobs is None or c.knob in self.knobs)

    def seeds_of(self, family: str, change: Change) -> tuple[int, ...]:
        """The seeds of a change: all where a claim rests on it and for the k-gram, which is quick."""
        return self.seeds if family == "kgram" or change.knob in _EVERY_SEED else self.seeds[: self.few]


STANDARD = Plan()
QUICK = Plan(
    tokens=4_096,
    seeds=(0,),
    knobs=("width", "k"),
    grids={"kgram": (0.1,), "lstm": (0.3,), "transformer": (0.01,)},
    widths=(32,),
    per_family=4,
)


def _train(lab: Lab, model: ModelConfig, settings: Mapping[str, Any], tokens: int, rate: float, seed: int) -> Run:
    return lab.train(model, learning_rate=rate, seed=seed, **EVALUATION, **equal_tokens(settings, tokens))


@dataclass(frozen=True)
class Arm:
    """A family's base (change None) or one change of it: its learning rate, what each tried rate gave, its runs."""

    family: str
    change: Change | None
    rate: float
    tried: Mapping[float, float]
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        return "base" if self.change is None else self.change.label

    @property
    def at_the_edge(self) -> bool:
        """Whether the rate is the lowest or the highest that was tried, so that a better one may lie outside."""
        return len(self.tried) > 1 and self.rate in (min(self.tried), max(self.tried))

    def values(self, column: str = "nll") -> dict[int, float]:
        """Seed -> one number of the run's summary."""
        return {run.config.train.seed: run.summary[column] for run in self.runs}


def _try_rates(
    lab: Lab, model: ModelConfig, settings: Mapping[str, Any], rates: Sequence[float], tokens: int
) -> dict[float, float]:
    """Rate -> held-out nats per token with the tuning seed; a run that diverges counts as infinite."""
    found: dict[float, float] = {}
    for rate in rates:
        try:
            found[rate] = _train(lab, model, settings, tokens, rate, TUNING_SEED).summary["nll"]
        except TrainingDiverged:
            found[rate] = float("inf")
    return found


def tune_rate(
    lab: Lab, model: ModelConfig, settings: Mapping[str, Any], rates: Sequence[float], plan: Plan
) -> tuple[float, dict[float, float]]:
    """The best rate, and rate -> held-out nats per token after a try of `plan.tuning_tokens` with the tuning seed.

    Rates within `plan.close` nats of the best are tried again with all the tokens of a run, which decides: brief tries
    favour small rates. One rate alone is taken without a try. Raises ValueError without a rate and where none trains.
    """
    require(len(rates) > 0, "there are 0 learning rates; give at least one")
    if len(rates) == 1:
        return rates[0], {}
    tried = _try_rates(lab, model, settings, rates, plan.tuning_tokens)
    least = min(tried.values())
    require(least < float("inf"), f"none of the learning rates {tuple(rates)} trained; add smaller ones")
    close = [rate for rate, loss in tried.items() if loss <= least + plan.close]
    if len(close) == 1:
        return close[0], tried
    settled = _try_rates(lab, model, settings, close, plan.tokens)
    return min(close, key=lambda rate: (settled[rate], tried[rate])), tried


def train_arm(lab: Lab, family: str, change: Change, base_rate: float, plan: Plan) -> Arm:
    """The runs of one change, at the base's rate times its scale, or at its own best rate where it is retuned."""
    model, settings = BASE[family], change.settings
    tried: dict[float, float] = {}
    rate = base_rate * change.scale
    if change.retuned:
        sgd = settings.get("optimizer") == "sgd"
        rate, tried = tune_rate(lab, model, settings, plan.sgd_grid if sgd else plan.grids[family], plan)
    seeds = plan.seeds_of(family, change)
    runs = tuple(_train(lab, model, settings, plan.tokens, rate, seed) for seed in seeds)
    return Arm(family, change, rate, tried, runs)


def base_arm(lab: Lab, family: str, plan: Plan) -> Arm:
    """The runs of a family's base at its best rate. ValueError for an unknown family."""
    require(family in BASE, f"unknown family {family!r}; choose one of {', '.join(BASE)}")
    rate, tried = tune_rate(lab, BASE[family], {}, plan.grids[family], plan)
    runs = tuple(_train(lab, BASE[family], {}, plan.tokens, rate, seed) for seed in plan.seeds)
    return Arm(family, None, rate, tried, runs)


def one_at_a_time(lab: Lab, family: str, plan: Plan) -> list[Arm]:
    """A family's base, then every change of the plan, each trained."""
    base = base_arm(lab, family, plan)
    return [base, *(train_arm(lab, family, change, base.rate, plan) for change in plan.changes(family))]


def activation_arms(lab: Lab, family: str, base_rate: float, plan: Plan) -> dict[tuple[int, str], Arm]:
    """(width, activation) -> its arm, each with its own best rate, all seeds; shares runs with `one_at_a_time`.

    Raises ValueError for a family without an activation to choose: an LSTM's gates have fixed ones.
    """
    require(hasattr(BASE[family], "activation"), f"a {family} has no activation to choose; take kgram or transformer")
    return {
        (width, name): train_arm(
            lab,
            family,
            Change("activation", name, {"n_embd": width, "activation": name}, retuned=True),
            base_rate,
            plan,
        )
        for width in plan.widths
        for name in ACTIVATIONS
    }


CONFOUNDED: dict[str, Change] = {
    "small": Change("all three", "width 16, block 32, half the rate", {"n_embd": 16, "block_size": 32}, scale=0.5),
    "middle": Change("none", "width 32, block 64, the rate"),
    "large": Change("all three", "width 64, block 128, twice the rate", {"n_embd": 64, "block_size": 128}, scale=2.0),
    **{f"width {width}": Change("width", f"width {width}", {"n_embd": width}) for width in (16, 64)},
    **{f"block {block}": Change("block size", f"block {block}", {"block_size": block}) for block in (32, 128)},
    "half the rate": Change("learning rate", "half the rate", scale=0.5),
    "twice the rate": Change("learning rate", "twice the rate", scale=2.0),
}
"""A published study's three configurations in its own ratios, a sixteenth as wide, and each of their changes alone.

The published ones: width 256, block 32, rate 5e-4; 512, 64, 1e-3; 1024, 128, 2e-3. The batch of 16 windows stays, as
it did there, so a longer block also makes fewer and larger updates out of the same tokens.
"""


def confounded_arms(lab: Lab, family: str, base_rate: float, plan: Plan) -> dict[str, Arm]:
    """The three configurations and their one-factor versions (see CONFOUNDED), all seeds each."""
    return {
        name: train_arm(lab, family, change, base_rate, replace(plan, few=len(plan.seeds)))
        for name, change in CONFOUNDED.items()
    }


def design_runs(lab: Lab, base_rates: Mapping[str, float], plan: Plan) -> list[Run]:
    """The runs of the random design over the three families, one a row of `whole_design`, each with its own seed."""
    runs = []
    for row in whole_design(plan.per_family).to_dict("records"):
        given = {name: value for name, value in row.items() if value == value}  # a family's own settings
        family, seed, factor = given.pop("family"), given.pop("seed"), given.pop("rate_factor")
        settings = {name: value if isinstance(value, str) else int(value) for name, value in given.items()}
        rate = float(f"{base_rates[family] * factor:.4g}")
        runs.append(_train(lab, BASE[family], settings, plan.tokens, rate, seed))
    return runs
