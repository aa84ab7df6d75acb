"""How a printed accuracy table is written down: rows of text cells under columns of one metric."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

A = "ShanghaiTech part_A test"
B = "ShanghaiTech part_B test"
QNRF = "UCF-QNRF test"
WORLDEXPO = "WorldExpo'10 test"
SCENES = tuple(f"WorldExpo'10 scene {number} test" for number in range(1, 6))
MALL = "Mall test"
CROWDHUMAN = "CrowdHuman val"
COCO = "COCO val"

# Images that the printed figures are of; a record of fewer stands in a row of its own.
NUM_IMAGES: Mapping[str, int] = {
    A: 182,
    B: 316,
    QNRF: 334,
    WORLDEXPO: 600,
    **dict.fromkeys(SCENES, 120),
    MALL: 1200,
    CROWDHUMAN: 4370,
    COCO: 5000,
}

ERRORS = ("mae", "rmse")  # in people per image
SHARES = ("ap", "ap50", "ap75", "mr2", "ji", "recall")  # 0..1 in records, per cent in tables
METRICS = (*ERRORS, *SHARES)
ABSENT = "-"  # what the papers print where they have no figure


class Column(NamedTuple):
    """One metric on one test set."""

    heading: str
    test: str
    metric: str


@dataclass(frozen=True, kw_only=True)
class PrintedRow:
    """One row of a paper's table, digit by digit."""

    label: str
    width: str  # that ours must have to stand beside it; "" where nothing of ours does
    printed: tuple[str, ...]  # a cell per column
    recipes: tuple[str, ...] = ()  # names of the one recipe that reproduces it, its own first


@dataclass(frozen=True, kw_only=True)
class PrintedTable:
    """One table of a paper."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[PrintedRow, ...]
    budget: str  # the paper's, as far as it says
    notes: Mapping[tuple[str, str], str] = field(default_factory=dict)  # by row and heading

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row.printed) == len(self.columns), row.label
        for label, heading in self.notes:
            assert label in {row.label for row in self.rows}, label
            assert heading in {column.heading for column in self.columns}, heading

    @property
    def tests(self) -> tuple[str, ...]:
        """Return its test sets, each once."""
        return tuple(dict.fromkeys(column.test for column in self.columns))


def errors_on(test: str, part: str = "") -> tuple[Column, Column]:
    """Return the columns MAE and RMSE on a test set; `part` stands before their headings."""
    prefix = f"{part} " if part else ""
    return Column(f"{prefix}MAE", test, "mae"), Column(f"{prefix}RMSE", test, "rmse")


def quoted(text: str) -> list[PrintedRow]:
    """Return rows that a paper quotes from others, `label | cells`: no recipe of ours is theirs."""
    rows = []
    for line in text.strip().splitlines():
        label, cells = line.split("|")
        rows.append(PrintedRow(label=label.strip(), width="", printed=tuple(cells.split())))
    return rows


def row(label: str, width: str, cells: str, *recipes: str) -> PrintedRow:
    """Return a row that a recipe of ours reproduces."""
    return PrintedRow(label=label, width=width, printed=tuple(cells.split()), recipes=recipes)
