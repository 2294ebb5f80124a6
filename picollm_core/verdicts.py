"""Verdicts on the claims of claims.py: each with its contrast, its effect and interval, its runs, and its cause."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from picollm_core.claims import CLAIMS
from picollm_core.config import require
from picollm_core.contrasts import Contrast, verdict
from picollm_core.results import RESULTS_DIR
from picollm_core.runs import Run, write_json

Word = Literal["holds", "fails", "depends", "open"]
"""An "open" claim is one that the measurement does not decide; what "depends" means is said in the cause."""
VERDICTS_FILE = "verdicts.json"


@dataclass(frozen=True)
class Verdict:
    """What a fair test says of one claim.

    `contrast` says in words what was compared at equal what; `effect` is its size in `unit`, `interval` the 95%
    interval over paired seeds (None where there is none: an exact count, or one seed). `runs` names what it rests on:
    fingerprints of runs, or files of measurements. `cause` says why the claim was made although it fails, or what it
    depends on. Raises ValueError for a claim that is not listed, another word, and an interval without its effect.
    """

    id: str
    contrast: str
    effect: float | None
    interval: tuple[float, float] | None
    unit: str
    runs: tuple[str, ...]
    verdict: Word
    cause: str = ""

    def __post_init__(self) -> None:
        require(self.id in CLAIMS, f"there is no claim {self.id!r} in claims.CLAIMS")
        require(self.verdict in get_args(Word), f"verdict is {self.verdict!r}; choose one of {get_args(Word)}")
        if self.interval is not None:
            low, high = self.interval
            require(
                self.effect is not None and low <= self.effect <= high,
                f"claim {self.id!r} has effect {self.effect} outside its interval ({low}, {high})",
            )
        require(
            self.verdict == "holds" or bool(self.cause),
            f"claim {self.id!r} {self.verdict} without a cause; say why, or what it depends on",
        )

    def row(self) -> dict[str, Any]:
        """JSON values, as in verdicts.json."""
        claim = CLAIMS[self.id]
        return {
            "id": self.id,
            "source": claim.source,
            "claim": claim.claim,
            "contrast": self.contrast,
            "effect": None if self.effect is None else float(f"{self.effect:.4g}"),
            "interval": None if self.interval is None else [float(f"{end:.4g}") for end in self.interval],
            "unit": self.unit,
            "runs": sorted(set(self.runs)),
            "verdict": self.verdict,
            "cause": self.cause,
        }


def fingerprints(*groups: Iterable[Run]) -> tuple[str, ...]:
    """The names of all these runs, each once, for Verdict.runs."""
    return tuple(sorted({run.fingerprint for runs in groups for run in runs}))


def judged(
    claim_id: str,
    contrast: str,
    found: Contrast,
    *,
    claim: Literal["below", "above"],
    unit: str,
    runs: Sequence[str],
    cause: str,
    bound: float = 0.0,
) -> Verdict:
    """The verdict that one difference over paired seeds gives: its whole interval must lie on the claimed side.

    `cause` is kept where the claim does not hold. A single pair has no interval and leaves the claim open.
    """
    word = verdict(found, claim=claim, bound=bound)
    interval = None if found.pairs == 1 else (found.low, found.high)
    return Verdict(claim_id, contrast, found.mean, interval, unit, tuple(runs), word, "" if word == "holds" else cause)


def require_complete(verdicts: Sequence[Verdict]) -> None:
    """ValueError unless every claim has exactly one verdict; names those that are missing or judged twice."""
    count = Counter(each.id for each in verdicts)
    missing = [name for name in CLAIMS if name not in count]
    twice = [name for name, times in count.items() if times > 1]
    require(
        not missing and not twice,
        f"{len(CLAIMS)} claims need one verdict each; without: {', '.join(missing) or 'none'}; "
        f"more than one: {', '.join(twice) or 'none'}",
    )


def verdict_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """One row a verdict, in the order of the claims, with the columns of verdicts.json."""
    order = {name: place for place, name in enumerate(CLAIMS)}
    return pd.DataFrame([each.row() for each in sorted(verdicts, key=lambda each: order[each.id])])


def write_verdicts(verdicts: Sequence[Verdict], folder: Path = RESULTS_DIR) -> Path:
    """Write verdicts.json, a list of rows in the order of the claims. ValueError unless every claim has its verdict."""
    require_complete(verdicts)
    path = folder / VERDICTS_FILE
    order = {name: place for place, name in enumerate(CLAIMS)}
    write_json(path, [each.row() for each in sorted(verdicts, key=lambda each: order[each.id])])
    return path
