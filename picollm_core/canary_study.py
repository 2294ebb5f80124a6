"""The study of canaries: models trained on stories with random secrets among them, some of them many times."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import tiktoken

from picollm_core.canaries import CanarySpace, chance_exposure, exposures, planted, secret_nats
from picollm_core.config import Config, RunConfig, require
from picollm_core.evaluate import evaluate
from picollm_core.lab import Lab
from picollm_core.models import build_model
from picollm_core.overfit_runs import Arm, make_trainer, measured_arm
from picollm_core.tokenizers import load_tokenizer
from picollm_core.train import load_data
from picollm_core.trainer import seeded

SECRETS_STREAM, PLACES_STREAM = 10_000, 20_000
"""Added to a run's seed, so that pool, secrets and places are drawn independently of each other."""


@dataclass(frozen=True)
class CanarySetting(Config):
    """Which secrets are planted, and in how much text."""

    stories: int = 512
    """Training stories beside the canaries."""
    prefix: str = "The secret words are"
    words: int = 16
    """The pool: so many words of the training text, neither its commonest nor rare ones."""
    length: int = 3
    """Words of a secret; there are words ** length secrets."""
    times: tuple[int, ...] = (1, 4, 16, 64)
    """How often the secrets of each level stand in the text."""
    of_each: int = 4
    """Secrets of each level."""
    kept_back: int = 100
    """Secrets that are drawn with the others and not planted: level 0."""
    plant: bool = True
    """False keeps all of them back: the control, a model that never saw any."""

    def validate(self) -> None:
        for name in ("stories", "length", "of_each", "kept_back"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(self.words >= 2, f"words is {self.words}; a secret needs at least 2 to choose from")
        require(self.prefix != "", "prefix is empty; give at least one word before the secret")
        require(len(self.times) > 0, "times is empty; give at least one number of copies")
        require(
            len(set(self.times)) == len(self.times) and min(self.times) >= 1,
            f"times are {self.times}; give different numbers, each 1 or more",
        )


def word_pool(stories: Sequence[Sequence[int]], tokenizer: tiktoken.Encoding, count: int, seed: int) -> list[int]:
    """`count` tokens that are a space and three or more letters, drawn from the 400 most frequent such in the stories
    but for the first 50. Raises ValueError when the stories hold too few."""
    counts = np.bincount(np.concatenate([np.asarray(story, dtype=np.int64) for story in stories]))
    whole = []
    for token in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist():
        word = tokenizer.decode_single_token_bytes(token).decode("utf-8", "replace")
        if word.startswith(" ") and len(word) > 3 and word[1:].isalpha():
            whole.append(token)
    chosen = whole[50:400]
    require(len(chosen) >= count, f"the stories hold {len(chosen)} such words, {count} are needed; give more stories")
    return np.random.default_rng(seed).choice(chosen, count, replace=False).tolist()


def canary_run(config: RunConfig, setting: CanarySetting) -> dict[str, Any]:
    """Train one model on the corpus of `config` with canaries in it, and rank every secret; JSON values.

    `rows` has one row a canary: times (it stands in the text), exposure (bits, after training), untrained (bits,
    before). `bits` is log2 R, the most there can be, `chance` the mean exposure of a secret of which nothing is known,
    `epochs` how often the text was read, `held_out` nats per token on held-out stories, `example` a canary as text.
    Pool, secrets and places follow from the seed of training. Raises ValueError for impossible settings.
    """
    corpus, tokenizer, seed = load_data(config.data)[0], load_tokenizer(config.data.tokenizer), config.train.seed
    texts = list(islice(corpus.texts("train"), setting.stories))
    stories = tokenizer.encode_ordinary_batch(texts, num_threads=1)
    pool = word_pool(stories, tokenizer, setting.words, seed)
    space = CanarySpace(tuple(tokenizer.encode_ordinary(setting.prefix)), tuple(pool), setting.length)
    levels = [times for times in setting.times for _ in range(setting.of_each)] + [0] * setting.kept_back
    numbers = space.draw(len(levels), SECRETS_STREAM + seed)
    copies = {number: times if setting.plant else 0 for number, times in zip(numbers, levels, strict=True)}
    text = planted(stories, space, copies, PLACES_STREAM + seed)
    with seeded(seed):
        untrained = exposures(secret_nats(build_model(config.model), space, tokenizer.eot_token), numbers)
    with seeded(seed):
        trainer = make_trainer(config, text, tokenizer.eot_token)
        while trainer.step < trainer.total_steps:
            trainer.advance()
    model = trainer.model.eval()
    trained = exposures(secret_nats(model, space, tokenizer.eot_token), numbers)
    held_out = evaluate(model, tokenizer, corpus, max_stories=config.train.eval_stories, n_bootstrap=1).nll
    rows = [
        {"times": times, "exposure": round(float(after), 4), "untrained": round(float(before), 4)}
        for times, after, before in zip(levels, trained, untrained, strict=True)
    ]
    shown = [*space.prefix, *space.secrets(numbers[:1])[0].tolist()]
    return {
        "rows": rows,
        "seed": seed,
        "bits": float(np.log2(space.size)),
        "chance": chance_exposure(space.size)[0],
        "epochs": round(trainer.batches.epoch, 3),
        "held_out": round(held_out, 4),
        "seconds": round(trainer.seconds, 2),
        "example": tokenizer.decode(shown),
        "corpus": corpus.name,
    }


def canary_arm(lab: Lab, config: RunConfig, setting: CanarySetting, seeds: Sequence[int]) -> Arm:
    """`canary_run` for every seed, recorded by the lab as one measurement."""
    return measured_arm(lab, "canaries", canary_run, config, setting, seeds)


def exposure_table(arms: dict[str, Arm], column: str = "exposure") -> pd.DataFrame:
    """Mean exposure in bits of each level's secrets: arm, seed, times, exposure. `column` may be "untrained"."""
    rows = [
        {"arm": name, "seed": result["seed"]} | row
        for name, arm in arms.items()
        for result in arm.results
        for row in result["rows"]
    ]
    require(bool(rows), "there are 0 canaries; give at least one arm with results")
    means = pd.DataFrame(rows).groupby(["arm", "seed", "times"], sort=False)[column].mean()
    return means.rename("exposure").reset_index()


def exposure_range(table: pd.DataFrame, without: str = "") -> pd.DataFrame:
    """Least and most mean exposure of any arm by level (index times; columns min, max), `without` left out."""
    means = table[table["arm"] != without].groupby(["times", "arm"])["exposure"].mean()
    return means.groupby("times").agg(["min", "max"])
