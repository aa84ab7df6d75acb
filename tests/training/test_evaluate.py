"""Counting errors: identities between them, and no photograph counted as empty by mistake."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from crowdrt.contracts import IMAGENET
from crowdrt.errors import TrainingError
from crowdrt.models.mcnn import MCNN
from crowdrt.models.network import Normalise
from crowdrt.training.counting.evaluate import constant_mean_errors, count_errors, errors_of

GREY = MCNN.preprocessing


class OnePerCell(nn.Module):
    """Answers one person per cell of 8 px."""

    def forward(self, image):
        height, width = image.shape[2] // 8, image.shape[3] // 8
        return torch.ones(1, 1, height, width)


class Brightness(nn.Module):
    """Answers the mean of its input, as float16 as a network under autocast may."""

    def forward(self, image):
        return image.mean((1, 2, 3), keepdim=True).half()


def test_errors_of_known_differences():
    errors = errors_of([3.0, -4.0, 0.0, 5.0])
    assert (errors.mae, errors.bias, errors.num_images) == (3.0, 1.0, 4)
    assert errors.rmse == pytest.approx(np.sqrt(50 / 4))


def test_the_square_of_rmse_is_spread_plus_bias():
    differences = np.random.default_rng(0).normal(3, 5, 50)
    errors = errors_of(list(differences))
    assert errors.rmse**2 == pytest.approx(differences.var() + errors.bias**2)
    assert abs(errors.bias) < errors.mae < errors.rmse


def test_photographs_are_counted_whole_and_padded(plain_photo):
    """48x48 px are 36 cells; 50x41 px are padded to 56x48: 42 cells."""
    samples = [
        plain_photo("a.png", heads=[(1, 1)] * 30),
        plain_photo("b.png", size=(50, 41), heads=[(1, 1)] * 50),
    ]
    errors = count_errors(OnePerCell().train(), samples, IMAGENET)
    assert (errors.mae, errors.bias, errors.num_images) == (7.0, -1.0, 2)


def test_people_are_counted_in_the_region_alone(plain_photo):
    """The left half of 6x6 cells, and of five people the two that stand there."""
    sample = plain_photo("a.png", heads=[(1, 1), (20, 40), (30, 3), (40, 40), (47, 47)])
    region = np.zeros((48, 48), np.bool_)
    region[:, :24] = True
    errors = count_errors(OnePerCell(), [replace(sample, roi=region)], IMAGENET)
    assert errors.bias == pytest.approx(18 - 2)


def test_a_network_sees_normalised_pixels(plain_photo):
    samples = [plain_photo(f"{level}.png", level=level) for level in (100, 228)]
    errors = count_errors(Brightness(), samples, GREY)
    np.testing.assert_allclose(errors.bias, (100 + 228 - 255) / 2 / 128, rtol=2e-3)
    assert errors.mae > abs(errors.bias)


def test_the_mean_grey_level_becomes_zero():
    levels = (10.0, 20.0, 30.0)
    image = torch.tensor(levels).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert Normalise(replace(IMAGENET, mean=levels))(image).abs().max() == 0


def test_the_constant_answer_is_unbiased_on_its_own_set(crowds):
    counts = np.array([sample.annotated for sample in crowds])
    errors = constant_mean_errors(crowds, crowds)
    assert errors.bias == pytest.approx(0, abs=1e-9)
    assert errors.rmse == pytest.approx(counts.std())
    assert errors.rmse > 0


def test_the_constant_answer_is_the_training_sets(plain_photo):
    train = [plain_photo("a.png", heads=[(1, 1)] * n) for n in (2, 6)]
    test = [plain_photo("b.png", heads=[(1, 1)] * 10)]
    assert constant_mean_errors(train, test).bias == -6


def test_a_photograph_without_annotation_is_not_taken_for_empty(plain_photo):
    unknown = [plain_photo("unknown.png", heads=None)]
    with pytest.raises(TrainingError, match=r"unknown\.png has no annotated heads"):
        count_errors(OnePerCell(), unknown, IMAGENET)
    with pytest.raises(TrainingError, match=r"unknown\.png"):
        constant_mean_errors(unknown, unknown)
