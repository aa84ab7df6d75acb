"""How alike two density maps of one photograph are: PSNR and SSIM, in units of the reference.

Where crowd-counting papers print them (CSRNet, arXiv:1802.10062, after Sindagi and Patel,
arXiv:1708.00953), a map is held against the annotations' map, and both are first resized to the
photograph's size and normalised. Here both maps come from one network, so cell stands beside cell:
nothing is resized, which would smooth differences away, and both are measured in the reference's
range, its largest value minus its smallest. Normalised each by itself, a map that counts twice as
many people would be a perfect copy.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Map = npt.NDArray[np.float32]  # (h, w) people per cell
Cells = npt.NDArray[np.float64]

MAX_PSNR_DB = 150.0  # of equal maps, where the ratio is infinite; JSON has no infinity
WINDOW, SIGMA = 11, 1.5  # cells; the Gaussian window of Wang et al.
K1, K2 = 0.01, 0.03  # theirs as well


class MapQuality(NamedTuple):
    """How alike two maps are; None where that is not defined."""

    psnr_db: float | None = None
    ssim: float | None = None


def map_quality(density: Map | None, reference: Map | None) -> MapQuality:
    """Compare two maps of one photograph; without one of them, or on other grids, not at all."""
    if density is None or reference is None or density.shape != reference.shape:
        return MapQuality()
    return MapQuality(psnr_db=psnr_db(density, reference), ssim=ssim(density, reference))


def psnr_db(density: Map, reference: Map) -> float | None:
    """Return the peak signal-to-noise ratio in decibels: 10 log10(range^2 / MSE).

    Returns:
        At most `MAX_PSNR_DB`, which is that of equal maps; None where the reference is flat, so
        that there is no signal.
    """
    span = range_of(reference)
    if not span:
        return None
    noise = float(((_cells(density) - _cells(reference)) ** 2).mean())
    return min(MAX_PSNR_DB, 10 * float(np.log10(span**2 / noise))) if noise else MAX_PSNR_DB


def ssim(density: Map, reference: Map) -> float | None:
    """Return the mean structural similarity, 1 for equal maps and never more.

    Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error Visibility to
    Structural Similarity", IEEE TIP 2004, equation 13, with its constants: a Gaussian window of
    11x11 cells and sigma 1.5, at every place where it lies within the map.

    Returns:
        None where the reference is flat, or the map smaller than the window.
    """
    span = range_of(reference)
    if not span or min(reference.shape) < WINDOW:
        return None
    x, y = _cells(density), _cells(reference)
    mean_x, mean_y = smooth(x), smooth(y)
    variances = smooth(x * x) + smooth(y * y) - mean_x**2 - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((luminance * (2 * covariance + c2) / (variances + c2)).mean())


def range_of(reference: Map) -> float:
    """Return the largest value minus the smallest, in people per cell."""
    return float(reference.max()) - float(reference.min())


def smooth(cells: Cells) -> Cells:
    """Return the Gaussian means at every place where the window fits: (h - 10, w - 10)."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        cells = np.lib.stride_tricks.sliding_window_view(cells, WINDOW, axis=axis) @ weights
    return cells


def _cells(density: Map) -> Cells:
    return np.asarray(density, np.float64)
