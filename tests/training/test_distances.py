"""Distances between a student's and its teacher's features: identities and cases by hand."""

import pytest
import torch

from crowdrt.training.transfer.distances import alike, inter_distance, intra_distance, relation


def features(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator) for shape in shapes]


SHAPES = ((2, 3, 8, 8), (2, 5, 4, 4), (2, 4, 4, 4))
SUM = {"normalise": False, "mean": False}


def test_scaled_features_have_no_cosine_distance():
    ours = features(*SHAPES)
    theirs = [7.5 * each for each in ours]
    assert intra_distance(ours, theirs, "cosine", mean=False).item() == pytest.approx(0, abs=1e-3)
    assert intra_distance(ours, theirs, "l2", mean=False) > 1


def test_cosine_of_known_angles():
    """A right angle costs 1, an opposite direction 2, the same direction nothing."""
    ours = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]).T.reshape(1, 2, 1, 3)
    theirs = torch.tensor([[0.0, 3.0], [-2.0, -2.0], [0.0, 0.5]]).T.reshape(1, 2, 1, 3)
    assert intra_distance([ours], [theirs], "cosine", mean=False).item() == pytest.approx(3)
    assert intra_distance([ours], [theirs], "cosine", mean=True).item() == pytest.approx(1)


def test_l2_by_hand():
    """(1, 2) against (3, 5): 4 + 9; the sum over two locations, of two pairs."""
    ours = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1).expand(1, 2, 1, 2)
    theirs = torch.tensor([3.0, 5.0]).reshape(1, 2, 1, 1).expand(1, 2, 1, 2)
    assert intra_distance([ours] * 2, [theirs] * 2, "l2", mean=False).item() == 52
    assert intra_distance([ours] * 2, [theirs] * 2, "l2", mean=True).item() == 26


@pytest.mark.parametrize("pairs", ["dense", "sparse"])
@pytest.mark.parametrize("normalise", [True, False])
def test_equal_features_have_equal_relations(pairs, normalise):
    ours = features(*SHAPES)
    same = [each.clone() for each in ours]
    other = features(*SHAPES, seed=1)
    options = {"normalise": normalise, "mean": False}
    assert inter_distance(ours, same, pairs, **options) == 0
    assert inter_distance(ours, other, pairs, **options) > 1e-3


def test_a_relation_by_hand():
    """Equation 5: two channels against one over two locations."""
    first = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 1, 2)
    second = torch.tensor([[5.0, 6.0]]).reshape(1, 1, 1, 2)
    expected = [[(1 * 5 + 2 * 6) / 2], [(3 * 5 + 4 * 6) / 2]]
    assert relation(first, second).tolist() == [expected]


def test_dense_relations_are_all_pairs_and_sparse_ones_neighbours():
    """Features that differ in the first layer alone: dense sees it in two pairs, sparse in one."""
    ones = [torch.ones(1, 1, 1, 1)] * 3
    changed = [torch.full((1, 1, 1, 1), 3.0), *ones[1:]]
    assert inter_distance(changed, ones, "dense", **SUM).item() == 2 * (3 - 1) ** 2
    assert inter_distance(changed, ones, "sparse", **SUM).item() == (3 - 1) ** 2


def test_a_relation_forgets_where_but_not_with_what():
    """Shuffling the locations of all layers alike changes no relation, of one alone does."""
    ours = features((1, 3, 4, 4), (1, 5, 4, 4))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    moved = [each.flatten(2)[..., order].reshape(each.shape) for each in ours]
    assert inter_distance(ours, moved, "dense", **SUM).item() == pytest.approx(0, abs=1e-9)
    assert inter_distance(ours, [ours[0], moved[1]], "dense", **SUM) > 1e-4


def test_features_are_pooled_to_the_smallest_by_their_maxima():
    large, small = features((1, 1, 4, 6), (1, 1, 2, 3))
    pooled, kept = alike([large, small], normalise=False)
    assert torch.equal(kept, small)
    assert pooled[0, 0, 1, 2] == large[0, 0, 2:4, 4:6].max()


def test_normalised_features_forget_their_scale():
    ours = features(*SHAPES)
    theirs = [9 * each + 2 for each in ours]
    options = {"normalise": True, "mean": False}
    assert inter_distance(ours, theirs, "dense", **options).item() == pytest.approx(0, abs=2e-2)
    assert inter_distance(ours, theirs, "dense", **SUM) > 100


@pytest.mark.parametrize("mean", [True, False])
def test_a_batch_costs_the_mean_of_its_images(mean):
    ours, theirs = features(*SHAPES), features(*SHAPES, seed=1)
    for distance in (
        lambda a, b: intra_distance(a, b, "cosine", mean=mean),
        lambda a, b: intra_distance(a, b, "l2", mean=mean),
        lambda a, b: inter_distance(a, b, "dense", normalise=True, mean=mean),
    ):
        each = [
            distance([f[i : i + 1] for f in ours], [f[i : i + 1] for f in theirs]) for i in (0, 1)
        ]
        torch.testing.assert_close(distance(ours, theirs), torch.stack(each).mean())
        assert each[0] != each[1]


def test_descending_brings_a_student_nearer():
    ours = [each.requires_grad_() for each in features(*SHAPES)]
    theirs = features(*SHAPES, seed=1)
    total = intra_distance(ours, theirs, "cosine", mean=True)
    total = total + inter_distance(ours, theirs, "dense", normalise=False, mean=True)
    total.backward()
    assert all(each.grad.abs().sum() > 0 for each in ours)
    nearer = [(each - 0.1 * each.grad).detach() for each in ours]
    after = intra_distance(nearer, theirs, "cosine", mean=True)
    after = after + inter_distance(nearer, theirs, "dense", normalise=False, mean=True)
    assert after < total
