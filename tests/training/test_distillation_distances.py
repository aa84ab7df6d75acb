"""Distances of the other distillation papers: identities and cases by hand."""

import math

import pytest
import torch

from crowdrt.training.distillation.distances import (
    attention,
    attention_distance,
    boundary_distance,
    hint_distance,
    selectivity_distance,
)

SHAPES = ((2, 3, 8, 8), (2, 5, 4, 4))
HALF = math.sqrt(0.5)


def features(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def maps(*channels):
    """One image of some channels, each a row of cells."""
    return torch.tensor(channels, dtype=torch.float32).reshape(1, len(channels), 1, -1)


def test_attention_forgets_scale_and_how_many_channels_share_it():
    """Where a layer looks stays: at 2.5 times the strength, or with every channel twice."""
    ours = features(*SHAPES)
    for same in ([2.5 * f for f in ours], [f.repeat(1, 2, 1, 1) for f in ours], [-f for f in ours]):
        assert attention_distance(ours, same, mean=True).item() == pytest.approx(0, abs=1e-6)
    assert attention_distance(ours, features(*SHAPES, seed=1), mean=True) > 0.1


def test_attention_by_hand():
    """Squares summed by location: (9 + 16, 0) against (0, 4): a right angle, half of root 2."""
    [there, here] = attention(maps([3, 1], [-4, 0]))[0].tolist()
    assert there / here == pytest.approx(9 + 16)
    ours, theirs = maps([3, 0], [-4, 0]), maps([0, 2])
    assert attention(ours).tolist() == [[1, 0]]
    assert attention_distance([ours], [theirs], mean=True).item() == pytest.approx(HALF)
    both = attention_distance([ours, ours], [theirs, theirs], mean=True)
    assert both.item() == pytest.approx(2 * HALF)


def test_attention_is_divided_by_its_elements_as_beta_is():
    """10^3 / (number of elements) / 2 of a right angle: 1000 / 2 / 2 * sqrt 2."""
    ours, theirs = maps([3, 0]), maps([0, 2])
    beta = 1000 * attention_distance([ours], [theirs], mean=False)
    assert beta.item() == pytest.approx(1000 / 2 * HALF)
    wide = [torch.nn.functional.pad(each, (0, 6)) for each in (ours, theirs)]
    assert attention_distance([wide[0]], [wide[1]], mean=False).item() == pytest.approx(HALF / 8)
    assert attention_distance([wide[0]], [wide[1]], mean=True).item() == pytest.approx(HALF)


def test_a_student_that_looks_nowhere_or_just_as_its_teacher_has_a_gradient():
    for ours in (maps([0, 0, 0]), maps([1, 2, 3])):
        mine = ours.clone().requires_grad_()
        attention_distance([mine], [maps([1, 2, 3])], mean=True).backward()
        assert mine.grad.isfinite().all()


def test_selectivity_forgets_the_order_the_scale_and_the_number_of_channels():
    ours = features(*SHAPES)
    shuffled = [f.flip(1) for f in ours]
    scaled = [f * torch.arange(1.0, f.shape[1] + 1).reshape(1, -1, 1, 1) for f in ours]
    twice = [f.repeat(1, 2, 1, 1) for f in ours]
    for same in (shuffled, scaled, twice):
        assert selectivity_distance(ours, same).item() == pytest.approx(0, abs=1e-6)
    assert selectivity_distance(ours, features(*SHAPES, seed=1)) > 0.05


def test_selectivity_by_hand():
    """Two channels at right angles against one at 45 degrees to both.

    Among the two, squared products are 1, 0, 0, 1: 1/2 on average. The other's own is 1, and both
    of the products between them square to 1/2. So 1/2 + 1 - 2 * 1/2.
    """
    ours, theirs = maps([7, 0], [0, 2]), maps([3, 3])
    assert selectivity_distance([ours], [theirs]).item() == pytest.approx(0.5)
    assert selectivity_distance([theirs], [ours]).item() == pytest.approx(0.5)
    assert selectivity_distance([ours] * 3, [theirs] * 3).item() == pytest.approx(1.5)


def test_the_kernel_squares_the_product():
    """30 degrees: products of 1, cos 30 and 1; 1 + 1 - 2 * 3/4."""
    ours, theirs = maps([1, 0]), maps([math.sqrt(3), 1])
    assert selectivity_distance([ours], [theirs]).item() == pytest.approx(0.5)
    assert selectivity_distance([-ours], [ours]).item() == pytest.approx(0, abs=1e-6)


def test_a_hint_by_hand():
    """(1, 2) against (3, 5): half of 4 + 9, at two locations."""
    ours, theirs = maps([1, 1], [2, 2]), maps([3, 3], [5, 5])
    assert hint_distance([ours], [theirs], mean=False).item() == 13
    assert hint_distance([ours], [theirs], mean=True).item() == 6.5
    assert hint_distance([ours], [ours], mean=False) == 0


def test_boundaries_are_kept_by_whoever_is_on_their_side_by_the_margin():
    """How strongly a neuron is active does not matter, nor how far it is from it."""
    theirs = maps([0.1, -0.1, 5, -5])
    ours = maps([1, -1, 30, -40])
    assert boundary_distance([ours], [theirs], margin=1, mean=False) == 0
    assert boundary_distance([-ours], [theirs], margin=1, mean=False) > 16
    assert boundary_distance([ours], [theirs], margin=2, mean=False) == 2


def test_boundaries_by_hand():
    """Active: (1 - 0.25)^2 and (1 + 2)^2; not: (1 + 0.5)^2, and at 0 too, (1 - 0.25)^2."""
    ours, theirs = maps([0.25, -2, 0.5, -0.25]), maps([3, 1, -1, 0])
    total = 0.75**2 + 3**2 + 1.5**2 + 0.75**2
    assert boundary_distance([ours], [theirs], margin=1, mean=False).item() == pytest.approx(total)
    assert boundary_distance([ours], [theirs], margin=1, mean=True).item() == pytest.approx(
        total / 4
    )


def test_an_earlier_layers_boundaries_weigh_half():
    ours, theirs = maps([-1]), maps([1])
    layers = [[ours, theirs, theirs], [theirs, ours, theirs], [theirs, theirs, ours]]
    costs = [boundary_distance(each, [theirs] * 3, margin=1, mean=False).item() for each in layers]
    assert costs == [1, 2, 4]


DISTANCES = {
    "attention sum": lambda a, b: attention_distance(a, b, mean=False),
    "attention mean": lambda a, b: attention_distance(a, b, mean=True),
    "selectivity": selectivity_distance,
    "hint sum": lambda a, b: hint_distance(a, b, mean=False),
    "hint mean": lambda a, b: hint_distance(a, b, mean=True),
    "boundary sum": lambda a, b: boundary_distance(a, b, margin=1, mean=False),
    "boundary mean": lambda a, b: boundary_distance(a, b, margin=1, mean=True),
}


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_a_batch_costs_the_mean_of_its_images(distance):
    ours, theirs = features(*SHAPES), features(*SHAPES, seed=1)
    each = [distance([f[i : i + 1] for f in ours], [f[i : i + 1] for f in theirs]) for i in (0, 1)]
    torch.testing.assert_close(distance(ours, theirs), torch.stack(each).mean())
    assert each[0] != each[1]


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_descending_brings_a_student_nearer(distance):
    ours = [each.requires_grad_() for each in features(*SHAPES)]
    theirs = features(*SHAPES, seed=1)
    before = distance(ours, theirs)
    before.backward()
    assert all(each.grad.abs().sum() > 0 for each in ours)
    length = sum(each.grad.square().sum() for each in ours).sqrt()
    nearer = [(each - 0.1 * each.grad / length).detach() for each in ours]
    assert distance(nearer, theirs) < before
