"""What a counting network is asked to get right: every cell, and every neighbourhood's count."""

from typing import assert_never

from torch import Tensor
from torch.nn import functional

from crowdrt.learning import TrainingConfig
from crowdrt.training.counting.bayesian import BayesianLoss
from crowdrt.training.counting.consistency import sanet
from crowdrt.training.counting.truth import Annotation, CountingLoss

FEW_PEOPLE = 10.0  # below this many, an image weighs about the same
BLOCK_CELLS = 4  # a neighbourhood is 4 x 4 cells: 32 x 32 pixels at stride 8


def count_loss(config: TrainingConfig) -> CountingLoss:
    """Return the loss that a recipe names."""
    match config.loss:
        case "blocks":
            return blocks
        case "squared":
            return squared
        case "bayesian":
            return BayesianLoss(config.posterior)
        case "sanet":
            return sanet
        case unknown:
            assert_never(unknown)


def blocks(predicted: Tensor, truth: Annotation) -> dict[str, Tensor]:
    """Return `density_loss` as a `CountingLoss`."""
    return {"blocks": density_loss(predicted, truth.density)}


def squared(predicted: Tensor, truth: Annotation) -> dict[str, Tensor]:
    """Return the squared errors of an image's cells, summed.

    CSRNet (arXiv:1802.10062, eq. 3) and CAN (arXiv:1811.10452, eq. 6) print half of it, as a mean
    over the batch; the code of both sums it over cells and batch, without the half, and so does
    SKT's, at batch 1. Here it is the sum over cells of the codes, which their learning rates
    belong to, and the mean over the batch of the papers.
    """
    return {"squared": (predicted - truth.density).square().sum((1, 2, 3)).mean()}


def density_loss(predicted: Tensor, target: Tensor, *, count_weight: float = 0.2) -> Tensor:
    """Squared error of every cell plus the absolute count error of every block of cells.

    The squared error is CSRNet's (arXiv:1802.10062, eq. 3). Alone it is content with a blurred
    map that is a little low everywhere; the block term makes that bias cost something. Each
    image's error is divided by the root of its count, as the spread of a count grows: otherwise
    the few dense crops of a batch drown the sparse ones.

    Args:
        predicted: (B, 1, h, w) people per cell.
        target: the same of the annotation.
        count_weight: weight of the block term.

    Returns:
        A scalar, the mean over the batch.
    """
    squared = (predicted - target).square().sum((1, 2, 3))
    blocks = (block_counts(predicted) - block_counts(target)).abs().sum((1, 2, 3))
    people = target.sum((1, 2, 3)).clamp(min=0)  # a teacher's map may sum to less than nobody
    return ((squared + count_weight * blocks) / (people + FEW_PEOPLE).sqrt()).mean()


def block_counts(density: Tensor) -> Tensor:
    """(B, 1, h, w) people per cell -> (B, 1, h/4, w/4) people per block; a rest is dropped."""
    return functional.avg_pool2d(density, BLOCK_CELLS, divisor_override=1)
