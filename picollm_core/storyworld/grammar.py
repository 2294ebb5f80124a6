"""A compiled story grammar: draws in, story out; story in, draws out; exact log-probabilities either way.

A story is a walk through a tree of choices. Each choice uses up one number from [0, 1). A variable (the hero, the
object, ...) is drawn where the text mentions it first and then stays; words of one list never repeat within a story
unless they are the same variable. So every draw leaves its mark in the text, and the text determines the draws.
"""

import math
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from picollm_core.storyworld.notation import PRONOUNS, Call, Options, PlotSource, Slot, entry_form

SPEAKERS, NEW_LINE = '" "', '"\n"'  # of equal length, so that offsets hold; no template contains the second


@dataclass(frozen=True, eq=False)
class Mention:
    """A word from a list. `variable` is None for a word that is drawn afresh at every use."""

    variable: str | None
    list_name: str
    form: str
    strings: tuple[str, ...]  # one for each entry of the list


@dataclass(frozen=True, eq=False)
class Choice:
    """Alternatives, each repeated in `table` as often as its weight says, so that one uniform index draws them."""

    options: tuple[tuple, ...]
    table: tuple[tuple, ...]
    firsts: tuple[int, ...]  # index in `table` of each option's first copy
    logs: tuple[float, ...]  # log-probability of table[k]'s option, in nats


@dataclass(frozen=True, eq=False)
class Phase:
    """Marks where a phase of the plot begins."""

    name: str


class Mark(NamedTuple):
    """Piece number `part` of an expansion is this mention (entry `index` of its list), or begins this phase."""

    part: int
    item: Any  # Mention | Phase
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on a mark


@dataclass(frozen=True, eq=False)
class Expansion:
    """One walk through the grammar: the pieces of text, what they are, and the log-probability of each draw (nats)."""

    plot: str
    parts: list[str]
    marks: list[tuple]  # in the layout of Mark; plain tuples are made faster
    logs: list[float]

    @property
    def text(self) -> str:
        """The pieces joined; where one speaker follows another, the second starts a new line."""
        return "".join(self.parts).replace(SPEAKERS, NEW_LINE)

    @property
    def log_prob(self) -> float:
        """Nats, of the whole walk; equal to that of the text, which allows no other walk."""
        return math.fsum(self.logs)


def make_choice(options: Sequence[tuple], weights: Sequence[int]) -> Choice:
    """A Choice from options and positive integer weights."""
    if min(weights) < 1:
        raise ValueError(f"weights {tuple(weights)} contain one below 1; leave out what shall never be drawn")
    table = tuple(option for option, weight in zip(options, weights, strict=True) for _ in range(weight))
    logs = tuple(math.log(weight / len(table)) for weight in weights for _ in range(weight))
    firsts = tuple(sum(weights[:k]) for k in range(len(weights)))
    return Choice(tuple(options), table, firsts, logs)


class Grammar:
    """Plots over word lists and rules.

    Raises ValueError for unknown rules and lists, a pronoun before its name, or a paragraph that may start empty.
    """

    def __init__(
        self, lists: Mapping[str, list[dict[str, str]]], rules: Mapping[str, Options], plots: Iterable[PlotSource]
    ) -> None:
        self.lists, self.rules = lists, rules
        self._strings: dict[tuple[str, str, bool], tuple[str, ...]] = {}
        self.plots = {plot.name: tuple(self._compile_plot(plot)) for plot in plots}
        for name, items in self.plots.items():
            hinted: set[str] = set()
            known = self._check_order(name, items, frozenset(), hinted)
            if hinted - known:
                raise ValueError(f"plot {name}: {', '.join(sorted(hinted - known))} may be drawn and never named")
        names = tuple(self.plots)
        self.root = make_choice([self.plots[name] for name in names], [1] * len(names))

    def expand(self, draws: Iterable[float]) -> Expansion:
        """The story that `draws`, numbers in [0, 1), select. Unused draws are left over."""
        take = iter(draws).__next__
        k = int(take() * len(self.root.table))
        parts: list[str] = []
        marks: list[Any] = []
        logs = [self.root.logs[k]]
        bound: dict[str | None, int] = {}
        taken: dict[str, list[int]] = {}

        def walk(items: tuple) -> None:
            for item in items:
                kind = item.__class__
                if kind is str:
                    parts.append(item)
                elif kind is Mention:
                    index = bound.get(item.variable)
                    if index is None:
                        index = draw(item)
                    marks.append((len(parts), item, index))
                    parts.append(item.strings[index])
                elif kind is Choice:
                    k = int(take() * len(item.table))
                    logs.append(item.logs[k])
                    walk(item.table[k])
                else:
                    marks.append((len(parts), item, 0))

        def draw(item: Mention) -> int:
            earlier = taken.setdefault(item.list_name, [])
            left = len(item.strings) - len(earlier)
            index = int(take() * left)
            for other in earlier:  # ascending: step over the words that this story already has
                index += index >= other
            logs.append(-math.log(left))
            insort(earlier, index)
            if item.variable is not None:
                bound[item.variable] = index
            return index

        walk(self.root.table[k])
        return Expansion(tuple(self.plots)[k], parts, marks, logs)

    def parse(self, text: str) -> list[tuple[float, ...]]:
        """Draws of every walk that produces `text`: exactly one for a story of an unambiguous grammar.

        Raises ValueError naming the first position where the text leaves the grammar.
        """
        search = _Search(text.replace(NEW_LINE, SPEAKERS))
        walks = list(search.walks(self.root))
        same_line = text.find(SPEAKERS)
        if not walks or same_line >= 0:
            at = min(search.furthest, same_line + 1) if same_line >= 0 else search.furthest
            raise ValueError(
                f"the text leaves the story grammar at character {at} of {len(text)}, at {text[at : at + 20]!r} after "
                f"{text[max(0, at - 30) : at]!r}; only complete, unaltered stories have a probability"
            )
        return walks

    def max_draws(self) -> int:
        """The most draws that any story uses."""
        return 1 + max(_count_draws(items) for items in self.plots.values())

    def _compile_plot(self, plot: PlotSource) -> Iterator:
        first = True
        for name, separator, beats in plot.phases:
            if not first:
                yield separator
            yield Phase(name)
            for number, beat in enumerate(beats):
                options = [self._compile(plot, option) for option in beat.texts]
                if number == 0 and () in options:
                    raise ValueError(f"plot {plot.name}: phase {name} may start empty; its first beat needs text")
                joined = [(" ", *option) if option and number else option for option in options]
                yield make_choice(joined, beat.weights)
            first = False

    def _compile(self, plot: PlotSource, template: tuple) -> tuple:
        return tuple(self._compile_item(plot, item) for item in template)

    def _compile_item(self, plot: PlotSource, item: str | Slot | Call | Options) -> str | Mention | Choice:
        if isinstance(item, str):
            return item
        if isinstance(item, Slot):
            return self._mention(plot, item)
        if isinstance(item, Call) and item.rule not in self.rules:
            raise ValueError(f"plot {plot.name}: unknown rule <{item.rule}>; known: {', '.join(sorted(self.rules))}")
        options = self.rules[item.rule] if isinstance(item, Call) else item
        return make_choice([self._compile(plot, text) for text in options.texts], options.weights)

    def _mention(self, plot: PlotSource, slot: Slot) -> Mention:
        variable = slot.name if slot.name in plot.variables else None
        list_name = plot.variables.get(slot.name, slot.name)
        if list_name not in self.lists:
            raise ValueError(f"plot {plot.name}: {{{slot.name}}} is neither a variable nor a word list")
        key = (list_name, slot.form, slot.capital)
        if key not in self._strings:
            self._strings[key] = tuple(entry_form(e, slot.form, slot.capital) for e in self.lists[list_name])
        return Mention(variable, list_name, slot.form, self._strings[key])

    def _check_order(self, plot: str, items: tuple, met: frozenset[str], hinted: set[str]) -> frozenset[str]:
        """What a reader certainly met in `items`: variables by name, and "a boy" (as "name?") before he is named.

        `hinted` collects all the latter; a pronoun needs either before it.
        """
        for item in items:
            if isinstance(item, Choice):
                met = frozenset.intersection(*(self._check_order(plot, o, met, hinted) for o in item.options))
            elif isinstance(item, Mention) and item.variable not in met:
                name = item.variable or item.list_name
                if len(set(item.strings)) == len(item.strings):
                    met |= {item.variable} if item.variable else set()
                elif item.variable is None or (item.form in PRONOUNS and f"{name}?" not in met):
                    raise ValueError(f"plot {plot}: form {item.form!r} of {{{name}}} may come before its name")
                else:
                    met |= {f"{name}?"}
                    hinted.add(name)
        return met


class _Search:
    """Depth-first search for all walks that spell a text, with the furthest position any of them reached."""

    def __init__(self, text: str) -> None:
        self.text, self.furthest = text, 0

    def walks(self, root: Choice) -> Iterator[tuple[float, ...]]:
        # A state: items still to match as (sequence, next index, what follows), position, and the past so far.
        states: list[Any] = [(((root,), 0, None), 0, {}, {}, ())]
        while states:
            rest, at, bound, taken, draws = states.pop()
            while rest and rest[1] == len(rest[0]):
                rest = rest[2]
            if rest is None:
                if at == len(self.text):
                    yield draws
                continue
            items, index, after = rest
            item, rest = items[index], (items, index + 1, after)
            if isinstance(item, str):
                if self._reads(item, at):
                    states.append((rest, at + len(item), bound, taken, draws))
            elif isinstance(item, Choice):
                size = len(item.table)
                for option, first in zip(item.options, item.firsts, strict=True):
                    states.append(((option, 0, rest), at, bound, taken, (*draws, (first + 0.5) / size)))
            elif isinstance(item, Phase):
                states.append((rest, at, bound, taken, draws))
            elif item.variable in bound:
                string = item.strings[bound[item.variable]]
                if self._reads(string, at):
                    states.append((rest, at + len(string), bound, taken, draws))
            else:
                states.extend(self._drawn(item, rest, at, bound, taken, draws))

    def _drawn(self, item: Mention, rest: tuple, at: int, bound: dict, taken: dict, draws: tuple) -> Iterator[tuple]:
        earlier = taken.get(item.list_name, ())
        left = [k for k in range(len(item.strings)) if k not in earlier]
        for rank, k in enumerate(left):
            if self._reads(item.strings[k], at):
                now = bound if item.variable is None else bound | {item.variable: k}
                past = taken | {item.list_name: (*earlier, k)}
                yield rest, at + len(item.strings[k]), now, past, (*draws, (rank + 0.5) / len(left))

    def _reads(self, string: str, at: int) -> bool:
        """Whether the text has `string` at `at`; remembers how far the two agree."""
        if self.text.startswith(string, at):
            self.furthest = max(self.furthest, at + len(string))
            return True
        if at + len(string) > self.furthest:
            agree = next((k for k, c in enumerate(string) if self.text[at + k : at + k + 1] != c), len(string))
            self.furthest = max(self.furthest, at + agree)
        return False


def _count_draws(items: tuple) -> int:
    """The most draws a sequence can use, every mention counted as a draw."""
    choices = sum(1 + max(map(_count_draws, item.options)) for item in items if isinstance(item, Choice))
    return choices + sum(isinstance(item, Mention) for item in items)
