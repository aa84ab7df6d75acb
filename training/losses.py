"""What a counting network is asked to get right: every cell, and every neighbourhood's count."""

import torch
from torch import Tensor
from torch.nn import functional

BLOCK_CELLS = 4  # a neighbourhood is 4 x 4 cells: 32 x 32 pixels at stride 8


def density_loss(predicted: Tensor, target: Tensor, *, count_weight: float = 0.1) -> Tensor:
    """Squared error of every cell plus the absolute count error of every block of cells.

    The squared error is CSRNet's (arXiv:1802.10062, eq. 3), summed over an image and averaged
    over the batch. Alone it is content with a blurred map that is a little low everywhere; the
    block term makes that bias cost something.

    Args:
        predicted, target: (B, 1, h, w) people per cell.
        count_weight: weight of the block term.

    Returns:
        A scalar.
    """
    num_images = predicted.shape[0]
    squared = functional.mse_loss(predicted, target, reduction="sum")
    blocks = torch.abs(block_counts(predicted) - block_counts(target)).sum()
    return (squared + count_weight * blocks) / num_images


def block_counts(density: Tensor) -> Tensor:
    """(B, 1, h, w) people per cell -> (B, 1, h/4, w/4) people per block; a rest is dropped."""
    return functional.avg_pool2d(density, BLOCK_CELLS, divisor_override=1)
