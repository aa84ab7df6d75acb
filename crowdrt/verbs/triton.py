"""The verb `crowdrt triton`."""

from pathlib import Path
from typing import Annotated

import typer

from crowdrt.entry import emit
from crowdrt.verbs.options import AsJson


def triton(
    engines: Annotated[
        list[Path], typer.Argument(metavar="ENGINE...", help="ONNX files, built engines.")
    ],
    output: Annotated[Path, typer.Option("-o", "--out", help="The model repository.")],
    name: Annotated[str | None, typer.Option(help="The model's name, for one ENGINE.")] = None,
    only: Annotated[
        str | None, typer.Option(help="count or density: one model of each network; both else.")
    ] = None,
    onnx: Annotated[
        list[Path] | None,
        typer.Option(help="FILE or FOLDER with the ONNX file of an engine for a CPU; else here."),
    ] = None,
    new_version: Annotated[
        bool, typer.Option("--new-version", help="A changed network becomes version N + 1.")
    ] = False,
    max_batch: Annotated[
        int | None, typer.Option(help="Images at a time, where any may be; default 4.")
    ] = None,
    instances: Annotated[int, typer.Option(help="Of each model, on the CPU or each GPU.")] = 1,
    threads: Annotated[
        int, typer.Option(min=0, help="Of an instance on the CPU; 0: as the engine was built.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Write a model repository for NVIDIA Triton, with a client."""
    from crowdrt.pipeline.serving.config import MAX_BATCH, ServingOptions
    from crowdrt.pipeline.serving.repository import show_placed, write_repository

    batch = MAX_BATCH if max_batch is None else max_batch
    placed = write_repository(
        engines,
        output,
        options=ServingOptions(max_batch=batch, instances=instances, num_threads=threads),
        name=name,
        only=only,
        onnx=onnx or [],
        new_version=new_version,
    )
    if as_json:
        emit({"repository": str(output), "models": [each.as_json() for each in placed]})
    else:
        show_placed(placed)
