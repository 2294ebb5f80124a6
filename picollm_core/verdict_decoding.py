"""What greedy choice, p = 0.9 and p = 1 do to the text of each family: repetition, variety, and a judge's surprise.

Every model continues the same beginnings of held-out stories. A judge that wrote none of the texts says how surprising
they are; "incoherent" is taken as more surprising than what the human wrote there. Pico models have a seed each and
paired intervals over seeds; the models that ship are one a family, with intervals over stories.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from picollm_core.config import require
from picollm_core.contrasts import Contrast, paired_contrast
from picollm_core.lab import Lab
from picollm_core.runs import Run
from picollm_core.shipped import shipped_config
from picollm_core.text_quality import QualityStudy, Source, generators, sampler_grid
from picollm_core.text_scores import Difference, difference, score
from picollm_core.verdict_evidence import Evidence, concluded, spoken, together, told
from picollm_core.verdict_families import PROMPT, long_families
from picollm_core.verdicts import Verdict

P_VALUES, SHIPPED_P = (0, 0.9, 1), (0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1)
GREEDY, NUCLEUS, ALL = "greedy", "top-p 0.9", "top-p 1"
JUDGE: dict[str, Any] = {"optimizer": "muon", "learning_rate": 0.01, "schedule": "linear", "max_steps": 600}
BEGINNINGS = {"stories": 64, "prompt_tokens": 12, "length": 100}
COLLAPSE = 0.5
"""Share of repeated 4-grams from which a text is a loop: half of it has been said before in the same text."""
Record = Mapping[str, Any]
NOTHING = [math.nan] * 5


def study(lab: Lab) -> QualityStudy:
    """The judge of notebook 03, and beginnings of held-out stories as it chooses them."""
    return QualityStudy(lab.train(shipped_config("transformer").model, seed=1, prompt=PROMPT, **JUDGE), **BEGINNINGS)


def measure_runs(lab: Lab, runs: Mapping[str, Sequence[Run]], own: QualityStudy) -> dict[str, list[dict[str, Record]]]:
    """Arm -> for each of its runs the records of `text_quality` by sampler."""
    grid = sampler_grid("top-p", P_VALUES)

    def one(run: Run) -> dict[str, Record]:
        source = Source(run.family, run.fingerprint, "run", lambda: (run.load_model(), run.load_tokenizer()))
        return lab.measure(
            "text-quality", lambda: own.measure(source, grid), source=run.fingerprint, settings=grid, **own.key
        )

    return {name: [one(run) for run in found] for name, found in runs.items()}


def table_of(records: Mapping[str, Sequence[Mapping[str, Record]]], human: Record) -> pd.DataFrame:
    """A row a run and sampler: arm, seed, setting, nll (judge's nats a token), repetition, distinct_2; human's last.

    distinct_2 and repetition are missing where texts ended too early to hold the tokens that are counted.
    """
    rows = [
        (arm, seed, setting, score(record), score(record, "repetition"), (record["distinct"] or NOTHING)[1])
        for arm, runs in records.items()
        for seed, run in enumerate(runs)
        for setting, record in run.items()
    ]
    rows.append(("human", 0, "human", score(human), score(human, "repetition"), human["distinct"][1]))
    return pd.DataFrame(rows, columns=["arm", "seed", "setting", "nll", "repetition", "distinct_2"])


def values_of(table: pd.DataFrame, arm: str, setting: str, measure: str) -> list[float]:
    """One value a seed."""
    rows = table[(table["arm"] == arm) & (table["setting"] == setting)].sort_values("seed")
    return rows[measure].tolist()


def less_human(table: pd.DataFrame, arm: str, setting: str, measure: str) -> Contrast:
    """Contrast of an arm's text with the human text, over the arm's seeds that have a value."""
    found = values_of(table, arm, setting, measure)
    human = float(table.loc[table["arm"] == "human", measure].iloc[0])
    return _known(found, [human] * len(found), f"{arm} at {setting}: {measure}")


def step(table: pd.DataFrame, arm: str, first: str, second: str, measure: str) -> Contrast:
    """Contrast of two samplers on the same models, where both have a value: first less second."""
    one, other = (values_of(table, arm, setting, measure) for setting in (first, second))
    return _known(one, other, f"{arm} at {first} and {second}: {measure}")


def _known(first: Sequence[float], second: Sequence[float], what: str) -> Contrast:
    """The contrast of the pairs of which both are known; ValueError when there is none."""
    known = [pair for pair in zip(first, second, strict=True) if not any(map(math.isnan, pair))]
    require(bool(known), f"{what} is known of no model, since its texts end too early; sample longer texts")
    return paired_contrast([one for one, _ in known], [other for _, other in known])


def _each(evidence: Evidence) -> str:
    return "; ".join(f"{name} {spoken(found)}" for name, found in evidence.contrasts.items())


def judge_decoding(
    table: pd.DataFrame, runs: Sequence[str], longer: Mapping[str, Difference] | None = None
) -> list[Verdict]:
    """The verdicts on the slides' five statements about decoding, from a `table_of`.

    `longer` has for models of longer training the repetition of greedy text less that of human text, which is a second
    reading of the first statement. Raises ValueError where no model of an arm has a value.
    """
    arms = [name for name in dict.fromkeys(table["arm"]) if name != "human"]
    repeats = Evidence({arm: less_human(table, arm, GREEDY, "repetition") for arm in arms})
    wider = Evidence(
        {
            f"{arm}, variety {a} less {b}": step(table, arm, a, b, "distinct_2")
            for arm in arms
            for a, b in ((NUCLEUS, GREEDY), (ALL, NUCLEUS))
        }
    )
    fewer = Evidence(
        {f"{arm}, repetition p = 1 less greedy": step(table, arm, ALL, GREEDY, "repetition") for arm in arms}
    )
    odd = Evidence({arm: less_human(table, arm, ALL, "nll") for arm in arms})
    kgrams = [arm for arm in arms if arm.startswith("k-gram")]
    any_p = Evidence(
        {f"{arm}, {p}": less_human(table, arm, p, "nll") for arm in kgrams for p in (GREEDY, NUCLEUS, ALL)}
    )
    return [
        _greedy(repeats, longer or {}, runs),
        _raises(wider, fewer, runs),
        _incoherent(odd, wider, arms, runs),
        _collapse(table, [arm for arm in arms if arm.startswith("Transformer")], runs),
        _any_p(any_p, runs),
    ]


def _greedy(repeats: Evidence, longer: Mapping[str, Difference], runs: Sequence[str]) -> Verdict:
    words = [repeats.word([arm], "above") for arm in repeats.contrasts]
    words += ["holds" if found.verdict(1) == "holds" else "fails" for found in longer.values()]
    arm, shown = repeats.weakest(list(repeats.contrasts), "above")
    more = "; ".join(
        f"{name} {found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})" for name, found in longer.items()
    )
    cause = f"on how well the model is trained: after one pass over the text {_each(repeats)}"
    cause += f"; the larger models that ship, trained for longer (intervals over stories): {more}" if more else ""
    what = f"share of 4-grams said before, greedy less human text, pico after one pass: {arm}"
    return concluded("greedy-repeats", what, shown, together(*words), unit="share of 4-grams", runs=runs, cause=cause)


def _raises(wider: Evidence, fewer: Evidence, runs: Sequence[str]) -> Verdict:
    words = (wider.word(list(wider.contrasts), "above"), fewer.word(list(fewer.contrasts), "below"))
    name, shown = wider.weakest(list(wider.contrasts), "above")
    return concluded(
        "p-raises-diversity",
        f"distinct-2 at equal length: {name}",
        shown,
        together(*words),
        unit="share of 2-grams",
        runs=runs,
        cause=f"variety: it {told(words[0])}; repetition: it {told(words[1])} ({_each(fewer)})",
    )


def _incoherent(odd: Evidence, wider: Evidence, arms: Sequence[str], runs: Sequence[str]) -> Verdict:
    most = wider.word([name for name in wider.contrasts if ALL + " less" in name], "above")
    word = together(odd.word(list(odd.contrasts), "above"), most)
    arm, shown = odd.weakest(list(odd.contrasts), "above")
    return concluded(
        "p1-incoherent",
        f"judge's surprise, p = 1 less human text: {arm}",
        shown,
        word,
        unit="nats per token",
        runs=runs,
        cause=f"surprise less that of human text: {_each(odd)}",
    )


def _collapse(table: pd.DataFrame, arms: Sequence[str], runs: Sequence[str]) -> Verdict:
    loops = {arm: [v for v in values_of(table, arm, GREEDY, "repetition") if not math.isnan(v)] for arm in arms}
    evidence = Evidence({arm: paired_contrast(found, [COLLAPSE] * len(found)) for arm, found in loops.items()})
    words = [evidence.word([arm], "above") for arm in arms]
    arm, shown = evidence.weakest(arms, "above")
    said = "; ".join(f"{arm} {sum(found) / len(found):.0%}" for arm, found in loops.items())
    return concluded(
        "transformer-greedy-collapses",
        f"share of 4-grams said before, greedy, less the half that makes a loop: {arm}",
        shown,
        together(*words),
        unit="share of 4-grams",
        runs=runs,
        cause=f"greedy text repeats this share of its 4-grams: {said}. A Transformer that sees its current "
        "token alone must loop, since the same token always has the same successor",
    )


def _any_p(any_p: Evidence, runs: Sequence[str]) -> Verdict:
    words = [any_p.word([name], "above") for name in any_p.contrasts]
    name, shown = any_p.weakest(list(any_p.contrasts), "above")
    return concluded(
        "kgram-incoherent-at-any-p",
        f"judge's surprise less that of human text: {name}",
        shown,
        together(*words),
        unit="nats per token",
        runs=runs,
        cause=f"on p: {_each(any_p)}. Off by one, a k-gram never sees the word that it continues",
    )


def shipped_repetition(lab: Lab, judge: Run) -> dict[str, Difference]:
    """Family -> repetition of the shipped model's greedy text less that of human text, as notebook 03 has it."""
    own, grid = QualityStudy(judge, **BEGINNINGS | {"stories": 128}), sampler_grid("top-p", SHIPPED_P)
    human = lab.measure("human-text", own.human, **own.key)

    def records(source: Source) -> dict[str, Record]:
        return lab.measure("text-quality", lambda: own.measure(source, grid), source=source.identity, settings=grid,
                           **own.key)  # fmt: skip

    return {
        family: difference(records(source)[GREEDY], human, "repetition", claims=3)
        for family, source in generators(lab, PROMPT).items()
    }


def claims_decoding(lab: Lab) -> list[Verdict]:
    """Verdicts on the slides' statements about decoding; none in the quick profile."""
    if lab.profile.name == "quick":
        return []
    own, models = study(lab), long_families(lab)
    human = lab.measure("human-text", own.human, **own.key)
    before = len(lab.used)
    longer = shipped_repetition(lab, own.judge)
    records = measure_runs(lab, models.runs, own)
    names = sorted(set(lab.used[before:]))
    return judge_decoding(table_of(records, human), names, longer)
