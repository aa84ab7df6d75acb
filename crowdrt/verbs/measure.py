"""The verbs with a stopwatch: `crowdrt profile`, `crowdrt table` and `crowdrt diff`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from crowdrt.contracts import Size, parse_size
from crowdrt.entry import emit
from crowdrt.errors import BenchmarkError
from crowdrt.verbs.options import (
    AsFormat,
    AsJson,
    AsMarkdown,
    Sizes,
    Store,
    Threads,
    Written,
    format_of,
    write_table,
)


def profile(
    engines: Annotated[list[Path], typer.Argument(help="Built engines, or ONNX files.")],
    size: Sizes = None,
    seconds: Annotated[float, typer.Option(min=0, help="Measuring time per size.")] = 30.0,
    records: Annotated[Path | None, typer.Option("-o", help="Append the raw samples here.")] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="One engine, layer by layer, beside the roofline.")
    ] = False,
    onnx: Annotated[
        Path | None,
        typer.Option(help="--layers of a built engine: the ONNX file that it was built from."),
    ] = None,
    store: Store = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Measure latency: engines interleaved in one run, each in its own process."""
    if layers:
        profile_layers(
            engines, size, seconds=seconds, records=records, store=store, num_threads=threads,
            onnx=onnx, as_json=as_json,
        )  # fmt: skip
        return
    if onnx is not None:
        raise BenchmarkError(
            f"--onnx {onnx} names layers, and without --layers none are told",
            fix=f"crowdrt profile {engines[0]} --layers --onnx {onnx}",
        )
    from crowdrt.pipeline.measuring import as_row, profile_engines, show_measurements

    rows = profile_engines(
        engines, sizes_of(size), seconds=seconds, records=records, store=store, num_threads=threads
    )
    if as_json:
        emit([as_row(row) for row in rows])
    else:
        show_measurements(rows)


def profile_layers(
    engines: list[Path], size: list[str] | None, *, as_json: bool, **options: Any
) -> None:
    """Profile the layers of one engine and print them."""
    from crowdrt.pipeline import profiling

    sizes = [parse_size(text) for text in size or ()]
    found = profiling.profile_one(engines, sizes, **options)
    if as_json:
        emit(profiling.as_json(found))
    else:
        profiling.show_profile(found)


def table(
    name: Annotated[
        str,
        typer.Argument(
            help="skt-1|2|3|4|5|6|7|8|9, deepcount-2|3|4|5|6|7|8|9 or dsla-2|3|4|5|6|7|8."
        ),
    ],
    costs: Annotated[
        bool, typer.Option("--costs", help="skt-8 without its race: every size, nothing timed.")
    ] = False,
    size: Sizes = None,
    network: Annotated[list[str] | None, typer.Option(help="Only these networks.")] = None,
    records: Annotated[
        list[Path] | None,
        typer.Option(
            help="skt-8: read these records instead of measuring. Accuracy: training records, "
            "instead of results/training.jsonl; may be repeated. skt-5: what crowdrt compare wrote."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for networks and records.")
    ] = Path("artifacts/table-skt-8"),
    seconds: Annotated[
        float, typer.Option(min=0, help="At most, per network and size, beyond three rounds.")
    ] = 120.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again.")] = False,
    form: AsFormat = None,
    markdown: AsMarkdown = False,
    store: Store = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Show a paper's table, the printed column beside ours; skt-8 races its networks."""
    written = format_of(form, markdown=markdown, as_json=as_json)
    from crowdrt.pipeline.measuring import paper_table
    from crowdrt.pipeline.tables.accuracy import shown_table
    from crowdrt.pipeline.tables.compression import TITLE, ComparisonTable, skt_5
    from crowdrt.pipeline.tables.raced import RaceTable

    found: Written
    if name == "skt-5":
        found = ComparisonTable(skt_5(records), TITLE)
    elif costs or name != "skt-8":
        found = shown_table(name, records)
    else:
        rows = paper_table(
            name,
            sizes_of(size),
            networks=network,
            records=one_file(records),
            folder=output,
            seconds=seconds,
            fresh=fresh,
            store=store,
            num_threads=threads,
        )
        found = RaceTable(rows)
    write_table(found, written)


def diff(
    before: Annotated[Path, typer.Argument(help="Records: crowdrt profile -o, run, table.")],
    after: Annotated[Path, typer.Argument(help="Records of another version or machine.")],
    as_json: AsJson = False,
) -> None:
    """Say what got faster or slower between two files of records, beyond noise."""
    from crowdrt.pipeline import differing

    found = differing.diff_stage(before, after)
    if as_json:
        emit(differing.as_json(found))
    else:
        differing.show_comparison(found)


def one_file(records: list[Path] | None) -> Path | None:
    """Return the file of a race; rows of several races are never put into one table."""
    if records and len(records) > 1:
        raise BenchmarkError(
            f"skt-8 is shown from one file of records, not {len(records)}",
            fix=f"name one: crowdrt table skt-8 --records {records[0]}",
        )
    return records[0] if records else None


def sizes_of(texts: list[str] | None) -> list[Size]:
    """Return the sizes asked for; 576x864 where none is."""
    return [parse_size(text) for text in texts or ["576x864"]]
