"""The verb `crowdrt detect`."""

from pathlib import Path
from typing import Annotated

import typer

from crowdrt.data.boxes.matching import SURE
from crowdrt.entry import emit
from crowdrt.verbs.options import AsJson, Store, Threads


def detect(
    engine: Annotated[
        Path,
        typer.Argument(
            help="A built engine, an ONNX file, or weights.safetensors (eager PyTorch)."
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Photographs, folders of them, MOT sequences, CrowdHuman's .odgt or COCO's .json."
        ),
    ],
    score: Annotated[
        float, typer.Option(min=0, max=1, help="From which on a detection is a person.")
    ] = SURE,
    overlay: Annotated[Path | None, typer.Option(help="Folder for pictures of the boxes.")] = None,
    short_side: Annotated[
        int | None,
        typer.Option(min=32, help="Resize photographs to this, their long side to 1400 at most."),
    ] = None,
    image_folder: Annotated[
        Path | None, typer.Option("--images", help="Where the photographs of .odgt or .json lie.")
    ] = None,
    box: Annotated[str, typer.Option(help="CrowdHuman: full, visible or head.")] = "full",
    category: Annotated[str, typer.Option(help="COCO: whose boxes.")] = "person",
    min_visibility: Annotated[
        float, typer.Option(min=0, max=1, help="MOT: leave out people less visible than this.")
    ] = 0.0,
    against: Annotated[
        Path | None,
        typer.Option(help="A reference detector, such as the FP32 ONNX file: AP of both."),
    ] = None,
    store: Store = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Find the people on photographs; AP, MR^-2, JI and Recall where boxes are annotated."""
    from crowdrt.pipeline.detecting import Request, detect_photographs, show_detections

    request = Request(
        min_score=score,
        short_side_px=short_side,
        overlay=overlay,
        against=against,
        image_folder=image_folder,
        box=box,
        category=category,
        min_visibility=min_visibility,
    )
    detected = detect_photographs(engine, images, request, store=store, num_threads=threads)
    if as_json:
        emit(detected.as_json())
    else:
        show_detections(detected)
