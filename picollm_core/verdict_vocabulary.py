"""The slides' comparison of families once more with GPT-2's 50,257 tokens, which are what the slides trained on.

Most weights of a pico model are then tables of tokens. Losses are in bits per byte here: nats per token cannot be
compared between vocabularies.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from picollm_core.config import require
from picollm_core.contrasts import Contrast, paired_contrast
from picollm_core.lab import Lab
from picollm_core.runs import Run
from picollm_core.verdict_arms import settings
from picollm_core.verdict_evidence import Evidence, spoken
from picollm_core.verdict_families import LEARNED, ROPE, short_families
from picollm_core.verdicts import Verdict, fingerprints

LARGE = "gpt2"
PAIRS = (
    ("LSTM", "k-gram, learned"),
    ("LSTM", LEARNED),
    ("LSTM", ROPE),
    (LEARNED, ROPE),
    ("k-gram, one-hot", "k-gram, learned"),
)
"""What is contrasted: first less second."""
CHECKED = {
    "lstm-best-at-pico": ("LSTM less",),
    "kgram-highest-perplexity": ("LSTM less k-gram",),
    "minimal-variance-norm-position": (f"{LEARNED} less",),
}
"""Claim -> how the contrasts begin that confirm its verdict at the large vocabulary."""


def large_vocabulary_runs(lab: Lab, small: Mapping[str, Sequence[Run]]) -> dict[str, list[Run]]:
    """The arms `small`, seed by seed, with GPT-2's vocabulary and otherwise the same configuration, rate included."""
    return {
        name: [
            lab.train(
                run.config.model,
                learning_rate=run.config.train.learning_rate,
                seed=run.config.train.seed,
                **settings(lab) | {"tokenizer": LARGE},
            )
            for run in runs
        ]
        for name, runs in small.items()
    }


def _contrasts(runs: Mapping[str, Sequence[Run]]) -> dict[str, Contrast]:
    bits = {name: [run.summary["bits_per_byte"] for run in own] for name, own in runs.items()}
    return {f"{a} less {b}": paired_contrast(bits[a], bits[b]) for a, b in PAIRS if a in bits and b in bits}


def vocabulary_table(runs: Mapping[str, Mapping[str, Sequence[Run]]]) -> pd.DataFrame:
    """Contrasts in bits per byte, a row a pair of arms and vocabulary.

    `runs[vocabulary][arm]` holds a run a seed. Columns: contrast, vocabulary, difference, low, high (95%, Student over
    paired seeds), pairs, p_holm (over all rows). Raises ValueError when no pair of PAIRS is there.
    """
    parts = {(name, words): found for words, arms in runs.items() for name, found in _contrasts(arms).items()}
    known = ", ".join(f"{a} less {b}" for a, b in PAIRS)
    require(bool(parts), f"none of {known} can be formed of the arms {[list(arms) for arms in runs.values()]}")
    evidence = Evidence({f"{name} | {words}": found for (name, words), found in parts.items()})
    rows = [
        (name, words, found.mean, found.low, found.high, found.pairs, evidence.corrected.get(f"{name} | {words}"))
        for (name, words), found in parts.items()
    ]
    columns = ["contrast", "vocabulary", "difference", "low", "high", "pairs", "p_holm"]
    return pd.DataFrame(rows, columns=columns).sort_values(["contrast", "vocabulary"], kind="stable")


def both_vocabularies(lab: Lab) -> dict[str, dict[str, list[Run]]]:
    """The short runs of verdict_families with stories-4k, and the same with GPT-2's tokens."""
    small = {name: list(runs) for name, runs in short_families(lab).runs.items()}
    return {lab.profile.data.tokenizer: small, LARGE: large_vocabulary_runs(lab, small)}


def with_vocabulary(
    verdicts: Iterable[Verdict], table: pd.DataFrame, runs: Mapping[str, Sequence[Run]]
) -> list[Verdict]:
    """The verdicts; those of CHECKED name the runs with the large vocabulary and, unless they hold, what these say."""
    large = table[table["vocabulary"] == LARGE]

    def checked(each: Verdict) -> Verdict:
        rows = large[large["contrast"].str.startswith(CHECKED.get(each.id, ("\0",)))]
        if rows.empty:
            return each
        said = "; ".join(
            f"{row.contrast} {spoken(Contrast(row.difference, row.low, row.high, row.pairs), 'bits a byte')}"
            for row in rows.itertuples()
        )
        cause = (
            ""
            if each.verdict == "holds"
            else f"{each.cause}. With GPT-2's 50,257 tokens, a ninth of a pass, rates carried over: {said}"
        )
        return replace(each, cause=cause, runs=(*each.runs, *fingerprints(*runs.values())))

    return [checked(each) for each in verdicts]
