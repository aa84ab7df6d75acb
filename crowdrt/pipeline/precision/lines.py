"""The table of every precision of a network, for people and as Markdown."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from crowdrt.benchmarks.accuracy.comparison import BINS, TOTAL
from crowdrt.benchmarks.accuracy.counts import accuracy
from crowdrt.console import out, show_table
from crowdrt.pipeline.precision.table import PrecisionRow

HEADS = ("precision", "MAE", "RMSE", "bias", *(f"moved, {name}" for name in (*BINS, TOTAL)),
         "MACs in INT8", "MB", "p50 ms", "faster", "gate")  # fmt: skip


def cells(row: PrecisionRow) -> list[str]:
    """Return one line of the table."""
    if row.form.artifact is None:
        return [row.form.name, *[""] * (len(HEADS) - 2), f"no file: {row.form.reason}"]
    errors, found = accuracy(row.rows), row.comparison
    known = [f"{errors.mae:.2f}", f"{errors.rmse:.2f}", f"{errors.bias:+.2f}"] if errors else []
    moved = (
        {each.name: f"{each.shift:+.2f}" for each in (*found.bins, found.total)} if found else {}
    )
    return [
        row.form.name,
        *(known or [""] * 3),
        *(moved.get(name, "") for name in (*BINS, TOTAL)),
        f"{row.int8_macs:.1%}" if row.int8_macs else "",
        f"{row.megabytes:.2f}",
        *latency(row),
        gate(row),
    ]


def latency(row: PrecisionRow) -> list[str]:
    """Return the median and the ratio to FP32, with the race's verdict where it is not valid."""
    if row.measured is None or row.speedup is None:
        return ["", ""]
    doubt = "" if row.measured.verdict == "valid" else f" ({row.measured.verdict})"
    return [f"{row.measured.median_ms:.1f}{doubt}", f"{row.speedup:.2f}x"]


def gate(row: PrecisionRow) -> str:
    """Return what the gate of a row says."""
    if row.verdict is None:
        return ""
    return "held" if row.verdict.held else row.verdict.reason


def show_precisions(rows: Sequence[PrecisionRow], *, markdown: bool) -> None:
    """Print the table."""
    lines = [cells(row) for row in rows]
    if markdown:
        for line in ([*HEADS], ["---"] * len(HEADS), *lines):
            out.print(f"| {' | '.join(line)} |", markup=False, soft_wrap=True, highlight=False)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in HEADS:
        table.add_column(head, justify="left" if head in ("precision", "gate") else "right")
    for line in lines:
        table.add_row(*map(Text, line))
    show_table(table)
