"""Ground truth for looking inside: which tokens of a story belong to which concept.

A token belongs to a concept when its characters overlap one of the concept's spans; " Lily" overlaps "Lily". The label
is that of the token itself: what a model computes at a position may use this token and all before it, none after it.

    group      concepts                       which tokens
    mention:   hero friend object place name  the words that name them; `name` is any person or animal with a name
    pronoun:   female male neuter             he, her, itself ...
    seen:      friend object place            every token after the first mention ended
    hero:      female male                    every token after the hero was first named: before, no reader could know
    quote:     inside opens closes            between quotation marks; the opening mark; the closing mark
    sentence:  start end first_of_story       first token, last token; all tokens of the first sentence
    paragraph: break start                    the line break; the token after it
    story:     once_upon_a_time               these four words where the story begins with them
    phase:     opening problem attempt ...    part of the plot, by position
    plot:      kite_in_tree ... (25)          all tokens of a story with this plot, also where it cannot be known yet
    word:      color size feeling animal ...  groups of words: storyworld's own lists, kin, verbs of speech

storyworld's stories know mention:, female and male pronouns, quote:inside, phase: and plot: for certain; the rest, and
everything in texts without labels, is read off by the rules of `concept_rules`. So pronoun:neuter and word: mean
the words, whatever they stand for.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import tiktoken
import torch
from torch import Tensor

from picollm_core.config import require
from picollm_core.interpret.concept_rules import (
    PRONOUN_WORDS,
    RULE_CONCEPTS,
    WORD_CONCEPTS,
    Spans,
    layout,
    rule_spans,
    word_groups,
    words,
)
from picollm_core.storyworld.stories import ROLES, Story, load_grammar

PHASES = ("opening", "problem", "attempt", "resolution", "ending")
OTHER_NAMES = ("adults", "neighbors", "teachers", "pet_names")
"""storyworld's lists of people and pets that are neither hero nor friend."""


@dataclass(frozen=True, eq=False)
class ConceptData:
    """Stories as token ids with their concepts: N stories, T tokens each, K concepts.

    A row of `idx` is <|endoftext|>, then the story, cut or filled up with <|endoftext|> to T. `mask` is true on the
    story's tokens only. Raises ValueError when the shapes do not belong together.
    """

    idx: Tensor  # (N, T) int64
    mask: Tensor  # (N, T) bool
    labels: Tensor  # (N, T, K) bool, false where mask is
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        want = (*self.idx.shape, len(self.names))
        require(
            self.idx.ndim == 2 and self.mask.shape == self.idx.shape and self.labels.shape == want,
            f"idx {tuple(self.idx.shape)}, mask {tuple(self.mask.shape)}, labels {tuple(self.labels.shape)} and "
            f"{len(self.names)} names do not fit; they are (N, T), (N, T), (N, T, K) and K",
        )

    def __len__(self) -> int:
        """Number of stories."""
        return len(self.idx)

    @property
    def groups(self) -> Tensor:
        """Which story each of the M story tokens is from, int64 (M,), in the order of x[data.mask], x (N, T, ...)."""
        return self.mask.nonzero()[:, 0]

    @property
    def flat_labels(self) -> Tensor:
        """The labels of the M story tokens, bool (M, K)."""
        return self.labels[self.mask]

    def column(self, name: str) -> int:
        """The place of a concept in `names`. Raises ValueError with the concepts there are for an unknown one."""
        require(name in self.names, f"unknown concept {name!r}; there are {', '.join(self.names)}")
        return self.names.index(name)

    def pick(self, wanted: Iterable[str]) -> "ConceptData":
        """The same stories with fewer concepts: names, or whole groups such as "pronoun:". ValueError if unknown."""
        chosen: list[int] = []
        for name in wanted:
            own = [k for k, known in enumerate(self.names) if known.startswith(name)] if name.endswith(":") else []
            chosen += own or [self.column(name)]
        return ConceptData(self.idx, self.mask, self.labels[..., chosen], tuple(self.names[k] for k in chosen))

    @property
    def announced(self) -> "ConceptData":
        """The same stories with each token labelled by the concepts of the token after it: what it could announce.

        The last token that was read of a story has no label.
        """
        labels = torch.zeros_like(self.labels)
        labels[:, :-1] = self.labels[:, 1:]
        return ConceptData(self.idx, self.mask, labels & self.mask[..., None], self.names)

    def common(self, min_stories: int = 10) -> "ConceptData":
        """The same stories with the concepts that occur in at least `min_stories` of them."""
        stories = self.labels.any(1).sum(0)  # (K,)
        return self.pick(name for name, count in zip(self.names, stories.tolist(), strict=True) if count >= min_stories)


def token_characters(text: str, ids: Sequence[int], tokenizer: tiktoken.Encoding) -> tuple[np.ndarray, np.ndarray]:
    """First character of each token of `text` and the one after its last, int64 (n,) each.

    Tokens are bytes, so two of them may share a character; then it counts as part of both.
    """
    sizes = np.array([len(tokenizer.decode_single_token_bytes(i)) for i in ids], dtype=np.int64)
    ends = sizes.cumsum()  # in bytes
    character = np.repeat(np.arange(len(text)), [len(letter.encode()) for letter in text])  # of each byte
    return character[ends - sizes], character[ends - 1] + 1


def overlapping(starts: np.ndarray, ends: np.ndarray, spans: Spans) -> np.ndarray:
    """Whether each token, characters starts to ends, both (n,), overlaps one of `spans`: bool (n,)."""
    found = np.zeros(len(starts), dtype=bool)
    for a, b in spans:
        if a < b:
            found[np.searchsorted(ends, a, side="right") : np.searchsorted(starts, b, side="left")] = True
    return found


def concept_data(
    stories: Iterable[tuple[str, Mapping[str, Spans]]],
    names: Sequence[str],
    tokenizer: tiktoken.Encoding,
    length: int,
) -> ConceptData:
    """Texts and their spans by concept as tokens with labels; T is `length`, the leading <|endoftext|> included.

    A concept that a story does not mention is false in it. Raises ValueError for length < 2 and without stories.
    """
    require(length >= 2, f"length is {length}; it must be at least 2: <|endoftext|> and one token of the story")
    eot, rows = tokenizer.eot_token, []
    for text, spans in stories:
        ids = tokenizer.encode_ordinary(text)[: length - 1]
        starts, ends = token_characters(text, ids, tokenizer)
        labels = np.zeros((length, len(names)), dtype=bool)
        for k, name in enumerate(names):
            labels[1 : len(ids) + 1, k] = overlapping(starts, ends, spans.get(name, []))
        rows.append(([eot, *ids, *[eot] * (length - 1 - len(ids))], len(ids), labels))
    require(rows != [], "there are 0 stories; give at least one")
    counts = torch.tensor([count for _, count, _ in rows])
    position = torch.arange(length)
    return ConceptData(
        idx=torch.tensor([ids for ids, _, _ in rows]),
        mask=(position >= 1) & (position <= counts[:, None]),  # (N, T)
        labels=torch.from_numpy(np.stack([labels for *_, labels in rows])),
        names=tuple(names),
    )


def storyworld_names() -> tuple[str, ...]:
    """The concepts of `storyworld_concepts`, in order."""
    return (
        *(f"mention:{role}" for role in (*ROLES, "name")),
        *(f"pronoun:{gender}" for gender in PRONOUN_WORDS),
        *(f"seen:{role}" for role in ROLES[1:]),
        "hero:female",
        "hero:male",
        *layout(""),
        *(f"phase:{phase}" for phase in PHASES),
        *WORD_CONCEPTS,
        *(f"plot:{plot}" for plot in sorted(load_grammar().plots)),
    )


def story_spans(story: Story) -> dict[str, Spans]:
    """Spans of every concept in one story of storyworld: its labels where there are any, else the rules."""
    text, labels = story.text, story.labels
    by_label: dict[str, Spans] = {}
    for span in labels.spans:
        by_label.setdefault(span.label, []).append((span.start, span.end))
    mentions = {role: by_label.get(role, []) for role in ROLES}
    lists = load_grammar().lists
    others = [entry["name"] for name in OTHER_NAMES for entry in lists[name]]
    after = {role: [(spans[0][1], len(text))] for role, spans in mentions.items() if spans}
    found = layout(text) | word_groups(text)
    found |= {f"mention:{role}": spans for role, spans in mentions.items()}
    found |= {f"seen:{role}": spans for role, spans in after.items()}
    found |= {f"pronoun:{gender}": by_label.get(f"pronoun:{gender}", []) for gender in ("female", "male")}
    found["pronoun:neuter"] = words(text, PRONOUN_WORDS["neuter"])
    found["mention:name"] = mentions["hero"] + mentions["friend"] + words(text, others, flags=0)
    found[f"hero:{labels.hero_gender}"] = after.get("hero", [])
    found["quote:inside"] = by_label.get("quote", [])
    found |= {f"phase:{phase.name}": [(phase.start, phase.end)] for phase in labels.phases}
    found[f"plot:{labels.plot}"] = [(0, len(text))]
    return found


def storyworld_concepts(stories: Iterable[Story], tokenizer: tiktoken.Encoding, length: int) -> ConceptData:
    """Stories of `storyworld.labelled_stories` with all concepts of the table above. ValueError as `concept_data`."""
    return concept_data(((story.text, story_spans(story)) for story in stories), storyworld_names(), tokenizer, length)


def rule_concepts(texts: Iterable[str], tokenizer: tiktoken.Encoding, length: int) -> ConceptData:
    """Any texts, TinyStories above all, with the concepts that the rules know. ValueError as `concept_data`."""
    return concept_data(((text, rule_spans(text)) for text in texts), RULE_CONCEPTS, tokenizer, length)


CHECKED_RULES = ("mention:hero", "mention:name", "pronoun:female", "pronoun:male", "quote:inside")
"""The rules that storyworld's own labels can be held against."""


def rule_agreement(stories: Iterable[Story], tokenizer: tiktoken.Encoding, length: int) -> pd.DataFrame:
    """How good the rules are where the truth is known: columns concept, precision, recall, f1 and tokens (true ones).

    Counted over tokens of storyworld's stories. ValueError as `concept_data`.
    """
    stories = list(stories)
    truth = storyworld_concepts(stories, tokenizer, length).pick(CHECKED_RULES).flat_labels  # (M, K)
    found = rule_concepts((story.text for story in stories), tokenizer, length).pick(CHECKED_RULES).flat_labels
    both, n_true, n_found = (x.sum(0).double() for x in (truth & found, truth, found))  # (K,) each
    return pd.DataFrame(
        {
            "concept": CHECKED_RULES,
            "precision": (both / n_found).tolist(),
            "recall": (both / n_true).tolist(),
            "f1": (2 * both / (n_true + n_found)).tolist(),
            "tokens": n_true.long().tolist(),
        }
    )
