"""The named recipes: plain functions that return frozen dataclasses, by the paper they are of.

No yaml, no registry: a variant is `replace(base(), ...)`, and the list below is all there are.
"""

from collections.abc import Callable

from crowdrt.contracts import Recipe
from crowdrt.errors import RecipeError
from crowdrt.recipes.students import csrnet_quarter, csrnet_quarter_minmax

RECIPES: tuple[Callable[[], Recipe], ...] = (csrnet_quarter, csrnet_quarter_minmax)


def recipe_named(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        RecipeError: there is none.
    """
    recipes = {recipe.name: recipe for recipe in (make() for make in RECIPES)}
    if name not in recipes:
        raise RecipeError(
            f"recipe {name!r} is unknown", fix=f"choose from {', '.join(recipes)}: crowdrt recipes"
        )
    return recipes[name]
