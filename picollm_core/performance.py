"""The table of targets that `picollm bench` measured, and what a profile measures anew for the figures of speed."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from picollm_core.config import KGramConfig, LSTMConfig, ModelConfig, TransformerConfig, require
from picollm_core.lab import Lab
from picollm_core.mixer_speed import crossover, training_costs
from picollm_core.performance_curves import (
    PRECISIONS,
    decoding_curve,
    loader_milliseconds,
    sampler_curve,
    tokeniser_curve,
    training_curve,
)
from picollm_core.presets import PRESETS
from picollm_core.runs import read_json
from picollm_core.speed import one_child
from picollm_core.tokenizers import load_tokenizer

BENCH_NAME = "bench.json"
MEASURE_BENCH = "run `picollm bench` in the project's folder to measure it"
GROUPS: dict[str, tuple[str, ...]] = {
    "training": ("step-",),
    "generation": ("generate-", "flat-", "nucleus-", "chunked-", "softmax-", "tokenising"),
    "resources": ("peak-", "memory-", "onehot-", "loader", "import", "workbook", "tests"),
}
"""Which page of the table a row stands on, by the beginning of its name."""
MIXERS = {"softmax": "softmax", "linear": "linear", "gla": "GLA", "delta": "DeltaNet"}
MIXER_LAYER = TransformerConfig(n_embd=128, n_head=4, n_layer=1, position="none")
FAMILIES, SIZES = ("transformer", "lstm", "kgram"), ("pico", "tiny", "small")


def read_bench(lab: Lab) -> dict[str, Any]:
    """The committed results of `picollm bench`: rows, machine, date, and machine_peaks, which may be empty.

    ValueError when the file is missing or has another format, with what to do.
    """
    path = lab.committed.folder / BENCH_NAME
    require(path.is_file(), f"there is no {path}; {MEASURE_BENCH}")
    content = read_json(path)
    wanted = {"rows", "machine", "date"}
    missing = sorted(wanted - content.keys()) if isinstance(content, Mapping) else sorted(wanted)
    require(not missing, f"{path} has no {', '.join(missing)}; delete it, then {MEASURE_BENCH}")
    lab.used.append(BENCH_NAME)
    return {"machine_peaks": {}} | content


def target_bound(target: str) -> tuple[str, float]:
    """Direction and value of a target such as ">= 2.2". ValueError for anything else."""
    direction, _, value = target.partition(" ")
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    require(direction in (">=", "<=") and number > 0, f"target is {target!r}; it must be such as '>= 2.2' or '<= 0.02'")
    return direction, number


def attained(ratio: float, target: str) -> float:
    """How far a ratio is on the right side of its target: 1 at the bound, 2 when twice as good. ValueError for <= 0."""
    require(ratio > 0, f"ratio is {ratio}; it must be positive")
    direction, bound = target_bound(target)
    return ratio / bound if direction == ">=" else bound / ratio


def group_of(name: str) -> str:
    """The page of a row, by its name. ValueError for a name of no page."""
    found = [group for group, beginnings in GROUPS.items() if name.startswith(beginnings)]
    require(len(found) == 1, f"row {name!r} belongs to {len(found)} of the pages {', '.join(GROUPS)}; it must be one")
    return found[0]


def targets_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a benchmark, in order: row, group, peer, ours, unit, ratio, low, high, target, verdict, reason, compared.

    `attained` (with attained_low and attained_high) is 1 at the target and above it where it is reached; `reason` says
    why a row is missed, as far as that is recorded; `compared` names the two sides. ValueError for no rows.
    """
    require(bool(rows), f"there are no rows; {MEASURE_BENCH}")
    found = []
    for row in rows:
        ends = sorted(attained(end, row["target"]) for end in row["spread"])
        found.append(
            {
                "row": row["name"],
                "group": group_of(row["name"]),
                "peer": row["peer"],
                "ours": row["ours"],
                "unit": row["unit"],
                "ratio": row["ratio"],
                "low": row["spread"][0],
                "high": row["spread"][1],
                "target": row["target"],
                "verdict": "reached" if row["reached"] else "missed",
                "reason": "" if row["reached"] else row.get("reason", "no reason recorded"),
                "attained": attained(row["ratio"], row["target"]),
                "attained_low": ends[0],
                "attained_high": ends[1],
                "compared": f"{row['ours_is']} against {row['peer_is']}",
            }
        )
    return pd.DataFrame(found)


def counted(table: pd.DataFrame) -> str:
    """A table of targets as part of a sentence: "12 of 14 reached"."""
    return f"{(table['verdict'] == 'reached').sum()} of {len(table)} reached"


def span(values: pd.Series, form: str = ".1f") -> str:
    """The range of some values as part of a sentence: "1.4 to 6.3", or "1.4" where both ends read alike."""
    low, high = f"{values.min():{form}}", f"{values.max():{form}}"
    return low if low == high else f"{low} to {high}"


def _decoders(vocab_size: int, window: int) -> dict[str, ModelConfig]:
    shape: dict[str, Any] = {"vocab_size": vocab_size, "block_size": window}
    return {
        "k-gram": KGramConfig(n_embd=32, n_layer=1, **shape),
        "LSTM": LSTMConfig(n_embd=32, **shape),
        "Transformer": TransformerConfig(n_embd=64, n_head=1, n_layer=1, **shape),
        "GLA": TransformerConfig(n_embd=64, n_head=1, n_layer=1, mixers=("gla",), position="none", **shape),
    }


@dataclass(frozen=True)
class Plan:
    """What one profile measures: arguments of the functions of performance_curves and mixer_speed."""

    training: dict[str, Any]
    decoding: dict[str, Any]
    window: int
    vocab_size: int
    sampler: dict[str, Any]
    mixers: dict[str, Any]
    tokenizer: str
    tokeniser: dict[str, Any]
    live: bool = field(default=False)
    """Whether the figures show a small measurement made now, as in the quick profile."""


def performance_plan(lab: Lab) -> Plan:
    """The profile's plan: in "quick" a subset of seconds with the small vocabulary, else GPT-2's and all sizes."""
    if lab.profile.name == "quick":
        return Plan(
            training={"names": ["transformer-pico"], "updates": 2, "vocab_size": 4_096, "block_size": 128},
            decoding={"lengths": [10, 100, 300], "repetitions": 7},
            window=512,
            vocab_size=4_096,
            sampler={"sizes": [1, 100, 10_000], "vocab_size": 50_257, "repetitions": 3},
            mixers={"kinds": list(MIXERS), "lengths": [128, 512, 2_048], "repetitions": 2},
            tokenizer="stories-4k",
            tokeniser={"threads": [1, 2], "n_stories": 200, "repetitions": 2},
            live=True,
        )
    return Plan(
        training={"names": [f"{family}-{size}" for size in SIZES for family in FAMILIES], "updates": 4},
        decoding={"lengths": [10, 30, 100, 300, 1_000], "repetitions": 31},
        window=1_152,
        vocab_size=50_257,
        sampler={"sizes": [1, 10, 100, 1_000, 10_000, 45_000], "vocab_size": 50_257, "repetitions": 25},
        mixers={"kinds": list(MIXERS), "lengths": [64, 128, 256, 512, 1_024, 2_048, 4_096], "repetitions": 5},
        tokenizer="gpt2",
        tokeniser={"threads": [1, 2], "n_stories": 3_000, "repetitions": 5},
    )


def machine_here() -> str:
    """This machine in a few words: processor type, cores that torch uses, its version."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def training_table(lab: Lab, plan: Plan) -> pd.DataFrame:
    """Training by model and precision (performance_curves.training_curve), and the loader's share of each step.

    Columns of training_curve, and loader (milliseconds a batch) and loader_share (of the time of a step).
    """

    def find() -> list[dict[str, Any]]:
        rows = training_curve(precisions=PRECISIONS, **plan.training)
        vocab_size = plan.training.get("vocab_size", 50_257)
        for row in rows:
            window = plan.training.get("block_size", PRESETS[row["model"]].block_size)
            row["loader"] = loader_milliseconds(vocab_size, window)
            row["loader_share"] = 1e-3 * row["loader"] * row["tokens_per_second"] / (16 * window)
        return rows

    return pd.DataFrame(lab.measure("speed of training", find, **plan.training))


def _in_child(curve: Callable[..., list[dict[str, Any]]], *given: Any, **settings: Any) -> list[dict[str, Any]]:
    """What a curve finds in a process of its own: times below a millisecond depend on what a notebook did before."""
    with one_child() as child:
        return child.submit(curve, *given, **settings).result()


def decoding_table(lab: Lab, plan: Plan) -> pd.DataFrame:
    """One more token against length (performance_curves.decoding_curve); column arm names the model, seed is 0.

    From the state, and for the Transformer also by computing the whole text again.
    """
    models = _decoders(plan.vocab_size, plan.window)
    given = plan.decoding | {"models": {name: config.fingerprint() for name, config in models.items()}}
    rows = lab.measure("speed of decoding", lambda: _in_child(decoding_curve, models, **plan.decoding), **given)
    table = pd.DataFrame(rows).assign(seed=0)
    again = (table["way"] != "from the state") & (table["model"] == "Transformer")
    table["arm"] = table["model"].where(~again, "Transformer, no cache")
    return table[(table["way"] == "from the state") | again].reset_index(drop=True)


def growth(table: pd.DataFrame) -> pd.Series:
    """Milliseconds at the longest length over those at the shortest, by arm."""
    ordered = table.sort_values("length").groupby("arm", sort=False)["milliseconds"]
    return ordered.last() / ordered.first()


def sampler_table(lab: Lab, plan: Plan) -> pd.DataFrame:
    """Filter and draw against the size of the nucleus (performance_curves.sampler_curve); arm is the way, seed 0."""
    rows = lab.measure("speed of sampling", lambda: _in_child(sampler_curve, **plan.sampler), **plan.sampler)
    return pd.DataFrame(rows).rename(columns={"way": "arm"}).assign(seed=0)


def mixer_table(lab: Lab, plan: Plan) -> tuple[pd.DataFrame, dict[str, float | None]]:
    """Forward and backward of one layer against length, and from which length on each mixer is cheaper than softmax."""
    layer = MIXER_LAYER.fingerprint()
    rows = lab.measure(
        "speed of mixers", lambda: training_costs(MIXER_LAYER, **plan.mixers), layer=layer, **plan.mixers
    )
    table = pd.DataFrame(rows).assign(seed=0)
    table["arm"] = table["mixer"].map(MIXERS)
    return table, {MIXERS[kind]: crossover(rows, kind) for kind in list(MIXERS)[1:]}


def tokeniser_table(lab: Lab, plan: Plan) -> pd.DataFrame:
    """Tokenising against threads (performance_curves.tokeniser_curve); the name of a bar in column bar."""

    def find() -> list[dict[str, Any]]:
        return tokeniser_curve(load_tokenizer(plan.tokenizer), **plan.tokeniser)

    table = pd.DataFrame(lab.measure("speed of tokenising", find, tokenizer=plan.tokenizer, **plan.tokeniser))
    many = table["threads"].astype(str) + table["threads"].map(lambda count: " thread" + "s" * (count > 1))
    table["bar"] = table["way"] + ", " + many
    return table
