"""How far a student's features are from its teacher's, as the papers beside SKT measure it.

Features come in pairs, a student's and its teacher's of the same layer and size. Everything is
computed in float32 and is a mean over the batch, so that equal parts of a batch average to the
whole; layers are added up.
"""

import torch
from torch import Tensor
from torch.nn import functional

from crowdrt.training.transfer.distances import Features, intra_distance, reduced


def attention_distance(ours: Features, theirs: Features, *, mean: bool) -> Tensor:
    """Return AT's distance of where layers look, a scalar.

    Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv:1612.03928,
    equation 2: half the Euclidean distance of the two layers' attention maps, each of length 1. The
    authors' code has squares there, without the half.

    Args:
        ours: the student's, each (B, C, h, w).
        theirs: the teacher's, of any number of channels.
        mean: leave out what the paper's beta, "10^3 divided by the number of elements", divides by.
            A map of length 1 is one of mean square 1 over the root of its number of locations, so
            that the distance is a root of a mean, and the same for an image of any size.
    """
    distances = []
    for pair in zip(ours, theirs, strict=True):
        mine, other = map(attention, pair)
        distance = torch.linalg.vector_norm(mine - other, dim=1) / 2
        distances.append(distance.mean() / (1 if mean else mine.shape[1]))
    return torch.stack(distances).sum()


def attention(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w): channels' squares summed by location, scaled to length 1."""
    return functional.normalize(features.float().square().sum(1).flatten(1))


def selectivity_distance(ours: Features, theirs: Features) -> Tensor:
    """Return NST's distance of what channels select, a scalar.

    Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017,
    arXiv:1707.01219: the squared maximum mean discrepancy between the two layers' channels, each a
    map of length 1, under the polynomial kernel (x . y + c)^d with d = 2 and c = 0. Channels are
    samples of a distribution, so their number and order do not matter.

    Args:
        ours: the student's, each (B, C, h, w).
        theirs: the teacher's, of any number of channels.
    """
    distances = []
    for pair in zip(ours, theirs, strict=True):
        mine, other = (functional.normalize(each.float().flatten(2), dim=2) for each in pair)
        distances.append(kernel(mine, mine) + kernel(other, other) - 2 * kernel(mine, other))
    return torch.stack(distances).sum()


def kernel(first: Tensor, second: Tensor) -> Tensor:
    """(B, m, n) and (B, k, n) -> the mean of (x . y)^2 over all pairs of maps, and the batch."""
    return (first @ second.transpose(1, 2)).square().mean((1, 2)).mean()


def hint_distance(ours: Features, theirs: Features, *, mean: bool) -> Tensor:
    """Return FitNets' distance to a hint, a scalar.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550, equation 3: half
    the squared Euclidean distance.

    Args:
        ours: what the regressor makes of the student's feature, (B, C, h, w).
        theirs: the hint, of the same shape.
        mean: over locations instead of a sum, as the authors' code has it.
    """
    return intra_distance(ours, theirs, "l2", mean=mean) / 2


def boundary_distance(ours: Features, theirs: Features, *, margin: float, mean: bool) -> Tensor:
    """Return AB's distance of which neurons are active where, a scalar.

    Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden
    Neurons", AAAI 2019, arXiv:1811.03233: the squared hinge that stands for the number of neurons
    that are active in one network alone. A layer weighs half as much as the next, as in the
    authors' code, which scales the sum by 3/1000 besides.

    Args:
        ours: what the connectors make of the student's values before the ReLU, each (B, C, h, w).
        theirs: the teacher's values before the ReLU, of the same shapes.
        margin: by which a value has to be on its side.
        mean: over locations instead of a sum.
    """
    total = torch.zeros((), device=ours[0].device)
    for mine, other in zip(ours, theirs, strict=True):
        side = torch.where(other > 0, 1.0, -1.0)
        hinge = functional.relu(margin - side * mine.float()).square()
        total = total / 2 + reduced(hinge.sum(1), mean)
    return total
