"""What becomes of custom lines mixed into stories, and of stories when custom lines follow: losses and new words.

Losses are in nats per token, on held-out texts of either domain; rates of words are per 1,000 sampled words.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import pandas as pd
import tiktoken

from picollm_core.batches import MixedBatches, make_batches
from picollm_core.config import ModelConfig, SamplingConfig, TrainConfig
from picollm_core.corpora import Corpus
from picollm_core.custom_study import BLOCK, Plan, loss_on, measured_table, own_lines, plan_of
from picollm_core.lab import Lab
from picollm_core.models import LanguageModel, build_model
from picollm_core.presets import preset
from picollm_core.samples import sample_tokens
from picollm_core.tokenizers import load_tokenizer
from picollm_core.trainer import Trainer, seeded

WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
DOMAINS = ("stories", "custom")
CLAIMED = ("drone", "lighthouse", "meteorite")
"""The words that a smoke test was said to echo."""


def mixture_models(vocab_size: int) -> dict[str, tuple[ModelConfig, float]]:
    """The models of the mixtures with their learning rates, the best of a grid on stories at this size."""
    shape = {"vocab_size": vocab_size, "block_size": BLOCK}
    return {
        "LSTM": (preset("lstm-pico", **shape), 0.3),
        "Transformer": (preset("transformer-pico", position="rope", **shape), 0.01),
    }


def words_of(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters, with an apostrophe inside."""
    return WORD.findall(text.lower())


def new_words(own: Iterable[str], others: Iterable[str]) -> set[str]:
    """Words of at least four letters that occur in `own` texts and in none of the others."""
    known = {word for text in others for word in words_of(text)}
    return {word for text in own for word in words_of(text) if len(word) >= 4} - known


def echoes(
    model: LanguageModel, tokenizer: tiktoken.Encoding, new: set[str], *, budget: int, seed: int
) -> dict[str, Any]:
    """What the model's samples after "The" (top-p 0.95) have of the new words: words, echoed, per_1000 and found.

    `words` counts all sampled words, `echoed` those that are new, `found` maps the commonest of them to their counts.
    """
    ids = sample_tokens(
        model,
        tokenizer,
        prompt="The",
        budget=budget,
        max_new_tokens=50,
        seed=seed,
        sampling=SamplingConfig(top_p=0.95),
        batch_size=64,
    )
    words = [word for sample in ids for word in words_of(tokenizer.decode(sample))]
    found = Counter(word for word in words if word in new)
    echoed = found.total()
    per_1000 = 1000 * echoed / max(1, len(words))
    return {"words": len(words), "echoed": echoed, "per_1000": per_1000, "found": dict(found.most_common(12))}


def commonest(found: Iterable[Mapping[str, int]], number: int = 6) -> str:
    """The most frequent words of several counts, with their sums: "tram 5, drone 3"."""
    counts = sum((Counter(each) for each in found), Counter())
    return ", ".join(f"{word} {count}" for word, count in counts.most_common(number))


def mixed_trainer(
    model: ModelConfig, train: TrainConfig, stories: Corpus, lines: Corpus, share: float, tokenizer: tiktoken.Encoding
) -> Trainer:
    """A trainer on rows of which `share` are custom lines and the others windows of stories; call it seeded."""
    batches = make_batches(
        [stories, lines], [1 - share, share], tokenizer, model.block_size, train.batch_size, train.seed
    )
    return Trainer(build_model(model), batches, train)


def measured_shares(trainer: Trainer, share: float) -> dict[str, float]:
    """The shares of custom rows and of custom tokens (those that were scored) in what the trainer has read.

    A story's row is a full window, so what else was scored are tokens of custom lines.
    """
    batches = trainer.batches
    rows = batches.shares()[1] if isinstance(batches, MixedBatches) else share
    windows = (1 - rows) * trainer.step * trainer.config.batch_size * trainer.model.config.block_size
    return {"row_share": rows, "token_share": 1 - windows / max(1, trainer.tokens)}


def run_to(trainer: Trainer, step: int) -> LanguageModel:
    """Train up to `step` updates and return the model."""
    while trainer.step < step:
        trainer.advance()
    return trainer.model


class Domains:
    """The two texts, what is held out of either, and the words that only the custom one has."""

    def __init__(self, lab: Lab) -> None:
        plan = plan_of(lab)
        self.stories, self.lines = lab.corpus(), own_lines()
        self.tokenizer = load_tokenizer(lab.profile.data.tokenizer)
        self.held_out = {
            "stories": list(islice(self.stories.texts("validation"), plan.stories)),
            "custom": list(self.lines.texts("validation")),
        }
        self.new = new_words(self.lines.texts("train"), self.all_stories())

    def all_stories(self) -> Iterator[str]:
        """The stories of training and validation."""
        return (text for split in ("train", "validation") for text in self.stories.texts(split))

    def losses(self, model: LanguageModel) -> dict[str, float]:
        """Nats per token on either held-out text, as stories_loss and custom_loss."""
        return {f"{name}_loss": loss_on(model, self.tokenizer, self.held_out[name]) for name in DOMAINS}

    def trainer(self, model: ModelConfig, train: TrainConfig, share: float) -> Trainer:
        """`mixed_trainer` on these texts."""
        return mixed_trainer(model, train, self.stories, self.lines, share, self.tokenizer)


def word_reference(lab: Lab) -> dict[str, Any]:
    """How many words are new, the commonest, and how often they occur in held-out texts (per 1,000 words).

    `in_stories` counts the words of the smoke test's claim in all stories: one that is there already proves nothing.
    """
    lines = own_lines()

    def count() -> dict[str, Any]:
        texts = Domains(lab)
        words = {name: [word for text in texts.held_out[name] for word in words_of(text)] for name in DOMAINS}
        rates = {name: 1000 * sum(word in texts.new for word in own) / len(own) for name, own in words.items()}
        often = Counter(word for text in lines.texts("train") for word in words_of(text) if word in texts.new)
        known = Counter(word for text in texts.all_stories() for word in words_of(text) if word in CLAIMED)
        in_stories = {word: known[word] for word in CLAIMED}
        return {
            "count": len(texts.new),
            "per_1000": rates,
            "commonest": often.most_common(15),
            "in_stories": in_stories,
        }

    corpus = list(lab.profile.data.corpus)
    return lab.measure(
        "custom new words",
        count,
        lines=lines.content_hash,
        corpus=corpus,
        stories=plan_of(lab).stories,
        claimed=list(CLAIMED),
    )


def mixture_table(lab: Lab) -> pd.DataFrame:
    """Both losses, the measured shares and the echoed words of every model, asked share and seed.

    Columns arm, seed, kind, share and those of `measured_shares`, `Domains.losses` and `echoes`. kind is "mixed" for
    the mixtures. The model of share 0, which has read stories alone, is then tuned with custom lines alone ("custom
    alone"), with half of each ("half and half") and with stories alone, at a third of the rate: rows of these kinds
    have the number of further updates in `step`, 0 being the model before.
    """
    plan = plan_of(lab)
    return _of_all(lab, "custom mixtures", partial(_mixtures, plan), plan.mixture_settings(), lab.profile.seeds)


def smoke_table(lab: Lab) -> pd.DataFrame:
    """The words that samples echo in a training's first updates: columns arm, seed, share, step, those of `echoes`.

    The rows of share 0 are the control: as many updates on stories alone. The rate is constant, so n updates are the
    first n of a longer run. Further seeds (`Plan.smoke_extra`) go as far as 3 updates.
    """
    plan, seeds = plan_of(lab), lab.profile.seeds
    early = replace(plan, smoke_reads=tuple(step for step in plan.smoke_reads if step <= 3))
    more = range(max(seeds) + 1, max(seeds) + 1 + plan.smoke_extra)
    parts = [
        _of_all(lab, "custom smoke", partial(_smoke, each), each.smoke_settings(), own)
        for each, own in ((plan, seeds), (early, more))
        if len(own) > 0
    ]
    return pd.concat(parts, ignore_index=True)


def _of_all(
    lab: Lab, name: str, compute: Callable[..., list], settings: dict[str, Any], seeds: Sequence[int]
) -> pd.DataFrame:
    """The rows of `compute` for every model and seed; the texts are opened once, and only where they are needed."""
    opened: list[Domains] = []

    def opened_for(config: ModelConfig, rate: float, seed: int) -> list[dict[str, Any]]:
        if not opened:
            opened.append(Domains(lab))
        return compute(opened[0], config, rate, seed)

    tokenizer, lines = load_tokenizer(lab.profile.data.tokenizer), own_lines().content_hash
    parts = [
        measured_table(
            lab,
            name,
            partial(opened_for, config, rate, seed),
            model=config.fingerprint(),
            rate=rate,
            seed=seed,
            lines=lines,
            corpus=list(lab.profile.data.corpus),
            **settings,
        ).assign(arm=arm, seed=seed)
        for arm, (config, rate) in mixture_models(tokenizer.n_vocab).items()
        for seed in seeds
    ]
    return pd.concat(parts, ignore_index=True)


def _mixtures(plan: Plan, texts: Domains, config: ModelConfig, rate: float, seed: int) -> list[dict[str, Any]]:
    train = TrainConfig(learning_rate=rate, max_steps=plan.mixture_steps, batch_size=plan.mixture_batch, seed=seed)
    rows = []
    for share in plan.shares:
        with seeded(seed):
            trainer = texts.trainer(config, train, share)
            model = run_to(trainer, plan.mixture_steps).eval()
        said = echoes(model, texts.tokenizer, texts.new, budget=plan.sampled, seed=seed)
        found = measured_shares(trainer, share) | texts.losses(model) | said
        rows.append({"kind": "mixed", "share": share, "step": plan.mixture_steps} | found)
        if share == 0:
            later = train.replace(learning_rate=rate / 3, max_steps=plan.tuning)
            rows += _tunings(texts, model, later, (plan.tuning // 4, plan.tuning))
    return rows


def _tunings(texts: Domains, before: LanguageModel, train: TrainConfig, reads: tuple[int, int]) -> list[dict[str, Any]]:
    """What becomes of a model that has read stories, by what it reads next."""
    start, rows = texts.losses(before), []
    for kind, share in (("custom alone", 1.0), ("half and half", 0.5), ("stories alone", 0.0)):
        with seeded(train.seed):
            trainer = texts.trainer(before.config, train, share)
            trainer.model.load_state_dict(deepcopy(before.state_dict()))
            rows.append({"kind": kind, "share": share, "step": 0} | start)
            for step in reads:
                rows.append({"kind": kind, "share": share, "step": step} | texts.losses(run_to(trainer, step)))
    return rows


def _smoke(plan: Plan, texts: Domains, config: ModelConfig, rate: float, seed: int) -> list[dict[str, Any]]:
    train = TrainConfig(learning_rate=rate, schedule="constant", warmup_ratio=0.0, batch_size=plan.mixture_batch,
                        seed=seed, max_steps=max(plan.smoke_reads))  # fmt: skip
    rows = []
    for share, reads in ((plan.smoke_share, plan.smoke_reads), (0.0, [r for r in plan.smoke_reads if r <= 6])):
        with seeded(seed):
            trainer = texts.trainer(config, train, share)
            for step in reads:
                model = run_to(trainer, step)
                said = echoes(model, texts.tokenizer, texts.new, budget=plan.sampled // 2, seed=seed)
                rows.append({"share": share, "step": step} | said)
    return rows
