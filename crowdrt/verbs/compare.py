"""The verb `crowdrt compare`."""

from pathlib import Path
from typing import Annotated

import typer

from crowdrt.contracts import parse_size
from crowdrt.entry import emit
from crowdrt.verbs.options import AsJson, Store, Threads


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
    markdown: Annotated[bool, typer.Option("--markdown", help="Markdown on stdout.")] = False,
    store: Store = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Compare a sweep: exported, INT8, counted, timed in one race; table, records and plot."""
    from crowdrt.benchmarks.tables.compression import render
    from crowdrt.pipeline.comparison.comparing import CompareOptions, compare_stage, show

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
    judged = compare_stage(sweep, output, options)
    if as_json:
        emit(render.as_document(judged))
    elif markdown:
        print(render.markdown(judged), end="")
    else:
        show(judged)
