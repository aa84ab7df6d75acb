"""The named recipes: plain functions that return frozen dataclasses, by the paper they are of.

No yaml, no registry: a variant is `replace(base(), ...)`, and the list below is all there are.
"""

import difflib

from crowdrt.contracts import Recipe
from crowdrt.errors import RecipeError
from crowdrt.recipes.counting import counting_recipes
from crowdrt.recipes.deepcount import deepcount_recipes
from crowdrt.recipes.distillation import distillation_recipes
from crowdrt.recipes.dsla import dsla_recipes
from crowdrt.recipes.pruning import pruning_recipes
from crowdrt.recipes.quantization import quantization_recipes
from crowdrt.recipes.skt import skt_recipes
from crowdrt.recipes.students import csrnet_quarter, csrnet_quarter_minmax

RECIPES: tuple[Recipe, ...] = (
    csrnet_quarter(),
    csrnet_quarter_minmax(),
    *counting_recipes(),
    *skt_recipes(),
    *distillation_recipes(),
    *pruning_recipes(),
    *quantization_recipes(),
    *deepcount_recipes(),
    *dsla_recipes(),
)


def recipe_named(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        RecipeError: there is none.
    """
    recipes = {recipe.name: recipe for recipe in RECIPES}
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes) or list(recipes)[:3]
        raise RecipeError(
            f"recipe {name!r} is unknown",
            fix=f"use {' or '.join(near)}, or one of the {len(recipes)} that this lists: "
            "crowdrt recipes",
        )
    return recipes[name]
