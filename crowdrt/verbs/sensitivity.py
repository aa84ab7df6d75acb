"""`crowdrt sensitivity`: which layers to keep in float."""

from pathlib import Path
from typing import Annotated

import typer

from crowdrt.console import tell
from crowdrt.contracts import CalibrationConfig
from crowdrt.entry import emit, report
from crowdrt.errors import RecipeError
from crowdrt.verbs.options import AsJson, Threads


def sensitivity(
    model: Annotated[Path, typer.Argument(help="A float ONNX file that crowdrt exported.")],
    images: Annotated[
        Path, typer.Option(help="Folder of photographs like those to come, annotated or not.")
    ],
    repair: Annotated[
        bool, typer.Option("--repair", help="Keep the worst in float until --tolerance holds.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--out", help="The repaired ONNX file to write.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Change of the MAE, without annotation change of the count.")
    ] = 0.01,
    min_int8: Annotated[
        float, typer.Option(help="Share of the MACs that has to stay in INT8.")
    ] = 0.9,
    by: Annotated[str, typer.Option(help="Rank by count or by sqnr.")] = "count",
    plot: Annotated[Path | None, typer.Option(help="The PNG file to draw into.")] = None,
    num_judged: Annotated[int, typer.Option(help="Photographs that judge, at most.")] = 16,
    num_images: Annotated[int, typer.Option(help="Others that calibrate, at most.")] = 32,
    method: Annotated[
        str, typer.Option(help="How ranges are found; see crowdrt calibrate.")
    ] = "percentile",
    percentile: Annotated[float, typer.Option(help="Of |activation|.")] = 99.99,
    weight_bits: Annotated[int, typer.Option(help="7 is right on every CPU; 8 needs VNNI.")] = 7,
    records: Annotated[
        Path | None,
        typer.Option(help="Finished trials, to go on from. Default: MODEL.sensitivity.jsonl."),
    ] = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Rank layers by what INT8 in each alone does to counts; repair the network by that."""
    from crowdrt.calibration.sensitivity.search import SensitivityConfig
    from crowdrt.data.heads.datasets import open_samples
    from crowdrt.pipeline.precision import sensitivity as stage

    if repair != (output is not None):
        raise RecipeError(
            "--repair writes a network, and -o says where: neither goes without the other",
            fix=f"crowdrt sensitivity {model} --images {images} --repair -o "
            f"{model.with_suffix('')}.int8.onnx",
        )
    calibration = CalibrationConfig(
        method=method,  # type: ignore[arg-type]
        percentile=percentile,
        num_images=num_images,
        weight_bits=weight_bits,  # type: ignore[arg-type]
    )
    config = SensitivityConfig(
        calibration=calibration,
        num_judged=num_judged,
        by=by,  # type: ignore[arg-type]
        tolerance=tolerance,
        least_int8=min_int8,
    )
    found = stage.sensitivity_stage(
        model,
        open_samples(images),
        config,
        out=output,
        plot=plot,
        records=records,
        num_threads=threads,
    )
    if as_json:
        emit(stage.findings_as_json(found))
        return
    stage.show_findings(found)
    if found.artifact is not None:
        tell(stage.describe_repair(found))
        report(found.artifact, as_json)
