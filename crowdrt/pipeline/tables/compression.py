"""SKT's Table 5 with ours beside it: what `crowdrt compare` left, and nothing that was not run."""

from collections.abc import Sequence
from pathlib import Path

from crowdrt.benchmarks.tables.compression import render
from crowdrt.benchmarks.tables.compression.judgement import Judged, judge
from crowdrt.benchmarks.tables.compression.printed import SKT_TABLE_5
from crowdrt.benchmarks.tables.compression.rows import not_run, ordered, read_compression
from crowdrt.console import show_table, tell
from crowdrt.entry import emit
from crowdrt.errors import BenchmarkError

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


def show_skt_5(records: Sequence[Path] | None, *, markdown: bool, as_json: bool) -> None:
    """Print the table for a terminal, as Markdown, or as JSON."""
    rows = skt_5(records)
    if as_json:
        emit(render.as_document(rows))
    elif markdown:
        print(f"### {TITLE}\n\n{render.markdown(rows)}", end="")
    else:
        tell(TITLE)
        show_table(render.terminal_table(rows))
        for note in render.notes(rows):
            tell(note)
