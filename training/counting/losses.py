"""What a counting network is asked to get right: every cell, and every neighbourhood's count."""

from torch import Tensor
from torch.nn import functional

FEW_PEOPLE = 10.0  # below this many, an image weighs about the same
BLOCK_CELLS = 4  # a neighbourhood is 4 x 4 cells: 32 x 32 pixels at stride 8


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
    people = target.sum((1, 2, 3))
    return ((squared + count_weight * blocks) / (people + FEW_PEOPLE).sqrt()).mean()


def block_counts(density: Tensor) -> Tensor:
    """(B, 1, h, w) people per cell -> (B, 1, h/4, w/4) people per block; a rest is dropped."""
    return functional.avg_pool2d(density, BLOCK_CELLS, divisor_override=1)
