"""One printed figure beside ours: the form of every table that needs no stopwatch."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a paper's table; figures are text, digit by digit as they are compared."""

    row: str  # 1/4-CSRNet
    column: str  # FLOPs at 576x864, G
    printed: str
    ours: str  # under the paper's own accounting, with as many decimals
    true: str  # multiply-accumulates of convolutions and matrix products; "" where none are meant
    note: str = ""  # why the two differ, or what the figure does not mean

    @property
    def matches(self) -> bool:
        """Say whether every printed digit comes out."""
        return self.printed == self.ours

    def as_dict(self) -> dict[str, Any]:
        """Return the cell as `--json` prints it."""
        return asdict(self) | {"matches": self.matches}


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
    rows += ["| " + " | ".join(line) + " |" for line in lines(cells)]
    rows += ["", *(f"{number}. {text}" for text, number in notes_of(cells).items())]
    return "\n".join(rows).rstrip() + "\n"


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
