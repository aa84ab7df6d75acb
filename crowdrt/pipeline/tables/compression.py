"""SKT's Table 5 with ours beside it: what `crowdrt compare` left, and nothing that was not run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crowdrt.benchmarks.labels import fixed
from crowdrt.benchmarks.report.sections import ComparedNetwork, ComparedNetworks
from crowdrt.benchmarks.tables import formats
from crowdrt.benchmarks.tables.compression import plot, render
from crowdrt.benchmarks.tables.compression.judgement import Judged, judge
from crowdrt.benchmarks.tables.compression.printed import SKT_TABLE_5
from crowdrt.benchmarks.tables.compression.rows import (
    CompressionRow,
    not_run,
    ordered,
    read_compression,
)
from crowdrt.console import say, show_table, tell
from crowdrt.errors import BenchmarkError, CrowdRTError

COMPRESSION_RECORDS = Path(__file__).resolve().parents[3] / "results" / "compression.jsonl"
TITLE = "SKT, Table 5: compression of CSRNet on ShanghaiTech A"


def skt_5(records: Sequence[Path] | None) -> list[Judged]:
    """Return the printed rows with ours in them, our other forms and combinations among them.

    Args:
        records: one file that `crowdrt compare` wrote; None: the checkout's, if it has one.

    Raises:
        BenchmarkError: several files are named, whose times are of several races; or a file is
            missing or damaged.
    """
    if records and len(records) > 1:
        raise BenchmarkError(
            f"skt-5 is shown from one comparison, not {len(records)}: times of several races are "
            "never put into one table",
            fix=f"name one: crowdrt table skt-5 --records {records[0]}",
        )
    found = [COMPRESSION_RECORDS] if COMPRESSION_RECORDS.is_file() else []
    rows = [row for path in records or found for row in read_compression(path)]
    filled = {row.method for row in rows if row.printed is not None}
    missing = [not_run(method) for method in SKT_TABLE_5 if method not in filled]
    return judge(ordered([*rows, *missing]))


@dataclass(frozen=True)
class ComparisonTable:
    """What `crowdrt table skt-5` and `crowdrt compare` show."""

    rows: Sequence[Judged]
    title: str = ""

    def show(self) -> None:
        """Print it for a terminal."""
        if self.title:
            tell(self.title)
        show_table(render.terminal_table(self.rows))
        for note in render.notes(self.rows):
            tell(note)

    def markdown(self) -> str:
        """Return it with its notes."""
        heading = f"### {self.title}\n\n" if self.title else ""
        return heading + render.markdown(self.rows)

    def csv(self) -> str:
        """Return the rows, not rounded."""
        return render.as_csv(self.rows)

    def latex(self) -> str:
        """Return a tabular with its notes."""
        return formats.latex([render.sheet(self.rows, self.title or "compared networks")])

    def document(self) -> dict[str, Any]:
        """Return everything that is known."""
        return render.as_document(self.rows)


def comparison_in(folder: Path) -> ComparedNetworks | None:
    """Return the newest comparison in a run's folder, or in a folder inside it.

    A damaged one, an empty one, or another version's, is said and left out.
    """
    paths = [*folder.glob(COMPRESSION_RECORDS.name), *folder.glob(f"*/{COMPRESSION_RECORDS.name}")]
    paths.sort(key=lambda path: (path.stat().st_mtime, path), reverse=True)
    for path in paths:
        try:
            if rows := read_compression(path):
                return compared(rows)
            say(f"{path} holds no row; it is left out")
        except CrowdRTError as error:  # scipy may be missing, too
            say(f"{error.problem}; it is left out. To have it, {error.fix}")
    return None


def compared(read: Sequence[CompressionRow]) -> ComparedNetworks:
    """Return a comparison as the page shows it."""
    rows = judge(ordered(read))
    return ComparedNetworks(
        plot=plot.compression_plot(rows),
        lines=[
            ComparedNetwork(
                method=each.row.method,
                form=each.row.form,
                mae=render.spread(each.row.mean_mae, each.row.spread_mae),
                latency=fixed(each.row.median_ms, 1),
                on_front=each.on_front,
                verdict=each.verdict,
            )
            for each in rows
        ],
        notes=render.notes(rows),
    )
