"""Models trained and tested on made-up sequences: one run, its score by length, and a study over arms and seeds.

Every arm of a study sees the same rows in the same order, seed by seed, and is tested on the same rows, so differences
between arms are paired. A learning rate is chosen for each arm by training with a seed of its own and looking at
training lengths only; the lengths beyond them have no say in it.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from picollm_core.config import ModelConfig, TrainConfig, require
from picollm_core.inference import evaluation_mode
from picollm_core.lab import Lab
from picollm_core.losses import token_nll
from picollm_core.models import LanguageModel, build_model
from picollm_core.sequence_tasks import SequenceTask, TaskBatches, held_out_rows
from picollm_core.trainer import Trainer, TrainingDiverged, seeded

TUNING_SEED = 1_000
"""Of the runs that a learning rate is chosen by; no arm is reported with it."""
TUNING_TEST_SEED = 1
_CHOSEN_BY = ["exact", "token_accuracy", "nll"]
_TOKENS_AT_ONCE = 16_384  # of a test's forward pass


def fit_config(model_config: ModelConfig, task: SequenceTask, longest: int | None = None) -> ModelConfig:
    """`model_config` with the task's vocabulary and room for rows of length `longest` (default: the longest trained).

    With learned absolute positions the model gets a vector for every place up to there, and those beyond the training
    lengths never see a gradient: failing there is what "does not extrapolate" means for them. Training rows always
    start at place 0; shifting them at random would train those places too, and is not done.
    """
    longest = max(task.max_length, longest or 0)
    return model_config.replace(vocab_size=task.vocab_size, block_size=task.width(longest))


def train_task(
    model_config: ModelConfig,
    task: SequenceTask,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
    longest: int | None = None,
    **settings: Any,
) -> LanguageModel:
    """A model of this configuration, fitted to the task (see fit_config) and trained on it; in evaluation mode.

    `seed` fixes weights and rows, and each step draws fresh rows. `settings` are further fields of TrainConfig; float32
    and Muon (Jordan et al. 2024) are the defaults here. Raises ValueError for impossible settings and TrainingDiverged
    when the loss is no longer finite.
    """
    config = TrainConfig(
        max_steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        **({"precision": "float32", "optimizer": "muon"} | settings),
    )
    with seeded(seed):
        model = build_model(fit_config(model_config, task, longest))
        trainer = Trainer(model, TaskBatches(task, batch_size, seed), config)
        while trainer.step < trainer.total_steps:
            trainer.advance()
    return model.eval()


@torch.no_grad()
def _scored(model: LanguageModel, task: SequenceTask, length: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Loss in nats and whether the likeliest token is right, each (n, S), of the S scored tokens of each row."""
    require(n >= 1, f"n is {n}; it must be at least 1")
    idx, targets = held_out_rows(task, length, n, seed)  # (n, T)
    device = next(model.parameters()).device
    parts = []
    with evaluation_mode(model):
        for rows in torch.arange(n).split(max(1, _TOKENS_AT_ONCE // idx.size(1))):
            hidden, scored = model.hidden(idx[rows].to(device))[0], targets[rows].to(device)
            asked = scored >= 0  # (n, T), equally many a row
            parts.append(token_nll(hidden[asked], model.head.weight, scored[asked]))
    nll, correct = (torch.cat(part).view(n, -1).cpu() for part in zip(*parts, strict=True))
    return nll, correct


def score_task(
    model: LanguageModel, task: SequenceTask, lengths: Sequence[int], n: int = 200, seed: int = 0
) -> pd.DataFrame:
    """One row a length, each over `n` rows drawn from `seed`: length, exact, token_accuracy, last, nll (nats a token).

    `exact` is the share of rows whose whole answer is right, END included; `token_accuracy` and `last` are the shares
    of right tokens among all that are scored and among the last of each row. All come from one forward pass in which
    the model reads the right answer so far. For `exact` that is the same as writing the answer greedily: as long as
    every token was right, both have read the same, and the first wrong one ends both. `token_accuracy` is kinder than
    writing, because after a mistake the model is put right. Raises ValueError for a length below 1 or past what the
    model's positions allow.
    """
    table = []
    for length in lengths:
        nll, correct = _scored(model, task, length, n, seed)
        table.append(
            {
                "length": int(length),
                "exact": correct.all(dim=1).double().mean().item(),
                "token_accuracy": correct.double().mean().item(),
                "last": correct[:, -1].double().mean().item(),
                "nll": nll.double().mean().item(),
            }
        )
    return pd.DataFrame(table)


def accuracy_by_place(model: LanguageModel, task: SequenceTask, length: int, n: int = 200, seed: int = 0) -> np.ndarray:
    """Share of right tokens at each of the S scored places of rows of one length, (S,); right answers read so far."""
    return _scored(model, task, length, n, seed)[1].double().mean(dim=0).numpy()


def _changed(config: ModelConfig) -> dict[str, Any]:
    """The family and every field that differs from its default: what a record says about a model."""
    values, defaults = config.to_dict(), type(config)().to_dict()
    return {name: value for name, value in values.items() if name == "family" or value != defaults[name]}


def _measured(
    lab: Lab,
    name: str,
    model_config: ModelConfig,
    task: SequenceTask,
    *,
    lengths: Sequence[int],
    longest: int,
    n_test: int,
    test_seed: int,
    **run: Any,
) -> pd.DataFrame | None:
    """score_task of one training run, with its parameters and seconds, recorded by all that it depends on.

    None when the run diverged.
    """

    def compute() -> dict[str, Any]:
        started = time.perf_counter()
        try:
            model = train_task(model_config, task, longest=longest, **run)
        except TrainingDiverged as error:
            return {"diverged": str(error)}
        seconds = round(time.perf_counter() - started, 1)
        scores = score_task(model, task, lengths, n_test, test_seed).round(6).to_dict("list")
        return {"scores": scores, "parameters": model.num_parameters(), "seconds": seconds}

    found = lab.measure(
        name,
        compute,
        model=_changed(model_config),
        task=task.to_dict(),
        lengths=[int(length) for length in lengths],
        longest=int(longest),
        n_test=n_test,
        test_seed=test_seed,
        run=dict(sorted(run.items())),
    )
    if "diverged" in found:
        return None
    return pd.DataFrame(found["scores"]).assign(parameters=found["parameters"], seconds=found["seconds"])


def _trained_lengths(task: SequenceTask) -> list[int]:
    """Up to five training lengths from the shortest to the longest, evenly spaced."""
    return sorted({round(x) for x in np.linspace(task.min_length, task.max_length, 5)})


def tune_task(
    lab: Lab,
    name: str,
    arms: Mapping[str, ModelConfig],
    task: SequenceTask,
    *,
    rates: Sequence[float],
    longest: int,
    n_test: int = 200,
    **run: Any,
) -> pd.DataFrame:
    """Every arm trained once with every learning rate, with TUNING_SEED: what its choice of a rate rests on.

    One row an arm and rate: arm, learning_rate, exact, token_accuracy and nll (means over training lengths; NaN when
    the run diverged) and chosen, true for the rate of highest token_accuracy, and among equals of lowest nll.
    `longest` and `run` (steps, batch_size, ...) are those of train_task. Raises ValueError without a rate, for a rate
    given twice, and when every rate of an arm diverges.
    """
    require(
        len(set(rates)) == len(rates) > 0,
        f"learning rates are {tuple(rates)}; give at least one, and none of them twice",
    )
    parts = []
    for arm, config in arms.items():
        rows = []
        for rate in rates:
            scores = _measured(
                lab,
                name,
                config,
                task,
                lengths=_trained_lengths(task),
                longest=longest,
                n_test=n_test,
                test_seed=TUNING_TEST_SEED,
                learning_rate=rate,
                seed=TUNING_SEED,
                **run,
            )
            means = {} if scores is None else scores[_CHOSEN_BY].mean().to_dict()
            rows.append({"arm": arm, "learning_rate": rate} | means)
        tried = pd.DataFrame(rows, columns=["arm", "learning_rate", *_CHOSEN_BY])
        ranked = tried.dropna().sort_values(["token_accuracy", "nll"], ascending=[False, True], kind="stable")
        require(len(ranked) > 0, f"arm {arm!r} diverged with every learning rate of {tuple(rates)}; try lower ones")
        parts.append(tried.assign(chosen=tried.index == ranked.index[0]))
    return pd.concat(parts, ignore_index=True)


def task_study(
    lab: Lab,
    name: str,
    arms: Mapping[str, ModelConfig],
    task: SequenceTask,
    *,
    lengths: Sequence[int],
    rates: Sequence[float],
    seeds: Sequence[int] | None = None,
    n_test: int = 200,
    **run: Any,
) -> pd.DataFrame:
    """Every arm trained with every seed at its own learning rate (see tune_task) and tested at every length.

    One row an arm, seed and length: arm, learning_rate (the chosen one), seed, the columns of score_task, parameters,
    seconds (of training). `seeds` are the profile's when left out. A single rate is used as it is. `run` holds steps,
    batch_size and further settings of train_task. Every run is recorded through lab.measure under `name`, so calling
    this, or tune_task with `longest=max(lengths)`, again only reads. Raises ValueError without arms or lengths, for the
    seed that tuning uses, and when a run diverges at the chosen rate.
    """
    seeds = lab.profile.seeds if seeds is None else seeds
    require(len(arms) > 0 and len(lengths) > 0, f"{len(arms)} arms and {len(lengths)} lengths; give at least one each")
    require(TUNING_SEED not in seeds, f"seed {TUNING_SEED} chooses the learning rates; report other seeds than that")
    longest = max(task.max_length, *lengths)
    best = dict.fromkeys(arms, rates[0]) if len(rates) == 1 else {}
    if len(rates) != 1:
        tried = tune_task(lab, name, arms, task, rates=rates, longest=longest, n_test=n_test, **run)
        best = tried[tried["chosen"]].set_index("arm")["learning_rate"].to_dict()
    parts = []
    for arm, config in arms.items():
        for seed in seeds:
            scores = _measured(
                lab,
                name,
                config,
                task,
                lengths=lengths,
                longest=longest,
                n_test=n_test,
                test_seed=0,
                learning_rate=best[arm],
                seed=seed,
                **run,
            )
            if scores is None:
                raise ValueError(
                    f"arm {arm!r} diverged at learning rate {best[arm]:g} with seed {seed}; try lower ones"
                )
            parts.append(scores.assign(arm=arm, learning_rate=best[arm], seed=seed))
    table = pd.concat(parts, ignore_index=True)
    return table[["arm", "learning_rate", "seed", *table.columns.drop(["arm", "learning_rate", "seed"])]]
