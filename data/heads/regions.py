"""Regions of interest: where on a photograph people are counted, and which cells that is.

WorldExpo'10 and Mall count people in a region only. On the photograph a region is one truth value
per pixel (`contracts.Region`); on a density map it is the share of each cell that it covers.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crowdrt.contracts import Region, Size
from crowdrt.errors import DataError

MIN_VERTICES = 3


def polygon_region(vertices: npt.NDArray[np.floating[Any]], size: Size, *, source: Path) -> Region:
    """Return the pixels whose centre lies in a polygon or on its edge, by the even-odd rule.

    Args:
        vertices: (N, 2) corners as x, y in pixels from 0, in order; the last one joins the first.
        size: height and width of the photograph.
        source: the file that the polygon is from, for the error.

    Raises:
        DataError: it is no polygon, or no pixel of the photograph lies in it.
    """
    corners = np.asarray(vertices, np.float64)
    if len(corners) < MIN_VERTICES:
        raise DataError(
            f"{source} has {len(corners)} corners, which enclose nothing",
            fix="copy it again from the published data set",
        )
    region = np.zeros(size, np.bool_)
    rows, columns = np.arange(size[0])[:, None], np.arange(size[1])
    edge = np.zeros(size, np.bool_)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        on_line = (columns - x1) * (y2 - y1) == (rows - y1) * (x2 - x1)
        between = (columns >= min(x1, x2)) & (columns <= max(x1, x2))
        edge |= on_line & between & (rows >= min(y1, y2)) & (rows <= max(y1, y2))
        if y1 != y2:
            crossing = x1 + (rows - y1) * (x2 - x1) / (y2 - y1)  # where the edge meets each row
            region ^= ((rows < y1) != (rows < y2)) & (columns < crossing)
    return check_region(region | edge, source=source)


def check_region(region: Region, *, source: Path) -> Region:
    """Refuse a region in which nobody could be counted."""
    if not region.any():
        raise DataError(
            f"{source}: no pixel of the photograph lies in the region of interest",
            fix="copy it again from the published data set",
        )
    return region


def cell_shares(
    region: Region, cells: tuple[int, int], *, span: Size, margin_px: float = 0.0
) -> npt.NDArray[np.float32]:
    """Return which share of each cell of a density map lies in the region.

    Departure: public code keeps or drops a cell whole, which at stride 8 moves the region's border
    by up to 4 px. A cell that reaches beyond the photograph is judged by its part on it, or by the
    nearest pixel, so that a region of the whole photograph leaves every cell as it is.

    Args:
        region: of the photograph.
        cells: rows and columns of the map.
        span: height and width under the map in pixels of the photograph.
        margin_px: by which the map begins above and left of the photograph.

    Returns:
        (rows, columns) from 0 to 1.
    """
    down, across = (
        overlaps(num, extent, num_pixels, margin_px)
        for num, extent, num_pixels in zip(cells, span, region.shape, strict=True)
    )
    share: npt.NDArray[np.float64] = down @ region @ across.T
    return share.astype(np.float32)


def overlaps(
    num_cells: int, span_px: int, num_pixels: int, margin_px: float
) -> npt.NDArray[np.float64]:
    """Return which share of each cell's length each pixel has, on one axis: rows add up to 1."""
    edges = np.arange(num_cells + 1) * (span_px / num_cells) - margin_px
    start = np.clip(edges[:-1], 0, num_pixels)[:, None]
    end = np.clip(edges[1:], 0, num_pixels)[:, None]
    pixels = np.arange(num_pixels)
    length = np.clip(np.minimum(end, pixels + 1) - np.maximum(start, pixels), 0, None)
    beyond = np.flatnonzero(end[:, 0] <= start[:, 0])  # cells that do not meet the photograph
    length[beyond, np.minimum(start[beyond, 0], num_pixels - 1).astype(int)] = 1
    share: npt.NDArray[np.float64] = length / length.sum(axis=1, keepdims=True)
    return share
