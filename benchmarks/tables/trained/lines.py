"""A paper's table with ours in it: which record stands where, and what stands in a row of its own.

A printed row's own cells are filled by its recipe at its width, tested on every image of its test
set. A student of another width, a variant of the recipe, a part of the images or another test set
gets a row of its own below it. What was not run stays empty.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from crowdrt.benchmarks.labels import network_label
from crowdrt.benchmarks.tables.formats import in_units
from crowdrt.benchmarks.tables.trained.definition import (
    ABSENT,
    NUM_IMAGES,
    SHARES,
    Column,
    PrintedRow,
    PrintedTable,
)
from crowdrt.benchmarks.tables.trained.names import declared
from crowdrt.benchmarks.tables.trained.records import Repeated


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One cell: what is printed, and ours."""

    column: Column
    printed: str  # "" in a row that the paper does not have
    runs: Repeated | None  # that ours is of
    decimals: int
    note: str = ""

    @property
    def factor(self) -> int:
        """Return what a record's value is multiplied by: shares are shown in per cent."""
        return 100 if self.column.metric in SHARES else 1

    @property
    def mean(self) -> float | None:
        """Return ours, in people or per cent."""
        mean = self.runs.mean(self.column.metric) if self.runs else None
        return None if mean is None else mean * self.factor

    @property
    def spread(self) -> float | None:
        """Return the sample standard deviation over the seeds."""
        spread = self.runs.spread(self.column.metric) if self.runs else None
        return None if spread is None else spread * self.factor

    @property
    def ours(self) -> str:
        """Return `71.55`, `71.55 ± 0.42` where there are several seeds, or nothing."""
        if self.mean is None:
            return ""
        tail = "" if self.spread is None else f" ± {self.spread:.{self.decimals}f}"
        return f"{self.mean:.{self.decimals}f}{tail}"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of what is shown."""

    label: str
    in_paper: bool  # else a row of our own
    figures: tuple[Figure, ...]

    @property
    def runs(self) -> list[Repeated]:
        """Return the runs that stand in it, each once."""
        found: list[Repeated] = []
        for figure in self.figures:
            if figure.runs is not None and figure.mean is not None and figure.runs not in found:
                found.append(figure.runs)
        return found

    @property
    def budget(self) -> str:
        """Return what ours took: `1,500 steps, 12,000 crops, 4.2 min, 3 seeds`."""
        texts = {runs.first.test: budget_of(runs) for runs in self.runs}
        if len(set(texts.values())) <= 1:
            return next(iter(texts.values()), "")
        return "; ".join(f"{test}: {text}" for test, text in texts.items())


def budget_of(runs: Repeated) -> str:
    """Return one training's budget and how often it was repeated."""
    minutes = f"{runs.minutes:,.0f}" if runs.minutes >= 10 else f"{runs.minutes:.1f}"
    seeds = f", {len(runs.seeds)} seeds" if len(runs.seeds) > 1 else ""
    return f"{runs.first.steps:,} steps, {runs.first.crops:,} crops, {minutes} min{seeds}"


def left_out(table: PrintedTable, runs: Iterable[Repeated]) -> list[Repeated]:
    """Return the runs of the table's recipes on sets that none of its several columns is of."""
    names = {name for row in table.rows for name in row.recipes}
    known = [run for run in runs if declared(run.first.recipe) in names]
    return [run for run in known if row_of(table, run) is None]


def lines_of(table: PrintedTable, runs: Sequence[Repeated]) -> list[Line]:
    """Return the printed rows, each followed by ours that may not stand in it."""
    filling = [[fill(row, column, runs) for column in table.columns] for row in table.rows]
    placed = [run for row in filling for run in row if run is not None]
    lines = []
    for row, chosen in zip(table.rows, filling, strict=True):
        lines.append(printed_line(table, row, chosen))
        for run in runs:
            if run not in placed and row is row_of(table, run):
                placed.append(run)
                lines.append(own_line(table, row, run))
    return lines


def fill(row: PrintedRow, column: Column, runs: Iterable[Repeated]) -> Repeated | None:
    """Return the first run, the one of the largest budget, that may stand in a printed cell."""
    return next(
        (run for run in runs if run.first.test == column.test and reproduces(row, run)), None
    )


def reproduces(row: PrintedRow, run: Repeated) -> bool:
    """Say whether a run is the printed row's recipe, width and whole test set."""
    record = run.first
    return (
        record.recipe in row.recipes
        and record.width == row.width
        and record.num_images == NUM_IMAGES.get(record.test)
        and on_its_own_set(run)
    )


def on_its_own_set(run: Repeated) -> bool:
    """Say whether it was trained on the set that it was tested on, as the papers' are."""
    trained_on = run.first.train.partition(" train")[0]
    return run.first.test.startswith(trained_on)


def row_of(table: PrintedTable, run: Repeated) -> PrintedRow | None:
    """Return the printed row below which a run stands: of its recipe, and next to its width."""
    if run.first.test not in table.tests and len(table.tests) > 1:
        return None  # its errors would stand below the heading of another set
    name = declared(run.first.recipe)
    rows = [row for row in table.rows if name in row.recipes]
    return min(rows, key=lambda row: distance(row.width, run.first.width), default=None)


def distance(one: str, other: str) -> Fraction:
    """Return by which factor two widths differ."""
    ratio = Fraction(one) / Fraction(other)
    return max(ratio, 1 / ratio)


def printed_line(table: PrintedTable, row: PrintedRow, chosen: Sequence[Repeated | None]) -> Line:
    """Return a row of the paper with ours beside it."""
    return Line(
        label=row.label,
        in_paper=True,
        figures=tuple(
            Figure(
                column=column,
                printed=printed,
                runs=runs,
                decimals=decimals_of(printed),
                note=table.notes.get((row.label, column.heading), ""),
            )
            for column, printed, runs in zip(table.columns, row.printed, chosen, strict=True)
        ),
    )


def own_line(table: PrintedTable, row: PrintedRow, run: Repeated) -> Line:
    """Return a row of ours: a width, a variant, a test that the paper does not have."""
    return Line(
        label=own_label(table, run),
        in_paper=False,
        figures=tuple(
            Figure(
                column=column,
                printed="",
                runs=run if run.first.test in (column.test, foreign(table, run)) else None,
                decimals=decimals_of(printed),
            )
            for column, printed in zip(table.columns, row.printed, strict=True)
        ),
    )


def own_label(table: PrintedTable, run: Repeated) -> str:
    """Return `1/8-CSRNet, skt-3-none-cpu, 20 of 182 images`."""
    record = run.first
    parts = [network_label(record.network, record.width), record.recipe]
    total = NUM_IMAGES.get(record.test)
    if foreign(table, run):
        parts.append(f"on {record.test} ({record.num_images})")
    elif record.num_images != total:
        parts.append(f"{record.num_images} of {total} images")
    if record.teacher:
        parts.append(f"teacher {record.teacher}")
    if not on_its_own_set(run):
        parts.append(f"trained on {record.train}")
    return ", ".join(parts)


def foreign(table: PrintedTable, run: Repeated) -> str:
    """Return the run's test set if the table has no column for it, else nothing."""
    return "" if run.first.test in table.tests else run.first.test


def decimals_of(printed: str) -> int:
    """Return with how many decimals ours stands beside a printed figure."""
    return 2 if printed in ("", ABSENT) else len(printed.partition(".")[2])


def as_cells(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Return the cells as `--json` prints them: one object per figure, row by row."""
    return [cell_of(line, figure) for line in lines for figure in line.figures]


def cell_of(line: Line, figure: Figure) -> dict[str, Any]:
    """Return one figure with everything that a reader needs to judge it; `ours` may be null."""
    ours = figure.mean is not None
    runs = figure.runs if ours else None
    return {
        "row": line.label,
        "in_paper": line.in_paper,
        "column": figure.column.heading,
        "test": runs.first.test if runs else figure.column.test,
        "metric": figure.column.metric,
        "printed": figure.printed or None,
        "ours": figure.ours or None,
        "mean": figure.mean,
        "spread": figure.spread,
        "note": figure.note,
        "runs": facts_of(runs) if runs else None,
    }


def as_records(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Return the figures as lines of a CSV file: errors in people, shares from 0 to 1."""
    return [record_of(line, figure) for line in lines for figure in line.figures]


def record_of(line: Line, figure: Figure) -> dict[str, Any]:
    """Return one figure, not rounded, with what ours was trained on."""
    metric = figure.column.metric
    runs = figure.runs if figure.mean is not None else None
    record = {
        "row": line.label,
        "in_paper": line.in_paper,
        "column": figure.column.heading,
        "test": runs.first.test if runs else figure.column.test,
        "metric": metric,
        "printed": in_units(figure.printed, 1 / Decimal(figure.factor)),
        "note": figure.note,
    }
    if runs is None:
        return record
    facts = facts_of(runs)
    facts |= {"train_s": runs.seconds, "machines": "; ".join(facts["machines"])}
    del facts["minutes"]
    return record | {"ours": runs.mean(metric), "ours_std": runs.spread(metric)} | facts


def facts_of(runs: Repeated) -> dict[str, Any]:
    """Return what was trained, how long, where, and which weights came out."""
    first = runs.first
    return {
        "recipe": first.recipe,
        "network": first.network,
        "width": first.width,
        "train": first.train or None,
        "teacher": first.teacher or None,
        "num_images": first.num_images,
        "steps": first.steps,
        "crops": first.crops,
        "minutes": round(runs.minutes, 2),
        "seeds": list(runs.seeds),
        "machines": sorted({f"{r.machine}, {r.num_threads} threads" for r in runs.records}),
        "weights_sha256": [record.weights_sha256 for record in runs.records],
    }
