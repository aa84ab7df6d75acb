"""SANet's loss: squared errors, and how alike two maps are in every small neighbourhood.

Cao, Wang, Zhao and Su, "Scale Aggregation Network for Accurate and Efficient Crowd Counting",
ECCV 2018: L = L_E + 0.001 L_C, where L_E is the mean squared error over the map's pixels and L_C
is 1 minus the mean of the structural similarity (SSIM) of Wang, Bovik, Sheikh and Simoncelli,
"Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004.
"""

import torch
from torch import Tensor
from torch.nn import functional

from crowdrt.training.counting.truth import Annotation

ALPHA = 0.001
WINDOW, SIGMA = 11, 1.5  # cells
# The paper calls both small constants; these are Wang's for values up to 1. Maps of one cell per
# pixel stay far below, so that L_C is about 10^4 times a squared error of local means.
MEANS, VARIANCES = 0.01**2, 0.03**2


def sanet(predicted: Tensor, truth: Annotation) -> dict[str, Tensor]:
    """Return both terms of SANet's loss, times the number of cells: sums where it has means.

    The factor is the same for both terms, and Adam, which SANet learns with, does not see it.
    """
    squared = (predicted - truth.density).square().sum((1, 2, 3)).mean()
    unlike = (1 - similarity(predicted, truth.density)).sum((1, 2, 3)).mean()
    return {"squared": squared, "consistency": ALPHA * unlike}


def similarity(one: Tensor, other: Tensor) -> Tensor:
    """Return the SSIM of the neighbourhoods of every cell; beyond the border there is nobody.

    Args:
        one: (B, 1, h, w).
        other: the same.

    Returns:
        (B, 1, h, w), 1 where both are equal.
    """
    pictures = torch.cat((one, other, one * one, other * other, one * other), dim=1)
    mean1, mean2, square1, square2, product = local_means(pictures).chunk(5, dim=1)
    variance1, variance2 = square1 - mean1**2, square2 - mean2**2
    covariance = product - mean1 * mean2
    means = (2 * mean1 * mean2 + MEANS) / (mean1**2 + mean2**2 + MEANS)
    alike: Tensor = means * (2 * covariance + VARIANCES) / (variance1 + variance2 + VARIANCES)
    return alike


def local_means(pictures: Tensor) -> Tensor:
    """(B, C, h, w) -> the same, each cell the Gaussian-weighted mean of 11 x 11 around it."""
    away = torch.arange(WINDOW, device=pictures.device, dtype=pictures.dtype) - WINDOW // 2
    weight = (-away.square() / (2 * SIGMA**2)).exp()
    weight = weight / weight.sum()
    each = pictures.flatten(0, 1)[:, None]  # a Gaussian is separable: down, then across
    down = functional.conv2d(each, weight.view(1, 1, -1, 1), padding=(WINDOW // 2, 0))
    across = functional.conv2d(down, weight.view(1, 1, 1, -1), padding=(0, WINDOW // 2))
    return across.view_as(pictures)
