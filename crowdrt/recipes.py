"""The named recipes: plain functions that return frozen dataclasses."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from crowdrt.contracts import CalibrationConfig, Recipe
from crowdrt.errors import RecipeError
from crowdrt.learning import TrainingConfig

TABLE_SIZES = ((576, 864), (768, 1024), (576, 720), (2032, 2912))  # SKT, Table 8


def csrnet_quarter() -> Recipe:
    """1/4-CSRNet as the project ships it: the embedded default.

    The last convolution before the density head stays float, 0.3 % of the MACs: in INT8 it adds
    some people to every photograph, a crowd or not (`crowdrt sensitivity`), and its gate fails.
    Beside it entropy ranges lose least; percentile ones failed on ShanghaiTech (docs/gates.md).
    """
    return Recipe(
        name="csrnet-quarter",
        network="csrnet",
        width=Fraction(1, 4),
        sizes=((576, 864),),
        weights="csrnet-quarter.safetensors",
        precisions=("fp32", "fp16", "int8"),
        calibration=CalibrationConfig(method="entropy"),
        keep_float=("/network/back_end/back_end.10/Conv",),
        training=TrainingConfig(steps=6_000, num_synthetic=240),
    )


def csrnet_quarter_minmax() -> Recipe:
    """The same with min-max ranges, to compare calibration methods."""
    base = csrnet_quarter()
    return replace(
        base,
        name="csrnet-quarter-minmax",
        calibration=replace(base.calibration, method="minmax"),
    )


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
