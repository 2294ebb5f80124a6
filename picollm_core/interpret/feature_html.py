"""A feature's evidence as HTML: contexts with shaded tokens, a histogram, tokens that it promotes, what steering does.

As in the playground, everything from a model, a file or a user passes `html.escape`, there is no script in it, and
colours are set for text and background alike, so dark themes change nothing.
"""

import html
from collections.abc import Sequence
from typing import Any

from picollm_core.interpret.feature_evidence import BINS_PER_OCTAVE, Context, Evidence
from picollm_core.playground_html import percent, visible

WHITE, HIGH, LOW = (255, 255, 255), (232, 145, 58), (111, 179, 224)
"""Of a token where the feature is at 0, at its maximum, at as far below 0: dark ink has at least 6:1 on all between."""

STYLE = (
    """<style>
.pico-root select, .pico-root input {font-size:15px}
.pico-two {display:flex; flex-wrap:wrap; gap:4px 28px; align-items:flex-start}
.pico-two > div {flex:4 1 34em; min-width:16em} .pico-two > .pico-side {flex:1 1 19em; min-width:16em}
.pico-contexts td {vertical-align:top; white-space:normal; font:17px/1.7 system-ui,sans-serif; padding:3px 6px;
  border-top:1px solid #E3E3E3}
.pico-contexts td:first-child {text-align:right; width:4em; color:#595959; font-variant-numeric:tabular-nums}
.pico .pico-contexts td:nth-child(2) {text-align:left; width:auto; white-space:pre-wrap; overflow-wrap:anywhere}
.pico-fires {border-radius:3px}
.pico-peak {outline:2px solid #222; font-weight:700; margin:0 2px}
.pico h5 {margin:10px 0 2px; font-size:16px; font-weight:600; color:#222}
.pico-side .pico-two > div {flex:1 1 8em; min-width:8em}
.pico .pico-side table {table-layout:fixed}
.pico .pico-side td:first-child {width:45%} .pico .pico-side td:nth-child(2) {width:27%}
.pico svg {max-width:100%; height:auto}
.pico svg text {font:13px system-ui,sans-serif; fill:#444}
.pico-down .pico-bar {background:#D55E00}
.pico-wrote {white-space:pre-wrap; overflow-wrap:anywhere; min-height:5em}
.pico-wrote mark {background:#FFF3CC; color:#222}
.pico .pico-list th {text-align:right; font-weight:600; padding:1px 8px}
.pico .pico-list td {text-align:right; width:auto; padding:1px 8px; border-top:1px solid #E3E3E3}
.pico .pico-list .pico-word {text-align:left}
</style>"""
).replace("\n  ", " ")

EFFECT_NOTE = "Change of the logit in nats where the feature is at its maximum, by the straight path to the output."


def number(value: float | None) -> str:
    """A number with three significant digits; a dash where there is none."""
    return "–" if value is None else f"{value:.3g}"


def activation_colour(share: float) -> str:
    """The background of a token whose activation is this share of the maximum, -1 to 1."""
    end, share = (HIGH, share) if share >= 0 else (LOW, -share)
    mixed = (round(a + (b - a) * min(1.0, share)) for a, b in zip(WHITE, end, strict=True))
    return "#" + "".join(f"{channel:02X}" for channel in mixed)


def _piece(text: str) -> str:
    """A token's text as it stands in a context: line ends are signs, so that a context stays in its lines."""
    return html.escape(text.replace("\r", "").replace("\n", "↵"))


def context_html(context: Context, scale: float) -> str:
    """One context as a line of text: tokens shaded by activation / scale, the number on pointing, the peak framed."""
    parts = []
    for i, (text, value) in enumerate(zip(context.pieces, context.activations, strict=True)):
        if not value and i != context.peak:
            parts.append(_piece(text))
            continue
        tag, kind = ("b", "pico-fires pico-peak") if i == context.peak else ("span", "pico-fires")
        title = html.escape(f"{visible(text)}: {number(value)}")
        colour = activation_colour(value / scale if scale else 0.0)
        parts.append(f'<{tag} class="{kind}" style="background:{colour}" title="{title}">{_piece(text)}</{tag}>')
    before, after = "" if context.begins else "…\u00a0", "" if context.ends else "\u00a0…"
    return f"{before}{''.join(parts)}{after}"


def contexts_html(title: str, contexts: Sequence[Context], scale: float) -> str:
    """Contexts below each other, each with the activation it is shown for; nothing where there are none."""
    if not contexts:
        return ""
    rows = "".join(
        f"<tr><td>{number(context.activations[context.peak])}</td><td>{context_html(context, scale)}</td></tr>"
        for context in contexts
    )
    return f'<h5>{html.escape(title)}</h5><table class="pico-contexts">{rows}</table>'


def histogram_html(bins: Sequence[tuple[float, int]]) -> str:
    """How many tokens have which activation: bars over bins of equal width on a logarithmic axis."""
    if not bins:
        return "<p>It fires at no token of these texts.</p>"
    width, height, least, most = 26, 90, bins[0][0], max(count for _, count in bins)
    greatest, total = bins[-1][0] * 2 ** (1 / BINS_PER_OCTAVE), sum(count for _, count in bins)
    bars, marks = [], []
    for i, (edge, count) in enumerate(bins):
        tall = max(1.5, height * count / most) if count else 0.0
        bars.append(
            f'<rect x="{i * width + 1}" y="{20 + height - tall:.1f}" width="{width - 2}" height="{tall:.1f}" '
            f'fill="#0072B2"><title>from {number(edge)}: {count:,} tokens</title></rect>'
        )
        if i % max(2, 2 * round(len(bins) / 10)) == 0:
            marks.append(f'<text x="{i * width}" y="{height + 36}">{edge:.2g}</text>')
    wide = max(len(bins) * width + 40, 240)
    name = f"{total:,} tokens with an activation from {number(least)} to {number(greatest)}"
    return (
        f'<svg role="img" aria-label="{name}" viewBox="0 0 {wide} {height + 42}" width="{wide}" height="{height + 42}">'
        f'<text x="0" y="13">{most:,} tokens in the fullest bar</text>{"".join(bars)}'
        f'<line x1="0" x2="{len(bins) * width}" y1="{height + 20}" y2="{height + 20}" stroke="#595959"/>'
        f"{''.join(marks)}</svg>"
    )


def effect_html(title: str, tokens: Sequence[tuple[str, float]], largest: float, down: bool = False) -> str:
    """Tokens and the changes of their logits, in nats, as bars; `largest` fills the width."""
    rows = "".join(
        f'<tr><td>{html.escape(visible(text))}</td><td><div class="pico-bar" '
        f'style="width:{100 * abs(change) / largest if largest else 0:.1f}%"></div></td><td>{change:+.2f}</td></tr>'
        for text, change in tokens
    )
    kind = ' class="pico-down"' if down else ""
    return f"<div><h5>{html.escape(title)}</h5><table{kind}>{rows}</table></div>"


def concept_sentence(facts: dict[str, Any]) -> str:
    """What concept the feature tells best, and how well, in words."""
    if not facts.get("concept"):
        return "No concept: the feature fires too seldom to be held against any."
    below = facts.get("sign", 1) < 0
    where = f"at most {number(-facts['threshold'])}" if below else f"at least {number(facts['threshold'])}"
    scores = ", ".join(
        f"{name} {percent(facts[key]) if facts[key] is not None else 'not known: it never is on the scored half'}"
        for name, key in (("precision", "precision"), ("recall", "recall"))
    )
    f1 = facts["f1"] or 0.0
    return (
        f"Nearest concept: {facts['concept']}. Where it is {where}: {scores}, F1 {f1:.2f} "
        f"(always saying yes: {facts['floor']:.2f}), on stories that did not choose it."
    )


def facts_sentence(facts: dict[str, Any], stories: int) -> str:
    """How often and how strongly the feature fires, in words."""
    if not facts["density"]:
        return "It fires at no token of these texts: a dead feature, or one for something they do not contain."
    low = f", lowest {number(facts['min'])}" if facts["min"] else ""
    return (
        f"It fires at {percent(facts['density'])} of the tokens, in {facts['stories']:,} of {stories:,} stories; "
        f"where it does its size is {number(facts['mean'])} on average, and at most {number(facts['max'])}{low}."
    )


def scale_of(facts: dict[str, Any]) -> float:
    """The largest size of the feature's activation, 0 for one that never fires."""
    return max(facts["max"], -facts["min"])


def evidence_html(evidence: Evidence, title: str, stories: int) -> str:
    """All there is to see of a feature, `stories` being how many were read."""
    facts, scale = evidence.facts, scale_of(evidence.facts)
    if evidence.no_effect:
        effects = f"<h5>Effect on the next token</h5><p>{html.escape(evidence.no_effect)}.</p>"
    else:
        largest = max((abs(change) for _, change in (*evidence.promoted, *evidence.suppressed)), default=0.0)
        up = effect_html("Makes likelier", evidence.promoted, largest)
        down = effect_html("Makes unlikelier", evidence.suppressed, largest, down=True)
        effects = f'<div class="pico-two">{up}{down}</div><p class="pico-note">{EFFECT_NOTE}</p>'
    pictures = f"<h5>Activations (logarithmic axis)</h5>{histogram_html(evidence.histogram)}{effects}"
    groups = [
        ("Strongest, each in another story", evidence.strongest),
        ("Weaker, drawn at random: one from each quarter of the other stories", evidence.weaker),
        ("Most negative, each in another story", evidence.negative),
    ]
    if facts["sign"] < 0:  # its concept is told by low values
        groups = [groups[2], *groups[:2]]
    contexts = "".join(contexts_html(name, found, scale) for name, found in groups)
    return (
        f'<div class="pico"><h4>{html.escape(title)}</h4>'
        f'<div class="pico-note">{html.escape(facts_sentence(facts, stories))}</div>'
        f'<div class="pico-note">{html.escape(concept_sentence(facts))}</div>'
        f'<div class="pico-two"><div>{contexts}</div><div class="pico-side">{pictures}</div></div></div>'
    )


def feature_list_html(rows: Sequence[dict[str, Any]]) -> str:
    """A table of features from rows of an index's table."""
    head = "".join(f"<th>{name}</th>" for name in ("feature", "density", "maximum", "F1"))
    body = "".join(
        f"<tr><td>{row['feature']}</td><td>{percent(row['density'])}</td><td>{number(row['max'])}</td>"
        f"<td>{number(row['f1'])}</td><td class='pico-word'>{html.escape(row['concept'])}</td>"
        f"<td class='pico-word'>{html.escape(row['tokens'])}</td></tr>"
        for row in rows
    )
    names = "<th class='pico-word'>nearest concept</th><th class='pico-word'>fires most at</th>"
    return f'<div class="pico"><table class="pico-list"><tr>{head}{names}</tr>{body}</table></div>'


def written_html(title: str, prompt: str, text: str, other: str = "") -> str:
    """A text that begins with `prompt`; what comes after it parts from `other`, where that is given, is marked."""
    differ = (i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b)
    shared = next(differ, min(len(text), len(other))) if other else len(text)
    begun = min(len(prompt), shared)
    new = f"<mark>{html.escape(text[shared:])}</mark>" if text[shared:] else ""
    old = f'<span class="pico-prompt">{html.escape(text[:begun])}</span>{html.escape(text[begun:shared])}'
    return f'<div class="pico"><h4>{html.escape(title)}</h4><div class="pico-wrote">{old}{new}</div></div>'
