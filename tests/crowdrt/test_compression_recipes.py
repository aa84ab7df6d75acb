"""The rows of SKT's Table 5 on a CPU's budget: what they have in common, so that they compare."""

from fractions import Fraction

import pytest

from crowdrt.contracts import CalibrationConfig
from crowdrt.export.complexity import complexity
from crowdrt.recipes import RECIPES, pruning, recipe_named

ROWS = [
    recipe
    for recipe in RECIPES
    if recipe.name in ("skt-3-none-cpu", "skt-3-cosine-dense-fsp-cpu")
    or (recipe.name.startswith("skt-5-") and recipe.name.endswith("-cpu"))
]


def trained_in_int8(recipe):
    return recipe.training.quantization is not None


def test_they_are_all_there():
    assert len(ROWS) == 14
    assert sum(map(trained_in_int8, ROWS)) == 3


@pytest.mark.parametrize("recipe", ROWS, ids=lambda recipe: recipe.name)
def test_they_are_quantized_alike(recipe):
    """After training as the shipped student is; those that learned in INT8 need nothing."""
    shipped = recipe_named("csrnet-quarter")
    found = (recipe.calibration, recipe.keep_float)
    if trained_in_int8(recipe):
        assert found == (CalibrationConfig(), ())
    else:
        assert found == (shipped.calibration, shipped.keep_float)


@pytest.mark.parametrize("recipe", ROWS, ids=lambda recipe: recipe.name)
def test_they_have_the_same_budget_of_training(recipe):
    budget = recipe_named("skt-3-none-cpu").training
    config = recipe.training
    assert (config.steps, config.batch_size, config.crop_px, config.loss) == (
        budget.steps,
        budget.batch_size,
        budget.crop_px,
        budget.loss,
    )


@pytest.mark.parametrize(
    ("width", "macs"),
    [
        (Fraction(1), pruning.WHOLE),
        (Fraction(1, 4), pruning.QUARTER),
        (Fraction(1, 8), pruning.EIGHTH),
    ],
)
def test_budgets_of_pruning_are_those_of_uniform_networks(width, macs):
    """They are written down where torch is not needed; `crowdrt complexity` counts them."""
    assert complexity("csrnet", width, (576, 864)).macs == macs
