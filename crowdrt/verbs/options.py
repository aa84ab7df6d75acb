"""The options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Store = Annotated[
    Path | None,
    typer.Option(help="Engine store; default $CROWDRT_STORE, else the user's cache folder."),
]
Threads = Annotated[int, typer.Option(min=0, help="Threads; 0 takes every core.")]
Sizes = Annotated[
    list[str] | None, typer.Option("--size", help="HEIGHTxWIDTH in pixels; may be repeated.")
]
Data = Annotated[
    Path | None,
    typer.Option(help="ShanghaiTech, or any folder of photographs. Default: generated crowds."),
]
