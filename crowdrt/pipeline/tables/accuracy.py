"""The papers' accuracy tables with what our training records say, cost tables above them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crowdrt.benchmarks.tables.cells import Cell
from crowdrt.benchmarks.tables.trained.definition import PrintedTable
from crowdrt.benchmarks.tables.trained.lines import Line, as_cells, left_out, lines_of
from crowdrt.benchmarks.tables.trained.records import (
    Repeated,
    read_training_records,
    repeated,
)
from crowdrt.benchmarks.tables.trained.render import accuracy_markdown, accuracy_table, notes
from crowdrt.benchmarks.tables.trained.tables import ACCURACY_TABLES
from crowdrt.console import show_table, tell
from crowdrt.errors import RecipeError
from crowdrt.pipeline.tables.skt import TABLES as COST_TABLES
from crowdrt.pipeline.tables.skt import show_cells

TRAINING_RECORDS = Path(__file__).resolve().parents[3] / "results" / "training.jsonl"


@dataclass(frozen=True)
class Shown:
    """What `crowdrt table NAME` shows: costs, accuracy, or both."""

    costs: Sequence[Cell]
    accuracy: PrintedTable | None
    lines: Sequence[Line]
    unplaced: Sequence[Repeated]

    def as_list(self) -> list[dict[str, Any]]:
        """Return the cells as `--json` prints them, costs first."""
        return [*(cell.as_dict() for cell in self.costs), *as_cells(self.lines)]

    def show(self, *, markdown: bool) -> None:
        """Print it for a terminal, or as Markdown."""
        if self.costs:
            show_cells(self.costs, markdown=markdown)
        if self.costs and self.accuracy:
            tell("")
        if self.accuracy and markdown:
            print(accuracy_markdown(self.accuracy, self.lines, self.unplaced), end="")
        elif self.accuracy:
            tell(self.accuracy.title)
            show_table(accuracy_table(self.accuracy, self.lines))
            for note in notes(self.accuracy, self.lines, self.unplaced):
                tell(note)


def shown_table(name: str, records: Sequence[Path] | None = None) -> Shown:
    """Return a table of the papers: printed cells and ours.

    Args:
        name: of a cost table, an accuracy table, or of one that has both.
        records: files of training records; without any, the checkout's, if it has one.

    Raises:
        RecipeError: no such table, or one without accuracy was given training records.
        BenchmarkError: a file of records is missing or damaged.
    """
    if name not in {*COST_TABLES, *ACCURACY_TABLES}:
        raise unknown(name)
    printed = ACCURACY_TABLES.get(name)
    if records and printed is None:
        raise RecipeError(
            f"table {name} prints no accuracy: training records are nothing to it",
            fix=f"leave --records out: crowdrt table {name}",
        )
    runs = runs_of(records) if printed else []
    costs = COST_TABLES[name]() if name in COST_TABLES else []
    if printed is None:
        return Shown(costs, None, [], [])
    return Shown(costs, printed, lines_of(printed, runs), left_out(printed, runs))


def runs_of(records: Sequence[Path] | None) -> list[Repeated]:
    """Return what some files of training records hold, or the checkout's file."""
    found = [TRAINING_RECORDS] if TRAINING_RECORDS.is_file() else []
    return repeated(each for path in records or found for each in read_training_records(path))


def unknown(name: str) -> RecipeError:
    """Return the error for a name that no table has."""
    names = sorted({*COST_TABLES, *ACCURACY_TABLES, "skt-5"}, key=by_number)
    return RecipeError(
        f"table {name!r} is unknown", fix=f"use one of {', '.join(names)}: crowdrt table skt-8"
    )


def by_number(name: str) -> tuple[str, int]:
    """Return a key that sorts `skt-9` before `skt-10`."""
    paper, _, number = name.rpartition("-")
    return paper, int(number)
