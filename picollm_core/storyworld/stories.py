"""Stories from a seed: fast text, labelled stories, log-probabilities, and the entropy that no model can beat."""

import functools
import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, NamedTuple

import numpy as np

from picollm_core.storyworld.grammar import Expansion, Grammar, Mark, Phase
from picollm_core.storyworld.notation import PRONOUNS, read_lists, read_plot, read_rules

GRAMMAR_VERSION = 1
"""Raised whenever code changes which story a seed gives; content_hash() covers the prose and the word lists."""

ROLES = ("hero", "friend", "object", "place")
CHUNK = 64  # stories that share one block of random numbers
DRAWS = 160  # random numbers set aside for each story


class Span(NamedTuple):
    """text[start:end] is a mention. Labels: hero, friend, object, place, pronoun:female|male|neuter, quote."""

    start: int
    end: int
    label: str


class PhaseSpan(NamedTuple):
    """text[start:end] is one phase of the plot, without the white space before it."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class StoryLabels:
    """Ground truth of one story. `friend`, `object` and `place` are "" when the text never mentions one."""

    plot: str
    phases: tuple[PhaseSpan, ...]
    hero: str
    hero_gender: str
    friend: str
    object: str
    place: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Story:
    """A story, its ground truth, and the log-probability (nats) of the text under the grammar."""

    text: str
    labels: StoryLabels
    log_prob: float


@dataclass(frozen=True)
class Entropy:
    """Monte Carlo estimate of the grammar's entropy; the `_error` fields are standard errors."""

    nats_per_story: float
    nats_per_story_error: float
    bits_per_byte: float
    bits_per_byte_error: float
    n_stories: int


def _assets() -> list[Traversable]:
    """Asset files in a fixed order."""
    folder = files("picollm_core") / "assets" / "storyworld"
    found = [*folder.iterdir(), *(folder / "plots").iterdir()]
    return sorted((f for f in found if f.name.endswith(".txt")), key=lambda f: f.name)


@functools.cache
def load_grammar() -> Grammar:
    """The shipped grammar, read from the package's assets once a process."""
    texts = {f.name: f.read_text(encoding="utf-8") for f in _assets()}
    rules = read_rules(texts.pop("rules.txt"))
    word_files = sorted(name for name in texts if name.startswith("words_"))
    lists = read_lists("\n".join(texts.pop(name) for name in word_files))
    grammar = Grammar(lists, rules, [read_plot(texts[name]) for name in sorted(texts)])
    assert grammar.max_draws() <= DRAWS, f"a story may use {grammar.max_draws()} draws; DRAWS is {DRAWS}"
    return grammar


@functools.cache
def content_hash() -> str:
    """16 hex digits of everything that determines the stories of a seed: version, word lists, rules and plots."""
    digest = hashlib.sha256(f"storyworld {GRAMMAR_VERSION} {CHUNK} {DRAWS}".encode())
    for asset in _assets():
        text = asset.read_text(encoding="utf-8")  # normalises line ends, so that a checkout's style does not matter
        digest.update(f"\0{asset.name}\0{text}".encode())
    return digest.hexdigest()[:16]


def _expansions(n: int, seed: int, start: int) -> Iterator[Expansion]:
    """Walks start, ..., start + n - 1 of a seed; each depends on its number and the seed only. Checks at once."""
    if n < 0 or start < 0:
        raise ValueError(f"n={n}, start={start}: stories are counted from 0, so neither may be negative")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; it must lie in [0, 2**64)")
    return _walks(load_grammar(), n, seed, start)


def _walks(grammar: Grammar, n: int, seed: int, start: int) -> Iterator[Expansion]:
    for chunk in range(start // CHUNK, -(-(start + n) // CHUNK)):
        # Philox is counter-based: a key for each (seed, chunk) gives independent blocks in any order.
        raw = np.random.Philox(key=np.array([seed, chunk], dtype=np.uint64)).random_raw(CHUNK * DRAWS)
        rows = ((raw >> np.uint64(11)) * 2.0**-53).reshape(CHUNK, DRAWS).tolist()  # uniform in [0, 1)
        first, last = start - chunk * CHUNK, start + n - chunk * CHUNK
        yield from map(grammar.expand, rows[max(0, first) : last])


def generate_stories(n: int, seed: int = 0, start: int = 0) -> Iterator[str]:
    """Texts of stories start, ..., start + n - 1. Story i of a seed is the same however it is asked for.

    Raises ValueError for negative n or start, or a seed outside [0, 2**64).
    """
    return (expansion.text for expansion in _expansions(n, seed, start))


def labelled_story(index: int, seed: int = 0) -> Story:
    """Story `index` of a seed with its ground truth and log-probability. Raises ValueError as generate_stories."""
    return _story(next(_expansions(1, seed, index)))


def labelled_stories(n: int, seed: int = 0, start: int = 0) -> Iterator[Story]:
    """generate_stories with labels: the same texts, several times slower."""
    return map(_story, _expansions(n, seed, start))


def parse_story(text: str) -> Story:
    """The labels and log-probability of a story's text, found by parsing it. Raises ValueError as log_probability."""
    grammar = load_grammar()
    (draws,) = grammar.parse(text)
    return _story(grammar.expand(draws))


def log_probability(text: str) -> float:
    """Exact log-probability of a complete story, in nats.

    The grammar is unambiguous (proved by storyworld.ambiguity), so the one derivation's probability is the text's.
    Raises ValueError naming the first position where the text leaves the grammar.
    """
    return parse_story(text).log_prob


def true_entropy(n: int = 10_000, seed: int = 0) -> Entropy:
    """Entropy of a story, estimated from n stories, in nats per story and bits per byte (ratio of the means).

    It is a floor in expectation for any model, over stories drawn afresh: a model's total negative log-likelihood of
    a story text is at least `nats_per_story` on average. The floor holds with or without the end-of-text token: no
    story is the beginning of another, so under the grammar the end is certain once it is reached and adds 0 nats
    (a model that scores it can only pay more). It holds for every tokenizer, since the canonical tokens of a text
    have at most the text's probability. It presumes that the first token is scored too (given the end-of-text token
    or nothing before it), that each story is scored alone, and that the bytes counted are the text's, in UTF-8, without
    special tokens. On a finite set of stories a model may score below it by chance; compare with those stories' own
    log_prob for a paired floor. Training stories can be memorised: a floor there says nothing.
    Standard errors: of the mean, and of the ratio by the delta method. Raises ValueError for n < 2.
    """
    if n < 2:
        raise ValueError(f"n is {n}; a standard error needs at least 2 stories")
    nats, size = np.array([(-e.log_prob, len(e.text.encode())) for e in _expansions(n, seed, 0)]).T  # (n,) each
    ratio = nats.mean() / size.mean()  # nats per byte
    residual = (nats - ratio * size).std(ddof=1) / size.mean()
    return Entropy(
        nats_per_story=float(nats.mean()),
        nats_per_story_error=float(nats.std(ddof=1) / math.sqrt(n)),
        bits_per_byte=float(ratio / math.log(2)),
        bits_per_byte_error=float(residual / math.sqrt(n) / math.log(2)),
        n_stories=n,
    )


def _story(expansion: Expansion) -> Story:
    text = expansion.text
    ends = list(itertools.accumulate(map(len, expansion.parts)))
    marks = [Mark(*mark) for mark in expansion.marks]
    mentions = [mark for mark in marks if not isinstance(mark.item, Phase)]
    entries = {mark.item.variable: _entry(mark) for mark in mentions}
    spans = [span for mark in mentions if (span := _mention_span(mark, ends[mark.part]))]
    begins = [(mark.item.name, mark.part) for mark in marks if isinstance(mark.item, Phase)]
    phases = [(name, ends[part - 1] if part else 0) for name, part in begins]
    bounds = [start for _, start in phases[1:]] + [len(text)]
    labels = StoryLabels(
        plot=expansion.plot,
        phases=tuple(_phase(text, name, a, b) for (name, a), b in zip(phases, bounds, strict=True)),
        hero_gender=entries["hero"]["gender"],
        spans=tuple(sorted(spans + _quotes(text))),
        **{role: entries.get(role, {}).get("name", "") for role in ROLES},
    )
    return Story(text, labels, expansion.log_prob)


def _entry(mark: Mark) -> dict[str, Any]:
    return load_grammar().lists[mark.item.list_name][mark.index]


def _phase(text: str, name: str, start: int, end: int) -> PhaseSpan:
    """The phase between two boundaries, trimmed of the white space at either side."""
    inside = text[start:end]
    return PhaseSpan(name, start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip()))


def _mention_span(mark: Mark, end: int) -> Span | None:
    """The span of a role's name or a pronoun, else None. "a kite" and "to the park" are mentions from the noun on."""
    text = mark.item.strings[mark.index]
    if mark.item.form in PRONOUNS:
        return Span(end - len(text), end, f"pronoun:{_entry(mark)['gender']}")
    name = _entry(mark)["name"]
    if mark.item.variable not in ROLES or not text.lower().endswith(name.lower()):
        return None
    return Span(end - len(name), end, mark.item.variable)


def _quotes(text: str) -> list[Span]:
    """Spans inside double quotation marks, the marks themselves left out."""
    at = [k for k, character in enumerate(text) if character == '"']
    assert len(at) % 2 == 0, f"unpaired quotation mark in {text!r}"
    return [Span(a + 1, b, "quote") for a, b in zip(at[::2], at[1::2], strict=True)]
