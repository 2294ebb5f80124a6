"""The written form of a story grammar: word lists, rules and plots as plain text, read into small trees.

Word lists     [toys]                         entries separated by commas
               [names: gender=female]         the same, every entry with a constant field; sections add up
               [places: name | at]            one entry a line, fields separated by bars
Rules, plots   rule: weather                  a named set of options, used as <weather>
               plot: lost_toy                 then `variable: list` lines, then phases made of beats
               == problem                     a phase that starts a paragraph; `-- problem` goes on in the same one
               * text     *3 text     *       an option, one of weight 3, an empty one; an indented line goes on
Inside text    {toy} {a toy} {Toy} {toy.its}  a mention: plain, with article, capitalised, another form of the entry
               {he} {his} ...                 pronouns of the hero; also {boy} and {sibling}
               [one|other|]                   equally likely pieces, possibly empty, possibly nested
               <weather>                      a rule
A blank line ends a beat; a line that starts with # is a comment.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

PRONOUNS = {
    "he": {"female": "she", "male": "he", "neuter": "it"},
    "him": {"female": "her", "male": "him", "neuter": "it"},
    "his": {"female": "her", "male": "his", "neuter": "its"},
    "himself": {"female": "herself", "male": "himself", "neuter": "itself"},
}
NOUNS = {"boy": {"female": "girl", "male": "boy"}, "sibling": {"female": "sister", "male": "brother"}}
GENDERED = PRONOUNS | NOUNS
SILENT_OR_GLIDE = re.compile(r"(hour|honest|heir)|(uni[cfqv]|use|uku|one|eu)", re.IGNORECASE)


@dataclass(frozen=True)
class Slot:
    """`{form variable.form}` in a template: which variable or list, in which form, capitalised or not."""

    name: str
    form: str
    capital: bool


@dataclass(frozen=True)
class Call:
    """`<rule>` in a template."""

    rule: str


@dataclass(frozen=True)
class Options:
    """Weighted alternatives; each is a sequence of str, Slot, Call and Options."""

    texts: tuple[tuple, ...]
    weights: tuple[int, ...]


@dataclass
class PlotSource:
    """A plot as written: its variables and the lists they draw from, its phases with their beats."""

    name: str
    variables: dict[str, str] = field(default_factory=dict)
    phases: list[tuple[str, str, list[Options]]] = field(default_factory=list)  # (name, separator, beats)


def article(noun: str) -> str:
    """`noun` after "a " or "an ", by its first sound: a unicorn, an hour, an apple."""
    exception = SILENT_OR_GLIDE.match(noun)
    vowel = bool(exception.group(1)) if exception else noun[0].lower() in "aeiou"
    return f"{'an' if vowel else 'a'} {noun}"


def entry_form(entry: dict[str, str], form: str, capital: bool) -> str:
    """The string of one list entry in one form: "" plain, "a" with article, a gendered word, or a field's name.

    Raises ValueError when the entry has no such form.
    """
    if form in GENDERED:
        table = GENDERED[form]
        if entry.get("gender") not in table:
            raise ValueError(
                f"{entry['name']!r} has gender {entry.get('gender')!r}; {form!r} needs one of {list(table)}"
            )
        text = table[entry["gender"]]
    elif form in ("", "a"):
        text = article(entry["name"]) if form else entry["name"]
    elif form in entry:
        text = entry[form]
    else:
        raise ValueError(f"{entry['name']!r} has no form {form!r}; it has {', '.join(entry)}")
    return text[0].upper() + text[1:] if capital else text


def read_lists(source: str) -> dict[str, list[dict[str, str]]]:
    """Word lists by name; every entry is a dict with at least "name". Raises ValueError for repeated entries."""
    lists: dict[str, list[dict[str, str]]] = {}
    entries: list[dict[str, str]] = []
    columns: list[str] | None = None
    constants: dict[str, str] = {}
    for line in _lines(source):
        header = re.fullmatch(r"\[(\w+)(?::\s*(.+))?\]", line)
        if header:
            name, rest = header.group(1), header.group(2) or ""
            columns = [c.strip() for c in rest.split("|")] if rest and "=" not in rest else None
            constants = dict(part.split("=") for part in rest.split()) if "=" in rest else {}
            entries = lists.setdefault(name, [])
        elif columns:
            cells = [cell.strip() for cell in line.split("|")]
            if len(cells) != len(columns):
                raise ValueError(f"list {name!r}: {line!r} has {len(cells)} fields, the header names {len(columns)}")
            entries.append(dict(zip(columns, cells, strict=True)))
        else:
            entries.extend({"name": word.strip()} | constants for word in line.split(",") if word.strip())
    for name, entries in lists.items():
        words = [entry["name"] for entry in entries]
        repeated = {word for word in words if words.count(word) > 1}
        if repeated:
            raise ValueError(f"list {name!r} repeats {', '.join(sorted(repeated))}; keep one of each")
    return lists


def read_rules(source: str) -> dict[str, Options]:
    """Rules by name."""
    blocks = re.split(r"^rule:\s*(\w+)\s*$", source, flags=re.MULTILINE)
    return {name: _options(list(_lines(body))) for name, body in zip(blocks[1::2], blocks[2::2], strict=True)}


def read_plot(source: str) -> PlotSource:
    """One plot. Raises ValueError for a line that is none of header, phase, option or continuation."""
    head, *phases = re.split(r"^(?===\s|--\s)", source, flags=re.MULTILINE)
    header = dict(_header_pair(line) for line in _lines(head))
    if "plot" not in header:
        raise ValueError(f"a plot starts with 'plot: name', not with {head[:40]!r}")
    plot = PlotSource(header.pop("plot"), header)
    for phase in phases:
        title, _, body = phase.partition("\n")
        separator = "\n\n" if title.startswith("==") else " "
        blocks = [list(_lines(block)) for block in re.split(r"\n\s*\n", body)]
        plot.phases.append((title[2:].strip(), separator, [_options(block) for block in blocks if block]))
    return plot


def read_template(source: str) -> tuple:
    """A template as a sequence of str, Slot, Call and Options. Raises ValueError for unbalanced brackets."""
    pieces = re.findall(r"\{[^{}]*\}|<\w+>|[\[\]|]|[^\[\]{}<>|]+|.", source)
    items, rest = _read_pieces(pieces, 0, top=True)
    assert rest == len(pieces)
    return items


def _read_pieces(pieces: list[str], at: int, top: bool) -> tuple[tuple, int]:
    """Items from pieces[at:] up to the closing bracket (or the end at the top), and where reading stopped."""
    branches: list[list] = [[]]
    while at < len(pieces):
        piece = pieces[at]
        at += 1
        if piece == "]" and not top:
            texts = tuple(tuple(branch) for branch in branches)
            return (Options(texts, (1,) * len(texts)),), at
        if piece == "[":
            inner, at = _read_pieces(pieces, at, top=False)
            branches[-1].extend(inner)
        elif piece == "|" and not top:
            branches.append([])
        elif piece[0] == "{" and piece[-1] == "}":
            branches[-1].append(_slot(piece[1:-1]))
        elif piece[0] == "<" and len(piece) > 1:
            branches[-1].append(Call(piece[1:-1]))
        elif piece in "[]{}<>|":
            raise ValueError(f"stray {piece!r} in {''.join(pieces)!r}; brackets must pair up")
        else:
            branches[-1].append(piece)
    if not top:
        raise ValueError(f"unclosed '[' in {''.join(pieces)!r}; brackets must pair up")
    return tuple(branches[0]), at


def _slot(inside: str) -> Slot:
    form, _, name = inside.rpartition(" ")
    capital = inside[:1].isupper()
    name, _, field_name = name.partition(".")
    name, form = (name.lower(), form.lower()) if capital else (name, form)
    if name in GENDERED:
        return Slot("hero", name, capital)
    return Slot(name, form or field_name, capital)


def _options(lines: list[str]) -> Options:
    """Options from `* text` lines; an indented line continues the option above it."""
    joined: list[str] = []
    for line in lines:
        if line.startswith("*"):
            joined.append(line)
        elif joined and line[0] == " ":
            joined[-1] += " " + line.strip()
        else:
            raise ValueError(f"{line!r} is no option; options start with '*', and go on in indented lines")
    matches = [m for line in joined if (m := re.fullmatch(r"\*(\d*)\s*(.*)", line))]
    return Options(tuple(read_template(m.group(2)) for m in matches), tuple(int(m.group(1) or 1) for m in matches))


def _lines(source: str) -> Iterator[str]:
    """Lines that carry something: no comments, no blank ones; leading spaces kept, trailing ones dropped."""
    return (line.rstrip() for line in source.splitlines() if line.strip() and not line.startswith("#"))


def _header_pair(line: str) -> tuple[str, str]:
    key, colon, value = line.partition(":")
    if not colon:
        raise ValueError(f"{line!r} in a plot's header is not of the form 'variable: list'")
    return key.strip(), value.strip()
