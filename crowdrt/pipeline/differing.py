"""Two files of records beside each other: what got faster or slower, and on which machines."""

from collections.abc import Mapping
from math import isfinite, isnan
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from crowdrt.benchmarks.labels import (
    ABSENT,
    engine_label,
    fixed,
    network_label,
    significant,
    size_label,
)
from crowdrt.benchmarks.timing.difference import Comparison, Difference, compare
from crowdrt.benchmarks.timing.records import read_records
from crowdrt.benchmarks.timing.verdict import VALID
from crowdrt.console import show_table, tell
from crowdrt.contracts import Measurement
from crowdrt.errors import BenchmarkError

SHOWN = ("cpu", "num_cores", "memory_mib", "kernel", "versions")  # of a machine, where it differs


def diff_stage(before: Path, after: Path) -> Comparison:
    """Compare two files of records.

    Raises:
        BenchmarkError: one cannot be read, or they have no row in common.
    """
    rows = [read_records(path) for path in (before, after)]
    found = compare(*rows)
    if not found.rows:
        kinds = [sorted({label(row) for row in each}) for each in rows]
        raise BenchmarkError(
            f"{before} and {after} have no row in common: {', '.join(kinds[0][:3]) or 'none'} ... "
            f"against {', '.join(kinds[1][:3]) or 'none'} ...",
            fix="measure the same engines at the same sizes and threads: "
            "crowdrt profile ENGINE --size 576x864 -o B.jsonl",
        )
    return found


def as_json(found: Comparison) -> dict[str, Any]:
    """Return the comparison as `--json` prints it; null where there is no interval."""
    return {
        "drift": found.drift,
        "drift_known": found.drift_known,
        "machines": machines(found),
        "rows": [as_row(row) for row in found.rows],
        "gone": [label(row) for row in found.gone],
        "new": [label(row) for row in found.new],
    }


def as_row(row: Difference) -> dict[str, Any]:
    """Return one row's keys and values."""
    kind = row.after
    measured, bounded = not isnan(row.ratio), isfinite(row.high)
    return {
        "network": kind.network,
        "width": kind.width,
        "engine": kind.engine,
        "precision": kind.precision,
        "size": list(kind.size),
        "num_threads": kind.num_threads,
        "before_ms": row.before.median_ms if measured else None,
        "after_ms": row.after.median_ms if measured else None,
        "ratio": row.ratio if measured else None,
        "interval": [row.low, row.high] if bounded else None,
        "same_file": row.same,
        "change": row.change,
        "verdicts": [row.before.verdict, row.after.verdict],
    }


def machines(found: Comparison) -> dict[str, list[Any]]:
    """Return what differs between the machines of the first row both have: before, after."""
    before, after = found.rows[0].before.machine, found.rows[0].after.machine
    return {name: values for name in SHOWN if (values := differing(before, after, name))}


def differing(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> list[Any]:
    """Return a property of two machines where it differs, else nothing."""
    values = [before.get(name), after.get(name)]
    return values if values[0] != values[1] else []


def show_comparison(found: Comparison) -> None:
    """Print the rows, then how much of it may be the machine's."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("network", "engine", "size", "threads"):
        table.add_column(heading)
    for heading in ("before, ms", "after, ms", "after / before", "95 %"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in found.rows:
        table.add_row(*(Text(cell) for cell in cells(row)))
    show_table(table)
    for row in found.rows:
        if found_doubts := doubts(row):
            tell(f"* {label(row.after)}: {'; '.join(found_doubts)}")
    for name, (old, new) in machines(found).items():
        tell(f"machines differ: {name} {old} before, {new} after")
    tell(said_of_drift(found))
    for rows, where in ((found.gone, "before"), (found.new, "after")):
        if rows:
            tell(f"only {where}: {', '.join(label(row) for row in rows)}")


def cells(row: Difference) -> tuple[str, ...]:
    """Return a row of the table."""
    kind = row.after
    measured, bounded = not isnan(row.ratio), isfinite(row.high)
    times = [row.before.median_ms, row.after.median_ms] if measured else [None, None]
    said = f"{row.change}; the same file" if row.same else row.change
    return (
        network_label(kind.network, kind.width),
        f"{engine_label(kind.engine)} {kind.precision.upper()}",
        size_label(kind.size),
        str(kind.num_threads),
        *(significant(each) for each in times),
        fixed(row.ratio, 3) if measured else ABSENT,
        f"{row.low:.3f} to {row.high:.3f}" if bounded else "too few",
        f"{said} *" if doubts(row) else said,
    )


def doubts(row: Difference) -> list[str]:
    """Return why a side of the row is not to be believed."""
    sides = (("before", row.before), ("after", row.after))
    return [f"{side}: {each.verdict}" for side, each in sides if each.verdict != VALID]


def said_of_drift(found: Comparison) -> str:
    """Say which differences may be the machine's."""
    if not found.drift_known:
        return (
            f"No row ran the same file in the same library on both sides, so the machine's own "
            f"drift is unknown: less than {100 * found.drift:.0f} % is called noise."
        )
    number = sum(row.same for row in found.rows)
    return (
        f"{number} row(s) ran the same file in the same library on both sides and differ by up to "
        f"{100 * found.drift:.1f} %: no difference within that is called a change."
    )


def label(row: Measurement) -> str:
    """Return a row's name for people."""
    name = f"{network_label(row.network, row.width)} {engine_label(row.engine)}"
    return f"{name} {row.precision.upper()} {size_label(row.size)}"
