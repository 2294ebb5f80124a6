"""Verdicts on claims that rest on many different runs at once: correlations, residuals, a heat map over no k."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from picollm_core.analysis import correlation_intervals, regress, residual_bias
from picollm_core.figure_style import FAMILY_LABELS
from picollm_core.hyper_design import BASE, FAMILIES, LEVELS
from picollm_core.runs import Run
from picollm_core.verdicts import Verdict, Word, fingerprints

SAME_TARGETS = ("perplexity", "bits_per_byte", "text_nll", "gap")
"""Columns of a run table that are the validation loss in another unit, or have it as a term."""
LAST_BATCH = 56
"""Tokens that a published accuracy was counted over: 73.21% is 41 of 56."""


def judge_context_of_lstm(table: pd.DataFrame, runs: Sequence[Run], draws: int = 2_000) -> Verdict:
    """higher-k-helps-lstm: an LSTM has no k; what a heat map shows when k is written next to its runs regardless.

    The design's k-gram levels are dealt to its LSTM runs at random, `draws` times, and the mean loss at the highest k
    is compared with that at the lowest. The interval holds 95% of the deals.
    """
    losses = table.loc[table["family"] == "lstm", "nll"].to_numpy(dtype=float)
    levels = LEVELS["kgram"]["k"]
    labels = np.resize(levels, len(losses))
    generator = np.random.default_rng(0)
    gaps = []
    for _ in range(draws):
        dealt = generator.permutation(labels)
        gaps.append(losses[dealt == max(levels)].mean() - losses[dealt == min(levels)].mean())
    low, high = np.quantile(gaps, [0.025, 0.975])
    helps = float(np.mean(np.array(gaps) < -0.1))
    has = "k" in BASE["lstm"].__dataclass_fields__
    return Verdict(
        "higher-k-helps-lstm", f"mean loss at k = {max(levels)} less that at k = {min(levels)} when k is dealt to "
        f"{len(losses)} LSTM runs at random", float(np.mean(gaps)), (float(low), float(high)), "nats per token",
        fingerprints([run for run in runs if run.family == "lstm"]), "open" if has else "fails",
        "an LSTM has no k: none of its settings is one, and it reads all of its context. A heat map over a k that "
        f"does nothing still shows a loss lower by over 0.1 nats at the highest k in {helps:.0%} of the deals",
    )  # fmt: skip


def _strongest(table: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    found = correlation_intervals(table, ["nll", *columns])
    mine = found[(found["first"] == "nll") | (found["second"] == "nll")].copy()
    mine["with"] = mine["first"].where(mine["first"] != "nll", mine["second"])
    return mine.set_index("with")


def accuracy_of_last_batch(table: pd.DataFrame, draws: int = 500) -> float:
    """Median Spearman correlation of the loss with an accuracy that is counted over 56 tokens only.

    Hits are drawn as if tokens were independent, from each run's accuracy on all held-out tokens.
    """
    generator = np.random.default_rng(0)
    loss, share = table["nll"].rank().to_numpy(), table["accuracy"].to_numpy(dtype=float)
    found = [
        np.corrcoef(loss, pd.Series(generator.binomial(LAST_BATCH, share)).rank().to_numpy())[0, 1]
        for _ in range(draws)
    ]
    return float(np.median(found))


def judge_correlation(table: pd.DataFrame, runs: Sequence[Run], columns: Sequence[str], draws: int = 1_000) -> Verdict:
    """accuracy-loss-correlation: is accuracy the number that goes most closely with the loss, and is that -0.80?

    `columns` are those it is compared with, hyperparameters and results; those that are the loss itself in another
    unit are left out. How much stronger it is gets its interval from a bootstrap over runs.
    """
    others = [name for name in columns if name not in (*SAME_TARGETS, "nll", "accuracy")]
    found = _strongest(table, ["accuracy", *others])
    rival = found.loc[others, "correlation"].abs().idxmax()
    generator, lead = np.random.default_rng(0), []
    ranked = table[["nll", "accuracy", rival]].astype(float).dropna()
    for _ in range(draws):
        drawn = ranked.iloc[generator.integers(len(ranked), size=len(ranked))].corr("spearman")["nll"].abs()
        lead.append(drawn["accuracy"] - drawn[rival])
    low, high = np.nanquantile(lead, [0.025, 0.975])
    word: Word = "holds" if low > 0 else "fails" if high < 0 else "open"
    row = found.loc["accuracy"]
    inside = row["low"] <= -0.8 <= row["high"]
    cause = (
        f"the closest other number is {rival} ({found.loc[rival, 'correlation']:+.2f}; |accuracy| - |{rival}| "
        f"{low:+.2f} to {high:+.2f} over resampled runs); -0.80 lies {'inside' if inside else 'outside'} our interval, "
        f"and an accuracy over {LAST_BATCH} tokens, as theirs, would give {accuracy_of_last_batch(table):+.2f} on our "
        "runs. Loss and accuracy are two readings of the same predictions, so this says nothing about any choice"
    )
    return Verdict(
        "accuracy-loss-correlation", f"Spearman correlation of accuracy and loss over {len(table)} runs of the design",
        float(row["correlation"]), (float(row["low"]), float(row["high"])), "correlation", fingerprints(runs), word,
        cause,
    )  # fmt: skip


DESIGN_PAIRS = (
    ("n_embd", "n_layer"),
    ("n_embd", "batch_size"),
    ("block_size", "n_layer"),
    ("block_size", "batch_size"),
)


def judge_design(table: pd.DataFrame, runs: Sequence[Run]) -> Verdict:
    """design-correlations: they belong to the list of configurations; a balanced design has none of them."""
    found = correlation_intervals(table, sorted({name for pair in DESIGN_PAIRS for name in pair}))
    pairs = {frozenset((row.first, row.second)): row for row in found.itertuples()}
    mine = [pairs[frozenset(pair)] for pair in DESIGN_PAIRS]
    worst = max(mine, key=lambda row: abs(row.correlation))
    given = "; ".join(f"{row.first} and {row.second} {row.correlation:+.2f}" for row in mine)
    grown = all(row.low > 0 for row in mine)
    return Verdict(
        "design-correlations", f"Spearman correlation of {worst.first} and {worst.second}, the largest of the four, "
        f"over {len(table)} drawn configurations", float(worst.correlation), (float(worst.low), float(worst.high)),
        "correlation", fingerprints(runs), "holds" if grown else "depends",
        f"depends on who writes the list: drawn in balance, the four are {given}; in a list whose settings grow "
        "together, as in three configurations that double width and block at once, they are +1.00. It is no result of "
        "training",
    )  # fmt: skip


FITTED = ("log_width", "log_block", "log_batch", "n_layer", "log_rate", "log_rate_squared")


def with_logs(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `hyper_effects.design_table` with base-2 logarithms of what acts by factors."""
    logs = {
        "log_width": table["n_embd"],
        "log_block": table["block_size"],
        "log_batch": table["batch_size"],
        "log_rate": table["relative_rate"],
    }
    found = table.assign(**{name: np.log2(column.astype(float)) for name, column in logs.items()})
    return found.assign(log_rate_squared=found["log_rate"] ** 2)


def judge_residuals(table: pd.DataFrame, runs: Sequence[Run]) -> Verdict:
    """lstm-residual-bias: bias by family of one regression over all runs, without and with a term for the family."""
    ready = with_logs(table)
    pooled, full = regress(ready, "nll", FITTED), regress(ready, "nll", FITTED, ["family"])
    bias = residual_bias(pooled, ready["family"]).set_index("group")
    after = residual_bias(full, ready["family"], held_out=False).set_index("group")["bias"].abs().max()
    spread = full.loo_residuals.groupby(ready["family"]).std()
    largest, tightest = bias["bias"].abs().idxmax(), spread.idxmin()
    said = largest == "lstm" and tightest == "transformer"
    by_family = "; ".join(f"{FAMILY_LABELS[f]} {bias.bias[f]:+.2f} ({spread[f]:.2f})" for f in FAMILIES)
    row = bias.loc["lstm"]
    interval = None if math.isnan(row["low"]) else (float(row["low"]), float(row["high"]))
    return Verdict(
        "lstm-residual-bias", "mean leave-one-out residual of LSTM runs, one regression for all families without a "
        "term for the family", float(row["bias"]), interval, "nats per token", fingerprints(runs),
        "depends" if said else "fails",
        f"bias by family and, in brackets, spread once the family is a term: {by_family}. Most biased: "
        f"{FAMILY_LABELS[str(largest)]}; tightest: {FAMILY_LABELS[str(tightest)]}. A bias belongs to the "
        f"model that was fitted: with a term for the family it is {after:.2f} by construction, so it tells families "
        "apart, not how predictable they are",
    )  # fmt: skip
