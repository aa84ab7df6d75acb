"""`crowdrt count`: how many people, and where."""

from pathlib import Path
from typing import Annotated

import typer

from crowdrt.entry import emit
from crowdrt.verbs.options import AsJson, Store, Threads


def count(
    engine: Annotated[
        Path,
        typer.Argument(
            help="A built engine, an ONNX file, or weights.safetensors (eager PyTorch)."
        ),
    ],
    images: Annotated[list[Path], typer.Argument(help="Photographs, or folders of them.")],
    overlay: Annotated[Path | None, typer.Option(help="Folder for density overlays.")] = None,
    tiles: Annotated[
        str | None,
        typer.Option(help="For networks of one size: resize (as the papers do) or pad."),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            help="What this process may take, such as 1GiB: larger photographs are counted in "
            "tiles, with the same answer. Needs the ONNX file."
        ),
    ] = None,
    tile_rows: Annotated[
        int | None, typer.Option(help="The same, in strips of so many pixels.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="A reference, such as the FP32 ONNX file: errors of both in total and per crowd, "
            "and how far counts and maps differ."
        ),
    ] = None,
    store: Store = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Count the people on photographs; with --overlay, show where they were seen."""
    from crowdrt.pipeline.counting import count_photographs, show_counts
    from crowdrt.pipeline.tiling import Limits

    counted = count_photographs(
        engine,
        images,
        overlay=overlay,
        store=store,
        num_threads=threads,
        tiles=tiles,
        limits=Limits.parse(max_memory=max_memory, tile_rows=tile_rows),
        against=against,
    )
    if as_json:
        emit(counted.as_json())
    else:
        show_counts(counted)
