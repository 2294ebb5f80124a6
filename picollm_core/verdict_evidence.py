"""Several contrasts of one study, corrected for being several, and the verdict that some of them give together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import pandas as pd

from picollm_core.config import require
from picollm_core.contrasts import Contrast, holm, paired_contrast
from picollm_core.verdicts import Verdict, Word

Side = Literal["below", "above"]
LEVEL = 0.05


@dataclass(frozen=True)
class Evidence:
    """Named contrasts of one study: a difference counts when its p-value, corrected over all of them (Holm), is
    below 0.05."""

    contrasts: Mapping[str, Contrast]

    @cached_property
    def corrected(self) -> dict[str, float]:
        """Name -> Holm's p-value over the whole study; without the contrasts of a single pair, which have none."""
        tested = [name for name, found in self.contrasts.items() if found.pairs > 1]
        return dict(zip(tested, holm([self.contrasts[name].p_value for name in tested]), strict=True))

    def chosen(self, names: Sequence[str]) -> dict[str, Contrast]:
        """These contrasts. ValueError for a name that is not there, and for none."""
        missing = [name for name in names if name not in self.contrasts]
        require(
            bool(names) and not missing,
            f"no contrast {', '.join(missing) or '(none was named)'}; there are {', '.join(self.contrasts)}",
        )
        return {name: self.contrasts[name] for name in names}

    def word(self, names: Sequence[str], claim: Side) -> Word:
        """Whether all of these differences lie on the claimed side of 0: it fails where one is clearly on the other."""
        sides = [self._side(name, found) for name, found in self.chosen(names).items()]
        if any(side not in ("", claim) for side in sides):
            return "fails"
        return "holds" if all(side == claim for side in sides) else "open"

    def _side(self, name: str, found: Contrast) -> str:
        """ "below" or "above" where the difference is clear, else nothing."""
        if self.corrected.get(name, 1.0) >= LEVEL or found.low <= 0 <= found.high:
            return ""
        return "below" if found.mean < 0 else "above"

    def weakest(self, names: Sequence[str], claim: Side) -> tuple[str, Contrast]:
        """The contrast that speaks least for the claim, and its name."""
        chosen, sign = self.chosen(names), 1 if claim == "below" else -1
        name = max(chosen, key=lambda name: sign * chosen[name].mean)
        return name, chosen[name]

    def table(self) -> pd.DataFrame:
        """A row a contrast: contrast, difference, low, high (95%, Student), pairs, p_holm."""
        rows = [(name, c.mean, c.low, c.high, c.pairs, self.corrected.get(name)) for name, c in self.contrasts.items()]
        return pd.DataFrame(rows, columns=["contrast", "difference", "low", "high", "pairs", "p_holm"])


def paired(first: Sequence[float], second: Sequence[float]) -> Contrast:
    """`paired_contrast`, under the name that tells what it does here: first - second, seed by seed."""
    return paired_contrast(first, second)


def together(*words: Word) -> Word:
    """One word for what several readings of a claim say.

    All alike: that word. Holds by one and fails by another: it depends. Else it fails where one fails, and is open
    where none does. Raises ValueError without a word.
    """
    require(bool(words), "there are 0 words; give at least one reading of the claim")
    found = set(words)
    if len(found) == 1:
        return words[0]
    if "depends" in found or {"holds", "fails"} <= found:
        return "depends"
    return "fails" if "fails" in found else "open"


def concluded(
    claim_id: str,
    contrast: str,
    shown: Contrast,
    word: Word,
    *,
    unit: str,
    runs: Sequence[str],
    cause: str,
) -> Verdict:
    """The verdict `word`, with the effect and the interval of the contrast `shown`.

    Of a single pair nothing is concluded: the claim stays open, and the cause says so.
    """
    if shown.pairs == 1:
        alone = "one seed has no interval, so nothing is decided"
        return Verdict(claim_id, contrast, shown.mean, None, unit, tuple(runs), "open", alone)
    return Verdict(claim_id, contrast, shown.mean, (shown.low, shown.high), unit, tuple(runs), word, cause)


def spoken(found: Contrast, unit: str = "") -> str:
    """A difference in words: its mean and its interval, as it stands in a cause."""
    ends = "" if found.pairs == 1 else f" ({found.low:+.3f} to {found.high:+.3f})"
    return f"{found.mean:+.3f}{ends}{' ' if unit else ''}{unit}"


def told(word: Word) -> str:
    """A verdict as the predicate of a sentence: "it holds", "it stays open"."""
    return "stays open" if word == "open" else word
