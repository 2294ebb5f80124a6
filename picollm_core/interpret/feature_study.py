"""What single features of an autoencoder stand for and do, and what linear probes find beside them.

Each function is one recorded measurement of the lab (see sae_study). Features are always chosen on some stories and
judged on others.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from picollm_core.config import require
from picollm_core.interpret.concepts import ConceptData
from picollm_core.interpret.feature_index import FeatureIndex, feature_index
from picollm_core.interpret.feature_scores import concept_scores, feature_codes
from picollm_core.interpret.hooks import require_site
from picollm_core.interpret.probes import probe_study
from picollm_core.interpret.sae_study import (
    MIN_STORIES,
    BasisRecipe,
    Reading,
    Recipe,
    dictionary_of,
    json_rows,
    table_of,
)
from picollm_core.interpret.steering import ABLATION_COLUMNS, ablation_effects, concept_tokens, steering_curve
from picollm_core.interpret.subjects import Subject
from picollm_core.lab import Lab

AMOUNTS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
"""Of steering, in units of the largest code that the feature has on the stories it was chosen on."""
CAUSAL_COLUMNS = {
    "chosen": ("concept", "feature", "f1", "precision", "recall", "floor", "largest"),
    "effects": (*ABLATION_COLUMNS, "own"),
    "curves": ("amount", "mass", "low", "high", "monotone", "feature", "concept", "share"),
}
_PROBED = ("site", "weights", "concept", "auroc", "control_auroc", "balanced_accuracy", "selectivity")


def _rows(data: ConceptData, start: int, stop: int | None) -> ConceptData:
    return ConceptData(data.idx[start:stop], data.mask[start:stop], data.labels[start:stop], data.names)


def causal_study(
    lab: Lab, subject: Subject, recipe: Recipe, reading: Reading, concepts: Sequence[str], stories: int = 80
) -> dict[str, pd.DataFrame]:
    """What ablating and steering the features that announce these concepts does to the predictions.

    On `reading.stories` stories the one feature is found for each concept that best tells whether the next token
    belongs to it; a feature that was found already is not taken again, and concepts in fewer than MIN_STORIES stories
    are left out, as are features that never fire. On `stories` further ones it is ablated and steered. Tables, with the
    columns CAUSAL_COLUMNS: `chosen` (`largest` is the feature's largest code on the stories it was chosen on),
    `effects` (those of steering.ablation_effects with `own`, the feature's concept) and `curves` (those of
    steering.steering_curve with `share`, the amount in units of `largest`) for concepts that have characteristic
    tokens.

    Raises ValueError when the text has no more than `stories` held-out stories.
    """

    def compute() -> dict[str, Any]:
        model, tokenizer, dictionary, _ = dictionary_of(subject, recipe)
        everything = reading.replace(stories=reading.stories + stories).of(subject, tokenizer)
        require(
            1 <= stories < len(everything),
            f"stories is {stories}; of {len(everything)} held-out ones at least 1 is judged and 1 is left to choose on",
        )
        choosing, judging = _rows(everything, 0, -stories), _rows(everything, -stories, None)
        common = choosing.common(MIN_STORIES)
        z = feature_codes(model, dictionary, common)
        wanted = common.announced.pick(name for name in concepts if name in common.names)
        scores = concept_scores(z, wanted.flat_labels, wanted.groups, wanted.names, n_bootstrap=100)
        firing = scores[scores["density"] > 0]
        chosen = firing.drop_duplicates("feature")[["concept", "feature", "f1", "precision", "recall", "floor"]]
        values = z.coalesce()
        largest = {f: values.values()[values.indices()[1] == f].max().item() for f in chosen["feature"]}
        chosen = chosen.assign(largest=chosen["feature"].map(largest))
        own, tokens = dict(zip(chosen["feature"], chosen["concept"], strict=True)), concept_tokens(common)
        effects = ablation_effects(model, dictionary, own, judging.pick(wanted.names), tokens=tokens)
        curves = [
            steering_curve(model, dictionary, f, tokens[name], [a * largest[f] for a in AMOUNTS], judging).assign(
                feature=f, concept=name, share=AMOUNTS
            )
            for f, name in own.items()
            if len(tokens[name])
        ]
        tables = {"chosen": chosen, "effects": effects.assign(own=effects["feature"].map(own))}
        tables["curves"] = pd.concat(curves, ignore_index=True) if curves else pd.DataFrame()
        return {name: json_rows(table, 5) for name, table in tables.items()}

    key = {"recipe": recipe.fingerprint(), "reading": reading.fingerprint(), "concepts": list(concepts)}
    found = lab.measure("causal features", compute, **subject.identity, **key, stories=stories)
    return {name: table_of(found[name], columns) for name, columns in CAUSAL_COLUMNS.items()}


def probe_rows(
    lab: Lab, subjects: Iterable[Subject], sites: Mapping[str, Sequence[str]], reading: Reading, concepts: Sequence[str]
) -> pd.DataFrame:
    """Linear probes of these concepts at the `sites` of each subject, by its name, trained and untrained.

    Columns subject, site, weights, concept, auroc, control_auroc, balanced_accuracy, selectivity; see
    probes.probe_study. Concepts that the subject's stories hardly have are left out. Raises ValueError for a subject
    without sites, and a site that its model has not.
    """
    subjects = list(subjects)
    for subject in subjects:
        named = ", ".join(sites)
        require(subject.name in sites, f"no sites are named for the subject {subject.name!r}, only for {named}")

    def compute(subject: Subject) -> list[dict[str, Any]]:
        model, tokenizer = subject.load()
        data = reading.of(subject, tokenizer).common(MIN_STORIES)
        data = data.pick(name for name in concepts if name in data.names)
        for site in sites[subject.name]:
            require_site(model, site)
        return json_rows(probe_study(model, sites[subject.name], data)[list(_PROBED)], 4) if data.names else []

    tables = []
    for subject in subjects:
        key = {"sites": list(sites[subject.name]), "reading": reading.fingerprint(), "concepts": list(concepts)}
        rows = lab.measure("linear probes", lambda subject=subject: compute(subject), **subject.identity, **key)  # type: ignore[misc]
        tables.append(table_of(rows, _PROBED).assign(subject=subject.name))
    return pd.concat(tables, ignore_index=True)


def _best_of_each_concept(table: pd.DataFrame, count: int) -> list[int]:
    """The features with the largest gain, one a concept."""
    ranked = table[table["concept"] != ""].sort_values("gain", ascending=False).drop_duplicates("concept")
    return ranked["feature"].head(count).tolist()


class FeatureStudy(NamedTuple):
    """The units of a dictionary: `best` holds the best unit of several concepts, one each, `strongest` those with the
    largest codes, whatever they stand for.

    `gains` has the F1 over its floor, on stories that had no part in the choice, of every unit that fires on at least
    one token in 10,000; `densities` every unit's share of tokens.
    """

    best: FeatureIndex
    strongest: FeatureIndex
    gains: list[float]
    densities: list[float]


def feature_study(
    lab: Lab, subject: Subject, recipe: Recipe | BasisRecipe, reading: Reading, count: int = 10
) -> FeatureStudy:
    """Evidence for the units of a dictionary, `count` of the best and of the strongest."""

    def compute() -> dict[str, Any]:
        model, tokenizer, dictionary, _ = dictionary_of(subject, recipe)
        data = reading.of(subject, tokenizer).common(MIN_STORIES)
        index = feature_index(model, tokenizer, dictionary, data)
        alive = index.table[index.table["density"] > 1e-4]
        return {
            "best": index.to_dict(_best_of_each_concept(alive, count)),
            "strongest": index.to_dict(alive.sort_values("max", ascending=False)["feature"].head(count)),
            "gains": alive["gain"].fillna(0.0).round(4).tolist(),
            "densities": index.table["density"].round(6).tolist(),
        }

    key = {"recipe": recipe.fingerprint(), "kind": type(recipe).__name__, "reading": reading.fingerprint()}
    found = lab.measure("feature evidence", compute, **subject.identity, **key, count=count)
    best, strongest = (FeatureIndex.from_dict(found[name]) for name in ("best", "strongest"))
    return FeatureStudy(best, strongest, found["gains"], found["densities"])
