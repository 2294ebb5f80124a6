"""Single features are chosen on some stories, judged on others, measured once and redrawn."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from picollm_core.config import LSTMConfig, TransformerConfig
from picollm_core.interpret import sae_study, sae_training
from picollm_core.interpret.concepts import ConceptData
from picollm_core.interpret.feature_scores import concept_scores, feature_codes
from picollm_core.interpret.feature_study import AMOUNTS, CAUSAL_COLUMNS, causal_study, feature_study, probe_rows
from picollm_core.interpret.hooks import activations
from picollm_core.interpret.probes import probe_study
from picollm_core.interpret.sae_study import (
    AUTOENCODERS_DIR,
    MIN_STORIES,
    BasisRecipe,
    Reading,
    Recipe,
    autoencoder,
    dictionary_of,
)
from picollm_core.interpret.steering import ablation_effects, concept_tokens
from picollm_core.interpret.subjects import Subject
from picollm_core.lab import Lab
from picollm_core.profiles import PROFILES
from picollm_core.runs import RUNS_DIR
from tests.saved_models import DECIDED, lost, save_subject

SITE, STORIES, LENGTH, JUDGED = "blocks.0", 56, 64, 8
RECIPE = Recipe(SITE, level=4, expansion=2, n_tokens=3_000)
READING = Reading(STORIES, LENGTH)
RARE, WITHOUT_TOKENS = "quote:inside", "mention:friend"
TELLING = ("sentence:end", "mention:hero", "pronoun:female", "word:kin")
ASKED = (WITHOUT_TOKENS, *TELLING, RARE, "mention:name", "hero:female", "phase:problem")
FIGURES = {"transformer": (SITE, "hidden"), "lstm": ("rnn.h.0",)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("project"))
        patch.setattr(sae_study, "BASIS_TOKENS", 2_000)
        patch.setattr(sae_training, "BUFFER", 2)
        yield Lab(PROFILES["quick"])


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Subject:
    config = TransformerConfig(vocab_size=4096, n_embd=16, n_layer=1, n_head=2, position="rope")
    return save_subject(tmp_path_factory.mktemp("models") / "transformer", config, DECIDED)


@pytest.fixture(scope="module")
def lstm(tmp_path_factory) -> Subject:
    return save_subject(tmp_path_factory.mktemp("models") / "lstm", LSTMConfig(vocab_size=4096, n_embd=16), DECIDED)


def dead(subject: Subject, recipe: Recipe, features: slice) -> None:
    """Leave this recipe's autoencoder on disk with some features that never fire."""
    before = set(AUTOENCODERS_DIR.glob("*"))
    sae = autoencoder(subject, recipe)[2]
    (folder,) = set(AUTOENCODERS_DIR.glob("*")) - before
    sae.b_enc.data[features] = -1e6
    sae.save_pretrained(folder)


def stories_of(subject: Subject, count: int) -> ConceptData:
    return subject.stories(subject.load()[1], count, LENGTH)


def part(data: ConceptData, start: int, stop: int) -> ConceptData:
    return ConceptData(data.idx[start:stop], data.mask[start:stop], data.labels[start:stop], data.names)


def no_constants(folder: Path) -> None:
    for path in folder.iterdir():
        json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN is no JSON


@pytest.fixture(scope="module")
def causal(lab, subject) -> dict[str, pd.DataFrame]:
    return causal_study(lab, subject, RECIPE, READING, ASKED, stories=JUDGED)


# cause and effect


def test_a_causal_study_is_measured_once_and_redrawn_without_weights_or_texts(lab, subject, causal):
    before = lab.redrawn
    again = causal_study(lab, lost(subject), RECIPE, READING, ASKED, stories=JUDGED)
    assert lab.redrawn == before + 1
    assert list(again) == ["chosen", "effects", "curves"]
    for name, table in again.items():
        pd.testing.assert_frame_equal(table, causal[name])
        assert list(table) == list(CAUSAL_COLUMNS[name])
    no_constants(RUNS_DIR / "results" / "measurements")


def test_a_feature_is_chosen_by_what_it_announces_on_the_first_stories_and_only_for_one_concept(subject, causal):
    model, _, dictionary, _ = dictionary_of(subject, RECIPE)
    data = stories_of(subject, STORIES)
    announced = data.announced.pick(name for name in ASKED if name != RARE)
    z = feature_codes(model, dictionary, data)
    scores = concept_scores(z, announced.flat_labels, announced.groups, announced.names, n_bootstrap=1)
    chosen = causal["chosen"]
    assert len(set(scores["feature"])) == len(chosen) < len(scores)  # some concepts had the same feature
    assert chosen["feature"].is_unique
    first = scores.drop_duplicates("feature").reset_index()
    assert chosen["concept"].tolist() == first["concept"].tolist()
    assert chosen["f1"].tolist() == pytest.approx(first["f1"].tolist(), abs=1e-5)
    largest = z.to_dense().amax(0)[chosen["feature"].tolist()]
    assert chosen["largest"].tolist() == pytest.approx(largest.tolist(), abs=1e-5)


def test_what_is_ablated_was_fixed_before_and_is_judged_on_other_stories(lab, subject, causal):
    model, _, dictionary, _ = dictionary_of(subject, RECIPE)
    data, own = stories_of(subject, STORIES + JUDGED), causal["chosen"].set_index("feature")["concept"]
    effects, names = causal["effects"], [name for name in ASKED if name != RARE]
    assert effects["own"].tolist() == effects["feature"].map(own).tolist()
    wanted = ablation_effects(model, dictionary, own.index, part(data, STORIES, None).pick(names))
    assert effects[["feature", "concept", "targets"]].to_numpy().tolist() == (
        wanted[["feature", "concept", "targets"]].to_numpy().tolist()
    )
    assert effects["difference"].tolist() == pytest.approx(wanted["difference"].tolist(), abs=2e-5)
    fewer = causal_study(lab, subject, RECIPE, READING, ASKED, stories=JUDGED - 3)
    pd.testing.assert_frame_equal(fewer["chosen"], causal["chosen"])  # other stories to judge on changed no choice
    assert fewer["effects"]["targets"].sum() < effects["targets"].sum()


def test_concepts_that_few_stories_have_are_not_looked_for(subject, causal):
    data = stories_of(subject, STORIES)
    assert int(data.labels.any(1).sum(0)[data.column(RARE)]) < MIN_STORIES
    assert RARE not in {*causal["chosen"]["concept"], *causal["effects"]["concept"]}


def test_curves_are_drawn_where_a_concept_has_tokens_of_its_own_and_count_in_largest_codes(subject, causal):
    chosen, curves = causal["chosen"].set_index("concept"), causal["curves"]
    tokens = concept_tokens(stories_of(subject, STORIES))
    assert set(curves["concept"]) == {name for name in chosen.index if len(tokens[name])} < set(chosen.index)
    for name, curve in curves.groupby("concept"):
        assert curve["share"].tolist() == list(AMOUNTS)
        assert set(curve["feature"]) == {chosen.loc[name, "feature"]}
        amounts = [share * chosen.loc[name, "largest"] for share in AMOUNTS]
        assert curve["amount"].tolist() == pytest.approx(amounts, abs=1e-4)
        assert curve["mass"].nunique() > 1
    unwatched = causal["effects"]["concept"].map(lambda name: not len(tokens[name]))
    assert causal["effects"]["mass"].isna().tolist() == unwatched.tolist()


@pytest.mark.parametrize(("asked", "chosen"), [((RARE,), 0), ((), 0), ((WITHOUT_TOKENS,), 1)])
def test_tables_without_rows_have_their_columns(lab, subject, asked, chosen):
    for who in (subject, lost(subject)):
        found = causal_study(lab, who, RECIPE, READING, asked, stories=JUDGED)
        assert {name: tuple(table) for name, table in found.items()} == CAUSAL_COLUMNS
        assert [len(found[name]) for name in ("chosen", "effects", "curves")] == [chosen, chosen, 0]
        assert found["effects"]["mass"].isna().all()


def test_features_that_never_fire_announce_nothing(lab, subject):
    recipe = RECIPE.replace(seed=8)
    dead(subject, recipe, slice(None))
    assert causal_study(lab, subject, recipe, READING, TELLING, stories=JUDGED)["chosen"].empty
    study = feature_study(lab, subject, recipe, READING)
    assert study.best.table.empty
    assert {"feature", "concept", "f1", "floor", "density", "tokens"} <= set(study.strongest.table)
    assert (study.gains, study.densities) == ([], [0.0] * 32)


@pytest.mark.parametrize(("stories", "there"), [(0, STORIES), (68, 68)])
def test_stories_to_choose_on_and_to_judge_on_are_asked_for(lab, subject, stories, there):
    with pytest.raises(ValueError, match=f"stories is {stories}; of {there} held-out ones"):
        causal_study(lab, subject, RECIPE, READING, TELLING, stories=stories)


# probes


def test_probes_are_those_of_each_subjects_own_sites_and_redrawn(lab, subject, lstm):
    found = probe_rows(lab, iter([subject, lstm]), FIGURES, READING, ("sentence:end", RARE))
    assert found[["subject", "site", "weights", "concept"]].to_numpy().tolist() == [
        [name, site, weights, "sentence:end"]
        for name, sites in FIGURES.items()
        for weights in ("trained", "untrained")
        for site in sites
    ]
    wanted = probe_study(lstm.load()[0], ["rnn.h.0"], stories_of(lstm, STORIES).pick(["sentence:end"]))
    figures = ["auroc", "control_auroc", "balanced_accuracy", "selectivity"]
    assert found[figures].iloc[-2:].to_numpy() == pytest.approx(wanted[figures].to_numpy(), abs=1e-4)
    again = probe_rows(lab, [lost(subject), lost(lstm)], FIGURES, READING, ("sentence:end", RARE))
    pd.testing.assert_frame_equal(again, found)
    none = probe_rows(lab, [subject], FIGURES, READING, (RARE,))
    assert none.empty
    assert list(none) == list(found)


def test_sites_that_are_not_there_are_refused_before_anything_is_kept(lab, subject, lstm):
    kept = set((RUNS_DIR / "results" / "measurements").glob("*"))
    for concepts in (TELLING, (RARE,)):
        with pytest.raises(ValueError, match=r"has no site 'blocks\.7'"):
            probe_rows(lab, [subject], {"transformer": ("blocks.7",)}, READING, concepts)
    with pytest.raises(ValueError, match="no sites are named for the subject 'lstm', only for transformer"):
        probe_rows(lab, [subject, lstm], {"transformer": (SITE, "embedding")}, READING, TELLING)
    assert set((RUNS_DIR / "results" / "measurements").glob("*")) == kept


# evidence


def test_the_best_units_stand_for_a_concept_each_and_the_strongest_are_the_largest(lab, subject):
    recipe = RECIPE.replace(seed=9)
    dead(subject, recipe, slice(0, 5))
    study = feature_study(lab, subject, recipe, READING, count=4)
    best, strongest = study.best.table, study.strongest.table
    assert len(best) == len(strongest) == 4
    assert best["concept"].is_unique
    assert best["concept"].all()
    assert best["gain"].is_monotonic_decreasing
    assert strongest["max"].is_monotonic_decreasing
    model, _, dictionary, _ = dictionary_of(subject, recipe)
    data = stories_of(subject, STORIES)
    z = dictionary.encode(activations(model, data.idx, [SITE])[SITE][data.mask])
    assert study.densities == pytest.approx((z > 0).float().mean(0).tolist(), abs=1e-6)
    assert strongest["feature"].tolist() == z.amax(0).topk(4).indices.tolist()
    assert study.densities[:5] == [0] * 5
    assert len(study.gains) == sum(density > 1e-4 for density in study.densities) < 32
    assert max(study.gains) == pytest.approx(best["gain"].iloc[0], abs=1e-3)
    again = feature_study(lab, lost(subject), recipe, READING, count=4)
    pd.testing.assert_frame_equal(again.best.table, best)
    assert again.strongest.evidence(strongest["feature"][0]) == study.strongest.evidence(strongest["feature"][0])
    assert (again.gains, again.densities) == (study.gains, study.densities)


def test_neurons_have_evidence_too_and_another_measurement_of_their_own(lab, subject):
    study = feature_study(lab, subject, BasisRecipe(SITE, k=4), READING, count=3)
    assert len(study.densities) == 16
    assert sum(study.densities) == pytest.approx(4, abs=1e-3)
    assert study.best.site == SITE
    assert torch.tensor(study.gains).isfinite().all()
