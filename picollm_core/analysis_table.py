"""One row a run, and what must be equal before rows may be compared."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from picollm_core.config import RESULTS_VERSION, require
from picollm_core.diversity import repetition_rate
from picollm_core.runs import Run, hyperparameters
from picollm_core.tokenizers import load_tokenizer, tokenizer_hash

SAMPLE_WORDS, REPEATED_NGRAM = 30, 3
"""Repetition in samples is that of 3-grams of words among the first 30 words, so that all samples count alike."""
ANY_TOKENIZER = ("bits_per_byte",)
"""Measures that do not depend on how the text was cut into tokens."""
_FIRST = ("fingerprint", "family", "shape", "seed", "corpora", "corpus_hashes", "tokenizer", "results_version")
_MEASURED = (
    "nll", "perplexity", "bits_per_byte", "accuracy", "text_nll", "eot_nll", "n_tokens", "n_bytes", "n_stories",
    "parameters", "steps", "tokens_seen", "train_seconds", "train_loss", "tokens_per_second", "peak_memory_mb",
    "device", "precision", "torch",
)  # fmt: skip


def require_rows(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """ValueError unless `table` has all `columns`, which are named together with what there is, and a row."""
    missing = [name for name in columns if name not in table.columns]
    require(not missing, f"the table has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    require(len(table) > 0, "the table is empty; give at least one run")


def shape_name(config: Any) -> str:
    """A model's size in few letters, its family left out: "64 x 2" is the width and the number of layers."""
    name = f"{config.n_embd} x {config.n_layer}"
    if config.family == "kgram":
        return f"{name}, K {config.k}"
    if config.family == "transformer":
        return f"{name}, {config.n_head} head{'s' if config.n_head > 1 else ''}"
    return name


def _repetition(sample: str | None) -> float:
    """Share of the 3-grams of words that occurred before in the sample's first 30 words; NaN for shorter ones."""
    words = (sample or "").split()
    return math.nan if len(words) < SAMPLE_WORDS else repetition_rate([words], REPEATED_NGRAM, SAMPLE_WORDS)  # type: ignore[list-item]


def _version(run: Run, hashes: dict[str, str | None]) -> str:
    """The version of the package's results that a run belongs to: its fingerprint holds it and is made anew here."""
    name = run.config.data.tokenizer
    if name not in hashes:
        try:
            hashes[name] = tokenizer_hash(load_tokenizer(name))
        except ValueError:  # not at hand here, so nothing can be said
            hashes[name] = None
    if hashes[name] is None:
        return "unknown"
    expected = run.config.fingerprint(corpora=run.context["corpus_hashes"], tokenizer=hashes[name])
    return str(RESULTS_VERSION) if run.fingerprint == expected else f"not {RESULTS_VERSION}"


def _row(run: Run, hashes: dict[str, str | None]) -> dict[str, Any]:
    summary, norms = run.summary, run.history.get("grad_norm", pd.Series(dtype=float)).dropna()
    measured = {name: summary.get(name, math.nan) for name in _MEASURED}
    measured = {name: math.nan if value is None else value for name, value in measured.items()}
    identity = {
        "shape": shape_name(run.config.model),
        "corpora": "+".join(run.context["corpora"]),
        "corpus_hashes": "+".join(run.context["corpus_hashes"]),
        "results_version": _version(run, hashes),
        "fingerprint": run.fingerprint,
    }
    derived = {
        "epochs_seen": float(run.history["epoch"].iloc[-1])
        if "epoch" in run.history and len(run.history)
        else math.nan,
        "gap": measured["nll"] - measured["train_loss"],
        "grad_norm_mean": float(norms.mean()) if len(norms) else math.nan,
        "grad_norm_last": float(norms.iloc[-1]) if len(norms) else math.nan,
        "greedy_repetition": _repetition(run.samples.get("greedy")),
        "sampled_repetition": _repetition(run.samples.get("top-p 1.0")),
    }
    return hyperparameters(run.config) | measured | derived | identity


def comparison_table(runs: Iterable[Run]) -> pd.DataFrame:
    """One tidy row a run: its identity, every hyperparameter, and what was measured; NaN where a family has none.

    Identity: fingerprint, family, shape, seed, corpora, corpus_hashes, tokenizer, results_version ("not 1" where the
    fingerprint is not the one that this version of the package would give). Hyperparameters: the fields of the model's,
    the data's and the training's configuration under their own names. Measured, on the held-out stories: nll (nats per
    token), perplexity, bits_per_byte, accuracy (share of tokens), text_nll, eot_nll, n_tokens, n_bytes, n_stories;
    in training: parameters, steps, tokens_seen, epochs_seen, train_seconds, tokens_per_second (median over updates),
    peak_memory_mb, train_loss (nats per token over the last 20 updates), gap (nll - train_loss: it grows with
    overfitting, but compares whole stories with training windows), grad_norm_mean and grad_norm_last (before clipping,
    over the logged updates); device, precision, torch; greedy_repetition and sampled_repetition (share of the 3-grams
    of words that occurred before among the first 30 words of one sample, NaN for a shorter one: coarse).
    Raises ValueError without runs, and for one that is given twice.
    """
    found, hashes = list(runs), {}  # type: ignore[var-annotated]
    require(len(found) > 0, "there are 0 runs to compare; train some with lab.train or lab.sweep")
    table = pd.DataFrame([_row(run, hashes) for run in found])
    twice = table.loc[table["fingerprint"].duplicated(), "fingerprint"].unique()
    require(len(twice) == 0, f"run {', '.join(twice)} is given more than once; it would count as several")
    rest = [name for name in table.columns if name not in _FIRST]
    return table[[*_FIRST, *rest]]


def _differing(table: pd.DataFrame, column: str) -> tuple[str, str] | None:
    """Two rows' values of a column, with who they are, where not all are equal; None where they are."""
    known = table[column].astype(object).where(table[column].notna(), "none")
    if known.nunique() <= 1:
        return None
    names = table["fingerprint"] if "fingerprint" in table.columns else pd.Series(table.index, index=table.index)
    first = 0
    other = next(place for place in range(len(known)) if known.iloc[place] != known.iloc[first])
    return tuple(f"{known.iloc[at]} (run {names.iloc[at]})" for at in (first, other))  # type: ignore[return-value]


def require_comparable(runs: Iterable[Run] | pd.DataFrame, compared: str = "nll", texts_vary: bool = False) -> None:
    """ValueError with the reason, and the two values, unless these runs may stand in one comparison of `compared`.

    `runs` are runs or their comparison_table. All must have read the same texts (content hashes), been cut into tokens
    by the same tokenizer (but bits_per_byte compares across tokenizers), and been evaluated on the same held-out text
    (stories and bytes) by the same version of the evaluator. `texts_vary=True` is for a study of the
    training text itself: it lets the texts differ, but not what is evaluated. ValueError also for a table without these
    columns.
    """
    table = runs if isinstance(runs, pd.DataFrame) else comparison_table(runs)
    require_rows(table, ["corpus_hashes", "tokenizer", "n_stories", "n_bytes", "results_version", compared])
    reasons = {
        "corpus_hashes": "they read and were scored on different texts; compare runs of one corpus",
        "tokenizer": f"{compared} of different tokenizers is per different token; compare bits_per_byte instead",
        "n_stories": "they were evaluated on different numbers of held-out stories; set one final_stories for all",
        "n_bytes": "they were evaluated on different held-out texts (bytes); evaluate all on the same",
        "results_version": "their evaluators are of different versions; train the older ones anew with refresh=True",
    }
    for column, reason in reasons.items():
        if (column == "tokenizer" and compared in ANY_TOKENIZER) or (column == "corpus_hashes" and texts_vary):
            continue
        found = _differing(table, column)
        require(
            found is None,
            f"these runs cannot be compared by {compared}: {column} is {' and '.join(found or ())}; {reason}",
        )
