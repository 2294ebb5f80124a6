"""What was claimed about custom training text, beside what was measured here: contrasts over seeds, and verdicts."""

from collections.abc import Sequence

import pandas as pd

from picollm_core.arms import best_rates
from picollm_core.config import require
from picollm_core.contrasts import Contrast, paired_contrast, verdict
from picollm_core.custom_mixtures import smoke_table
from picollm_core.custom_study import Plan, passes, plan_of, size_table, tuned_rates
from picollm_core.lab import Lab
from picollm_core.verdicts import Verdict, Word, judged

CHANCE = 1.0
"""New words per 1,000 by which a model must outdo its control before one may speak of an echo."""


def at_equal(table: pd.DataFrame, plan: Plan, what: str) -> pd.DataFrame:
    """The rows of `size_table` read after equal "epochs" or equal "updates". Raises ValueError for another word."""
    require(what in ("epochs", "updates"), f"what is {what!r}; choose 'epochs' or 'updates'")
    steps = table["lines"].map(lambda lines: passes(plan, lines)) if what == "epochs" else plan.updates
    return table[table["step"] == steps]


def by_seed(table: pd.DataFrame, column: str, **where: object) -> list[float]:
    """The values of `column` where all these columns have these values, one a seed in the order of the seeds.

    Raises ValueError unless there is exactly one value a seed.
    """
    for name, value in where.items():
        table = table[table[name] == value]
    require(
        len(table) > 0 and not table["seed"].duplicated().any(),
        f"{len(table)} values of {column} for {table['seed'].nunique()} seeds at {where}; there must be one a seed",
    )
    return table.sort_values("seed")[column].tolist()


def change(table: pd.DataFrame, column: str, arm: str, first: int, last: int, of: str = "lines") -> Contrast:
    """By how much `column` is higher at `last` than at `first` (values of the column `of`), over paired seeds."""
    return paired_contrast(
        by_seed(table, column, arm=arm, **{of: last}), by_seed(table, column, arm=arm, **{of: first})
    )


def turning_point(table: pd.DataFrame, arm: str, lines: int) -> tuple[int, Contrast]:
    """The update with the least mean held-out loss, and how much higher that loss is at the last read one."""
    own = table[(table["arm"] == arm) & (table["lines"] == lines)]
    best = int(own.groupby("step")["held_out_loss"].mean().idxmin())
    return best, change(own, "held_out_loss", arm, best, int(own["step"].max()), "step")


def _interval(found: Contrast) -> tuple[float, float] | None:
    return None if found.pairs == 1 else (found.low, found.high)


def _runs(table: pd.DataFrame) -> tuple[str, ...]:
    return tuple(sorted(set(table["record"])))


def _signed(found: Contrast) -> str:
    """The difference and its interval, without its number of pairs."""
    return f"{found.mean:+.2f}" + (f" ({found.low:+.2f} to {found.high:+.2f})" if found.pairs > 1 else " (one seed)")


def _epochs(plan: Plan) -> str:
    return f"{plan.epochs} epoch" + "s" * (plan.epochs > 1)


def _both(epochs: str, updates: str) -> Word:
    """The verdict on a claim that should hold at equal epochs and at equal updates."""
    return "depends" if {epochs, updates} == {"holds", "fails"} else "open" if epochs != updates else epochs  # type: ignore[return-value]


def _corpus_size(table: pd.DataFrame, plan: Plan) -> Verdict:
    """Does the LSTM's logged training loss fall from each number of lines to the next?"""
    epochs, updates = at_equal(table, plan, "epochs"), at_equal(table, plan, "updates")
    pairs = list(zip(plan.sizes, plan.sizes[1:], strict=False))
    steps = {
        name: [change(rows, "seen_loss", "LSTM", *pair) for pair in pairs]
        for name, rows in (("epochs", epochs), ("updates", updates))
    }
    small, large = plan.sizes[0], plan.sizes[-1]
    found = change(updates, "seen_loss", "LSTM", small, large)
    held = change(updates, "held_out_loss", "LSTM", small, large)
    other = verdict(*(change(epochs, "seen_loss", "gpt-oss", *pair) for pair in pairs), claim="below")
    told = {name: ", ".join(map(_signed, own)) for name, own in steps.items()}
    cause = (
        f"more lines are more updates an epoch: at {_epochs(plan)} ({passes(plan, small)} to {passes(plan, large)} "
        f"updates) the loss changes by {told['epochs']} nats from each number of lines to the next, at {plan.updates} "
        f"updates each by {told['updates']}, since few lines are soon known by heart; what more lines do is seen on "
        f"held-out lines, {_signed(held)} from {small} to {large} at equal updates; of gpt-oss, at its "
        f"own rate, the claim {other} at equal epochs"
    )
    contrast = (
        f"LSTM, training loss of the last epoch on {large} lines minus on {small}, {plan.updates} updates each; "
        f"the same at {_epochs(plan)} each decides with it"
    )
    word = _both(verdict(*steps["epochs"], claim="below"), verdict(*steps["updates"], claim="below"))
    return Verdict("loss-falls-with-corpus-size", contrast, found.mean, _interval(found), "nats per token",
                   _runs(table), word, cause)  # fmt: skip


def _slope(table: pd.DataFrame, plan: Plan, column: str) -> Contrast:
    """gpt-oss's change of loss from fewest to most lines minus the LSTM's, over paired seeds."""
    changes = {}
    for arm in ("gpt-oss", "LSTM"):
        few, many = (by_seed(table, column, arm=arm, lines=count) for count in (plan.sizes[0], plan.sizes[-1]))
        changes[arm] = [b - a for a, b in zip(few, many, strict=True)]
    return paired_contrast(changes["gpt-oss"], changes["LSTM"])


def _gentler(table: pd.DataFrame, plan: Plan) -> Verdict:
    """Does gpt-oss's logged training loss fall less than the LSTM's?"""
    epochs, updates = at_equal(table, plan, "epochs"), at_equal(table, plan, "updates")
    found, equal = _slope(epochs, plan, "seen_loss"), _slope(updates, plan, "seen_loss")
    own = {arm: change(epochs, "seen_loss", arm, plan.sizes[0], plan.sizes[-1]) for arm in ("gpt-oss", "LSTM")}
    cause = (
        f"at {_epochs(plan)} each the loss changes by {_signed(own['gpt-oss'])} nats in gpt-oss and by "
        f"{_signed(own['LSTM'])} in the LSTM, each at its own best learning rate; at {plan.updates} updates each the "
        f"difference of the two is {_signed(equal)}"
    )
    contrast = (
        f"change of the training loss from {plan.sizes[0]} to {plan.sizes[-1]} lines at {_epochs(plan)} each, "
        "gpt-oss minus LSTM"
    )
    return judged(
        "gptoss-gentler", contrast, found, claim="above", unit="nats per token", runs=_runs(table), cause=cause
    )


def _budget(table: pd.DataFrame, plan: Plan) -> Verdict:
    """Do 1, 3 and 6 updates lower training and held-out loss, and how long does that go on?"""
    lines = plan.sizes[-1]
    own = table[table["lines"] == lines]
    found = [
        change(own, column, arm, first, last, "step")
        for arm in ("LSTM", "gpt-oss")
        for column in ("train_loss", "held_out_loss")
        for first, last in ((1, 3), (3, 6))
    ]
    last = int(own["step"].max())
    turns = {arm: turning_point(table, arm, lines) for arm in ("LSTM", "gpt-oss")}
    told = "; ".join(
        f"{arm}: lowest held-out loss after {best} updates ({best * plan.line_batch / lines:.1f} epochs), "
        + (f"{_signed(later)} nats from there to update {last}" if best < last else "the last read")
        for arm, (best, later) in turns.items()
    )
    effect = change(own, "held_out_loss", "LSTM", 1, 6, "step")
    contrast = (
        f"LSTM, held-out loss after 6 updates minus after 1, {lines} lines; both losses, both models, 1, 3 and 6 decide"
    )
    return Verdict("more-steps-lower-both", contrast, effect.mean, _interval(effect), "nats per token", _runs(own),
                   verdict(*found, claim="below"), f"true of the first updates alone; {told}")  # fmt: skip


def _echo(smoke: pd.DataFrame, plan: Plan) -> Verdict:
    """Do samples take up the new words after as many updates as a smoke test has: more than before and without?"""
    steps = [step for step in plan.smoke_reads if 1 <= step <= 3]

    def rates(arm: str, share: float, at: list[int]) -> list[float]:
        own = smoke[(smoke["arm"] == arm) & (smoke["share"] == share) & smoke["step"].isin(at)]
        return own.groupby("seed")["per_1000"].mean().tolist()

    found = {
        (arm, control): paired_contrast(rates(arm, plan.smoke_share, steps), rates(arm, share, at))
        for arm in dict.fromkeys(smoke["arm"])
        for control, share, at in (("untrained", plan.smoke_share, [0]), ("stories alone", 0.0, steps))
    }
    untrained = smoke[smoke["step"] == 0]["per_1000"].mean()
    told = "; ".join(f"{arm} minus {control} {_signed(each)}" for (arm, control), each in found.items())
    updates = " and ".join(map(str, steps))
    cause = (
        f"an untrained model draws {untrained:.1f} such words per 1,000 from its vocabulary by chance; after {updates} "
        f"updates with {plan.smoke_share:.0%} custom rows they are, per 1,000: {told}"
    )
    contrast = (
        f"LSTM, words per 1,000 sampled that stories never have, {plan.smoke_share:.0%} custom rows minus stories "
        f"alone, mean of updates {updates}; both models must exceed that and the untrained model by {CHANCE:g}"
    )
    effect = found["LSTM", "stories alone"]
    return Verdict("echo-of-new-words", contrast, effect.mean, _interval(effect), "words per 1,000", _runs(smoke),
                   verdict(*found.values(), claim="above", bound=CHANCE), cause)  # fmt: skip


def judge_custom_claims(sizes: pd.DataFrame, smoke: pd.DataFrame, plan: Plan) -> list[Verdict]:
    """The four claims about custom text, from tables of `size_table` and `smoke_table`; one seed leaves all open.

    Raises ValueError when a table lacks a read that a claim needs, or has two values for one seed.
    """
    return [_corpus_size(sizes, plan), _gentler(sizes, plan), _budget(sizes, plan), _echo(smoke, plan)]


def claims_custom(lab: Lab) -> list[Verdict]:
    """The four verdicts of the lab's profile; trains what is not recorded yet."""
    return judge_custom_claims(size_table(lab, best_rates(tuned_rates(lab))), smoke_table(lab), plan_of(lab))


def claim_ids() -> Sequence[str]:
    """The claims that this study judges."""
    return ("loss-falls-with-corpus-size", "gptoss-gentler", "more-steps-lower-both", "echo-of-new-words")
