"""The verbs on this machine and what crowdrt knows: `doctor` and `recipes`."""

import re
from typing import Annotated

import typer

from crowdrt.console import out
from crowdrt.entry import emit
from crowdrt.errors import RecipeError
from crowdrt.verbs.options import AsJson


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can do, what is missing, and how to get it."""
    from crowdrt.pipeline.doctor import examine, show

    findings = examine()
    if as_json:
        emit(findings)
    else:
        show(findings)


def recipes(
    words: Annotated[
        list[str] | None,
        typer.Argument(help="Only those with all of these in their name or line."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the named recipes."""
    from crowdrt.recipes import RECIPES

    rows = [
        {"name": recipe.name, "network": recipe.network, "width": str(recipe.width),
         "about": recipe.about}
        for recipe in RECIPES
        if all(begins(word, f"{recipe.name} {recipe.about}") for word in words or [])
    ]  # fmt: skip
    if not rows:
        raise RecipeError(
            f"no recipe has {' and '.join(words or [])} in its name or description",
            fix="see all of them: crowdrt recipes",
        )
    if as_json:
        emit(rows)
        return
    for row in rows:
        out.print(
            f"[bold]{row['name']}[/]  {row['network']} at width {row['width']}: {row['about']}"
        )


def begins(word: str, text: str) -> bool:
    """Say whether a word of the text begins with that word, in whatever case."""
    return re.search(rf"\b{re.escape(word)}", text, re.IGNORECASE) is not None
