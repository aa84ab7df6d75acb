"""The verb `crowdrt compare`."""

from pathlib import Path
from typing import Annotated

import typer

from crowdrt.contracts import parse_size
from crowdrt.verbs.options import (
    AsFormat,
    AsJson,
    AsMarkdown,
    Store,
    Threads,
    format_of,
    write_table,
)


def compare(
    sweep: Annotated[Path, typer.Argument(help="The folder that crowdrt sweep wrote.")],
    data: Annotated[
        Path, typer.Option(help="The photographs of the sweep: INT8 ranges, and what is counted.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for networks, records, table and plot.")
    ],
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels, of the race.")] = "576x864",
    teacher: Annotated[
        Path | None, typer.Option(help="The weights that taught, where they do not ship.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Which test set, where the sweep has several.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Measuring time of the race.")] = 120.0,
    gpu_records: Annotated[
        list[Path] | None, typer.Option(help="A GPU's records of the same files; may be repeated.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again.")] = False,
    form: AsFormat = None,
    markdown: AsMarkdown = False,
    store: Store = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Compare a sweep: exported, INT8, counted, timed in one race; table, records and plot."""
    written = format_of(form, markdown=markdown, as_json=as_json)
    from crowdrt.pipeline.comparison.comparing import CompareOptions, compare_stage
    from crowdrt.pipeline.tables.compression import ComparisonTable

    options = CompareOptions(
        data=data,
        size=parse_size(size),
        teacher=teacher,
        test=test,
        seconds=seconds,
        num_threads=threads,
        store=store,
        gpu_records=tuple(gpu_records or ()),
        fresh=fresh,
    )
    write_table(ComparisonTable(compare_stage(sweep, output, options)), written)
