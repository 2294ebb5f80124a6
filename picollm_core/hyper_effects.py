"""Tables of a hyperparameter study: what every single change does to loss, speed and text, and what it is worth."""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from picollm_core.analysis import comparison_table, require_comparable
from picollm_core.batches import PackedBatches
from picollm_core.config import RunConfig, require
from picollm_core.contrasts import Contrast, equivalence, holm, paired_contrast
from picollm_core.figure_style import FAMILY_LABELS
from picollm_core.hyper_study import Arm
from picollm_core.lab import Lab
from picollm_core.models import build_model
from picollm_core.runs import Run
from picollm_core.samples import diversity
from picollm_core.token_store import TokenStore
from picollm_core.trainer import Trainer, seeded

TEXT = ("distinct_2", "repetition_4")


def measure_texts(lab: Lab, arms: Sequence[Arm], seeds: int, **drawn: Any) -> dict[str, dict[str, float | None]]:
    """Fingerprint -> distinct_2 and repetition_4 of the texts that the models write, at one budget of tokens.

    Of every arm of a family the first `seeds` runs are asked. `drawn` are the arguments of samples.diversity (prompt,
    budget, top_p, ...). A model that ends nearly every story at once has neither (None). Recorded as one measurement a
    family; the weights are needed only where it is not.
    """
    runs = [run for arm in arms for run in arm.runs[:seeds]]

    def write(run: Run) -> dict[str, float | None]:
        try:
            found = diversity(run.load_model(), run.load_tokenizer(), **drawn)
        except ValueError:
            if run.directory is None:  # no weights: nothing can be said, and the reason must be seen
                raise
            return dict.fromkeys(TEXT)
        return {name: None if found[name] is None else round(float(found[name]), 5) for name in TEXT}  # type: ignore[arg-type]

    names = [run.fingerprint for run in runs]
    return lab.measure(
        "hyperparameter texts",
        lambda: {run.fingerprint: write(run) for run in runs},
        family=arms[0].family,
        runs=names,
        **drawn,
    )


def update_times(configs: Mapping[str, RunConfig], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Microseconds a token of whole updates, `rounds` of each configuration, on random tokens.

    In every round each configuration makes one update, so what else the machine does weighs on all alike; `warm_up`
    rounds are left out. Raises ValueError without configurations and for rounds below 1.
    """
    require(bool(configs) and rounds >= 1, f"{len(configs)} configurations and {rounds} rounds; at least one of each")
    trainers = {}
    for name, config in configs.items():
        model, batch = config.model, config.train.batch_size
        size = 4 * batch * model.block_size + 1
        ids = np.random.default_rng(0).integers(model.vocab_size, size=size, dtype=np.uint32)
        store = TokenStore(ids, np.array([0, size]), n_bytes=size)
        with seeded(0):
            batches = PackedBatches(store, model.block_size, batch)
            trainers[name] = Trainer(build_model(model), batches, config.train.replace(max_steps=rounds + warm_up))
    times: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(rounds + warm_up):
        for name, trainer in trainers.items():
            started = time.perf_counter()
            trainer.advance()
            tokens = configs[name].train.batch_size * configs[name].model.block_size
            times[name].append(float(f"{1e6 * (time.perf_counter() - started) / tokens:.4g}"))
    return {name: own[warm_up:] for name, own in times.items()}


def measure_speeds(lab: Lab, arms: Sequence[Arm], rounds: int) -> dict[str, list[float]]:
    """Label -> `update_times` of a family's arms, recorded as one measurement."""
    configs = {arm.label: arm.runs[0].config for arm in arms}
    names = [arm.runs[0].fingerprint for arm in arms]
    return lab.measure(
        "hyperparameter speeds", lambda: update_times(configs, rounds), family=arms[0].family, runs=names, rounds=rounds
    )


def paired(arm: Arm, base: Arm, column: str = "nll") -> Contrast:
    """The change less the base in one number of the summary, over the seeds that the change was run with."""
    found, reference = arm.values(column), base.values(column)
    return paired_contrast(list(found.values()), [reference[seed] for seed in found])


def _text_contrast(arm: Arm, base: Arm, texts: Mapping[str, Mapping[str, float | None]], name: str) -> Contrast | None:
    """Paired difference of one measure of the texts, over the seeds where both have one; None without any."""
    found = [{r.config.train.seed: texts.get(r.fingerprint, {}).get(name) for r in each.runs} for each in (arm, base)]
    pairs = [(found[0][seed], found[1][seed]) for seed in found[0]]
    known = [(new, old) for new, old in pairs if new is not None and old is not None]
    return paired_contrast([new for new, _ in known], [old for _, old in known]) if known else None


def effect_table(
    arms: Mapping[str, Sequence[Arm]],
    texts: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    speeds: Mapping[str, Mapping[str, Sequence[float]]],
) -> pd.DataFrame:
    """One row a change of every family: what it does to loss, speed and text, all against the family's base.

    `arms[family]` are those of `one_at_a_time` (the base first), `texts[family]` and `speeds[family]` what
    `measure_texts` and `measure_speeds` gave. Columns: family, knob, change, rate, edge (the rate is at an end of its
    grid), seeds, parameters; effect, low, high (nats per token, change - base, Student's 95% interval over paired
    seeds), p, p_holm (Holm's correction over the whole table); speed (tokens a second as a multiple of the base's:
    median over rounds); distinct_2, distinct_low,
    distinct_high and repetition_4 (differences). One seed has no interval (NaN).
    """
    rows = []
    for family, own in arms.items():
        base = own[0]
        for arm in own[1:]:
            assert arm.change is not None, "the base comes first and once"
            loss = paired(arm, base)
            distinct, repeated = (_text_contrast(arm, base, texts[family], name) for name in TEXT)
            ratios = [old / new for new, old in zip(speeds[family][arm.label], speeds[family]["base"], strict=True)]
            rows.append({
                "family": family, "knob": arm.change.knob, "change": arm.label, "rate": arm.rate,
                "edge": arm.at_the_edge, "seeds": loss.pairs,
                "parameters": arm.runs[0].summary["parameters"], "effect": loss.mean, "low": loss.low,
                "high": loss.high, "p": loss.p_value, "speed": statistics.median(ratios),
                "distinct_2": distinct.mean if distinct else np.nan,
                "distinct_low": distinct.low if distinct else np.nan,
                "distinct_high": distinct.high if distinct else np.nan,
                "repetition_4": repeated.mean if repeated else np.nan,
            })  # fmt: skip
    require(bool(rows), "no change was run; a plan needs at least one knob")
    table = pd.DataFrame(rows)
    tested = table["p"].notna()
    table["p_holm"] = np.nan
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].tolist())
    return table


def design_table(runs: Sequence[Run], base_rates: Mapping[str, float]) -> pd.DataFrame:
    """The comparison table of the random design's runs, with relative_rate: the rate over that of the family's base.

    Raises ValueError for runs that may not be compared.
    """
    table = comparison_table(runs)
    require_comparable(table)
    return table.assign(relative_rate=table["learning_rate"] / table["family"].map(base_rates))


def sweep_rows(arms: Mapping[str, Sequence[Arm]], design: Sequence[Run]) -> pd.DataFrame:
    """Every run of the study once, as rows of the comparison table: `part` says the change, or "random design".

    Columns that are equal in all rows are left out, but for what identifies a run and its text.
    """
    parts = {run.fingerprint: "random design" for run in design}
    runs = {run.fingerprint: run for run in design}
    for own in arms.values():
        for arm in own:
            for run in arm.runs:
                parts.setdefault(run.fingerprint, arm.label)
                runs.setdefault(run.fingerprint, run)
    table = comparison_table(runs.values())
    kept = [name for name in table.columns if table[name].nunique(dropna=False) > 1 or name in ("corpora", "tokenizer")]
    return table[kept].assign(part=table["fingerprint"].map(parts))


def compute_spent(lab: Lab) -> tuple[int, float]:
    """How many different training runs a lab has used so far, tries of learning rates included, and their seconds."""
    names = {Path(name).stem for name in lab.used if name.startswith("runs/")}
    return len(names), sum(lab.store.load_run(name).summary["train_seconds"] for name in names)


def confounded_table(arms: Mapping[str, Arm]) -> pd.DataFrame:
    """The three configurations and their single changes (see hyper_study.CONFOUNDED) against the middle one.

    Columns: configuration, changed, updates, loss, effect, low, high (nats per token, paired seeds). Two more rows,
    "sum of the three alone", add up the single changes towards the small and the large end.
    """
    middle = arms["middle"]
    rows = []
    for name, arm in arms.items():
        found = paired(arm, middle)
        changed = arm.change.knob if arm.change else "none"
        loss = statistics.fmean(arm.values().values())
        rows.append((name, changed, arm.runs[0].summary["steps"], loss, found.mean, found.low, found.high))
    for end, parts in (
        ("small", ("width 16", "block 32", "half the rate")),
        ("large", ("width 64", "block 128", "twice the rate")),
    ):
        reference = middle.values()
        sums = [sum(arms[part].values()[seed] - reference[seed] for part in parts) for seed in reference]
        found = paired_contrast(sums, [0.0] * len(sums))
        rows.append((f"sum of the three alone, to {end}", "", np.nan, np.nan, found.mean, found.low, found.high))
    return pd.DataFrame(rows, columns=["configuration", "changed", "updates", "loss", "effect", "low", "high"])


def recommendations(table: pd.DataFrame, margin: float) -> dict[str, list[str]]:
    """What an effect table advises, by family: changes that surely help or harm, and those that surely matter little.

    Sure is what Holm's correction over the table leaves below 0.05, probable an interval of its own that excludes 0;
    little is an interval inside (-margin, margin) nats. With one seed nothing is sure, and the advice says so.
    """
    advice: dict[str, list[str]] = {}
    for family, own in table.groupby("family", sort=False):
        own = own.sort_values("effect")
        lines = []
        if own["p"].isna().all():
            shown = ", ".join(f"{row.change} {row.effect:+.2f}" for row in own.itertuples())
            advice[FAMILY_LABELS[str(family)]] = [f"one seed, nothing is sure: {shown}"]
            continue
        sure = own["p_holm"] < 0.05
        for word, found in (
            ("lowers the loss, surely", own[sure & (own["effect"] < 0)]),
            ("probably lowers it (by its own interval alone)", own[~sure & (own["high"] < 0)]),
            ("raises the loss, surely", own[sure & (own["effect"] > 0)][::-1]),
            ("probably raises it", own[~sure & (own["low"] > 0)][::-1]),
        ):
            each = [f"{r.change} ({r.effect:+.3f} nats, {r.speed:.2f} times the speed)" for r in found.itertuples()]
            lines.append(f"{word}: {'; '.join(each) or 'nothing'}")
        small = [
            row.change
            for row in own.itertuples()
            if equivalence(Contrast(row.effect, row.low, row.high, row.seeds, row.p), margin=margin) == "holds"
        ]
        lines.append(f"within {margin:g} nats of the base, surely: {', '.join(small) or 'nothing'}")
        advice[FAMILY_LABELS[str(family)]] = lines
    return advice
