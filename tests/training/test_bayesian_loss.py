"""The Bayesian loss by hand: two cells, one head, nobody; and what posteriors must add up to."""

import math

import pytest
import torch

from crowdrt.errors import RecipeError
from crowdrt.learning import Posterior
from crowdrt.training.counting.bayesian import BayesianLoss, posteriors
from crowdrt.training.counting.truth import Annotation

STRIDE = 8
PLAIN = Posterior(background=None)
BACKGROUNDS = (Posterior(), Posterior(background="inverse", background_ratio=0.15), PLAIN)


def truth(heads, shape=(1, 1, 8, 8), *, short_px=64.0):
    points = [torch.tensor(each, dtype=torch.float32).reshape(-1, 2) for each in heads]
    short = torch.full((len(points),), short_px)
    return Annotation(torch.zeros(shape), points, STRIDE, short)


def total(predicted, annotation, posterior):
    return sum(BayesianLoss(posterior)(predicted, annotation).values())


def crowd(number, seed=0):
    return torch.rand(number, 2, generator=torch.Generator().manual_seed(seed)) * 62


def gaussian(square):
    return math.exp(-square / (2 * 8**2))


def test_two_heads_on_a_map_of_two_cells_by_hand():
    """Cells are centred at x = 3.5 and 11.5, y = 3.5; the heads 2 px from one and 10 from the
    other, and 9 and 1."""
    predicted = torch.tensor([[[[0.9, 1.4]]]])
    left, right = gaussian(2**2), gaussian(10**2)
    other_left, other_right = gaussian(9**2), gaussian(1**2)
    mine = 0.9 * left / (left + other_left) + 1.4 * right / (right + other_right)
    others = 0.9 + 1.4 - mine
    terms = BayesianLoss(PLAIN)(predicted, truth([[(1.5, 3.5), (12.5, 3.5)]]))
    assert terms["heads"].item() == pytest.approx(abs(1 - mine) + abs(1 - others), rel=1e-5)
    assert terms["background"] == 0


@pytest.mark.parametrize("kind", ["margin", "inverse"])
def test_the_background_of_one_head_on_two_cells_by_hand(kind):
    """The head is 2 px from one cell and 10 px from the other; d is 0.15 of 100 px."""
    near, far = 2.0, 10.0
    predicted = torch.tensor([[[[0.9, 1.4]]]])
    dummy = [(15 - r) ** 2 if kind == "margin" else 15**2 / r**2 for r in (near, far)]
    pairs = zip((near, far), dummy, strict=True)
    heads = [gaussian(r**2) / (gaussian(r**2) + gaussian(b)) for r, b in pairs]
    expected = 0.9 * heads[0] + 1.4 * heads[1]
    posterior = Posterior(background=kind, background_ratio=0.15)
    terms = BayesianLoss(posterior)(predicted, truth([[(1.5, 3.5)]], short_px=100.0))
    assert terms["heads"].item() == pytest.approx(abs(1 - expected), rel=1e-4)
    assert terms["background"].item() == pytest.approx(2.3 - expected, rel=1e-4)


@pytest.mark.parametrize("posterior", BACKGROUNDS, ids=["margin", "inverse", "none"])
def test_every_cell_is_shared_out_whole(posterior):
    heads = crowd(30)
    share = posteriors(heads, (8, 8), 64.0, stride=STRIDE, options=posterior)
    assert len(share) == 30 + (posterior.background is not None)
    torch.testing.assert_close(share.sum(0), torch.ones(8, 8))
    assert share.std() > 0.01


def test_one_head_is_one_person_wherever_the_person_is_drawn():
    """Without background all cells are the only head's: any map of one person is right."""
    for cell in ((0, 0), (3, 5), (7, 7)):
        predicted = torch.zeros(1, 1, 8, 8)
        predicted[0, 0, *cell] = 1
        assert total(predicted, truth([[(20.0, 30.0)]]), PLAIN) == pytest.approx(0, abs=1e-6)
        assert total(predicted * 3, truth([[(20.0, 30.0)]]), PLAIN) == pytest.approx(2, abs=1e-5)


def test_with_background_a_person_drawn_far_away_is_wrong():
    posterior = Posterior(background_ratio=0.15)
    at, away = torch.zeros(2, 1, 1, 16, 16)
    at[0, 0, 2, 2] = away[0, 0, 14, 14] = 1
    annotation = truth([[(19.5, 19.5)]], short_px=128.0)
    assert total(at, annotation, posterior) < 0.2
    assert total(away, annotation, posterior) > 1.9


@pytest.mark.parametrize("posterior", BACKGROUNDS, ids=["margin", "inverse", "none"])
def test_an_image_of_nobody_is_all_background(posterior):
    predicted = torch.rand(1, 1, 8, 8, requires_grad=True)
    terms = BayesianLoss(posterior)(predicted, truth([[]]))
    torch.testing.assert_close(terms["background"], predicted.sum())
    assert terms["heads"] == 0
    sum(terms.values()).backward()
    torch.testing.assert_close(predicted.grad, torch.ones_like(predicted))


def test_a_batch_costs_the_mean_of_its_images_each_by_its_own_heads_and_size():
    predicted = torch.rand(3, 1, 8, 8)
    heads, short = [crowd(12).tolist(), [], crowd(3, seed=1).tolist()], (64.0, 100.0, 640.0)
    loss = BayesianLoss(Posterior(background_ratio=0.2))
    each = [
        loss(map_[None], truth([points], short_px=px))
        for map_, points, px in zip(predicted, heads, short, strict=True)
    ]
    batch = truth(heads, predicted.shape)
    batch = Annotation(batch.density, batch.heads, STRIDE, torch.tensor(short))
    for name, value in loss(predicted, batch).items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in each]).mean())


@pytest.mark.parametrize("posterior", BACKGROUNDS, ids=["margin", "inverse", "none"])
def test_descent_finds_the_people(posterior):
    predicted = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    grid = [(x, y) for x in (12, 32, 52) for y in (10, 30, 50)]
    annotation = truth([grid], short_px=800.0)
    first = total(predicted, annotation, posterior)
    for _ in range(200):
        loss = total(predicted, annotation, posterior)
        (gradient,) = torch.autograd.grad(loss, predicted)
        with torch.no_grad():
            predicted.sub_(0.01 * gradient).clamp_(min=0)
    assert total(predicted, annotation, posterior) < 0.2 * first
    assert predicted.sum().item() == pytest.approx(len(grid), abs=1)


def test_a_background_of_another_name_is_refused():
    with pytest.raises(RecipeError, match="background='far' is unknown"):
        Posterior(background="far")
    with pytest.raises(RecipeError, match="background_ratio"):
        Posterior(background_ratio=0.0)
