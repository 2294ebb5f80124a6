"""What the runs of the study of overfitting say: losses, effects on the gap, early stopping, and samples, as tables."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from picollm_core.config import require
from picollm_core.contrasts import holm, paired_contrast
from picollm_core.overfit_runs import Arm


def span(low: float, high: float, digits: int = 1) -> str:
    """Two ends of a range as text, "1.2 to 3.4", or one number where they look the same."""
    ends = f"{low:,.{digits}f}", f"{high:,.{digits}f}"
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def tuning_table(tuned: pd.DataFrame) -> pd.DataFrame:
    """Columns text, family, tried (rates with their losses), taken, at the edge: one row a text and family.

    `tuned` is that of `overfit_study.tuned_bases`. A rate that was the only one has no loss, and no edge.
    """
    rows = []
    for (text, family), own in tuned.groupby(["text", "family"], sort=False):
        taken = float(own.loc[own["chosen"], "rate"].iloc[0])
        tried = [
            f"{rate:g}" + ("" if pd.isna(loss) else f": {loss:.2f}")
            for rate, loss in zip(own["rate"], own["loss"], strict=True)
        ]
        edge = len(own) > 1 and taken in (own["rate"].min(), own["rate"].max())
        rows.append({"text": text, "family": family, "tried": ", ".join(tried), "taken": taken, "at the edge": edge})
    return pd.DataFrame(rows)


def loss_table(arms: Mapping[str, Arm]) -> pd.DataFrame:
    """The rows of all runs: arm, seed, step, epoch, train, validation, test, held_out, gap (held_out - train)."""
    require(len(arms) > 0, "there are 0 arms; give at least one")
    parts = [
        pd.DataFrame(result["rows"]).assign(arm=name, seed=result["seed"])
        for name, arm in arms.items()
        for result in arm.results
    ]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(gap=table["held_out"] - table["train"])


def end_table(sizes: Mapping[int, Mapping[str, Arm]]) -> pd.DataFrame:
    """How the runs of every size and family ended, as means over seeds: a row a size and family.

    Columns size, family, texts and held_out_texts (their numbers), tokens (of training), train, held_out, gap, lowest
    (held-out loss at any look; all four in nats per token), lowest_epoch, exact and exact_held_out (shares of texts
    that greedy decoding repeats; missing where texts are too short).
    """
    rows = []
    for size, arms in sizes.items():
        for family, arm in arms.items():
            losses = loss_table({family: arm})
            lowest = losses.loc[losses.groupby("seed")["held_out"].idxmin()]
            counts, repeated = arm.results[0]["counts"], [result["repeated"] for result in arm.results]
            row: dict[str, Any] = {"size": size, "family": family, "texts": counts["train"]}
            row |= {"held_out_texts": counts["held_out"], "tokens": counts["tokens"]}
            row |= losses.groupby("seed").last()[["train", "held_out", "gap"]].mean().to_dict()
            row |= {"lowest": lowest["held_out"].mean(), "lowest_epoch": lowest["epoch"].mean()}
            for name, split in (("exact", "train"), ("exact_held_out", "held_out")):
                row[name] = pd.Series([own[split]["exact"] for own in repeated], dtype=float).mean()
            rows.append(row)
    return pd.DataFrame(rows)


def final_losses(sizes: Mapping[int, Mapping[str, Arm]]) -> pd.DataFrame:
    """The last row of every run, as in `loss_table`, with a column stories: arm is the family."""
    parts = [
        loss_table(arms).groupby(["arm", "seed"], sort=False).last().reset_index().assign(stories=size)
        for size, arms in sizes.items()
    ]
    return pd.concat(parts, ignore_index=True)


def early_stopping(rows: pd.DataFrame, patience: int) -> dict[str, float]:
    """What a stopping rule makes of the rows of one run, which have step, validation and test.

    Training stops at the first look after `patience` looks in a row without a new lowest validation loss (`stop`), and
    keeps the weights of the lowest so far (`chosen`). `test` is their test loss in nats per token: unbiased, since
    the choice never saw the test stories. `best_test` is that of the lowest validation loss of the whole run, and
    `last_test` that of its end. Raises ValueError for patience < 1 and without rows.
    """
    require(patience >= 1, f"patience is {patience}; it must be at least 1 look")
    require(len(rows) > 0, "there are 0 looks at the losses; give at least one")
    own = rows.sort_values("step").reset_index(drop=True)
    losses = own["validation"].tolist()
    chosen = 0
    stop = len(losses) - 1
    for look, loss in enumerate(losses):
        if loss < losses[chosen]:
            chosen = look
        if look - chosen >= patience:
            stop = look
            break
    steps, tests, best = own["step"].tolist(), own["test"].tolist(), losses.index(min(losses))
    where = {"chosen": steps[chosen], "stop": steps[stop], "best": steps[best], "last": steps[-1]}
    return where | {"test": tests[chosen], "best_test": tests[best], "last_test": tests[-1]}


def stopping_table(losses: pd.DataFrame, patience: int) -> pd.DataFrame:
    """`early_stopping` of every run of a `loss_table`: columns arm, seed and those of `early_stopping`."""
    return pd.DataFrame(
        [
            {"arm": arm, "seed": seed} | early_stopping(own, patience)
            for (arm, seed), own in losses.groupby(["arm", "seed"], sort=False)
        ]
    )


def stopping_summary(sizes: Mapping[int, Mapping[str, Arm]], patience: int) -> pd.DataFrame:
    """What early stopping is worth, as means over seeds: a row a size and family.

    Columns stories, family, chosen and stop (updates), at its stop, at the lowest, at the end (test losses in nats per
    token: of the rule, of the lowest validation loss of the whole run, of the last weights), lost (the end minus the
    rule) with low and high (95%), and cost (the rule minus the lowest).
    """
    rows = []
    for size, arms in sizes.items():
        for family, own in stopping_table(loss_table(arms), patience).groupby("arm", sort=False):
            lost = paired_contrast(own["last_test"].tolist(), own["test"].tolist())
            where = {"stories": size, "family": family, "chosen": own["chosen"].mean(), "stop": own["stop"].mean()}
            losses = {"at its stop": own["test"], "at the lowest": own["best_test"], "at the end": own["last_test"]}
            row = where | {name: values.mean() for name, values in losses.items()}
            rows.append(
                row
                | {
                    "lost": lost.mean,
                    "low": lost.low,
                    "high": lost.high,
                    "cost": (own["test"] - own["best_test"]).mean(),
                }
            )
    return pd.DataFrame(rows)


def effect_table(families: Mapping[str, Mapping[str, Arm]], patience: int) -> pd.DataFrame:
    """What every change does, against the base of its family, over paired seeds: a row a family, change and measure.

    Columns family, change, measure, effect, low, high (95%), p, p_holm (Holm's correction over all rows). Measures, in
    nats per token: "gap" and "held_out" at the end of training, "stopped", the test loss with `early_stopping`. With
    one seed there are no intervals. Raises ValueError where a family has no "base".
    """
    rows = []
    for family, arms in families.items():
        require("base" in arms, f"{family} has {', '.join(arms)}, but no 'base' to compare with")
        losses = loss_table(arms)
        ends = losses.groupby(["arm", "seed"], sort=False).last()
        stopped = stopping_table(losses, patience).set_index(["arm", "seed"])["test"]
        measures = {"gap": ends["gap"], "held_out": ends["held_out"], "stopped": stopped}
        for change in [name for name in arms if name != "base"]:
            for measure, values in measures.items():
                found = paired_contrast(values[change].tolist(), values["base"].tolist())
                rows.append((family, change, measure, found.mean, found.low, found.high, found.p_value))
    table = pd.DataFrame(rows, columns=["family", "change", "measure", "effect", "low", "high", "p"])
    tested = table["p"].notna()
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].tolist())
    return table.assign(p_holm=table["p_holm"].astype(float))


def sample_table(sizes: Mapping[int, Mapping[str, Arm]]) -> pd.DataFrame:
    """What the runs' samples are like: stories, arm (family, or "people"), seed, tokens, and a column a measure.

    distinct_1 to distinct_3 and novel_1 to novel_10 are shares, longest the most tokens copied in a row. The text of
    people is the same for all runs and stands once for each number of stories.
    """
    rows = []
    for stories, arms in sizes.items():
        found = [
            (name, result["seed"], result["samples"]["model"]) for name, arm in arms.items() for result in arm.results
        ]
        first = next(iter(arms.values())).results[0]
        for name, seed, own in [*found, ("people", first["seed"], first["samples"]["people"])]:
            measures = {f"{kind}_{n}": value for kind in ("distinct", "novel") for n, value in own[kind].items()}
            counts = {"tokens": own["tokens"], "longest": own["longest"]}
            rows.append({"stories": stories, "arm": name, "seed": seed} | counts | measures)
    return pd.DataFrame(rows)


def novelty_lines(samples: pd.DataFrame) -> pd.DataFrame:
    """A `sample_table` as lines over n: panel (family), arm ("16 stories", or "people"), seed, n, new (a share).

    People are compared with the most stories, the text that holds most of what they write, in every panel.
    """
    orders = {name: int(name.removeprefix("novel_")) for name in samples if name.startswith("novel_")}
    of_people = samples["arm"] == "people"
    models, people = samples[~of_people], samples[of_people & (samples["stories"] == samples["stories"].max())]
    own = models.assign(panel=models["arm"], arm=models["stories"].map("{:,} stories".format))
    parts = [own, *(people.assign(panel=family) for family in dict.fromkeys(models["arm"]))]
    table = pd.concat(parts).melt(["panel", "arm", "seed"], list(orders), "n", "new").dropna()
    return table.assign(n=table["n"].map(orders).astype(int), new=table["new"].astype(float))


def sweep_rows(
    lines: Mapping[int, Mapping[str, Arm]],
    stories: Mapping[int, Mapping[str, Arm]],
    changed: Mapping[str, Mapping[str, Arm]],
) -> pd.DataFrame:
    """The end of every run: text ("lines" or "stories"), size (None for changes), family, change, seed and the losses.

    Of `changed`, the base and more stories are left out, since `stories` has them.
    """
    groups: list[tuple[str, int | None, str, str, Arm]] = [
        (text, size, family, "", arm)
        for text, sizes in (("lines", lines), ("stories", stories))
        for size, arms in sizes.items()
        for family, arm in arms.items()
    ]
    groups += [("stories", None, family, change, arm) for family, arms in changed.items()
               for change, arm in arms.items() if change != "base" and not change.startswith("stories")]  # fmt: skip
    parts = [
        loss_table({family: arm})
        .groupby("seed")
        .last()
        .reset_index()
        .drop(columns="arm")
        .assign(text=text, size=size, family=family, change=change, measurement=arm.source)
        for text, size, family, change, arm in groups
    ]
    table = pd.concat([part.astype({"size": object}) for part in parts], ignore_index=True)
    first = ["text", "size", "family", "change", "seed"]
    return table[first + [name for name in table if name not in first]]
