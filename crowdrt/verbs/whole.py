"""The verbs of a whole run: `crowdrt run` and `crowdrt report`."""

from pathlib import Path
from typing import Annotated

import typer

from crowdrt.console import tell
from crowdrt.entry import emit
from crowdrt.verbs.options import AsJson, Data, Store, Threads


def run(
    recipe: str,
    data: Data = None,
    output: Annotated[
        Path | None, typer.Option("--out", help="Folder; default artifacts/RECIPE.")
    ] = None,
    num_images: Annotated[
        int, typer.Option("--images", min=1, help="How many photographs to count at most.")
    ] = 60,
    store: Store = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Do every stage of a recipe; ends with the table and report.html."""
    from crowdrt.pipeline.run import run_recipe
    from crowdrt.recipes import recipe_named

    chosen = recipe_named(recipe)
    summary = run_recipe(
        chosen,
        data=data,
        out=output or Path("artifacts") / chosen.name,
        num_images=num_images,
        store=store,
        num_threads=threads,
    )
    if as_json:
        emit(summary.as_dict())
    else:
        summary.show()
    summary.check()


def write_report(
    folder: Annotated[Path, typer.Argument(help="What `crowdrt run` left.")],
    as_json: AsJson = False,
) -> None:
    """Write report.html and its plots again from a run's files."""
    from crowdrt.pipeline.reporting import write_run_report

    path = write_run_report(folder)
    emit({"path": str(path)}) if as_json else tell(str(path))
