"""Every counting network learns with the loss of its paper, and every recipe cuts what it says."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from crowdrt.contracts import Sample
from crowdrt.errors import RecipeError
from crowdrt.learning import TrainingConfig
from crowdrt.models import build_model
from crowdrt.recipes.counting import counting_recipes
from crowdrt.training.counting.crops import SampleGroup
from crowdrt.training.counting.sets import TrainingSet
from crowdrt.training.counting.task import DensityTask
from crowdrt.training.initial import initialise

CPU = torch.device("cpu")
RECIPES = {recipe.name: recipe for recipe in counting_recipes()}
PUBLISHED = {"csrnet": "squared", "can": "squared", "bl": "bayesian", "sanet": "sanet"}
PUBLISHED |= {"mcnn": "squared"}
HELD_OUT = range(1000, 1003)  # steps that are not learned from


def task_of(recipe, crowds, *, width=Fraction(1, 8), **changes):
    data = TrainingSet(groups=(SampleGroup("crowds", crowds, 1.0),), validation=crowds[:1])
    return DensityTask(recipe.network, width, replace(recipe.training, **changes), data)


def loss_of(task, model, step):
    """A tensor, whose gradient the caller may want."""
    batch = task.batch(step, range(task.config.batch_size))
    return sum(task.losses(model, batch, device=CPU).values())


class Nobody(torch.nn.Module):
    """Answers every image with an empty map of the size that the task expects."""

    def __init__(self, task):
        super().__init__()
        self.task = task

    def forward(self, image):
        cells = image.shape[-1] // self.task.stride + self.task.border[0] + self.task.border[1]
        return torch.zeros(len(image), 1, cells, cells)


def held_out(task, model):
    with torch.no_grad():
        return float(np.mean([loss_of(task, model, step).item() for step in HELD_OUT]))


def test_the_recipes_are_the_papers_networks_with_their_losses():
    for network, loss in PUBLISHED.items():
        recipe, narrow = RECIPES[f"{network}-published"], RECIPES[f"{network}-cpu"]
        assert recipe.network == narrow.network == network
        assert recipe.training.loss == loss
        assert narrow.training.loss == ("blocks" if network == "mcnn" else loss)
        assert recipe.width == 1
        assert recipe.about
        assert narrow.about
    assert len(RECIPES) == 2 * len(PUBLISHED)


@pytest.mark.parametrize("network", PUBLISHED)
def test_every_network_learns_with_its_loss(crowds, network):
    """Held-out crops cost far less than answering nobody, which a dead network does."""
    width = Fraction(1, 2) if network == "mcnn" else Fraction(1, 8)
    recipe = RECIPES[f"{network}-cpu"]
    task = task_of(recipe, crowds, width=width, crop_px=48, batch_size=4, colours=False)
    torch.manual_seed(0)
    model = task.build().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.005)
    before, nobody = held_out(task, model), held_out(task, Nobody(task))
    for step in range(40):
        loss = loss_of(task, model, step)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), task.config.clip_norm)
        optimiser.step()
    after = held_out(task, model)
    assert after < 0.6 * nobody
    assert after < 0.8 * before


@pytest.mark.parametrize("network", PUBLISHED)
def test_a_published_step_is_taken_as_it_says(crowds, network):
    recipe = RECIPES[f"{network}-published"]
    changes = {"crop_px": 64} if recipe.training.crops == "fixed" else {}
    task = task_of(recipe, crowds, **changes)
    size = 64 if changes else 48  # half of 96
    batch = task.batch(0, range(task.config.batch_size))
    assert batch.images.shape[2:] == (size, size)
    assert len(batch.images) == (26 if network == "can" else 1)
    model = task.build().train()
    loss = loss_of(task, model, 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert any(weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_what_is_answered_outside_a_region_costs_nothing(crowds):
    """The region is the left half of each photograph, seen whole."""
    roi = np.zeros((96, 96), np.bool_)
    roi[:, :48] = True
    inside = tuple(Sample(image=each.image, heads=each.heads, roi=roi) for each in crowds)
    task = task_of(RECIPES["csrnet-published"], inside, crop_ratio=(1.0, 1.0))
    batch = task.batch(0, range(1))
    target = task.on_device(batch, CPU)[1]
    predicted = target.clone()
    predicted[..., 6:] += 5
    assert sum(task.map_losses(predicted, target, batch).values()) == 0
    predicted[..., :6] += 1
    assert sum(task.map_losses(predicted, target, batch).values()) == pytest.approx(12 * 6)


def test_networks_begin_as_they_are_told():
    built = build_model("csrnet", Fraction(1, 8))
    before = built.density_head.weight.clone()
    torch.testing.assert_close(initialise(built, "fan-in").density_head.weight, before)
    fan_out = 32 * 9  # of the convolution from 64 to 32 channels
    for how, std in (("gaussian", 0.01), ("fan-out", (2 / fan_out) ** 0.5)):
        conv = initialise(build_model("csrnet", Fraction(1, 8)), how).back_end[6]
        assert (conv.in_channels, conv.out_channels) == (64, 32)
        assert conv.weight.std().item() == pytest.approx(std, rel=0.05)
        assert (conv.bias == 0).all()
    with pytest.raises(RecipeError, match="initial='ones' is unknown"):
        TrainingConfig(initial="ones")
