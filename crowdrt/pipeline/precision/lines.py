"""The table of every precision of a network, in every format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from crowdrt.benchmarks.accuracy.comparison import BINS, TOTAL
from crowdrt.benchmarks.accuracy.counts import accuracy
from crowdrt.benchmarks.tables import formats
from crowdrt.benchmarks.tables.formats import (
    NUMBER,
    PROSE,
    TEXT,
    Column,
    Sheet,
    csv_text,
    markdown_row,
)
from crowdrt.console import show_table
from crowdrt.pipeline.precision.table import PrecisionRow

HEADS = ("precision", "MAE", "RMSE", "bias", *(f"moved, {name}" for name in (*BINS, TOTAL)),
         "MACs in INT8", "MB", "p50 ms", "faster", "gate")  # fmt: skip
KINDS = {"precision": TEXT, "gate": PROSE}
CSV_COLUMNS = (  # keys of `--json`, what holds several figures taken apart
    *("name", "precision", "mae", "rmse", "bias", *(f"moved_{name}" for name in (*BINS, TOTAL))),
    *("psnr_db", "int8_macs", "bytes", "p50_ms", "speedup", "verdict", "gate_held", "gate_reason"),
    *("reason", "path"),
)
NOTES = (
    "moved: people counted more than in FP32, per photograph, on all and on the thirds with the "
    "fewest, the middling and the most people",
    "faster: FP32's median over this one's, in one race; float16 is not timed on a CPU",
)


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


@dataclass(frozen=True)
class PrecisionTable:
    """What `crowdrt precisions` shows."""

    rows: Sequence[PrecisionRow]

    def show(self) -> None:
        """Print it for a terminal."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for head in HEADS:
            table.add_column(head, justify="left" if head in KINDS else "right")
        for line in map(cells, self.rows):
            table.add_row(*map(Text, line))
        show_table(table)

    def markdown(self) -> str:
        """Return it without its notes, which docs/precisions.md has."""
        lines = [HEADS, ["---"] * len(HEADS), *map(cells, self.rows)]
        return "".join(f"{markdown_row(line)}\n" for line in lines)

    def csv(self) -> str:
        """Return the rows, not rounded."""
        return csv_text(CSV_COLUMNS, map(record_of, self.rows))

    def latex(self) -> str:
        """Return a tabular with its notes."""
        columns = [Column(head, KINDS.get(head, NUMBER)) for head in HEADS]
        lines = [cells(row) for row in self.rows]
        return formats.latex(
            [Sheet(title="precisions of one network", columns=columns, lines=lines, notes=NOTES)]
        )

    def document(self) -> list[dict[str, Any]]:
        """Return the rows as `--json` prints them."""
        return [row.as_dict() for row in self.rows]


def record_of(row: PrecisionRow) -> dict[str, Any]:
    """Return a row under `CSV_COLUMNS`."""
    found = row.as_dict()
    moved, gate = found.pop("moved"), found.pop("gate") or {}
    del found["mb"]  # the bytes say it
    return found | {
        **{f"moved_{name}": shift for name, shift in moved.items()},
        "gate_held": gate.get("held"),
        "gate_reason": gate.get("reason"),
    }
