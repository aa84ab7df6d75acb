"""The papers' accuracy tables with what our training records say, cost tables above them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crowdrt.benchmarks.tables.cells import Cell, cells_markdown, cells_sheet
from crowdrt.benchmarks.tables.formats import csv_text, latex
from crowdrt.benchmarks.tables.trained.definition import PrintedTable
from crowdrt.benchmarks.tables.trained.lines import (
    Line,
    as_cells,
    as_records,
    left_out,
    lines_of,
)
from crowdrt.benchmarks.tables.trained.records import (
    Repeated,
    read_training_records,
    repeated,
)
from crowdrt.benchmarks.tables.trained.render import (
    accuracy_markdown,
    accuracy_sheet,
    accuracy_table,
    notes,
)
from crowdrt.benchmarks.tables.trained.tables import ACCURACY_TABLES
from crowdrt.console import show_table, tell
from crowdrt.errors import RecipeError
from crowdrt.pipeline.tables.skt import TABLES as COST_TABLES
from crowdrt.pipeline.tables.skt import show_cells

TRAINING_RECORDS = Path(__file__).resolve().parents[3] / "results" / "training.jsonl"
# one header for all of the papers' tables, so that files of several can be put below each other
CSV_COLUMNS = (
    *("table", "row", "in_paper", "column", "test", "metric", "printed", "ours", "ours_std"),
    *("true_macs", "matches", "note", "recipe", "network", "width", "train", "teacher"),
    *("num_images", "steps", "crops", "train_s", "seeds", "machines", "weights_sha256"),
)


@dataclass(frozen=True)
class Shown:
    """What `crowdrt table NAME` shows: costs, accuracy, or both."""

    name: str
    costs: Sequence[Cell]
    accuracy: PrintedTable | None
    lines: Sequence[Line]
    unplaced: Sequence[Repeated]

    def document(self) -> list[dict[str, Any]]:
        """Return the cells as `--json` prints them, costs first."""
        return [*(cell.as_dict() for cell in self.costs), *as_cells(self.lines)]

    def markdown(self) -> str:
        """Return both as Markdown."""
        parts = [cells_markdown(self.costs)] if self.costs else []
        if self.accuracy:
            parts.append(accuracy_markdown(self.accuracy, self.lines, self.unplaced))
        return "\n".join(parts)

    def csv(self) -> str:
        """Return every figure of both as a line of its own."""
        records = [*(cell.as_record() for cell in self.costs), *as_records(self.lines)]
        return csv_text(CSV_COLUMNS, ({"table": self.name, **record} for record in records))

    def latex(self) -> str:
        """Return a tabular of each."""
        sheets = [cells_sheet(self.costs, f"{self.name}: costs")] if self.costs else []
        if self.accuracy:
            sheets.append(accuracy_sheet(self.accuracy, self.lines, self.unplaced))
        return latex(sheets)

    def show(self) -> None:
        """Print both for a terminal."""
        if self.costs:
            show_cells(self.costs)
        if self.costs and self.accuracy:
            tell("")
        if self.accuracy:
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
        return Shown(name, costs, None, [], [])
    return Shown(name, costs, printed, lines_of(printed, runs), left_out(printed, runs))


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
