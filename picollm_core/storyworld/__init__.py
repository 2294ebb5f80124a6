"""storyworld: children's stories from a probabilistic grammar, with ground truth and exact log-probabilities."""

from picollm_core.storyworld.stories import (
    GRAMMAR_VERSION,
    Entropy,
    PhaseSpan,
    Span,
    Story,
    StoryLabels,
    content_hash,
    generate_stories,
    labelled_stories,
    labelled_story,
    load_grammar,
    log_probability,
    parse_story,
    true_entropy,
)

__all__ = [
    "GRAMMAR_VERSION",
    "Entropy",
    "PhaseSpan",
    "Span",
    "Story",
    "StoryLabels",
    "content_hash",
    "generate_stories",
    "labelled_stories",
    "labelled_story",
    "load_grammar",
    "log_probability",
    "parse_story",
    "true_entropy",
]
