"""The grammar engine on a grammar small enough to write out every story."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from picollm_core.storyworld.ambiguity import StoryGraph
from picollm_core.storyworld.grammar import Choice, Grammar, Mention
from picollm_core.storyworld.notation import read_lists, read_plot, read_rules

LISTS = """
# children
[names: gender=female]
Ida, Eve
[names: gender=male]
Max
[toys]
ball, owl, unicorn
[mood]
glad, sad
[places: name | at]
park | at the park
hill | on the hill
"""
RULES = """
rule: greet
*2 "Hi," said {hero}.
* {Friend} waved.
"""
PLOTS = (
    """
plot: find
hero: names
friend: names
toy: toys
== opening
*3 A {boy} named {hero} [had|lost] {a toy}.
* {Hero} met {friend} {places.at}.

* {He} was {mood}[| and {mood}].
*2
== ending
* {Friend} saw the {toy}. "Yes!" "It is {friend.he}!" said {hero}.
    <greet>
""",
    """
plot: walk
hero: names
-- opening
* {Hero} walked {places.at}.
-- ending
* {He} was {mood}.
""",
)


def build(plots: tuple[str, ...] = PLOTS, rules: str = RULES, lists: str = LISTS) -> Grammar:
    return Grammar(read_lists(lists), read_rules(rules), [read_plot(plot) for plot in plots])


def written_out(items: tuple, bound: dict, taken: tuple) -> Iterator[tuple[str, float, dict, tuple]]:
    """Every way to spell `items`, with its probability: the slow truth, independent of expand and parse."""
    if not items:
        yield "", 1.0, bound, taken
        return
    for text, p, now, past in written_out_item(items[0], bound, taken):
        for rest, q, last, end in written_out(items[1:], now, past):
            yield text + rest, p * q, last, end


def written_out_item(item: object, bound: dict, taken: tuple) -> Iterator[tuple[str, float, dict, tuple]]:
    if isinstance(item, str):
        yield item, 1.0, bound, taken
    elif isinstance(item, Choice):
        for option in item.options:
            share = item.table.count(option) / len(item.table)
            for text, p, now, past in written_out(option, bound, taken):
                yield text, share * p, now, past
    elif not isinstance(item, Mention):
        yield "", 1.0, bound, taken
    elif item.variable in bound:
        yield item.strings[bound[item.variable]], 1.0, bound, taken
    else:
        free = [k for k in range(len(item.strings)) if (item.list_name, k) not in taken]
        for k in free:
            now = bound | ({item.variable: k} if item.variable else {})
            yield item.strings[k], 1 / len(free), now, (*taken, (item.list_name, k))


def every_story(grammar: Grammar) -> list[tuple[str, float]]:
    return [
        (text.replace('" "', '"\n"'), p / len(grammar.plots))
        for items in grammar.plots.values()
        for text, p, _, _ in written_out(items, {}, ())
    ]


def test_probabilities_of_all_derivations_sum_to_one_and_no_two_spell_the_same_text() -> None:
    stories = every_story(build())
    assert len(stories) > 500
    assert math.fsum(p for _, p in stories) == pytest.approx(1, abs=1e-12)
    assert len({text for text, _ in stories}) == len(stories)


def test_parsing_any_story_gives_its_one_derivation_and_its_exact_probability() -> None:
    grammar = build()
    for text, p in every_story(grammar):
        (draws,) = grammar.parse(text)
        again = grammar.expand(draws)
        assert again.text == text
        assert again.log_prob == pytest.approx(math.log(p), abs=1e-12)


def test_random_draws_give_each_story_as_often_as_its_probability_says() -> None:
    grammar, n = build(), 40_000
    rows = np.random.default_rng(0).random((n, grammar.max_draws())).tolist()
    seen = Counter(grammar.expand(row).text for row in rows)
    stories = dict(every_story(grammar))
    assert set(seen) <= set(stories)
    chi_square = sum((seen[text] - n * p) ** 2 / (n * p) for text, p in stories.items())
    freedom = len(stories) - 1
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


def test_the_graph_proves_the_small_grammar_unambiguous() -> None:
    assert list(StoryGraph(build()).conflicts()) == []


@pytest.mark.parametrize(
    ("plot", "found"),
    [
        ("plot: a\nhero: names\n== o\n* {Hero} sat.\n* {Hero} [sat|ran].", "two derivations"),
        ("plot: a\nhero: names\n== o\n* {Hero} sat.\n\n* He ran.\n*", "a story ends before"),
        ("plot: a\nhero: names\n== o\n* {Hero} sat[| down][ down|].", "two derivations"),
    ],
)
def test_the_graph_finds_what_enumeration_finds(plot: str, found: str) -> None:
    grammar = build((plot,))
    texts = [text for text, _ in every_story(grammar)]
    collides = len(set(texts)) < len(texts)
    begins = any(a != b and b.startswith(a) for a, b in itertools.permutations(set(texts), 2))
    assert collides == (found == "two derivations")
    assert collides or begins
    assert any(conflict.startswith(found) for conflict in StoryGraph(grammar).conflicts())


def test_an_ambiguous_text_has_all_its_derivations_found() -> None:
    grammar = build(("plot: a\nhero: names\n== o\n* {Hero} sat.\n* {Hero} [sat|ran].",))
    assert len(grammar.parse("Ida sat.")) == 2


def test_parse_names_the_first_position_that_leaves_the_grammar() -> None:
    grammar = build()
    with pytest.raises(ValueError, match="at character 14 of 37, at 'Xhe park"):
        grammar.parse("Ida walked at Xhe park. She was glad.")
    with pytest.raises(ValueError, match="at character 23 of 23"):
        grammar.parse("Ida walked at the park.")
    with pytest.raises(ValueError, match="at character 37 of 38, at '!'"):
        grammar.parse("Ida walked at the park. She was glad.!")
    with pytest.raises(ValueError, match="at character 0 of 0"):
        grammar.parse("")


def test_speakers_that_follow_each_other_start_new_lines_and_only_so_parse() -> None:
    grammar = build()
    text = next(text for text, _ in every_story(grammar) if '"\n"' in text)
    assert '" "' not in text
    at = text.index('"\n"') + 1
    with pytest.raises(ValueError, match=f"at character {at} "):
        grammar.parse(text.replace('"\n"', '" "'))


def test_words_of_one_list_never_repeat_unless_they_are_one_variable() -> None:
    both = [text for text, _ in every_story(build()) if " and " in text]
    assert both
    assert not any("glad and glad" in text or "sad and sad" in text for text in both)
    assert not any("Ida met Ida" in text for text, _ in every_story(build()))


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        ("plot: a\nhero: names\n== o\n* {He} sat with {hero}.", "may come before its name"),
        ("plot: a\nhero: names\n== o\n* A {boy} sat.", "hero may be drawn and never named"),
        ("plot: a\nhero: names\n== o\n* {Hero} saw {a cat}.", "neither a variable nor a word list"),
        ("plot: a\nhero: names\n== o\n* {Hero} <sang>.", "unknown rule <sang>; known: greet"),
        ("plot: a\nhero: names\n== o\n* {Hero}.\n*", "may start empty"),
        ("plot: a\nhero: names\n== o\n* {Hero} had {toys.his}.", "needs one of"),
        ("plot: a\nhero: names\n== o\n* {Hero} had {toys.color}.", "has no form 'color'"),
        ("plot: a\nhero: names\n== o\n{Hero} sat.", "is no option"),
        ("plot: a\nhero: names\n== o\n* {Hero} sat.\n*0 {Hero} ran.", "contain one below 1"),
        ("plot: a\nhero names\n== o\n* {Hero} sat.", "is not of the form"),
        ("hero: names\n== o\n* {Hero} sat.", "a plot starts with 'plot: name'"),
    ],
)
def test_a_plot_that_cannot_work_is_refused_with_the_reason(plot: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build((plot,))
