"""The loss: nothing wrong costs nothing, and its gradient points at the target."""

from typing import get_args

import pytest
import torch

from crowdrt.learning import CountLoss, TrainingConfig
from crowdrt.training.counting.losses import (
    BLOCK_CELLS,
    FEW_PEOPLE,
    block_counts,
    count_loss,
    density_loss,
    squared,
)
from crowdrt.training.counting.truth import Annotation


def maps(*shape: int, seed: int = 0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_blocks_share_out_the_count():
    density = maps(2, 1, 8, 12)
    blocks = block_counts(density)
    assert blocks.shape == (2, 1, 2, 3)
    torch.testing.assert_close(blocks.sum((1, 2, 3)), density.sum((1, 2, 3)))
    torch.testing.assert_close(blocks[1, 0, 1, 2], density[1, 0, 4:8, 8:12].sum())


def test_a_rest_that_fills_no_block_is_dropped():
    density = maps(1, 1, 9, 11)
    torch.testing.assert_close(block_counts(density), block_counts(density[..., :8, :8]))


def test_the_right_answer_costs_nothing():
    density = maps(2, 1, 8, 8)
    assert density_loss(density, density.clone()) == 0


@pytest.mark.parametrize("cell", [(0, 0), (3, 5), (8, 8)], ids=["corner", "middle", "no block"])
def test_every_wrong_cell_costs(cell):
    target = maps(1, 1, 9, 9)
    predicted = target.clone()
    predicted[0, 0, *cell] += 0.5
    in_block = max(cell) < 8
    expected = (0.5**2 + 0.2 * 0.5 * in_block) / (target.sum() + FEW_PEOPLE).sqrt()
    torch.testing.assert_close(density_loss(predicted, target), expected)


def test_the_same_error_weighs_less_among_many_people():
    sparse, dense = torch.full((1, 1, 8, 8), 0.1), torch.full((1, 1, 8, 8), 5.0)
    assert density_loss(dense + 0.1, dense) < density_loss(sparse + 0.1, sparse) / 2


def test_a_bias_costs_more_than_the_same_error_that_cancels():
    """What the block term is for: the squared errors of the two are equal."""
    target = maps(1, 1, 8, 8)
    checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2 - 1
    biased, cancelling = target + 0.1, target + 0.1 * checks
    plain = [density_loss(p, target, count_weight=0) for p in (biased, cancelling)]
    torch.testing.assert_close(plain[0], plain[1])
    assert density_loss(biased, target) > 1.5 * density_loss(cancelling, target)


def test_the_gradient_leads_to_the_target():
    target = maps(2, 1, 8, 8)
    predicted = maps(2, 1, 8, 8, seed=1).requires_grad_()
    loss = density_loss(predicted, target)
    loss.backward()
    towards = (target - predicted).detach()
    assert (predicted.grad * towards).sum() < 0
    assert density_loss(predicted.detach() - 0.01 * predicted.grad, target) < loss.detach()


def test_a_map_that_is_too_low_everywhere_is_pushed_up_everywhere():
    predicted = torch.zeros(1, 1, BLOCK_CELLS, BLOCK_CELLS, requires_grad=True)
    density_loss(predicted, torch.full_like(predicted, 0.3)).backward()
    assert (predicted.grad < 0).all()


def test_a_batch_costs_the_mean_of_its_images():
    predicted, target = maps(3, 1, 8, 8), maps(3, 1, 8, 8, seed=1)
    each = [density_loss(p[None], t[None]) for p, t in zip(predicted, target, strict=True)]
    torch.testing.assert_close(density_loss(predicted, target), torch.stack(each).mean())


def truth(density):
    heads = [torch.rand(5, 2) * 60 for _ in density]
    return Annotation(density, heads, 8, torch.full((len(density),), 64.0))


def test_the_squared_loss_is_summed_over_cells_and_averaged_over_images():
    density = torch.zeros(2, 1, 8, 8)
    predicted = density.clone()
    predicted[0, 0, 1, 1], predicted[1, 0, 2, 3], predicted[1, 0, 4, 4] = 3, 1, -2
    assert squared(predicted, truth(density))["squared"] == (9 + 1 + 4) / 2


@pytest.mark.parametrize("name", get_args(CountLoss))
def test_the_loss_of_every_name_descends(name):
    loss, annotation = count_loss(TrainingConfig(loss=name)), truth(maps(2, 1, 8, 8))
    predicted = maps(2, 1, 8, 8, seed=1).requires_grad_()
    terms = loss(predicted, annotation)
    before = sum(terms.values())
    before.backward()
    step = predicted.detach() - 0.01 * predicted.grad / predicted.grad.abs().max()
    after = sum(loss(step, annotation).values())
    assert all(term.ndim == 0 for term in terms.values())
    assert after < 0.999 * before.detach()


def test_a_target_below_nobody_weighs_as_an_empty_one():
    """A teacher's map has no floor: the root of its sum must not be one of a negative number."""
    predicted = maps(1, 1, 8, 8)
    below = predicted - 2.0
    assert below.sum() < -FEW_PEOPLE
    wrong = 4 * 64 + 0.2 * 2 * 64
    assert density_loss(predicted, below).item() == pytest.approx(wrong / FEW_PEOPLE**0.5)
