"""The verbs on precision: `crowdrt calibrate` and `crowdrt cast`."""

from pathlib import Path
from typing import Annotated

import typer

from crowdrt.contracts import RANGE_METHODS, CalibrationConfig
from crowdrt.entry import emit, report
from crowdrt.errors import RecipeError
from crowdrt.verbs.options import AsJson, Threads

KeepFloat = Annotated[
    list[str] | None, typer.Option(help="Name of a convolution to leave in FP32; repeatable.")
]


def calibrate(
    model: Annotated[Path, typer.Argument(help="A float ONNX file that crowdrt exported.")],
    output: Annotated[Path, typer.Option("-o", "--out", help="The INT8 ONNX file to write.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of photographs like those to come; for trained ranges, none."),
    ] = None,
    method: Annotated[str, typer.Option(help=", ".join(RANGE_METHODS))] = "percentile",
    percentile: Annotated[float, typer.Option(help="Of |activation|.")] = 99.99,
    num_images: Annotated[int, typer.Option(help="At most this many, evenly spaced.")] = 32,
    weight_bits: Annotated[int, typer.Option(help="7 is right on every CPU; 8 needs VNNI.")] = 7,
    keep_float: KeepFloat = None,
    ignore_trained: Annotated[
        bool,
        typer.Option("--ignore-trained", help="Measure, though the network was trained for INT8."),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of the pass's statistics, for every method. Default: OUT's."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(help="Whole photographs, where --images are crops: which ranges they leave."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Quantize to INT8: ranges from photographs, or those it learned, then explicit Q/DQ."""
    from crowdrt.data.heads.datasets import open_samples
    from crowdrt.pipeline.stages import calibrate_stage, check_ranges_stage, has_trained_ranges

    if images is None and (ignore_trained or not has_trained_ranges(model)):
        raise RecipeError(
            f"nothing says how far the activations of {model} reach",
            fix=f"name photographs: crowdrt calibrate {model} --images DIR -o {output}",
        )

    config = CalibrationConfig(
        method=method,  # type: ignore[arg-type]
        percentile=percentile,
        num_images=num_images,
        weight_bits=weight_bits,  # type: ignore[arg-type]
    )
    whole = None if check is None else open_samples(check)
    samples = [] if images is None else open_samples(images)
    made = calibrate_stage(
        *(model, samples, output, config, keep_float or ()),
        cache=cache,
        ignore_trained=ignore_trained,
    )
    if whole is not None:
        check_ranges_stage(model, output, whole, num_images)
    report(made, as_json)


def cast(
    model: Annotated[Path, typer.Argument(help="An FP32 or INT8 ONNX file of crowdrt.")],
    output: Annotated[Path, typer.Option("-o", "--out", help="The ONNX file to write.")],
    fp16: Annotated[bool, typer.Option("--fp16", help="To float16, the one choice.")] = False,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of photographs like those to come. Default: generated crowds."),
    ] = None,
    num_images: Annotated[int, typer.Option(help="At most this many, evenly spaced.")] = 16,
    tolerance: Annotated[
        float, typer.Option(help="By how much of itself a count may move; 0.01 is 1 %.")
    ] = 0.01,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse where a tensor does not fit float16.")
    ] = False,
    keep_float: KeepFloat = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Write typed casts to float16; ranges and counts are checked on photographs."""
    from crowdrt.pipeline.precision.casting import (
        CastConfig,
        cast_as_json,
        cast_stage,
        describe_cast,
    )

    if not fp16:
        raise RecipeError(
            "nothing says what to cast to",
            fix=f"float16 is the one choice: crowdrt cast {model} --fp16 -o {output}",
        )
    config = CastConfig(num_images=num_images, tolerance=tolerance, strict=strict)
    artifact = cast_stage(model, images, output, config, keep_float or (), num_threads=threads)
    if as_json:
        emit(cast_as_json(artifact))
        return
    report(artifact, as_json)
    typer.echo(describe_cast(artifact))
