"""Tables over several runs of each arm of a comparison: by seed, by arm, and arm against arm."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

import pandas as pd

from picollm_core.config import require
from picollm_core.contrasts import holm, paired_contrast
from picollm_core.lab import history_table
from picollm_core.runs import Run


def seed_history(arms: Mapping[str, Sequence[Run]], column: str = "val_loss") -> pd.DataFrame:
    """The points where `column` was measured, of every run: columns run (its arm), family, seed, step, tokens.

    `plots_comparison.plot_bands` draws it. Raises ValueError when an arm has no run, or two runs of one seed.
    """
    parts = []
    for name, runs in arms.items():
        seeds = [run.config.train.seed for run in runs]
        require(bool(seeds), f"arm {name!r} has no run; give one for each seed")
        require(len(set(seeds)) == len(seeds), f"arm {name!r} has seeds {seeds}; each may occur once")
        for seed, run in zip(seeds, runs, strict=True):
            parts.append(history_table({name: run}, ("step", "tokens", column)).dropna().assign(seed=seed))
    return pd.concat(parts, ignore_index=True)


def seed_table(arms: Mapping[Hashable, Sequence[Run]]) -> pd.DataFrame:
    """One row an arm: parameters, seeds (their number), and over its seeds mean perplexity and bits per byte.

    `bits_per_byte` is the mean, `lowest` and `highest` the ends of its range over seeds; `low` and `high` are the 95%
    bootstrap interval over held-out stories of the first run. Raises ValueError when an arm has no run.
    """
    rows = {}
    for name, runs in arms.items():
        require(len(runs) > 0, f"arm {name!r} has no run; give one for each seed")
        bits = pd.Series([run.summary["bits_per_byte"] for run in runs])
        low, high = runs[0].summary["bits_per_byte_interval"]
        rows[name] = {
            "family": runs[0].family,
            "parameters": runs[0].summary["parameters"],
            "seeds": len(runs),
            "perplexity": sum(run.summary["perplexity"] for run in runs) / len(runs),
            "bits_per_byte": bits.mean(),
            "lowest": bits.min(),
            "highest": bits.max(),
            "first": bits[0],
            "low": low,
            "high": high,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def contrast_table(comparisons: Mapping[str, Mapping[str, Sequence[float]]]) -> pd.DataFrame:
    """Every pair of arms in every comparison: the mean difference first - second over paired seeds, and its interval.

    `comparisons[name][arm]` holds one value a seed, the seeds of all arms in one order. Columns: comparison, first,
    second, difference, low, high (95%, Student), p and p_holm (Holm's correction over all rows). Of a single pair only
    the difference is known, and the others are NaN. Raises ValueError when arms of a comparison differ in length.
    """
    rows = []
    for name, arms in comparisons.items():
        for first, second in combinations(arms, 2):
            found = paired_contrast(arms[first], arms[second])
            rows.append((name, first, second, found.mean, found.low, found.high, found.p_value))
    table = pd.DataFrame(rows, columns=["comparison", "first", "second", "difference", "low", "high", "p"])
    tested = table["p"].notna()
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].tolist())
    return table.assign(p_holm=table["p_holm"].astype(float))
