"""The playground's pictures as HTML: a story of coloured tokens, the next token as bars, a static table of samples.

Everything that comes from a model, a file or a user passes `html.escape` on its way in. There is no script in it: the
details of a token appear by CSS, on pointing at it, on a click, or on the Tab key. Colours are set for text and
background alike, so dark themes change nothing.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from picollm_core.next_token import Candidate, NextToken

SHADES = (
    (0.5, "#F2F7FB", "50% or more"),
    (0.2, "#FFF3CC", "20 to 50%"),
    (0.05, "#FFDD8F", "5 to 20%"),
    (0.01, "#F7B955", "1 to 5%"),
    (0.0, "#E8913A", "below 1%"),
)
"""From expected to surprising: least probability, colour, name. Each step is darker, so it reads without hues; dark
ink has at least 6:1 on every one of them."""

STYLE = (
    """<style>
.pico-root {--jp-widgets-font-size:15px}
.pico {background:#fff; color:#222; font:17px/1.6 system-ui,sans-serif; padding:6px 8px; position:relative}
.pico h4 {margin:0 0 4px; font-size:17px}
.pico-text {white-space:pre-wrap; overflow-wrap:anywhere; min-height:3em; padding-bottom:14.5em; position:relative}
.pico-prompt {font-weight:600}
.pico-token {border-radius:3px; cursor:help}
.pico-token:hover, .pico-token:focus {outline:2px solid #0072B2; outline-offset:0}
.pico-tip {display:none; position:absolute; left:0; right:0; margin-top:1.7em; z-index:9; padding:6px 8px;
  background:#fff; border:2px solid #0072B2; border-radius:4px; box-shadow:0 3px 10px #0005; pointer-events:none;
  font:15px/1.35 system-ui,sans-serif; white-space:normal}
.pico-token:focus > .pico-tip, .pico-token:hover > .pico-tip {display:block}
.pico-text:has(.pico-token:hover) .pico-token:focus:not(:hover) > .pico-tip {display:none}
.pico-tip i, .pico-tip s {display:block; font-style:normal; text-decoration:none; white-space:pre; overflow:hidden;
  padding:0 4px; margin-top:2px; background:linear-gradient(90deg,#A9D3EE calc(var(--w)*1%),#F3F3F3 0)}
.pico-tip s {background:linear-gradient(90deg,#D5D5D5 calc(var(--w)*1%),#F8F8F8 0); color:#595959}
.pico-tip .pico-it {font-weight:700}
.pico table {border-collapse:collapse; width:100%; margin:0; font:15px/1.3 system-ui,sans-serif; color:#222}
.pico th {font-weight:400; color:#595959; text-align:right; padding:0 4px; background:#fff}
.pico td {padding:1px 4px; text-align:right; background:#fff; white-space:pre; font-variant-numeric:tabular-nums}
.pico td:first-child, .pico th:first-child {text-align:left; max-width:8em; overflow:hidden; text-overflow:ellipsis}
.pico td:nth-child(2) {width:45%}
.pico-bar {height:1.15em; min-width:2px; background:#0072B2}
.pico-cut td {color:#595959} .pico-cut .pico-bar {background:#C9C9C9}
.pico-edge td {border-top:3px dashed #D55E00; padding:0}
.pico-note {font-size:15px; color:#444; margin:2px 0}
.pico-key span {padding:1px 6px; border-radius:3px; margin-right:4px; display:inline-block}
.pico-status {font-size:16px; min-height:1.6em} .pico-wrong {color:#A02C00; font-weight:600}
.pico-dead {display:none; color:#A02C00; font-weight:600}
.jupyter-widgets-disconnected .pico-dead {display:block}
.pico-copy textarea {width:100%; height:7em; font:15px/1.4 monospace; color:#222; background:#fff}
.pico-copy button {font:15px system-ui,sans-serif; padding:3px 14px; cursor:pointer; border:1px solid #888;
  background:#F3F3F3; color:#222; border-radius:2px} .pico-copy button:disabled {color:#757575; cursor:default}
</style>"""
).replace("\n  ", " ")

DEAD = (
    '<p class="pico-dead">Python was restarted or has gone, so nothing here answers. '
    "Run the set-up cell and this cell again.</p>"
)


@dataclass(frozen=True)
class ShownToken:
    """A drawn token as it is shown: its text ("" inside a character), the model's own probability and rank (1 is the
    likeliest), and what it was drawn from. `ends` marks the end of the text."""

    text: str
    id: int
    probability: float
    rank: int
    source: NextToken
    ends: bool = False


def visible(text: str) -> str:
    """A token's text with its spaces and line ends made visible, and nothing that breaks a line."""
    for sign, shown in ((" ", "␣"), ("\n", "↵"), ("\r", "↵"), ("\t", "⇥")):
        text = text.replace(sign, shown)
    return text


def percent(probability: float) -> str:
    """A probability with two significant digits where it matters: 87%, 4.2%, 0.05%, <0.01%."""
    if 0 < probability < 0.0001:
        return "<0.01%"
    digits = 0 if probability >= 0.0995 or probability == 0 else 1 if probability >= 0.00995 else 2
    return f"{100 * probability:.{digits}f}%"


def shade(probability: float) -> str:
    """The background colour of a token of this probability."""
    return next(colour for least, colour, _ in SHADES if probability >= least or least == 0)


def colour_key() -> str:
    """What the colours of a story mean."""
    items = "".join(f'<span style="background:{colour}">{html.escape(name)}</span>' for _, colour, name in SHADES)
    return f'<div class="pico pico-note pico-key">How likely the model held each token: {items}</div>'


def _odds(token: ShownToken) -> str:
    kept, size = token.source.kept, token.source.vocab_size
    name = "end of the story" if token.ends else visible(token.text)
    return (
        f"{name}: probability {percent(token.probability)}, rank {token.rank:,}, drawn from {kept:,} of {size:,} tokens"
    )


def _tip_row(candidate: Candidate, chosen: int, scale: float) -> str:
    tag = "i" if candidate.chance > 0 else "s"
    mark = ' class="pico-it"' if candidate.id == chosen else ""
    width = round(100 * candidate.shaped / scale)
    text = html.escape(visible(candidate.text))
    return f'<{tag}{mark} style="--w:{width}">{text} {percent(candidate.shaped)}</{tag}>'


def _tip(token: ShownToken) -> str:
    scale = max(candidate.shaped for candidate in token.source.candidates)
    rows = "".join(_tip_row(candidate, token.id, scale) for candidate in token.source.candidates)
    return f'<span class="pico-tip">{html.escape(_odds(token))}{rows}</span>'


def _token_html(token: ShownToken, details: bool) -> str:
    if not token.text and not token.ends:
        return ""  # a later token completes the character and shows it
    text = "■" if token.ends else html.escape(token.text)
    style = f"background:{shade(token.probability)}"
    label = html.escape(_odds(token))
    if not details:
        return f'<span class="pico-token" style="{style}" title="{label}">{text}</span>'
    return f'<span class="pico-token" style="{style}" tabindex="0" aria-label="{label}">{text}{_tip(token)}</span>'


def story_html(prompt: str, tokens: Sequence[ShownToken], note: str = "", details: bool = True) -> str:
    """A story: a note above it, the prompt, then every token coloured by the probability its model gave it.

    With `details` every token carries its probability, its rank and the likeliest tokens it was drawn among, shown on
    pointing, click or Tab; without the bars the page is several times lighter, for repainting while tokens arrive.
    """
    text = "".join(_token_html(token, details) for token in tokens)
    return (
        f'<div class="pico"><div class="pico-note">{html.escape(note)}</div>'
        f'<div class="pico-text"><span class="pico-prompt">{html.escape(prompt)}</span>{text}</div></div>'
    )


def bar_scale(views: Sequence[NextToken]) -> float:
    """The probability that fills a bar's whole width, common to several views so that they compare."""
    largest = max((view.candidates[0].shaped for view in views), default=1.0)
    return next(scale for scale in (0.1, 0.25, 0.5, 1.0) if largest <= scale or scale == 1)


def _bar_row(candidate: Candidate, scale: float) -> str:
    width = min(100.0, 100 * candidate.shaped / scale)
    cut = "" if candidate.chance > 0 else ' class="pico-cut"'
    return (
        f"<tr{cut}><td>{html.escape(visible(candidate.text))}</td>"
        f'<td><div class="pico-bar" style="width:{width:.1f}%"></div></td>'
        f"<td>{percent(candidate.shaped)}</td><td>{percent(candidate.chance)}</td></tr>"
    )


def next_token_html(title: str, view: NextToken, scale: float = 1.0) -> str:
    """The likeliest next tokens as bars, a dashed line where the nucleus ends, and what the cut keeps in words.

    A bar is the probability after repetition penalty and temperature, before truncation; `scale` fills the width.
    """
    rows = [_bar_row(candidate, scale) for candidate in view.candidates]
    if view.kept < len(rows):
        rows.insert(view.kept, '<tr class="pico-edge"><td colspan="4"></td></tr>')
    beyond = view.kept - len(view.candidates)
    hidden = f" ({beyond:,} of them not shown)" if beyond > 0 else ""
    stay = "token stays" if view.kept == 1 else "tokens stay"
    words = f"{view.kept:,} of {view.vocab_size:,} {stay}{hidden}, holding {percent(view.mass)}"
    return (
        f'<div class="pico"><h4>{html.escape(title)}</h4><div class="pico-note">{words}</div>'
        f"<table><tr><th>next token</th><th>full width = {scale:.0%}</th><th>probability</th><th>drawn</th></tr>"
        f"{''.join(rows)}</table></div>"
    )


def sentence_html(title: str, sentence: str) -> str:
    """A sentence that stands where a picture cannot."""
    return f'<div class="pico"><h4>{html.escape(title)}</h4><p class="pico-wrong">{html.escape(sentence)}</p></div>'


def status_html(sentence: str, wrong: bool = False) -> str:
    """The status line; screen readers announce it when it changes."""
    kind = "pico-status pico-wrong" if wrong else "pico-status"
    return f'<div class="pico">{DEAD}<div class="{kind}" role="status">{html.escape(sentence)}</div></div>'


# Runs in the browser, inside the click, which is when a page may write to the clipboard; works without Python.
_COPY = (
    "var f=this.parentNode,t=f.querySelector('textarea'),s=f.querySelector('span'),ok=false;"
    "t.hidden=false;t.focus();t.select();try{ok=document.execCommand('copy')}catch(e){}"
    "if(ok){t.hidden=true;this.focus()}"
    "s.textContent=ok?' Copied.':' The browser refused: press Ctrl+C (Cmd+C) now.'"
)


def copy_html(text: str) -> str:
    """A Copy button that puts `text` on the clipboard, or, where the browser refuses, shows it selected for Ctrl+C."""
    state = "" if text else " disabled"
    return (
        f'<div class="pico-copy"><button type="button"{state} onclick="{html.escape(_COPY)}">Copy</button>'
        '<span role="status"></span><textarea hidden readonly aria-label="the text to copy">'
        f"\n{html.escape(text)}</textarea></div>"  # a textarea swallows one line end at its beginning
    )


def samples_html(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A static table of samples, one row a way of sampling, one column a model: what a page without widgets shows."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *columns))
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{html.escape(text)}</td>' for text in texts)}</tr>"
        for name, texts in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
