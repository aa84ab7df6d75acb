"""Density maps: annotated heads spread over cells so that the map sums to the count."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crowdrt.errors import DataError
from crowdrt.lazy import require

if TYPE_CHECKING:
    import scipy.spatial
    import scipy.special

FloatArray = npt.NDArray[np.floating[Any]]

NEIGHBOURS = 3
BETA = 0.1  # of the sum of the distances to the 3 nearest heads
LONELY_SIGMA_PX = (
    15.0  # where there are too few heads for a rule: the papers' sigma for sparse crowds
)
MIN_SIGMA_PX = 1.0  # heads annotated twice have distance 0
CHUNK = 1024  # heads spread at a time, which bounds the memory


def density_map(
    heads: FloatArray, *, height: int, width: int, sigma: float | FloatArray, stride: int
) -> npt.NDArray[np.float32]:
    """Spread each annotated head over the cells around it, so that the map sums to the count.

    One Gaussian per head follows Lempitsky and Zisserman, "Learning To Count Objects in Images",
    NIPS 2010. Unlike theirs, each Gaussian is integrated over every cell and normalised on the
    grid, so that a head near the border, or one much smaller than a cell, still adds exactly one
    person. Heads outside the image are left out: x must lie in [0, width), y in [0, height).

    Args:
        heads: (N, 2) head centres as x, y in input pixels; 0 is the centre of the first pixel.
        height: input height in pixels, a multiple of `stride`.
        width: input width in pixels, a multiple of `stride`.
        sigma: standard deviation of the spread in input pixels, one for all or (N,) one per head.
        stride: input pixels per output cell; 8 for CSRNet.

    Returns:
        (height / stride, width / stride) float32 people per cell; `sum()` equals the number of
        heads inside.

    Raises:
        DataError: a size that is no multiple of the stride, or a sigma that is not positive.
    """
    check_grid(height, width, stride)
    spread = check_sigma(sigma, num_heads=len(heads))
    x, y = np.asarray(heads, np.float64).reshape(-1, 2).T
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y, spread = x[inside], y[inside], spread[inside] / stride

    density = np.zeros((height // stride, width // stride))
    for start in range(0, len(x), CHUNK):
        part = slice(start, start + CHUNK)
        rows = shares(y[part], spread[part], num_cells=height // stride, stride=stride)
        columns = shares(x[part], spread[part], num_cells=width // stride, stride=stride)
        density += rows.T @ columns  # a Gaussian is separable: one outer product per head
    return density.astype(np.float32)


def shares(
    position: FloatArray, sigma: FloatArray, *, num_cells: int, stride: int
) -> npt.NDArray[np.float64]:
    """Return the share of each head that falls on each cell of one axis.

    Args:
        position: (N,) in input pixels.
        sigma: (N,) in cells.
        num_cells: length of the axis.
        stride: input pixels per cell.

    Returns:
        (N, num_cells); every row sums to 1.
    """
    # The last half pixel lies beyond the last edge; on the edge even the smallest sigma has mass.
    centre = np.minimum((position + 0.5) / stride, num_cells)
    return shares_between(np.arange(num_cells + 1.0), centre, sigma, extent=num_cells)


def shares_between(
    edges: FloatArray, centre: FloatArray, sigma: FloatArray, *, extent: float
) -> npt.NDArray[np.float64]:
    """Return the share of each head between each two edges, of a head that lies in [0, extent].

    Args:
        edges: (C + 1,) of the cells, rising.
        centre: (N,) of the heads, in the same unit, from 0 to `extent`.
        sigma: (N,) in the same unit.
        extent: length of the whole axis, of which the cells may be a part.

    Returns:
        (N, C); a row sums to 1 where the cells cover the whole axis.
    """
    if TYPE_CHECKING:
        special = scipy.special
    else:
        special = require("scipy.special", extra="cpu")
    bounds = np.append(edges, (0, extent))
    below = special.erf((bounds - centre[:, None]) / (np.sqrt(2) * sigma[:, None]))
    start, end = below[:, -2:].T
    share: npt.NDArray[np.float64] = np.diff(below[:, :-2], axis=1) / (end - start)[:, None]
    return share


def check_grid(height: int, width: int, stride: int) -> None:
    """Refuse an input size that does not divide into cells."""
    if stride < 1 or height < 1 or width < 1 or height % stride or width % stride:
        raise DataError(
            f"{width}x{height} px does not divide into cells of {stride} px",
            fix="pad the image first (crowdrt.data.preprocess.pad_to_stride), or crop it",
        )


def check_sigma(sigma: float | FloatArray, *, num_heads: int) -> npt.NDArray[np.float64]:
    """Return one sigma per head, or refuse what is no width of a Gaussian."""
    values = np.asarray(sigma, np.float64)
    if values.shape not in ((), (num_heads,)):
        raise DataError(
            f"{values.shape} sigmas for {num_heads} heads", fix="pass one sigma, or one per head"
        )
    wrong = values[~(np.isfinite(values) & (values > 0))]
    if wrong.size:
        raise DataError(
            f"sigma={wrong.flat[0]} is no width of a Gaussian",
            fix="use a positive number of pixels, for example 15, or adaptive_sigma(heads)",
        )
    return np.broadcast_to(values, (num_heads,))


def adaptive_sigma(heads: FloatArray) -> npt.NDArray[np.float64]:
    """Return a sigma per head that follows how closely people stand: geometry-adaptive kernels.

    0.1 times the sum of the distances to the 3 nearest heads, as SKT and CSRNet compute it; this
    is MCNN's 0.3 times their mean (Zhang et al., CVPR 2016). Departures: never under 1 px, since
    heads annotated twice would get 0; with fewer than 4 heads in the image, 15 px for each.

    Args:
        heads: (N, 2) head centres as x, y in pixels, those outside the image included.

    Returns:
        (N,) pixels.
    """
    if len(heads) <= NEIGHBOURS:
        return np.full(len(heads), LONELY_SIGMA_PX)
    if TYPE_CHECKING:
        spatial = scipy.spatial
    else:
        spatial = require("scipy.spatial", extra="cpu")
    points = np.asarray(heads, np.float64)
    nearest = spatial.cKDTree(points).query(points, k=NEIGHBOURS + 1)  # itself is the first
    distances: npt.NDArray[np.float64] = np.asarray(nearest[0])
    sigma: npt.NDArray[np.float64] = np.maximum(BETA * distances.sum(axis=1), MIN_SIGMA_PX)
    return sigma
