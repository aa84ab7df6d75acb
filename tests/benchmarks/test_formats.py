"""Tables as CSV and LaTeX: read back by readers of their own, and compiled where there is LaTeX."""

import csv
import io
import re
import shutil
import subprocess
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crowdrt.benchmarks.tables.formats import (
    LETTERS,
    PROSE,
    TEXT,
    Column,
    Sheet,
    csv_text,
    escaped,
    in_units,
    latex,
    markdown_row,
)

COMMANDS = {
    "textbackslash": "\\", "textasciicircum": "^", "textasciitilde": "~", "textless": "<",
    "textgreater": ">", "textbar": "|", "textasciigrave": "`", "textendash": "–",
}  # fmt: skip
MATHS = {r"$\pm$": "±", r"$\times$": "×", r"$\rightarrow$": "→"}
MEANING = set('\\{}$&#^_~%<>|"`[]*')  # to TeX, to its fonts, or behind the end of a row
PLAIN = "".join(sorted({chr(n) for n in range(32, 127)} | LETTERS | set("–±×→")))
HOSTILE = "50 % of $_{x}^2 & #1 ~ \\input{/etc/passwd} [red] *a* -- '' ,, <a|b> \"q\" `w` ± – ×"


def read(tex: str) -> str:
    """What LaTeX would print; a character with a meaning of its own, or a ligature, is refused."""
    text, place = "", 0
    while place < len(tex):
        rest = tex[place:]
        if found := re.match(r"\\([a-z]+)\{\}", rest):
            text += COMMANDS[found[1]]
        elif found := re.match(r"\\([{}$&#%_])", rest):
            text += found[1]
        elif found := re.match(r"\$\\[a-z]+\$", rest):
            text += MATHS[found[0]]
        elif found := re.match(r"\{([\[\]*]?)\}", rest):
            text += found[1]
        elif found := re.match(r"\{\\char34\}", rest):
            text += '"'
        else:
            assert rest[0] not in MEANING, (rest[0], tex)
            assert not re.match(r"--|''|,,", rest), tex
            found, text = re.match(".", rest), text + rest[0]
        place += found.end()
    return text


@given(st.text(PLAIN))
def test_escaped_text_prints_as_it_was(text):
    assert read(escaped(text)) == text


@given(st.text())
def test_any_text_is_printed_by_the_fonts_of_pdftex(text):
    shown = read(escaped(text))
    assert set(shown) <= set(PLAIN)
    assert "\n" not in escaped(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\n\tb", "a b"), ("人群", "U+4EBAU+7FA4"), ("\0", " "), ("a\u2028b", "a b"), ("é", "é")],
)
def test_what_no_font_has_is_named(text, shown):
    assert read(escaped(text)) == shown


def test_the_reader_refuses_what_is_not_escaped():
    for text in MEANING | {"--"}:
        with pytest.raises((AssertionError, KeyError)):
            read(text + "x")


SHEET = Sheet(
    title="A title with % and\na line",
    columns=[
        Column("network", TEXT),
        Column("paper", group="Params & more"),
        Column("ours", group="Params & more"),
        Column("100 %", PROSE),
    ],
    lines=[["[red] a_b", "1.02", "", HOSTILE], ["*", "-", "2 ± 1", ""]],
    notes=["the first: 29 % #1", HOSTILE],
)


def test_a_tabular_has_a_cell_per_column_and_its_notes():
    lines = latex([SHEET]).splitlines()
    assert lines[0] == r"% A title with \% and a line"
    assert r"\begin{tabular}{@{}lrrp{40mm}@{}}" in lines
    assert r" & \multicolumn{2}{c}{Params \& more} &  \\" in lines
    assert r"\cmidrule(lr){2-3}" in lines
    first, last = lines.index(r"\midrule") + 1, lines.index(r"\bottomrule")
    rows = [re.split(r"(?<!\\)&", line.removesuffix(r" \\")) for line in lines[first:last]]
    assert [[read(cell.strip()) for cell in row] for row in rows] == SHEET.lines
    notes = [line.removesuffix(r"\par") for line in lines if line.endswith(r"\par")]
    assert [read(note) for note in notes] == SHEET.notes
    assert "footnotesize" not in latex([Sheet(title="", columns=[Column("a")], lines=[["1"]])])


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_it_compiles(tmp_path):
    everything = Sheet(title="all", columns=[Column("a", TEXT)], lines=[[c] for c in PLAIN])
    document = "\n".join(
        [r"\documentclass{article}", r"\usepackage{booktabs}", r"\begin{document}",
         latex([SHEET, everything, SHEET]), r"\end{document}"]
    )  # fmt: skip
    (tmp_path / "table.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert said.returncode == 0, said.stdout[-2000:]


@given(st.lists(st.tuples(st.text(), st.floats(allow_nan=False), st.integers()), min_size=1))
def test_csv_is_read_back_to_the_last_digit(rows):
    names = ("name", "value", "whole")
    text = csv_text(names, (dict(zip(names, row, strict=True)) for row in rows))
    assert text.startswith("name,value,whole\r\n")
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [(r["name"], float(r["value"]), int(r["whole"])) for r in found] == rows


def test_csv_quotes_by_the_rule_and_leaves_empty_what_is_not_known():
    rows = [{"a": 'x "y", z\nw', "b": None}, {"a": True, "b": [0, 1]}, {"b": 0.1}]
    assert csv_text(("a", "b"), rows) == 'a,b\r\n"x ""y"", z\nw",\r\ntrue,0 1\r\n,0.1\r\n'
    with pytest.raises(ValueError, match="c"):
        csv_text(("a",), [{"c": 1}])


def test_printed_figures_become_whole_units_exactly():
    assert in_units("205.88", 10**9) == 205_880_000_000
    assert isinstance(in_units("205.88", 10**9), int)
    assert in_units("0.058", 10**6) == 58_000
    assert in_units("91.2", Decimal("0.01")) == 0.912
    assert in_units("-", 10**6) is None
    assert in_units("", 1) is None


def test_a_bar_or_a_line_end_is_no_new_cell_of_markdown():
    assert markdown_row(["a|b", "c\nd"]) == "| a\\|b | c d |"
