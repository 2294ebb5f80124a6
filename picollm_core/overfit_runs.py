"""Runs of the study of overfitting: training and held-out loss watched together, and what the trained models repeat.

The trainer's own loss is that of the batch before the update, with dropout; here both losses come from the evaluator,
on whole stories, so their difference is a gap and nothing else. Learning rates are constant after the warm-up: one
that falls to 0 would end the fit whatever the text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import tiktoken

from picollm_core.batches import LineBatches, PackedBatches
from picollm_core.config import Config, RunConfig, require
from picollm_core.corpora import Corpus
from picollm_core.diversity import distinct_table
from picollm_core.evaluate import evaluate
from picollm_core.lab import Lab
from picollm_core.memorisation import exact_lengths, long_enough, novelty
from picollm_core.models import LanguageModel, build_model
from picollm_core.samples import sample_tokens
from picollm_core.token_store import TokenStore
from picollm_core.tokenizers import load_tokenizer
from picollm_core.train import load_data
from picollm_core.trainer import Trainer, seeded

COMPARED = 100
"""At most so many training stories, and held-out ones, are tried for exact continuation."""
TUNING_SEED = 100


@dataclass(frozen=True)
class Setting(Config):
    """What a run of this study is trained on and watched by, beside its RunConfig."""

    stories: int | None = None
    """Training stories: the first so many of the training split, None for all."""
    held_out: int = 24
    """At most so many stories are scored of each of training, validation and test."""
    prefix: int = 20
    """Tokens of a story that are given before its continuation is compared."""
    length: int = 24
    """Tokens that are compared."""
    budget: int = 0
    """Tokens sampled from the trained model; 0 for none."""
    sample_length: int = 100
    """Most tokens of one sample."""

    def validate(self) -> None:
        require(self.stories is None or self.stories >= 1, f"stories is {self.stories}; it must be at least 1")
        for name in ("held_out", "prefix", "length", "sample_length"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(self.budget >= 0, f"budget is {self.budget}; it must be 0 (no samples) or more tokens")


def memory_store(stories: Sequence[Sequence[int]], end: int) -> TokenStore:
    """Token ids of stories as a store in memory, each closed by `end`. ValueError without a story."""
    require(len(stories) > 0, "there are 0 training stories; give at least one")
    tokens = np.concatenate([[*story, end] for story in stories]).astype(np.uint32)
    offsets = np.concatenate([[0], np.cumsum([len(story) + 1 for story in stories])])
    return TokenStore(tokens, offsets, n_bytes=0)


def make_trainer(config: RunConfig, stories: Sequence[Sequence[int]], end: int, style: str = "stories") -> Trainer:
    """A trainer of a new model on these token ids alone; call it, and train, inside seeded(config.train.seed)."""
    rows = PackedBatches if style == "stories" else LineBatches
    batches = rows(memory_store(stories, end), config.model.block_size, config.train.batch_size, config.train.seed)
    return Trainer(build_model(config.model), batches, config.train)


@dataclass(frozen=True)
class Texts:
    """The texts of a run. `held_out` is validation and test together, of which the first `n_validation` choose."""

    train: list[str]
    held_out: list[str]
    n_validation: int


def read_texts(corpus: Corpus, setting: Setting) -> Texts:
    """The training texts of a setting and its held-out ones. ValueError when a split that it needs is empty."""
    train = list(islice(corpus.texts("train"), setting.stories))
    validation, test = (list(islice(corpus.texts(split), setting.held_out)) for split in ("validation", "test"))
    require(
        bool(train and validation and test),
        f"{corpus.name} has {len(train)} training, {len(validation)} validation and {len(test)} test texts; "
        "each split needs one, so give more text or other shares, such as splits=(60, 20, 20)",
    )
    require(
        setting.stories is None or len(train) == setting.stories,
        f"{setting.stories} training stories were asked for, but {corpus.name} has {len(train)}; ask for fewer",
    )
    return Texts(train, validation + test, len(validation))


def _losses(model: LanguageModel, tokenizer: tiktoken.Encoding, texts: Texts, n_train: int) -> dict[str, float]:
    """Nats per token by the evaluator: on training texts, on validation, on test, and on the last two together."""
    train = evaluate(model, tokenizer, texts.train, max_stories=n_train, n_bootstrap=1)
    held_out = evaluate(model, tokenizer, texts.held_out, n_bootstrap=1)
    nats, tokens, n = held_out.per_story.nats, held_out.per_story.tokens, texts.n_validation
    parts = {"validation": nats[:n].sum() / tokens[:n].sum(), "test": nats[n:].sum() / tokens[n:].sum()}
    found = {"train": train.nll, "held_out": held_out.nll} | parts
    return {name: round(float(loss), 5) for name, loss in found.items()}


def _repeated(
    model: LanguageModel, tokenizer: tiktoken.Encoding, texts: Sequence[str], setting: Setting
) -> dict[str, float | int | None]:
    """Share of the texts that are repeated exactly, and the mean number of tokens before the first other one."""
    encoded = tokenizer.encode_ordinary_batch(list(texts[:COMPARED]), num_threads=1)
    stories = long_enough(encoded, setting.prefix, setting.length)
    if not stories:
        return {"exact": None, "tokens": None, "texts": 0}
    lengths = exact_lengths(model, stories, tokenizer.eot_token, prefix=setting.prefix, length=setting.length)
    exact = float((lengths == setting.length).mean())
    return {"exact": exact, "tokens": float(lengths.mean()), "texts": len(stories)}


def _first_tokens(samples: Sequence[list[int]], budget: int) -> list[list[int]]:
    """The samples until they hold `budget` tokens, the last one cut: what is longest depends on how much there is."""
    before = np.cumsum([0, *map(len, samples)])
    return [own[: budget - int(start)] for own, start in zip(samples, before, strict=False) if start < budget]


def _sampled(
    model: LanguageModel, tokenizer: tiktoken.Encoding, texts: Texts, config: RunConfig, setting: Setting
) -> dict[str, Any]:
    """Diversity and novelty of the model's samples, and of held-out stories cut alike."""
    options: dict[str, Any] = {"prompt": config.prompt, "budget": setting.budget, "top_p": 0.95}
    options |= {"max_new_tokens": setting.sample_length, "seed": config.train.seed * 1_000}
    samples = sample_tokens(model, tokenizer, **options)
    skip = len(tokenizer.encode_ordinary(config.prompt))
    training = tokenizer.encode_ordinary_batch(texts.train, num_threads=1)
    people = [
        ids[skip : skip + setting.sample_length]
        for ids in tokenizer.encode_ordinary_batch(texts.held_out, num_threads=1)
    ]
    found: dict[str, Any] = {}
    for name, written in (("model", samples), ("people", people)):
        written = _first_tokens(written, setting.budget)
        new = novelty(written, training)
        tokens = sum(map(len, written))  # of people, fewer than the budget where little is held out
        distinct = {str(n): value for n, value in distinct_table(written, tokens, (1, 2, 3)).items()}
        shares = {str(n): share for n, share in new.shares.items()}
        found[name] = {"novel": shares, "longest": new.longest, "distinct": distinct, "tokens": tokens}
    return found | {"text": tokenizer.decode(samples[0])[:240]}


def overfit_run(config: RunConfig, setting: Setting) -> dict[str, Any]:
    """Train one model on the first corpus of `config` and watch it; JSON values.

    `rows` has the losses (nats a token; train, validation, test, and held_out, the last two together) every eval_every
    updates and at the end. `repeated` says for "train" and "held_out" texts which share is continued exactly by greedy
    decoding; `samples`, with a budget, how diverse and new the model's texts are, and people's. `counts` are those of
    the texts and of the training tokens. Lines are padded, stories packed. Raises ValueError for impossible settings.
    """
    corpus, tokenizer = load_data(config.data)[0], load_tokenizer(config.data.tokenizer)
    texts = read_texts(corpus, setting)
    stories = tokenizer.encode_ordinary_batch(texts.train, num_threads=1)
    with seeded(config.train.seed):
        trainer = make_trainer(config, stories, tokenizer.eot_token, corpus.style)
        rows: list[dict[str, float]] = []
        while trainer.step < trainer.total_steps:
            trainer.advance()
            if trainer.step % config.train.eval_every == 0 or trainer.step == trainer.total_steps:
                losses = _losses(trainer.model, tokenizer, texts, setting.held_out)
                rows.append({"step": trainer.step, "epoch": round(trainer.batches.epoch, 3)} | losses)
    model = trainer.model.eval()
    counts = {"train": len(texts.train), "validation": texts.n_validation, "held_out": len(texts.held_out)}
    found: dict[str, Any] = {
        "rows": rows,
        "seed": config.train.seed,
        "repeated": {
            "train": _repeated(model, tokenizer, texts.train, setting),
            "held_out": _repeated(model, tokenizer, texts.held_out, setting),
        },
        "counts": counts | {"tokens": sum(map(len, stories)) + len(stories)},
        "parameters": model.num_parameters(),
        "seconds": round(trainer.seconds, 2),
        "corpus": corpus.name,
    }
    if setting.budget:
        found["samples"] = _sampled(model, tokenizer, texts, config, setting)
    return found


@dataclass(frozen=True)
class Arm:
    """The results of `overfit_run` of one arm, one a seed, and the name of the measurement that holds them."""

    results: list[dict[str, Any]]
    source: str

    @property
    def seconds(self) -> float:
        """Training time of all its runs."""
        return sum(float(result["seconds"]) for result in self.results)


def measured_arm(
    lab: Lab,
    name: str,
    train: Callable[[RunConfig, Any], dict[str, Any]],
    config: RunConfig,
    setting: Config,
    seeds: Sequence[int],
) -> Arm:
    """What `train` gives for every seed, recorded by the lab as one measurement called `name`."""

    def compute() -> list[dict[str, Any]]:
        return [train(config.replace(train=config.train.replace(seed=seed)), setting) for seed in seeds]

    base = config.replace(train=config.train.replace(seed=0))
    given = {"config": base.fingerprint(), "setting": setting.to_dict(), "seeds": list(seeds)}
    results = lab.measure(name, compute, family=config.model.family, **given)
    return Arm(results, lab.used[-1])


def overfit_arm(lab: Lab, config: RunConfig, setting: Setting, seeds: Sequence[int]) -> Arm:
    """`overfit_run` for every seed, recorded by the lab as one measurement."""
    return measured_arm(lab, "overfitting", overfit_run, config, setting, seeds)


def best_rate(
    lab: Lab, config: RunConfig, setting: Setting, rates: Sequence[float], seed: int = TUNING_SEED
) -> tuple[float, dict[float, float]]:
    """The learning rate whose run comes lowest on validation at any time, and that loss for every rate. Of a
    single rate nothing is measured.

    At its end, the run that learns least overfits least, so the end would choose the lowest rate. The seed is none
    of those that arms are compared with. Raises ValueError without rates.
    """
    require(len(rates) > 0, "there are 0 rates; give at least one")
    if len(rates) == 1:
        return rates[0], {}
    lowest = {}
    for rate in rates:
        tried = config.replace(train=config.train.replace(learning_rate=rate))
        rows = overfit_arm(lab, tried, setting.replace(budget=0), [seed]).results[0]["rows"]
        lowest[rate] = min(row["validation"] for row in rows)
    return min(lowest, key=lambda rate: lowest[rate]), lowest
