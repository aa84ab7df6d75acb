"""The verb `crowdrt sweep`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from crowdrt.console import say, show_table
from crowdrt.entry import emit
from crowdrt.errors import RecipeError
from crowdrt.verbs.options import AsJson


def sweep(
    recipe: Annotated[list[str] | None, typer.Argument(help="Recipes, by name.")] = None,
    output: Annotated[Path, typer.Option("-o", "--out", help="The sweep's folder.")] = Path(
        "artifacts/sweep"
    ),
    data: Annotated[
        Path | None, typer.Option(help="A folder with published test splits: ShanghaiTech/part_A.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="With commas between.")] = "0,1,2",
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of every recipe's.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="FIELD=VALUE of every recipe's training, may be repeated."),
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Weights that teach, instead of the recipes'.")
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            help="FIELD=VALUE,VALUE: try each with the first seed and take what validates best."
        ),
    ] = None,
    search_share: Annotated[
        float, typer.Option(help="Of the steps, that each value is tried for.")
    ] = 0.25,
    merge: Annotated[
        list[Path] | None,
        typer.Option(help="First take in another sweep, or its records.jsonl; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train and test recipes by seeds; resumable, and several processes may share the folder."""
    from crowdrt.pipeline.comparison.gathering import gather
    from crowdrt.pipeline.comparison.gathering import merge as take_in
    from crowdrt.pipeline.comparison.searching import parse_search
    from crowdrt.pipeline.comparison.sweeping import SweepOptions, sweep_stage
    from crowdrt.recipes import recipe_named

    for other in merge or ():
        records, rows = take_in(output, other)
        say(f"{other}: {records} new records and {rows} new rows")
    if merge and not recipe:
        show(gather(output), [], as_json)
        return
    recipes = [recipe_named(name) for name in recipe or ()]
    if data is None:
        raise RecipeError(
            "a sweep compares errors on a published test split, and there is no --data",
            fix=f"name one: crowdrt sweep {' '.join(recipe or ['RECIPE'])} "
            f"--data ShanghaiTech/part_A -o {output}",
        )
    options = SweepOptions(
        data=data,
        seeds=parse_seeds(seeds),
        steps=steps,
        settings=tuple(settings or ()),
        teacher=teacher,
        search=None if search is None else parse_search(search, search_share),
    )
    swept = sweep_stage(recipes, output, options)
    failed = [{"row": row.label, **row.failure} for row in swept.failed]
    show(swept.records, failed, as_json)
    swept.check()


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read `0,1,2`.

    Raises:
        RecipeError: something in it is no seed.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise RecipeError(f"--seeds {text!r} is no list of seeds", fix="write --seeds 0,1,2")
    return tuple(dict.fromkeys(map(int, parts)))


def show(
    records: Sequence[Mapping[str, Any]], failed: Sequence[Mapping[str, Any]], as_json: bool
) -> None:
    """Print what a sweep knows, a line per recipe, seed and test."""
    if as_json:
        emit({"records": records, "failed": failed})
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("recipe", "seed", "test", "MAE", "RMSE", "minutes"):
        table.add_column(title, justify="left" if title in ("recipe", "test") else "right")
    for each in records:
        figures = (each["mae"], each["rmse"], each["wall_s"] / 60)
        names = (Text(each["recipe"]), str(each["seed"]), Text(each["test"]))
        table.add_row(*names, *(f"{figure:.2f}" for figure in figures))
    show_table(table)
