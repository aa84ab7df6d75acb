"""SANet's loss: SSIM against its definition, 1 for equal maps and less for others."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from crowdrt.training.counting.consistency import ALPHA, local_means, sanet, similarity
from crowdrt.training.counting.truth import Annotation


def maps(*shape, seed=0, scale=1.0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def truth(density):
    return Annotation(density, [], 1, torch.zeros(len(density)))


def ssim_of_the_definition(one, other):
    """Wang et al.'s formula, cell by cell, over a window that is cut out and weighed."""
    away = np.arange(-5, 6)
    weight = np.exp(-(away[:, None] ** 2 + away**2) / (2 * 1.5**2))
    weight /= weight.sum()
    one, other = np.pad(one, 5), np.pad(other, 5)
    answer = np.empty((one.shape[0] - 10, one.shape[1] - 10))
    for i, j in np.ndindex(answer.shape):
        x, y = one[i : i + 11, j : j + 11], other[i : i + 11, j : j + 11]
        mx, my = (weight * x).sum(), (weight * y).sum()
        vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
        cov = (weight * (x - mx) * (y - my)).sum()
        answer[i, j] = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
        answer[i, j] /= (mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)
    return answer


def test_local_means_are_a_gaussian_blur():
    picture = maps(1, 2, 20, 24)
    away = np.arange(-5, 6)
    weight = np.exp(-(away**2) / (2 * 1.5**2))
    weight /= weight.sum()
    for one, blurred in zip(picture[0].double().numpy(), local_means(picture)[0], strict=True):
        for axis in (0, 1):
            one = ndimage.correlate1d(one, weight, axis=axis, mode="constant")
        np.testing.assert_allclose(blurred, one, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.05], ids=["bright", "as density maps"])
def test_similarity_is_that_of_its_definition(scale):
    one, other = maps(1, 1, 18, 15, scale=scale), maps(1, 1, 18, 15, seed=1, scale=scale)
    expected = ssim_of_the_definition(one[0, 0].double().numpy(), other[0, 0].double().numpy())
    np.testing.assert_allclose(similarity(one, other)[0, 0], expected, atol=2e-5)
    assert expected.std() > 0.01


def test_a_map_is_like_itself_and_less_like_itself_moved():
    density = maps(2, 1, 32, 32)
    torch.testing.assert_close(similarity(density, density), torch.ones_like(density))
    near, far = (similarity(density, density.roll(by, -1)).mean() for by in (1, 3))
    assert near < 0.5
    assert far < near + 0.2
    torch.testing.assert_close(
        similarity(density, density.roll(1, -1)), similarity(density.roll(1, -1), density)
    )


def test_equal_maps_cost_nothing_and_others_both_terms():
    density = maps(2, 1, 24, 24)
    assert sum(sanet(density, truth(density.clone())).values()) == pytest.approx(0, abs=1e-5)
    terms = sanet(density, truth(density.roll(2, -1)))
    assert terms["squared"] > 1
    unlike = (1 - similarity(density, density.roll(2, -1))).sum((1, 2, 3)).mean()
    torch.testing.assert_close(terms["consistency"], ALPHA * unlike)


def test_it_is_the_papers_loss_times_the_number_of_cells():
    predicted, density = maps(1, 1, 24, 20), maps(1, 1, 24, 20, seed=1)
    paper = (predicted - density).square().mean()
    paper = paper + 0.001 * (1 - similarity(predicted, density).mean())
    torch.testing.assert_close(sum(sanet(predicted, truth(density)).values()), paper * 24 * 20)


def test_a_batch_costs_the_mean_of_its_images():
    predicted, density = maps(3, 1, 16, 16), maps(3, 1, 16, 16, seed=1)
    each = [
        sanet(one[None], truth(other[None])) for one, other in zip(predicted, density, strict=True)
    ]
    for name, value in sanet(predicted, truth(density)).items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in each]).mean())


@pytest.mark.parametrize("term", ["squared", "consistency"])
def test_the_gradient_of_each_term_descends(term):
    density = maps(1, 1, 24, 24, scale=0.1)
    predicted = maps(1, 1, 24, 24, seed=1, scale=0.1).requires_grad_()
    loss = sanet(predicted, truth(density))[term]
    loss.backward()
    step = predicted.detach() - 0.01 * predicted.grad / predicted.grad.abs().max()
    assert sanet(step, truth(density))[term] < loss.detach()
