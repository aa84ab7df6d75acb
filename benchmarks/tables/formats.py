"""Tables as text: rows of Markdown, comma-separated values, and LaTeX that compiles as it is.

CSV holds plain numbers in whole units under names for programs; LaTeX holds the cells that people
read, set with the package booktabs and nothing else.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from typing import NamedTuple

NUMBER, TEXT, PROSE = "r", "l", "p{40mm}"  # how a column of a tabular is set

SPECIAL: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",  # babel gives the bare one a meaning in some languages
    "`": r"\textasciigrave{}",
    "[": "{[}",  # behind the end of a row it would begin that end's argument
    "]": "{]}",
    "*": "{*}",  # likewise
    "\0": "{}",  # our own mark between two characters that would become one
    "–": r"\textendash{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
}
LIGATURE = re.compile(r"([-',])(?=\1)")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
LETTERS = frozenset(map(chr, range(0xC0, 0x100))) - set("×÷ÐðÞþ")  # in every font encoding


class Column(NamedTuple):
    """One column of a table that people read."""

    heading: str
    kind: str = NUMBER  # NUMBER, TEXT or PROSE
    group: str = ""  # stands above it and its neighbours of the same group


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table as people read it: cells of text, and what they must know beside them."""

    title: str
    columns: Sequence[Column]
    lines: Sequence[Sequence[str]]  # a cell per column
    notes: Sequence[str] = ()


def csv_text(names: Sequence[str], records: Iterable[Mapping[str, object]]) -> str:
    """Return RFC 4180: a line of names, then one per record; what a record lacks stays empty.

    Args:
        names: of the columns; a record with any other key is a mistake of ours.
        records: numbers as they are, never rounded.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    for record in records:
        writer.writerow({name: _plain(value) for name, value in record.items()})
    return text.getvalue()


def markdown_text(text: str) -> str:
    """Return text that is one cell of Markdown, whatever it holds."""
    return text.replace("|", "\\|").replace("\n", " ")


def markdown_row(cells: Iterable[str]) -> str:
    """Return one row of Markdown."""
    return f"| {' | '.join(map(markdown_text, cells))} |"


def in_units(printed: str, unit: Decimal | int) -> int | float | None:
    """Return a printed figure in whole units, exactly; None where a paper prints none.

    Args:
        printed: `205.88`, or `-`.
        unit: what one of it is: 10**9 where it is in G.
    """
    if not any(character.isdigit() for character in printed):
        return None
    value = Decimal(printed) * unit
    return int(value) if value == value.to_integral_value() else float(value)


def latex(sheets: Sequence[Sheet]) -> str:
    r"""Return a `tabular` per sheet, its notes as a paragraph below it.

    The preamble needs `\usepackage{booktabs}`, which a comment says.
    """
    return "\n".join("\n".join(_tabular(sheet)) + "\n" for sheet in sheets)


def escaped(text: str) -> str:
    r"""Return text as LaTeX shows it, whatever it holds, with pdfTeX as with newer engines.

    Control characters and line ends become one space. A character that pdfTeX's fonts do not have
    becomes its number, `U+4EBA`, since it would stop the run.
    """
    apart = LIGATURE.sub("\\1\0", CONTROL.sub(" ", text))
    return "".join(_shown(character) for character in apart)


def _shown(character: str) -> str:
    if (found := SPECIAL.get(character)) is not None:
        return found
    known = character.isascii() or character in LETTERS
    return character if known else f"U+{ord(character):04X}"


def _plain(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):  # one cell holds it: 0 1 2
        return " ".join(map(str, value))
    return value


def _tabular(sheet: Sheet) -> list[str]:
    kinds = "".join(column.kind for column in sheet.columns)
    lines = [
        f"% {escaped(sheet.title)}",
        r"% preamble: \usepackage{booktabs}",
        rf"\begin{{tabular}}{{@{{}}{kinds}@{{}}}}",
        r"\toprule",
        *_groups(sheet.columns),
        _row(column.heading for column in sheet.columns),
        r"\midrule",
        *map(_row, sheet.lines),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if sheet.notes:
        lines += ["", r"{\footnotesize", *(rf"{escaped(n)}\par" for n in sheet.notes), "}"]
    return lines


def _groups(columns: Sequence[Column]) -> list[str]:
    """Return the line above the headings and the rules below its parts; nothing without groups."""
    if not any(column.group for column in columns):
        return []
    parts, rules, place = [], [], 1
    for group, members in groupby(columns, key=lambda column: column.group):
        width = len(list(members))
        if group:
            parts.append(rf"\multicolumn{{{width}}}{{c}}{{{escaped(group)}}}")
            rules.append(rf"\cmidrule(lr){{{place}-{place + width - 1}}}")
        else:
            parts += [""] * width
        place += width
    return [" & ".join(parts) + r" \\", *rules]


def _row(cells: Iterable[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"
