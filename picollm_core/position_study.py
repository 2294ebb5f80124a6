"""What a way of telling positions does past the trained length, on stories and on tasks, and what word order is worth.

Shape legend: S stories, T places (tokens of a story that are predicted).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import tiktoken
import torch
from numpy.typing import NDArray
from torch import Tensor

from picollm_core.config import ModelConfig, TransformerConfig, require
from picollm_core.contrasts import Contrast, equivalence, paired_contrast, verdict
from picollm_core.evaluate import encode_stories
from picollm_core.inference import evaluation_mode, require_same_vocabulary
from picollm_core.lab import Lab
from picollm_core.losses import token_nll
from picollm_core.models.base import LanguageModel
from picollm_core.runs import Run
from picollm_core.samples import diversity, human_diversity

READINGS = ("whole", "cut")
"""A story read from its beginning in one pass, or in windows of the trained length that overlap by half."""


def long_stories(texts: Iterable[str], tokenizer: tiktoken.Encoding, length: int, most: int) -> Tensor:
    """The first `length` tokens of the first `most` stories that have as many, after <|endoftext|>: (S, length + 1).

    The same stories then stand at every place, so places can be compared. Raises ValueError for length or most below 1
    and when no story is long enough.
    """
    require(length >= 1 and most >= 1, f"length is {length} and most is {most}; both must be at least 1")
    stories = encode_stories(texts, tokenizer)
    starts = stories.lengths.cumsum() - stories.lengths  # (stories,)
    long = starts[stories.lengths > length][:most]  # a story's count includes the end-of-text token that closes it
    require(
        len(long) > 0,
        f"the longest of {len(starts)} stories has {stories.lengths.max() - 1} tokens, {length} are needed; "
        "choose a smaller length",
    )
    first = np.full((len(long), 1), tokenizer.eot_token)
    return torch.from_numpy(np.concatenate([first, stories.targets[long[:, None] + np.arange(length)]], axis=1))


def can_read(config: ModelConfig, length: int) -> bool:
    """Whether a model takes `length` tokens in one pass: learned positions end at block_size, all else goes on."""
    learned = isinstance(config, TransformerConfig) and config.position == "absolute"
    return not learned or length <= config.block_size


@torch.no_grad()
def place_losses(
    model: LanguageModel, rows: Tensor, window: int | None = None, batch_size: int = 32
) -> NDArray[np.float64]:
    """Mean nats (T,) that the model pays at every place of `rows` (S, T + 1), each row read from a fresh state.

    Without `window` a row is one pass, however long. With it rows are read in windows of as many tokens which advance
    by half of that, each scoring what the one before did not reach, as `evaluate` does. Raises ValueError when learned
    positions run out, for a window or batch_size below 1, and for rows without a token to predict.
    """
    require(window is None or window >= 1, f"window is {window}; it must be at least 1, or None for the whole row")
    require(batch_size >= 1, f"batch_size is {batch_size}; it must be at least 1")
    require(rows.ndim == 2 and rows.size(1) >= 2, f"rows have shape {tuple(rows.shape)}; give (stories, 2 or more)")
    length = rows.size(1) - 1
    size = length if window is None else min(window, length)
    ends = [*range(size, length, max(1, size // 2)), length]
    nats, weight = np.zeros(length), model.head.weight
    with evaluation_mode(model):
        for batch in rows.to(weight.device).split(batch_size):
            for scored, end in zip([0, *ends], ends, strict=False):
                h, _ = model.hidden(batch[:, end - size : end])  # (B, size, C)
                h, targets = h[:, scored - end :], batch[:, scored + 1 : end + 1]
                found, _ = token_nll(h.flatten(0, 1), weight, targets.flatten())
                nats[scored:end] += found.double().cpu().numpy().reshape(targets.shape).sum(axis=0)
    return nats / len(rows)


def shuffled(rows: Tensor, seed: int) -> Tensor:
    """Rows (N, T) with all tokens but the first and the last in random order, another one in every row."""
    if rows.size(1) < 4:
        raise ValueError(f"rows have {rows.size(1)} tokens; at least 4 are needed, or there is no order to change")
    inner = rows[:, 1:-1]
    order = torch.rand(inner.shape, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return torch.cat([rows[:, :1], inner.gather(1, order), rows[:, -1:]], dim=1)


@torch.no_grad()
def order_effect(model: LanguageModel, rows: Tensor, context: int, seed: int = 0) -> dict[str, float]:
    """What the order of earlier tokens is worth: nats for the next token, after true and after shuffled contexts.

    Each row (T + 1,) is cut into pieces of `context` tokens and the token to predict; "shuffled" has all of a piece in
    random order but its first and its last token, so that the pair of neighbours, which needs no positions, stays
    whole. Keys "ordered", "shuffled" (nats per token), "predictions" (their number). Raises ValueError for a context
    under 4 tokens or one that no row holds.
    """
    require(context >= 4, f"context is {context}; at least 4 tokens are needed, or there is no order to change")
    pieces = rows.unfold(1, context + 1, context + 1).flatten(0, 1) if rows.size(1) > context else rows[:0]
    require(len(pieces) > 0, f"rows of {rows.size(1)} tokens hold no context of {context} and its next token")
    read, targets = pieces[:, :-1], pieces[:, -1]
    nats = {}
    with evaluation_mode(model):
        for name, tokens in {"ordered": read, "shuffled": shuffled(read, seed)}.items():
            h = torch.cat([model.hidden(part)[0][:, -1] for part in tokens.to(model.head.weight.device).split(64)])
            nats[name] = float(token_nll(h, model.head.weight, targets.to(h.device))[0].double().mean())
    return nats | {"predictions": len(targets)}


def binned(losses: NDArray[np.float64], width: int) -> list[float]:
    """Means of (T,) over neighbouring places, `width` at a time, the last bin perhaps of fewer."""
    require(width >= 1, f"width is {width}; it must be at least 1")
    return [float(losses[start : start + width].mean()) for start in range(0, len(losses), width)]


def position_losses(lab: Lab, arms: Mapping[str, Sequence[Run]], *, length: int, most: int, width: int) -> pd.DataFrame:
    """Loss by place on held-out stories of at least `length` tokens, read whole and cut, for every run of every arm.

    Columns arm, seed, reading (whole or cut to the run's block_size), first and last place of a bin of `width` places
    (counted from 1), loss (mean nats per token; NaN where learned positions cannot read so far). Recorded by the lab,
    run by run. Raises ValueError as `long_stories` and `place_losses`.
    """

    def measured(run: Run) -> dict[str, list[float] | None]:
        model, tokenizer = run.load_model(), run.load_tokenizer()
        require_same_vocabulary(model, tokenizer)
        rows = long_stories(lab.corpus().texts("validation"), tokenizer, length, most)
        block_size = run.config.model.block_size
        whole = binned(place_losses(model, rows), width) if can_read(run.config.model, length) else None
        return {"whole": whole, "cut": binned(place_losses(model, rows, block_size), width)}

    records: list[dict[str, Any]] = []
    given = {"length": length, "most": most, "width": width}
    for arm, runs in arms.items():
        for run in runs:
            found = lab.measure("loss by place", lambda run=run: measured(run), run=run.fingerprint, **given)  # type: ignore[misc]
            for reading in READINGS:
                for first in range(1, length + 1, width):
                    loss = float("nan") if found[reading] is None else found[reading][first // width]
                    records.append({"arm": arm, "seed": run.config.train.seed, "reading": reading, "first": first,
                                    "last": min(first + width - 1, length), "loss": loss})  # fmt: skip
    return pd.DataFrame(records)


def order_effects(lab: Lab, arms: Mapping[str, Sequence[Run]], *, context: int, length: int, most: int) -> pd.DataFrame:
    """`order_effect` of every run on the same stories: columns arm, seed, ordered, shuffled, cost (their difference).

    Recorded by the lab. Raises ValueError as `long_stories` and `order_effect`.
    """

    def measured(run: Run) -> dict[str, float]:
        rows = long_stories(lab.corpus().texts("validation"), run.load_tokenizer(), length, most)
        return order_effect(run.load_model(), rows, context)

    given = {"context": context, "length": length, "most": most}
    records = []
    for arm, runs in arms.items():
        for run in runs:
            found = lab.measure("order of words", lambda run=run: measured(run), run=run.fingerprint, **given)  # type: ignore[misc]
            cost = found["shuffled"] - found["ordered"]
            records.append({"arm": arm, "seed": run.config.train.seed, **found, "cost": cost})
    return pd.DataFrame(records)


def drawn_diversity(
    lab: Lab, arms: Mapping[str, Sequence[Run]], measure: str = "distinct_2", **given: Any
) -> pd.DataFrame:
    """One measure of `samples.diversity` for every run: a row a seed, a column an arm. Recorded by the lab.

    `given` are the arguments of `diversity` after the tokenizer: prompt, budget, top_p, ... with its ValueErrors.
    """

    def drawn(run: Run) -> float:
        found = lab.measure(
            "diversity",
            lambda: diversity(run.load_model(), run.load_tokenizer(), **given),
            run=run.fingerprint,
            **given,
        )
        return found[measure]

    table = {name: {run.config.train.seed: drawn(run) for run in runs} for name, runs in arms.items()}
    return pd.DataFrame(table).rename_axis(index="seed")


def story_diversity(lab: Lab, run: Run, *, prompt: str, budget: int, max_tokens: int) -> dict[str, float | None]:
    """`samples.human_diversity` of held-out stories without as many first tokens as `prompt` has: the reference.

    Recorded by the lab. Raises ValueError as `human_diversity`.
    """
    tokenizer = run.load_tokenizer()
    given = {"budget": budget, "skip": len(tokenizer.encode_ordinary(prompt)), "max_tokens": max_tokens}
    return lab.measure(
        "story diversity",
        lambda: human_diversity(lab.corpus().texts("validation"), tokenizer, **given),
        corpus=run.context["corpus_hashes"],
        tokenizer=tokenizer.name,
        **given,
    )


def length_ranges(tasks: Mapping[str, pd.DataFrame], trained: int) -> pd.DataFrame:
    """Tables of `task_study` by task, summed up: means over the lengths up to `trained` and over those beyond it.

    Columns task, lengths ("up to 20", "21 to 40"), arm, seed, exact, token_accuracy, in the order of the tables.
    Raises ValueError when a task was not tested on both sides.
    """
    parts = []
    for task, table in tasks.items():
        inside, shortest, longest = table["length"] <= trained, table["length"].min(), table["length"].max()
        require(
            0 < inside.sum() < len(table),
            f"task {task!r} was tested at lengths {shortest} to {longest}; test both up to {trained} and beyond",
        )
        names = inside.map({True: f"up to {trained}", False: f"{trained + 1} to {longest}"})
        parts.append(table.assign(task=task, lengths=names))
    keys = ["task", "lengths", "arm", "seed"]
    return pd.concat(parts).groupby(keys, sort=False)[["exact", "token_accuracy"]].mean().reset_index()


def longest_solved(table: pd.DataFrame, share: float = 0.5) -> dict[str, int]:
    """Arm -> the longest tested length up to which its mean `exact` never falls below `share`; 0 when it always does.

    `table` is one of `task_study`.
    """
    found = {}
    for arm, own in table.groupby("arm", sort=False):
        means = own.groupby("length")["exact"].mean().sort_index()
        solved = means.index[(means >= share).cummin()]
        found[str(arm)] = int(solved[-1]) if len(solved) else 0
    return found


def against_others(table: pd.DataFrame, arm: str, measure: str) -> pd.DataFrame:
    """Whether `arm` is better than every other one, task by task: one row a task of a table of seeds.

    `table` has columns task, arm, seed and `measure`, one row each. Columns: `arm` (its mean), best other (its name),
    mean of best other, difference (paired Contrast with that one), verdict (that the differences with all others lie
    above 0, by their whole intervals). Raises ValueError for an arm that is not there or stands alone.
    """
    rows = {}
    for task, own in table.groupby("task", sort=False):
        values = own.pivot(index="seed", columns="arm", values=measure)
        others = values.drop(columns=arm, errors="ignore").mean().sort_values(ascending=False)
        require(
            arm in values and len(others) > 0,
            f"task {task!r} has arms {', '.join(map(str, values))}; {arm!r} and at least one other are needed",
        )
        contrasts = [paired_contrast(values[arm].tolist(), values[other].tolist()) for other in others.index]
        best = {"best other": others.index[0], "mean of best other": others.iloc[0]}
        judged = {"difference": contrasts[0], "verdict": verdict(*contrasts, claim="above")}
        rows[task] = {arm: values[arm].mean()} | best | judged
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="task")


def pair_contrasts(values: Mapping[str, Sequence[float]], pairs: Iterable[tuple[str, str]]) -> dict[str, Contrast]:
    """Paired contrasts by name, "a - b" for each pair, of `values` that hold one number a seed for every arm."""
    return {f"{first} - {second}": paired_contrast(values[first], values[second]) for first, second in pairs}


Claim = tuple[str, str, Mapping[str, Contrast], Literal["below", "above", "none"]]
"""What is claimed, what was measured with its unit, the differences by name, and where all of them are claimed to lie:
below 0, above 0, or within a margin of it ("none")."""


def claim_table(claims: Sequence[Claim], margin: float) -> pd.DataFrame:
    """One row a claim, with columns claim, measured, differences (one a line, HTML) and verdict.

    The verdict is that of `contrasts.verdict`, or of `equivalence` at `margin` where no difference is claimed.
    """
    rows = []
    for claim, measured, differences, side in claims:
        found = differences.values()
        judged = equivalence(*found, margin=margin) if side == "none" else verdict(*found, claim=side)
        rows.append((claim, measured, "<br>".join(f"{name}: {c}" for name, c in differences.items()), judged))
    return pd.DataFrame(rows, columns=["claim", "measured", "differences", "verdict"])
