"""`crowdrt precisions`: which precision of a network to ship."""

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


def precisions(
    model: Annotated[Path, typer.Argument(help="An FP32 ONNX file that crowdrt exported.")],
    images: Annotated[
        Path, typer.Option(help="Photographs to take ranges from; some judge the layers.")
    ],
    test: Annotated[Path, typer.Option(help="Annotated photographs, none of them in --images.")],
    output: Annotated[Path, typer.Option("-o", "--out", help="Folder for files and records.")],
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH at which latency is measured.")] = (
        "576x864"
    ),
    seconds: Annotated[float, typer.Option(min=0, help="Measuring time; 0: none.")] = 60.0,
    num_images: Annotated[int, typer.Option(help="At most this many for ranges.")] = 32,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure latency again.")] = False,
    form: AsFormat = None,
    markdown: AsMarkdown = False,
    store: Store = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Make every precision of a network, count a test set with each, time them side by side."""
    written = format_of(form, markdown=markdown, as_json=as_json)
    from crowdrt.pipeline.precision.lines import PrecisionTable
    from crowdrt.pipeline.precision.table import precision_rows

    rows = precision_rows(
        model,
        images,
        test,
        output,
        size=parse_size(size),
        seconds=seconds,
        num_images=num_images,
        store=store,
        num_threads=threads,
        fresh=fresh,
    )
    write_table(PrecisionTable(rows), written)
