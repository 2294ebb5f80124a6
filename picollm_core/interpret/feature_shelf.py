"""What the feature browser does, without any widget: dictionaries on offer, texts, indices made once, steered texts."""

import json
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import tiktoken

from picollm_core.config import SamplingConfig
from picollm_core.corpora import load_corpus
from picollm_core.interpret.ablation import site_means
from picollm_core.interpret.baselines import neuron_basis
from picollm_core.interpret.concepts import ConceptData, rule_concepts, storyworld_concepts
from picollm_core.interpret.dictionaries import Dictionary, evaluated
from picollm_core.interpret.feature_index import LENGTH, FeatureIndex, feature_index
from picollm_core.interpret.hooks import INPUT, hooked, main_sites
from picollm_core.interpret.sae import SparseAutoencoder, list_autoencoders
from picollm_core.interpret.steering import ablate_feature, steered_text
from picollm_core.models.saving import CONFIG_FILE
from picollm_core.playground import ModelShelf
from picollm_core.runs import MODEL_DIR
from picollm_core.sampling import generate
from picollm_core.storyworld import labelled_stories

STORIES, COMMON = 200, 10
UNSEEN_SEED = 999
"""Of the storyworld whose stories are looked at: not the one that models here are trained on."""
NEURONS_KEPT = 32
"""Neurons that count as firing at a token: as many as an autoencoder of the default L0 keeps."""
INDICES_KEPT = 6
SAMPLING = SamplingConfig(temperature=0.7)


@dataclass(frozen=True)
class DictionaryChoice:
    """A dictionary on offer: the autoencoder in `folder`, or without one the neurons of `site`."""

    label: str
    site: str
    folder: Path | None = None


def _autoencoder_choice(folder: Path, words: dict[str, str]) -> DictionaryChoice:
    """An autoencoder on disk; one that cannot be read is listed too: choosing it says what is wrong."""
    try:
        values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        site, size = str(values["site"]), int(values["dict_size"])
    except (ValueError, KeyError, TypeError, OSError):
        return DictionaryChoice(f"{folder.name}: unreadable", "", folder)
    return DictionaryChoice(f"{folder.name}: {size:,} features of {words.get(site, site)}", site, folder)


def default_choice(choices: list[DictionaryChoice]) -> DictionaryChoice:
    """The first autoencoder, else the neurons of the last site that has an activation function behind it."""
    trained = [choice for choice in choices if choice.folder is not None]
    hidden_layers = [choice for choice in choices if choice.site.endswith(INPUT)]
    return [*trained, *reversed(hidden_layers), *reversed(choices)][0]


@dataclass
class FeatureShelf:
    """Models, their dictionaries and their indices, each made once and kept; `given` are texts to look at, if any."""

    given: list[str] | None = None
    sampling: SamplingConfig = SAMPLING
    models: ModelShelf = field(default_factory=ModelShelf)
    data: dict[tuple[str, int], ConceptData] = field(default_factory=dict)
    kept: dict[tuple[Path, DictionaryChoice], tuple[Dictionary, FeatureIndex]] = field(default_factory=dict)
    plain: dict[tuple, str] = field(default_factory=dict)
    note: str = ""

    def choices(self, path: Path) -> list[DictionaryChoice]:
        """A model's autoencoders on disk, then the neurons of its main sites. Errors as load_model."""
        model, _ = self.models.load(path)
        words = main_sites(model)
        folder = path / MODEL_DIR if (path / MODEL_DIR).is_dir() else path
        found = [_autoencoder_choice(each, words) for each in list_autoencoders(folder)]
        return found + [DictionaryChoice(f"neurons: {name}", site) for site, name in words.items()]

    def stories(self, path: Path) -> ConceptData:
        """The texts to look at, as far as the model reads, with their concepts: those given, else stories that
        training did not use."""
        model, tokenizer = self.models.load(path)
        length = min(LENGTH, model.context_limit or LENGTH)
        key = tokenizer.name, length
        if key not in self.data:
            found = self._concepts(tokenizer, length)
            self.data[key] = found.common(min(COMMON, max(2, len(found) // 10)))
        return self.data[key]

    def _concepts(self, tokenizer: tiktoken.Encoding, length: int) -> ConceptData:
        if self.given is not None:
            return rule_concepts(self.given, tokenizer, length)
        corpus = load_corpus("auto")
        self.note = corpus.note
        if corpus.name != "storyworld":
            return rule_concepts(islice(corpus.texts("validation"), STORIES), tokenizer, length)
        found = storyworld_concepts(labelled_stories(STORIES, UNSEEN_SEED), tokenizer, length)
        return found.pick(name for name in found.names if not name.startswith("plot:"))  # no one token tells a plot

    def dictionary(self, path: Path, choice: DictionaryChoice) -> Dictionary:
        """The chosen dictionary. ValueError for an autoencoder that cannot be read or was made for another model."""
        model, _ = self.models.load(path)
        if choice.folder is not None:
            found = SparseAutoencoder.from_pretrained(choice.folder)
            found.require_fits(model)
            return found
        data = self.stories(path)
        some = data.idx[:64], data.mask[:64]  # enough for what counts as nothing
        mean = site_means(model, [choice.site], *some)[choice.site]
        return neuron_basis(mean, min(NEURONS_KEPT, len(mean)), choice.site)

    def opened(self, path: Path, choice: DictionaryChoice) -> tuple[Dictionary, FeatureIndex]:
        """A model's dictionary and its index on the texts; the newest few are kept. Errors as `dictionary`."""
        key = path, choice
        if key not in self.kept:
            model, tokenizer = self.models.load(path)
            dictionary = self.dictionary(path, choice)
            self.kept[key] = dictionary, feature_index(model, tokenizer, dictionary, self.stories(path))
            for old in list(self.kept)[:-INDICES_KEPT]:
                del self.kept[old]
        return self.kept[key]

    def plain_text(self, path: Path, prompt: str, length: int, seed: int) -> str:
        """The text that the model writes when nothing is done to it; the last one is kept. Errors as `generate`."""
        key = path, prompt, length, seed
        if key not in self.plain:
            model, tokenizer = self.models.load(path)
            text = generate(model, tokenizer, prompt, max_new_tokens=length, sampling=self.sampling, seed=seed)
            self.plain = {key: text}
        return self.plain[key]

    def ablated_text(
        self, path: Path, choice: DictionaryChoice, feature: int, prompt: str, length: int, seed: int
    ) -> str:
        """The text with a feature taken away at every token, the rest as in `plain_text`."""
        model, tokenizer = self.models.load(path)
        dictionary, _ = self.opened(path, choice)
        with evaluated(dictionary), hooked(model, edit={dictionary.site: ablate_feature(dictionary, feature)}):
            return generate(model, tokenizer, prompt, max_new_tokens=length, sampling=self.sampling, seed=seed)

    def steered_text(
        self, path: Path, choice: DictionaryChoice, feature: int, amount: float, prompt: str, length: int, seed: int
    ) -> str:
        """The text with `amount` of a feature, in units of its code, added at every token, else as `plain_text`."""
        model, tokenizer = self.models.load(path)
        dictionary, _ = self.opened(path, choice)
        return steered_text(
            model, tokenizer, dictionary, feature, amount, prompt, sampling=self.sampling, length=length, seed=seed
        )
