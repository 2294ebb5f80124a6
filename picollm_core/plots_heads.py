"""Figures about heads: what each one looks at and is worth, one story as a token sees it, what speaks for a token.

Like those of `plots`: numbers in, a matplotlib Figure out; the caller writes the title.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from picollm_core.figure_style import (
    INK,
    PALE,
    QUIET,
    TEXT_POINTS,
    family_colour,
    new_figure,
    spread,
    text_page,
    use_style,
)
from picollm_core.plots import require_columns, visible_token
from picollm_core.plots_attention import MAX_SIDE, OUT_OF_SIGHT, WEIGHTS
from picollm_core.story_layout import MONO_WIDTH, Spot, lay_out

SMALLEST_POINTS = 14
MAX_SCORES, MAX_BARS, MAX_PANELS, MAX_TOP = 6, 48, 3, 15
FOR, AGAINST = family_colour("transformer"), family_colour("kgram")
MARK = family_colour("kgram")
MONO = "DejaVu Sans Mono"  # ships with matplotlib; story_layout knows how wide its letters are
LATER = "#8A8A8A"
LABELS = {"entropy": "entropy (bits)"}
CONTROL = "untrained at most"
KIND_LABELS = {"zero": "output set to zero", "mean": "output set to its mean"}


def _ink_on(shade: tuple[float, ...]) -> str:
    """Black or white, whichever stands out from a colour (r, g, b, ...) by its relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shade[:3]]
    return INK if np.dot((0.2126, 0.7152, 0.0722), linear) > 0.3 else "white"


def _draw_scores(axes: Axes, cells: pd.DataFrame, name: str, control: float | None) -> None:
    """One score of all heads (layers, heads), its highest value in words below, numbers where they have room."""
    values = cells.to_numpy(dtype=float)
    n_layer, n_head = values.shape
    known = np.isfinite(values)
    highest = float(values[known].max()) if known.any() else 1.0
    norm = Normalize(0, max(highest, 1.0))  # a share of attention against all of it; bits against the most bits
    axes.set_facecolor(OUT_OF_SIGHT)
    axes.imshow(np.ma.masked_invalid(values), cmap=WEIGHTS, norm=norm, aspect="auto")
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)
    step = 1 if max(values.shape) <= 8 else 2  # small maps have no room for twelve names
    axes.set_xticks(range(0, n_head, step), cells.columns[::step].astype(str))
    axes.set_yticks(range(0, n_layer, step), cells.index[::step].astype(str))
    axes.tick_params(length=0, labelsize=SMALLEST_POINTS)
    if n_layer <= 6 and n_head <= 6:
        for (layer, head), value in np.ndenumerate(values):
            shade = WEIGHTS(norm(value)) if math.isfinite(value) else to_rgb(OUT_OF_SIGHT)
            text = f"{value:.2f}" if math.isfinite(value) else "–"
            axes.text(head, layer, text, ha="center", va="center", color=_ink_on(shade), fontsize=TEXT_POINTS)
    axes.set_title(name, loc="left", fontsize=TEXT_POINTS, fontweight="bold", parse_math=False)
    below = "head"
    if known.any():
        layer, head = np.unravel_index(np.where(known, values, -np.inf).argmax(), values.shape)
        below += f"\nhighest: {highest:.2f} (layer {cells.index[layer]}, head {cells.columns[head]})"
    if control is not None:
        below += f"\n{CONTROL}: {control:.2f}"
    axes.set_xlabel(below, fontsize=SMALLEST_POINTS)


def _label(score: str) -> str:
    return LABELS.get(score, score.replace("_", " "))


def plot_head_scores(
    table: pd.DataFrame,
    scores: Sequence[str] | Mapping[str, str],
    *,
    title: str,
    controls: Mapping[str, float] | None = None,
) -> Figure:
    """A small map (layers x heads) for each score, with numbers in its cells where there are few heads.

    `table` is that of `head_scores` or `repetition_scores`: columns layer and head, counted from 1, and the `scores`,
    which a mapping gives other names to. Shares of attention are shaded from 0 to 1, scores that exceed 1 (entropy)
    from 0 to their highest; unknown ones are grey. `controls` has what to compare a score with: the highest of an
    untrained model, written below. Raises ValueError for missing columns, no or more than 6 scores, a head that is
    missing or there twice, and more than 12 layers or heads.
    """
    names = dict(scores) if isinstance(scores, Mapping) else {name: _label(name) for name in scores}
    require_columns(table, ["layer", "head", *names])
    sides = table["layer"].nunique(), table["head"].nunique()
    if not 1 <= len(names) <= MAX_SCORES:
        raise ValueError(f"{len(names)} scores; a slide shows 1 to {MAX_SCORES}")
    if max(sides) > MAX_SIDE:
        raise ValueError(f"{sides[0]} layers of {sides[1]} heads; a slide shows at most {MAX_SIDE} each way")
    if table.duplicated(["layer", "head"]).any() or len(table) != sides[0] * sides[1]:
        raise ValueError(f"{len(table)} rows for {sides[0]} layers of {sides[1]} heads; give each head once")
    columns = len(names) if len(names) <= 3 else math.ceil(len(names) / 2)
    with use_style():
        figure, first = new_figure(title)
        first.remove()
        panels = figure.subplots(math.ceil(len(names) / columns), columns, squeeze=False).flat
        for place, axes in enumerate(panels):
            if place >= len(names):
                axes.set_axis_off()
                continue
            column = list(names)[place]
            cells = table.pivot(index="layer", columns="head", values=column)
            _draw_scores(axes, cells, names[column], (controls or {}).get(column))
            if place % columns == 0:
                axes.set_ylabel("layer")
    return figure


def _as_weights(weights: object, n_tokens: int, focus: int) -> np.ndarray:
    values = np.asarray(weights, dtype=float)
    if values.shape != (n_tokens,) or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"weights of shape {values.shape} do not go with {n_tokens} tokens; give (T,), each >= 0")
    if not 0 <= focus < n_tokens:
        raise ValueError(f"focus is {focus}, but there are {n_tokens} tokens")
    if values[focus + 1 :].any():
        later = focus + 1 + int(np.flatnonzero(values[focus + 1 :])[0])
        raise ValueError(f"weight {values[later]:.3g} on token {later}, which comes after the focus {focus}")
    return values


def _draw_arrow(axes: Axes, start: Spot, end: Spot, weight: float) -> None:
    """A curve from a token to one it looks at, thicker for more weight.

    It leaves and arrives upright: over the gap above a line within it, and from below where the end is lines above.
    """
    same_line = start.line == end.line
    tip = end.top if same_line else end.bottom
    rise = 1.2 * (start.top - start.line) if same_line else 0.6 * (start.top - tip)
    corners = [start.top, start.top - rise, tip - rise if same_line else tip + rise, tip]
    across = [start.middle, start.middle, end.middle, end.middle]
    curve = Path(list(zip(across, corners, strict=True)), [Path.MOVETO, *3 * [Path.CURVE4]])
    arrow = FancyArrowPatch(path=curve, arrowstyle="->", mutation_scale=14, linewidth=1.5 + 3 * weight)
    arrow.set(facecolor="none", edgecolor=MARK, alpha=0.85, zorder=2.5)  # below the letters, above their boxes
    axes.add_patch(arrow)


def _write_weights(axes: Axes, start: Spot, ends: Sequence[tuple[Spot, float]], points: float) -> None:
    """The weight of every end of an arrow, below those in the line of the start and above others, moved apart."""
    gap = 3.2 * SMALLEST_POINTS / (MONO_WIDTH * points)  # "100%", in characters of the story
    for line in {end.line for end, _ in ends}:
        own = sorted((end.middle, end, weight) for end, weight in ends if end.line == line)
        limits = gap / 2, axes.get_xlim()[1] - gap / 2
        for (_, end, weight), x in zip(own, spread([middle for middle, _, _ in own], gap, *limits), strict=True):
            at, offset, side = (end.bottom, -1, "top") if line == start.line else (end.top, 1, "bottom")
            text = axes.annotate(f"{100 * weight:.0f}%", (x, at), (0, offset), textcoords="offset points", va=side)
            text.set(ha="center", color=MARK, fontsize=SMALLEST_POINTS, fontweight="bold", zorder=5)
            text.set_path_effects([withStroke(linewidth=3, foreground="white")])


def plot_story_attention(
    tokens: Sequence[str], weights: object, focus: int, *, title: str, note: str = "", arrows: int = 3
) -> Figure:
    """A story as text, every token shaded by the weight that the framed token `focus` puts on it.

    `weights` (T,) are one row of a head's attention weights, for the T `tokens`; the row of token `focus` (from 0).
    Arrows lead to the `arrows` earlier tokens with the most weight; later tokens, which it cannot see, are grey. The
    darkest shade is the highest weight. `note` is written below. Raises ValueError when the shapes differ, a weight is
    negative or on a later token, the focus is no token, and when the story is too long for a slide.
    """
    values = _as_weights(weights, len(tokens), focus)
    with use_style():
        figure, axes, width, height = text_page(title, bottom=0.17, top=0.92)
        spots, points, pitch = lay_out(tokens, width, height)
        axes.set_xlim(0, width / (MONO_WIDTH * points))
        axes.set_ylim(height / pitch, 0)
        norm = Normalize(0, max(float(values.max()), 1e-9))
        for i, spot in enumerate(spots):
            shade, box = WEIGHTS(norm(values[i])), ((spot.left, spot.top), len(spot.text), spot.bottom - spot.top)
            if i <= focus:
                axes.add_patch(Rectangle(*box, facecolor=shade, edgecolor="#D8D8D8", linewidth=0.5))
            if i == focus:
                axes.add_patch(Rectangle(*box, fill=False, edgecolor=MARK, linewidth=3.5, zorder=3))
            middle, colour = (spot.top + spot.bottom) / 2, _ink_on(shade) if i <= focus else LATER
            text = axes.text(spot.left, middle, spot.text, va="center", color=colour, parse_math=False)
            text.set(fontsize=points, family=MONO)
        nearest = [i for i in np.argsort(-values[:focus], kind="stable")[:arrows] if values[i] > 0]
        for i in nearest:
            _draw_arrow(axes, spots[focus], spots[i], float(values[i]))
        _write_weights(axes, spots[focus], [(spots[i], float(values[i])) for i in nearest], points)
        scale = figure.colorbar(ScalarMappable(norm, WEIGHTS), cax=figure.add_axes((0.035, 0.1, 0.28, 0.03)),
                                orientation="horizontal")  # fmt: skip
        scale.ax.xaxis.set_major_locator(MaxNLocator(4))
        scale.ax.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
        scale.ax.tick_params(labelsize=SMALLEST_POINTS)
        below = "attention weight of the framed token (grey text: later, never seen)"
        figure.text(0.34, 0.115, below + (f"\n{note}" if note else ""), va="center", fontsize=TEXT_POINTS,
                    parse_math=False)  # fmt: skip
    return figure


def plot_head_ablation(table: pd.DataFrame, *, title: str, label: str = "rise of the loss (nats a token)") -> Figure:
    """What the loss rises by when a head is taken away: a bar a head and kind, with 95% intervals.

    `table` is that of `head_ablation`: columns layer, head, kind, effect, standard_error (nats a token); intervals are
    1.96 standard errors each way, none where that is unknown. Raises ValueError for missing columns, a head that is
    there twice with one kind, more than two kinds, and more bars than a slide holds.
    """
    require_columns(table, ["layer", "head", "kind", "effect", "standard_error"])
    if table.duplicated(["layer", "head", "kind"]).any():
        first = table[table.duplicated(["layer", "head", "kind"])].iloc[0]
        raise ValueError(f"layer {first['layer']}, head {first['head']} is there twice with kind {first['kind']!r}")
    kinds = list(dict.fromkeys(table["kind"]))
    if len(kinds) > 2 or len(table) > MAX_BARS:
        raise ValueError(f"{len(table)} bars of {len(kinds)} kinds; a slide shows {MAX_BARS} of at most 2: choose some")
    heads = list(table[["layer", "head"]].drop_duplicates().sort_values(["layer", "head"]).itertuples(index=False))
    # a gap between layers, so that each is a group
    spot = {tuple(head): i + 0.8 * (head[0] - heads[0][0]) for i, head in enumerate(heads)}
    with use_style():
        figure, axes = new_figure(title)
        width = 0.8 / len(kinds)
        for rank, (kind, colour) in enumerate(zip(kinds, (PALE, FOR) if len(kinds) == 2 else (FOR,), strict=True)):
            own = table[table["kind"] == kind]
            x = [spot[row.layer, row.head] + (rank - (len(kinds) - 1) / 2) * width for row in own.itertuples()]
            axes.bar(x, own["effect"], width * 0.92, color=colour, label=KIND_LABELS.get(kind, kind))
            error = 1.96 * own["standard_error"].to_numpy(dtype=float)
            axes.errorbar(x, own["effect"], np.nan_to_num(error), fmt="none", ecolor=INK, elinewidth=2, capsize=4)
        axes.axhline(0, color=QUIET, linewidth=1.5)
        axes.set_xticks(list(spot.values()), [str(head) for _, head in spot])
        axes.tick_params(axis="x", length=0)
        for layer in dict.fromkeys(layer for layer, _ in spot):
            own_spots = [x for (own_layer, _), x in spot.items() if own_layer == layer]
            axes.text(np.mean(own_spots), 1.01, f"layer {layer}", transform=axes.get_xaxis_transform(), ha="center",
                      va="bottom", fontweight="bold")  # fmt: skip
        axes.set_xlabel("head (lines: 95% interval over the texts)")
        axes.set_ylabel(label)
        if len(kinds) > 1:
            figure.legend(loc="outside lower center", ncols=2)
    return figure


def _signed(value: float) -> str:
    text = f"{value:+.1f}".replace("-", "−")  # as on the axes
    return "0.0" if text in ("+0.0", "−0.0") else text


def plot_attribution(
    names: Sequence[str], contributions: object, tokens: Sequence[str], *, title: str, top: int = 12
) -> Figure:
    """The parts of a model that speak for (right) and against (left) each of 1 to 3 tokens, as horizontal bars.

    `contributions` (K, n) are the shares of the K parts `names` in the logits of the n `tokens`, such as
    `attribution.contributions([...], centred=True)[:, 0]`. The `top` parts with the largest share in any of them are
    shown by name, in the model's order, and the sum of all others last, so that the bars add up to the logit, which is
    written above. Raises ValueError for shapes that do not go together, and for no or more than 3 tokens.
    """
    values = np.asarray(contributions, dtype=float)
    if values.shape != (len(names), len(tokens)) or not 1 <= len(tokens) <= MAX_PANELS:
        raise ValueError(
            f"contributions of shape {values.shape} do not go with {len(names)} parts and {len(tokens)} tokens; give "
            f"(parts, tokens) for 1 to {MAX_PANELS} tokens"
        )
    if not 1 <= top <= MAX_TOP:
        raise ValueError(f"top is {top}; a slide shows 1 to {MAX_TOP} parts")
    top += len(names) == top + 1  # the name of one part says more than "all 1 others"
    shown = sorted(np.argsort(-np.abs(values).max(1), kind="stable")[:top])
    rest = np.delete(values, shown, axis=0)
    labels = [names[i] for i in shown] + ([f"all {len(rest)} others"] if len(rest) else [])
    bars = np.vstack([values[shown], rest.sum(0, keepdims=True)]) if len(rest) else values[shown]
    low, high = min(float(bars.min()), 0.0), max(float(bars.max()), 1e-9)
    room = (0.05 + 0.09 * len(tokens)) * (high - low)  # for the numbers
    with use_style():
        figure, first = new_figure(title)
        first.remove()
        panels = figure.subplots(1, len(tokens), sharey=True, squeeze=False)[0]
        for axes, column, token in zip(panels, bars.T, tokens, strict=True):
            axes.barh(range(len(column)), column, color=[FOR if value > 0 else AGAINST for value in column])
            for y, value in enumerate(column):
                axes.annotate(_signed(value), (value, y), (4 if value > 0 else -4, 0), textcoords="offset points",
                              ha="left" if value > 0 else "right", va="center", fontsize=SMALLEST_POINTS)  # fmt: skip
            axes.axvline(0, color=QUIET, linewidth=1.5)
            axes.set_xlim(low - (room if low < 0 else 0), high + room)
            axes.set_yticks(range(len(labels)), labels, parse_math=False)
            axes.tick_params(length=0)
            axes.grid(axis="x")
            axes.grid(visible=False, axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.set_title(f"{visible_token(token)}  (sum {_signed(column.sum())})", loc="left", fontsize=TEXT_POINTS,
                           fontweight="bold", parse_math=False)  # fmt: skip
        panels[0].invert_yaxis()
        figure.supxlabel("share of the logit: to the right for the token, to the left against it", fontsize=TEXT_POINTS)
    return figure
