"""How far a student's features are from its teacher's: layer by layer, and between layers.

Liu et al., "Efficient Crowd Counting via Structured Knowledge Transfer", ACM MM 2020,
arXiv:2003.10120, equations 3 to 6. Features come in pairs of equal shape, a student's behind its
adapters; everything is computed in float32 and is a mean over the batch, so that equal parts of a
batch average to the whole. `mean` divides each pair's sum by its number of terms: the paper's sums
hold as many terms as the image has pixels, and would drown the error of a density map that weighs
each image by its people.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from crowdrt.learning import Inter, Intra

Features = Sequence[Tensor]  # each (B, C, h, w), as many channels as the teacher has there


def intra_distance(ours: Features, theirs: Features, metric: Intra, *, mean: bool) -> Tensor:
    """Return the distance of features at the same layer (equation 4), a scalar.

    Args:
        ours: the student's.
        theirs: the teacher's.
        metric: "cosine", 1 - cos over the channels of a location, whatever their length; or
            "l2", the squared Euclidean distance, which the paper found too strict.
        mean: over locations instead of a sum.
    """
    pairs = zip(ours, theirs, strict=True)
    return torch.stack([reduced(by_location(*pair, metric), mean) for pair in pairs]).sum()


def by_location(ours: Tensor, theirs: Tensor, metric: Intra) -> Tensor:
    """(B, C, h, w) twice -> (B, h, w) distances."""
    a, b = ours.float(), theirs.float()
    if metric == "cosine":
        return 1 - functional.cosine_similarity(a, b, dim=1)
    return (a - b).square().sum(1)


def inter_distance(
    ours: Features, theirs: Features, pairs: Inter, *, normalise: bool, mean: bool
) -> Tensor:
    """Return the distance of the relations between layers (equation 6), a scalar.

    Args:
        ours: the student's features, of any sizes.
        theirs: the teacher's.
        pairs: "dense", every layer with every later one; or "sparse", neighbours alone.
        normalise: instance-normalise first, as the code of SKT's authors does.
        mean: over the entries of a relation instead of a sum.
    """
    mine, others = (alike(features, normalise=normalise) for features in (ours, theirs))
    distances = [
        reduced((relation(mine[i], mine[j]) - relation(others[i], others[j])).square(), mean)
        for i, j in chosen(pairs, len(mine))
    ]
    return torch.stack(distances).sum()


def chosen(pairs: Inter, number: int) -> Iterator[tuple[int, int]]:
    """Yield which layers are related, the earlier one first."""
    for i, j in combinations(range(number), 2):
        if pairs == "dense" or j == i + 1:
            yield i, j


def alike(features: Features, *, normalise: bool) -> list[Tensor]:
    """Return the features in float32, max-pooled to the size of the smallest."""
    size = min((feature.shape[2:] for feature in features), key=lambda size: size[0] * size[1])
    pooled = [functional.adaptive_max_pool2d(each.float(), list(size)) for each in features]
    return [functional.instance_norm(each) for each in pooled] if normalise else pooled


def relation(first: Tensor, second: Tensor) -> Tensor:
    """(B, m, h, w) and (B, n, h, w) -> the FSP matrix (B, m, n) of equation 5."""
    cells = first.shape[2] * first.shape[3]
    return first.flatten(2) @ second.flatten(2).transpose(1, 2) / cells


def reduced(distances: Tensor, mean: bool) -> Tensor:
    """(B, ...) -> the mean over the batch of each image's sum, or mean."""
    each = distances.flatten(1)
    return (each.mean(1) if mean else each.sum(1)).mean()
