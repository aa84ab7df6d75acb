"""One printed figure beside ours: the form of every table that needs no stopwatch."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Self

from rich.table import Table
from rich.text import Text

from crowdrt.benchmarks.tables.formats import TEXT, Column, Sheet, in_units, markdown_row


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a paper's table; figures are text, digit by digit as they are compared."""

    row: str  # 1/4-CSRNet
    column: str  # FLOPs at 576x864, G
    printed: str
    ours: str  # under the paper's own accounting, with as many decimals
    true: str  # multiply-accumulates of convolutions and matrix products; "" where none are meant
    note: str = ""  # why the two differ, or what the figure does not mean
    value: int | None = None  # ours, not rounded, in whole parameters or operations
    true_value: int | None = None
    unit: int = 1  # what one of the printed figure is: 10**9 where it is in G

    @classmethod
    def of(
        cls,
        *,
        row: str,
        column: str,
        printed: str,
        value: int,
        unit: int,
        true: int | None = None,
        note: str = "",
    ) -> Self:
        """Return the cell of our figure, rounded as the printed one is."""
        return cls(
            row=row,
            column=column,
            printed=printed,
            ours=like(printed, value, unit),
            true="" if true is None else like(printed, true, unit),
            note=note,
            value=value,
            true_value=true,
            unit=unit,
        )

    @property
    def matches(self) -> bool:
        """Say whether every printed digit comes out."""
        return self.printed == self.ours

    def as_dict(self) -> dict[str, Any]:
        """Return the cell as `--json` prints it."""
        return asdict(self) | {"matches": self.matches}

    def as_record(self) -> dict[str, Any]:
        """Return the cell as a line of a CSV file, in whole parameters or operations."""
        return {
            "row": self.row,
            "in_paper": True,
            "column": self.column.rpartition(", ")[0],  # without the unit of the printed figure
            "metric": "params" if self.true_value is None else "flops",
            "printed": in_units(self.printed, self.unit),
            "ours": self.value,
            "true_macs": self.true_value,
            "matches": self.matches,
            "note": self.note,
        }


def like(printed: str, value: int, unit: int) -> str:
    """Round `value / unit` half up to the decimals of a printed figure."""
    return str((Decimal(value) / unit).quantize(Decimal(printed), ROUND_HALF_UP))


def matched(cells: Sequence[Cell]) -> str:
    """Return how many cells come out, in a sentence."""
    same = sum(cell.matches for cell in cells)
    others = len(cells) - same
    tail = f"; {others} {'does' if others == 1 else 'do'} not, for the reason given" * bool(others)
    return f"{same} of {len(cells)} printed figures come out to the last digit{tail}"


def notes_of(cells: Iterable[Cell]) -> dict[str, int]:
    """Return every note once, numbered in the order of the cells."""
    texts = dict.fromkeys(cell.note for cell in cells if cell.note)
    return {text: number for number, text in enumerate(texts, start=1)}


HEADINGS = ("", "", "printed", "ours", "true MACs", "")


def cells_table(cells: Sequence[Cell]) -> Table:
    """Return the cells for a terminal; a note is a number that stands below the table."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for place, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if place in (2, 3, 4) else "left")
    for line in lines(cells):
        table.add_row(*map(Text, line))
    return table


def cells_markdown(cells: Sequence[Cell]) -> str:
    """Return the cells as a Markdown table with its notes below it."""
    rows = ["| network | figure | printed | ours | true MACs | |", "|---|---|--:|--:|--:|---|"]
    rows += map(markdown_row, lines(cells))
    rows += ["", *(f"{number}. {text}" for text, number in notes_of(cells).items())]
    return "\n".join(rows).rstrip() + "\n"


def cells_sheet(cells: Sequence[Cell], title: str) -> Sheet:
    """Return the cells for LaTeX."""
    columns = [Column(heading, TEXT) for heading in ("network", "figure")]
    columns += [Column(heading) for heading in ("printed", "ours", "true MACs")]
    numbered = [f"({number}) {text}" for text, number in notes_of(cells).items()]
    return Sheet(
        title=title,
        columns=[*columns, Column("", TEXT)],
        lines=lines(cells),
        notes=[*numbered, matched(cells)],
    )


def lines(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """Return one line of text per cell; a row's name stands only in its first line."""
    numbers, last = notes_of(cells), ""
    found: list[tuple[str, ...]] = []
    for cell in cells:
        verdict = "=" if cell.matches else "differs"
        note = f"{verdict} ({numbers[cell.note]})" if cell.note else verdict
        name = cell.row if cell.row != last else ""
        found.append((name, cell.column, cell.printed, cell.ours, cell.true, note))
        last = cell.row
    return found
