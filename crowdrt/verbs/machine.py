"""The verbs on this machine and what crowdrt knows: `doctor` and `recipes`."""

from crowdrt.console import out
from crowdrt.entry import emit
from crowdrt.verbs.options import AsJson


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can do, what is missing, and how to get it."""
    from crowdrt.pipeline.doctor import examine, show

    findings = examine()
    if as_json:
        emit(findings)
    else:
        show(findings)


def recipes(as_json: AsJson = False) -> None:
    """List the named recipes."""
    from crowdrt.recipes import RECIPES

    rows = [
        {"name": recipe.name, "network": recipe.network, "width": str(recipe.width),
         "about": recipe.about}
        for recipe in RECIPES
    ]  # fmt: skip
    if as_json:
        emit(rows)
        return
    for row in rows:
        out.print(
            f"[bold]{row['name']}[/]  {row['network']} at width {row['width']}: {row['about']}"
        )
