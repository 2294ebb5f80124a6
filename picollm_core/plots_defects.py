"""One figure for what known defects do: a bar an effect, with its interval."""

import textwrap

import pandas as pd
from matplotlib.figure import Figure

from picollm_core.config import require
from picollm_core.figure_style import INK, new_figure, use_style
from picollm_core.plots import require_columns
from picollm_core.plots_arms import arm_look

MOST_ROWS, LABEL_WIDTH, BEYOND = 7, 46, 10.0


def headlines(table: pd.DataFrame, unit: str = "nats") -> pd.DataFrame:
    """Of every defect in a `defect_table` its first effect in `unit`; effects of 10 or more would hide all others.

    Raises ValueError for missing columns, and when nothing is left.
    """
    require_columns(table, ["defect", "measured", "effect", "low", "high", "unit"])
    own = table[(table["unit"] == unit) & (table["effect"].abs() < BEYOND)].drop_duplicates("defect")
    require(len(own) > 0, f"no effect in {unit!r} below {BEYOND:g}; the table has {sorted(set(table['unit']))}")
    return own


def plot_defects(table: pd.DataFrame, *, title: str, label: str = "effect (nats per token)") -> Figure:
    """A bar an effect of `table` (rows of a `defect_table`, all in one unit), a colour a defect, intervals as whiskers.

    Rows stand in the order given, the first on top; the line at 0 is no effect. Exact numbers have no whisker. Raises
    ValueError for missing columns, no rows, several units, and more than 7 rows, which nobody can read from afar.
    """
    require_columns(table, ["defect", "measured", "effect", "low", "high", "unit"])
    units = sorted(set(table["unit"]))
    require(len(units) == 1, f"the effects are in {', '.join(units) or 'no unit'}; draw those of one unit at a time")
    require(len(table) <= MOST_ROWS, f"{len(table)} effects are too many to read; choose at most {MOST_ROWS}")
    look, size = arm_look(list(dict.fromkeys(table["defect"]))), 14
    with use_style():
        figure, axes = new_figure(title)
        names, reach = [], 0.0
        for row, (_, own) in enumerate(table.iterrows()):
            axes.barh(row, own["effect"], height=0.5, color=look[own["defect"]]["color"], alpha=0.85)
            ends = [own["effect"], own["effect"]]
            if own["low"] <= own["high"]:
                ends = [own["low"], own["high"]]
                axes.plot(ends, [row, row], color=INK, linewidth=3, solid_capstyle="butt")
            side = 1 if own["effect"] >= 0 else -1
            axes.annotate(f"{own['effect']:+.3f}", (max(ends, key=lambda end: side * end), row), xytext=(8 * side, 0),
                          textcoords="offset points", va="center", ha="left" if side > 0 else "right", fontsize=size,
                          fontweight="bold", color=INK)  # fmt: skip
            names.append(f"{own['defect'].upper()}\n" + textwrap.fill(own["measured"], LABEL_WIDTH))
            reach = max(reach, *(abs(end) for end in ends))
        axes.axvline(0, color=INK, linewidth=1.5)
        axes.set_yticks(range(len(table)), names, fontsize=size, parse_math=False)
        axes.set_ylim(len(table) - 0.4, -0.6)
        axes.set_xlim(
            -1.4 * reach if (table["effect"] < 0).any() else 0, 1.4 * reach if (table["effect"] > 0).any() else 0
        )
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        whiskers = table["low"].notna().any()
        axes.set_xlabel(f"{label}\nlines: 95% intervals over paired seeds" if whiskers else label, parse_math=False)
    return figure
