"""Proof that no text has two derivations, and that no story is the beginning of another.

The grammar becomes a graph whose edges carry strings, every mention freed from its variable (that only adds paths).
Two paths that part at some node and meet again after reading the same text are an ambiguity; the search follows all
pairs of paths that read the same so far (the squared-automaton test; Book, Even, Greibach and Ott, 1971).
"""

import itertools
from bisect import bisect_left
from collections.abc import Iterator

from picollm_core.storyworld.grammar import Choice, Grammar, Mention


class StoryGraph:
    """Acyclic graph of a grammar: `edges[node]` is a sorted list of (string, target); `final` has none."""

    def __init__(self, grammar: Grammar) -> None:
        self.edges: list[list[tuple[str, int]]] = [[]]
        self.shortest: list[int] = [0]  # the shortest string on an edge of each node
        self.final = 0
        self.start = self._node([("", self._sequence(items, self.final)) for items in grammar.plots.values()])

    def conflicts(self) -> Iterator[str]:
        """Texts (from the node where two paths part) that are ambiguous or a proper beginning of another story."""
        seen: set[tuple[int, int, str]] = set()
        for edges in self.edges:
            for i, (first, p) in enumerate(edges):
                for second, q in edges[i + 1 :]:
                    if second.startswith(first):  # sorted: the second is never a proper beginning of the first
                        yield from self._follow(q, p, second[len(first) :], second, seen)

    def _follow(self, p: int, q: int, lead: str, read: str, seen: set) -> Iterator[str]:
        """Conflicts among continuations of a pair: p has read `lead` more than q, and `read` since the paths parted."""
        pairs = [(p, q, lead, read)]
        while pairs:
            ahead, behind, lead, read = pairs.pop()
            if not lead and behind == self.final:
                ahead, behind = behind, ahead
            if (ahead, behind, lead) in seen:
                continue
            seen.add((ahead, behind, lead))
            if ahead == behind and not lead:
                yield f"two derivations of {read!r}"
            elif behind == self.final:
                yield f"a story ends before {lead!r} where another goes on: {read!r}"
            else:
                pairs.extend(self._advance(ahead, behind, lead, read))

    def _advance(self, ahead: int, behind: int, lead: str, read: str) -> Iterator[tuple[int, int, str, str]]:
        edges = self.edges[behind]
        for cut in range(self.shortest[behind], len(lead)):  # edges that read part of the lead
            for string, target in self._from(edges, lead[:cut]):
                if string != lead[:cut]:
                    break
                yield ahead, target, lead[cut:], read
        for string, target in self._from(edges, lead):  # edges that read all of it, or more
            if not string.startswith(lead):
                break
            more = string[len(lead) :]
            yield target, ahead, more, read + more

    @staticmethod
    def _from(edges: list[tuple[str, int]], string: str) -> Iterator[tuple[str, int]]:
        return itertools.islice(edges, bisect_left(edges, (string, -1)), None)

    def _node(self, edges: list[tuple[str, int]]) -> int:
        self.edges.append(sorted(edges))
        self.shortest.append(min(len(string) for string, _ in edges))
        return len(self.edges) - 1

    def _sequence(self, items: tuple, after: int) -> int:
        for item in reversed(items):
            if isinstance(item, str):
                after = self._node([(item, after)])
            elif isinstance(item, Mention):
                after = self._node([(string, after) for string in set(item.strings)])
            elif isinstance(item, Choice):
                after = self._node([("", self._sequence(option, after)) for option in item.options])
        return after
