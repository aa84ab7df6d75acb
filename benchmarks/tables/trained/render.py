"""A paper's accuracy table as people read it: in a terminal, as Markdown, and in a paper."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from crowdrt.benchmarks.tables.formats import PROSE, TEXT, Column, Sheet, markdown_row
from crowdrt.benchmarks.tables.trained.definition import PrintedTable
from crowdrt.benchmarks.tables.trained.lines import Figure, Line
from crowdrt.benchmarks.tables.trained.records import Repeated

OURS_FILLED = (
    "ours: mean ± sample standard deviation over seeds. Its budget stands in its row and is not "
    "the paper's; rows without a printed figure are ours alone"
)
OURS_EMPTY = "ours: no training record of these recipes, so nothing is filled in"


def accuracy_table(table: PrintedTable, lines: Sequence[Line]) -> Table:
    """Return the table for a terminal."""
    shown = Table(box=None, padding=(0, 2, 0, 0))
    shown.add_column("")
    for column in table.columns:
        shown.add_column(f"{column.heading}\nprinted", justify="right")
        shown.add_column("\nours", justify="right")
    shown.add_column("budget of ours")
    for cells in texts(lines):
        shown.add_row(*map(Text, cells))
    return shown


def accuracy_markdown(
    table: PrintedTable, lines: Sequence[Line], unplaced: Sequence[Repeated]
) -> str:
    """Return the table as Markdown with its notes below it."""
    headings = [""]
    for column in table.columns:
        headings += [f"{column.heading}, printed", "ours"]
    headings.append("budget of ours")
    rule = "|---|" + "--:|" * (2 * len(table.columns)) + "---|"
    rows = [f"### {table.title}", "", markdown_row(headings), rule]
    rows += [markdown_row(cells) for cells in texts(lines)]
    return "\n".join([*rows, "", *(f"- {note}" for note in notes(table, lines, unplaced))]) + "\n"


def accuracy_sheet(
    table: PrintedTable, lines: Sequence[Line], unplaced: Sequence[Repeated]
) -> Sheet:
    """Return the table for LaTeX."""
    figures = [
        Column(whose, group=column.heading)
        for column in table.columns
        for whose in ("printed", "ours")
    ]
    return Sheet(
        title=table.title,
        columns=[Column("", TEXT), *figures, Column("budget of ours", PROSE)],
        lines=texts(lines),
        notes=notes(table, lines, unplaced),
    )


def texts(lines: Sequence[Line]) -> list[list[str]]:
    """Return every cell as text, one list per row."""
    numbers = numbered(lines)
    found = []
    for line in lines:
        cells = [line.label if line.in_paper else f"  {line.label}"]
        for figure in line.figures:
            cells += [printed_text(figure, numbers), figure.ours]
        found.append([*cells, line.budget])
    return found


def printed_text(figure: Figure, numbers: dict[str, int]) -> str:
    """Return a printed figure with the number of its note."""
    return f"{figure.printed} ({numbers[figure.note]})" if figure.note else figure.printed


def numbered(lines: Sequence[Line]) -> dict[str, int]:
    """Return every note of a cell once, numbered in their order."""
    found = dict.fromkeys(figure.note for line in lines for figure in line.figures if figure.note)
    return {text: number for number, text in enumerate(found, start=1)}


def notes(table: PrintedTable, lines: Sequence[Line], unplaced: Sequence[Repeated]) -> list[str]:
    """Return what stands below the table; `unplaced` are of its recipes, but of no set of its."""
    runs = [each for line in lines for each in line.runs]
    machines = {f"{r.machine}, {r.num_threads} threads" for each in runs for r in each.records}
    return [
        *(f"({number}) {text}" for text, number in numbered(lines).items()),
        table.budget,
        OURS_FILLED if runs else OURS_EMPTY,
        *(f"trained on: {machine}" for machine in sorted(machines)),
        *(
            f"not shown: {run.first.recipe} on {run.first.test!r}; this table is of "
            + ", ".join(table.tests)
            for run in unplaced
        ),
    ]
