"""The verbs on networks as graphs: `crowdrt export` and `crowdrt inspect`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from crowdrt.contracts import parse_size, parse_width
from crowdrt.entry import emit, report
from crowdrt.errors import RecipeError
from crowdrt.verbs.options import AsJson


def export(
    name: Annotated[str, typer.Argument(metavar="RECIPE|NETWORK|FILE.onnx")],
    output: Annotated[Path, typer.Option("-o", "--out", help="The ONNX file to write.")],
    width: Annotated[str | None, typer.Option(help="1, 1/2, 1/4 ...")] = None,
    weights: Annotated[Path | None, typer.Option(help="A safetensors file.")] = None,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH, or dynamic.")] = "dynamic",
    opset: Annotated[int, typer.Option(help="17 suits TensorRT 8.6 and later.")] = 17,
    input_type: Annotated[
        str, typer.Option("--input", help="uint8: pixels; float32: normalised by the caller.")
    ] = "uint8",
    kept: Annotated[
        str | None,
        typer.Option("--output", help="What ships: count, density:48x64, boxes ... per network."),
    ] = None,
    keep_output: Annotated[
        list[str] | None,
        typer.Option(help="Cut FILE.onnx, of any tool, to this output; may be repeated."),
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Random weights, for timing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Export a network to ONNX and prove that it still answers the same."""
    from crowdrt.pipeline.networks import origin_named
    from crowdrt.pipeline.stages import cut_stage, export_stage

    if input_type not in ("uint8", "float32"):
        raise RecipeError(f"--input {input_type!r} is unknown", fix="use uint8 or float32")
    if keep_output or name.endswith(".onnx"):
        given = {"--width": width, "--weights": weights, "--output": kept, "--random": random}
        given |= {"--size": size != "dynamic", "--opset": opset != 17}
        given |= {"--input": input_type != "uint8"}
        check_cut(name, keep_output or [], output, [key for key, on in given.items() if on])
        report(cut_stage(Path(name), keep_output or [], output), as_json)
        return
    fraction = parse_width(width) if width else None
    origin = origin_named(name, width=fraction, path=weights, random=random)
    artifact = export_stage(
        replace(origin, output=kept),
        output,
        size=None if size == "dynamic" else parse_size(size),
        opset=opset,
        normalised_input=input_type == "float32",
    )
    report(artifact, as_json)


def check_cut(name: str, keep_output: list[str], output: Path, others: list[str]) -> None:
    """Refuse a cut of what is no ONNX file, without outputs, or with options of a network."""
    command = f"crowdrt export {name} --keep-output NAME -o {output}"
    if not name.endswith(".onnx"):
        raise RecipeError(
            f"--keep-output cuts an ONNX file, and {name!r} is none (FILE.onnx)",
            fix="to choose what a network ships, use --output: "
            f"crowdrt export {name} --output density -o {output}",
        )
    if not keep_output:
        raise RecipeError(
            f"{name} is exported already", fix=f"to cut it to some of its outputs: {command}"
        )
    if others:
        raise RecipeError(
            f"{', '.join(others)} cannot change {name}, which is exported already",
            fix=f"leave it out: {command}",
        )


def inspect(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FILE|ENGINE...", help="ONNX files, built engines.")
    ],
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH for MACs, where the file leaves it free.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The table of what was stripped.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a network or an engine is: inputs, nodes, parameters, MACs, how it was made."""
    from crowdrt.console import tell
    from crowdrt.pipeline.inspecting import inspect_path, show_findings
    from crowdrt.pipeline.stripped import stripping_table

    if markdown and as_json:
        raise RecipeError("--markdown and --json exclude each other", fix="leave out one of them")
    if markdown:
        tell(stripping_table(paths))
        return
    found: list[dict[str, Any]] = [
        inspect_path(path, parse_size(size) if size else None) for path in paths
    ]
    if as_json:
        emit(found)
    else:
        show_findings(found)
