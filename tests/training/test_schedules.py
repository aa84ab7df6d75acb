"""Rates and optimisers by their names in a recipe."""

import numpy as np
import pytest
import torch
from torch import nn

from crowdrt.errors import RecipeError
from crowdrt.learning import TrainingConfig
from crowdrt.training.schedules import build_optimizer, learning_rate, set_rate


def rates(**changes):
    config = TrainingConfig(steps=100, learning_rate=0.5, **changes)
    return np.array([learning_rate(step, config) for step in range(101)])


def test_a_constant_rate_stays_behind_its_warm_up():
    found = rates(schedule="constant", warm_up_steps=10)
    np.testing.assert_allclose(found[:10], 0.5 * np.arange(1, 11) / 10)
    assert set(found[10:]) == {0.5}


def test_no_warm_up_begins_at_the_rate():
    assert rates(schedule="constant", warm_up_steps=0)[0] == 0.5


def test_a_dropped_rate_is_a_tenth_behind_its_step():
    """DeepCount: a tenth from step 40,000 of 60,000 on."""
    found = rates(schedule="drop", drop_at=2 / 3, warm_up_steps=0)
    assert set(found[:67]) == {0.5}
    np.testing.assert_allclose(found[67:], 0.05)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)],
)
def test_an_optimiser_has_the_recipes_numbers(name, kind):
    layer = nn.Linear(2, 2)
    config = TrainingConfig(optimizer=name, learning_rate=0.3, weight_decay=0.02, momentum=0.7)
    groups = [
        {"params": [layer.weight], "scale": 0.5},
        {"params": [layer.bias], "scale": 1.0, "weight_decay": 0.0},
    ]
    optimizer = build_optimizer(groups, config)
    set_rate(optimizer, 0.1)
    weight, bias = optimizer.param_groups
    assert type(optimizer) is kind
    assert (weight["lr"], bias["lr"]) == (pytest.approx(0.05), 0.1)
    assert (weight["weight_decay"], bias["weight_decay"]) == (0.02, 0.0)
    assert name != "sgd" or weight["momentum"] == 0.7


@pytest.mark.parametrize(
    "wrong",
    [
        *({"optimizer": "lion"}, {"schedule": "linear"}, {"precision": "int8"}, {"loss": "l1"}),
        *({"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"average": 1.0}),
    ],
)
def test_a_recipe_that_trains_nothing_is_refused(wrong):
    with pytest.raises(RecipeError) as caught:
        TrainingConfig(**wrong)
    assert str(next(iter(wrong.values()))) in caught.value.problem
    assert caught.value.fix
