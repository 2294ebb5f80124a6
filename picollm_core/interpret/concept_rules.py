"""Concepts that can be read off a story's letters: quotations, sentences, names, pronouns, groups of words.

Every rule takes a text and gives spans (start, end) of its characters. They are rules, not truth: how far they agree
with storyworld's own labels is measured by `concepts.rule_agreement`.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterable

from picollm_core.storyworld.stories import load_grammar

Spans = list[tuple[int, int]]
"""Pairs (start, end) of characters: text[start:end]."""

OPENING, CLOSING, STRAIGHT = "“", "”", '"'
PRONOUN_WORDS = {
    "female": ("she", "her", "hers", "herself"),
    "male": ("he", "him", "his", "himself"),
    "neuter": ("it", "its", "itself"),
}
SAID = ("said", "say", "says", "asked", "called", "cried", "shouted", "whispered", "replied", "yelled", "answered",
        "told", "exclaimed", "cheered")  # fmt: skip
KIN = ("mom", "mommy", "mum", "mummy", "mother", "mama", "dad", "daddy", "father", "papa", "grandma", "grandpa",
       "grandmother", "grandfather", "granny", "aunt", "uncle", "brother", "sister")  # fmt: skip
GROUP_LISTS = {
    "color": ("color", "magic_color"),
    "size": ("size",),
    "feeling": ("happy", "sad", "scared", "grumpy", "tired"),
    "animal": ("bug", "flying_bug", "bird", "big_bird", "wild_animal", "critter", "pets", "rescued_bug", "thief_bird"),
    "plant": ("flower", "tree", "plants"),
    "food": ("fruit", "vegetable", "cake", "snack", "drink", "dinner", "soups", "market_good"),
    "clothes": ("garment", "warm_garment"),
    "season": ("season",),
    "weekday": ("weekday",),
}
"""Groups of words and the lists of storyworld that they are made of."""
WORD_CONCEPTS = tuple(f"word:{group}" for group in (*GROUP_LISTS, "kin", "said"))

# fmt: off
_NO_NAMES = frozenset((
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "January", "February", "March",
    "April", "May", "June", "July", "August", "September", "October", "November", "December", "Christmas", "Halloween",
    "Easter", "English", "Street", "Once", "End",
))
# fmt: on
_TITLES = frozenset(("Mr", "Mrs", "Ms", "Miss", "Dr")) | {word.capitalize() for word in KIN}
_CAPITALISED = re.compile(r"\b[A-Z][a-z]+\b")
_NAMED = re.compile(r"\b(?:named|called)\s+([A-Z][a-z]+)\b")
_SENTENCE_END = re.compile(rf"[.!?…]+[{STRAIGHT}{CLOSING}’)\]]*(?=\s|$)|\n")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St)\.$")
_ONCE_UPON_A_TIME = re.compile(r"\s*(Once upon a time)\b")
_PARAGRAPH = re.compile(r"\n\s*")


def words(text: str, wanted: Iterable[str], flags: int = re.IGNORECASE) -> Spans:
    """Where one of the words or phrases `wanted` stands as a whole; of two that begin alike the longer one."""
    return [match.span() for match in _words_pattern(tuple(wanted), flags).finditer(text)]


@functools.cache
def _words_pattern(wanted: tuple[str, ...], flags: int) -> re.Pattern[str]:
    alternatives = "|".join(re.escape(word) for word in sorted(wanted, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", flags)


@functools.cache
def group_words(group: str) -> tuple[str, ...]:
    """The words of a group in GROUP_LISTS, from storyworld's lists."""
    lists = load_grammar().lists
    return tuple(dict.fromkeys(entry["name"] for name in GROUP_LISTS[group] for entry in lists[name]))


def word_groups(text: str) -> dict[str, Spans]:
    """Spans of every concept of WORD_CONCEPTS. In small letters only, so that the girls Ruby and Lily stay names."""
    found = {f"word:{group}": words(text, group_words(group), flags=0) for group in GROUP_LISTS}
    return found | {"word:kin": words(text, KIN), "word:said": words(text, SAID)}


def _opens(text: str, at: int, inside: bool) -> bool:
    """Whether the mark at `at` opens a quotation: a straight one inside another only before a word and after none."""
    if text[at] != STRAIGHT:
        return text[at] == OPENING
    after_gap = at == 0 or text[at - 1].isspace() or text[at - 1] in "([-—"
    return (after_gap or not inside) and text[at + 1 : at + 2].strip() != ""


def quotations(text: str) -> Spans:
    """Pairs (place of the opening mark, place of the closing mark), straight or curly, within one paragraph.

    A mark without its partner in the same paragraph begins and ends nothing: of two opening marks in a row the first
    is passed over, and so is one that the paragraph leaves open.
    """
    pairs: Spans = []
    opened: int | None = None
    for at, letter in enumerate(text):
        if letter == "\n":
            opened = None
        elif _opens(text, at, inside=opened is not None):
            opened = at
        elif letter in (CLOSING, STRAIGHT) and opened is not None:
            pairs.append((opened, at))
            opened = None
    return pairs


def sentences(text: str) -> Spans:
    """Sentences without the white space around them.

    One ends with . ! ? or …, closing marks included, before white space, unless a small letter follows ("Stop!" said
    Tom) or the full stop is that of a title (Mr. Wood); and with every line. `"Stop!" Tom said.` counts as two.
    """
    found: Spans = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        rest = text[match.end() :].lstrip(f" {STRAIGHT}{OPENING}")
        goes_on = rest[:1].islower() or _ABBREVIATION.search(text[start : match.end()])
        if match.group() == "\n" or not goes_on:
            found.append(_trimmed(text, start, match.end()))
            start = match.end()
    found.append(_trimmed(text, start, len(text)))
    return [(a, b) for a, b in found if a < b]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), start + len(inside.rstrip())


def _name_counts(text: str) -> tuple[Counter[str], Counter[str]]:
    """How often each capitalised word stands anywhere, and how often where a sentence or quotation does not begin."""
    begins = {a for a, _ in sentences(text)} | {a + 1 for a, _ in quotations(text)}
    begins |= {a + 1 for a in begins if text[a] in (STRAIGHT, OPENING)}
    found = [(m.group(), m.start() in begins) for m in _CAPITALISED.finditer(text) if m.group() not in _NO_NAMES]
    return Counter(word for word, _ in found), Counter(word for word, initial in found if not initial)


def name_words(text: str) -> set[str]:
    """Words that the text uses as names: capitalised somewhere other than at the beginning of a sentence."""
    return set(_name_counts(text)[1])


def hero_name(text: str) -> str:
    """The hero by rule, or "": of the names that occur twice, or follow "named" or "called", the one met first.

    Titles and kin (Mr, Mom) are no heroes.
    """
    counts, inner = _name_counts(text)
    repeated = {word for word in inner if counts[word] >= 2} | set(_NAMED.findall(text))
    found = (match.group() for match in _CAPITALISED.finditer(text))
    return next((word for word in found if word in repeated - _TITLES - _NO_NAMES), "")


def layout(text: str) -> dict[str, Spans]:
    """Spans of the concepts that hold for any story and need no names: quote:, sentence:, paragraph:, story:."""
    quotes, parts = quotations(text), sentences(text)
    breaks = [match.span() for match in _PARAGRAPH.finditer(text.rstrip())]
    opening = _ONCE_UPON_A_TIME.match(text)
    return {
        "quote:inside": [(a + 1, b) for a, b in quotes],
        "quote:opens": [(a, a + 1) for a, _ in quotes],
        "quote:closes": [(b, b + 1) for _, b in quotes],
        "sentence:start": [(a, a + 1) for a, _ in parts],
        "sentence:end": [(b - 1, b) for _, b in parts],
        "sentence:first_of_story": parts[:1],
        "paragraph:break": breaks,
        "paragraph:start": [(b, b + 1) for _, b in breaks],
        "story:once_upon_a_time": [opening.span(1)] if opening else [],
    }


def rule_spans(text: str) -> dict[str, Spans]:
    """Spans of every concept that the rules know, by its name."""
    hero, names = hero_name(text), name_words(text)
    return {
        "mention:hero": words(text, [hero], flags=0) if hero else [],
        "mention:name": words(text, sorted(names), flags=0) if names else [],
        **{f"pronoun:{gender}": words(text, own) for gender, own in PRONOUN_WORDS.items()},
        **layout(text),
        **word_groups(text),
    }


RULE_CONCEPTS: tuple[str, ...] = (
    "mention:hero",
    "mention:name",
    *(f"pronoun:{gender}" for gender in PRONOUN_WORDS),
    *layout(""),
    *WORD_CONCEPTS,
)
"""The concepts of `rule_spans`, in order."""
