"""An image of any size as tiles of one size, for networks that take no other.

DeepCount divides an image into tiles of 384x512 px and adds up their counts (Chen et al., ECAI
2020, arXiv:1908.03314, section 3.6). There are two ways to fill the tiles:

* `resize`, the paper's: the image is stretched to whole tiles, as many across as come nearest to
  its width, and as many down as then come nearest to its shape. Width and shape each change by a
  third at most, once they fill three quarters of a tile; what is smaller grows to one tile.
  Nobody comes or goes, but heads change their size and shape, which the network has to have
  learned.
* `pad`: every pixel stays as it is, and grey is added at the bottom and the right up to whole
  tiles. What it costs: the padding is counted as empty scene. It takes as long as a scene, and
  what a network imagines there becomes part of the count.

Either way a head on the border of two tiles is seen by each in part. Tiles are made one batch at
a time: beside the image itself no more than that is held.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from crowdrt.contracts import Preprocessing, Size, UInt8Image
from crowdrt.errors import DataError

TileMode = Literal["resize", "pad"]
MODES: tuple[TileMode, ...] = get_args(TileMode)


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How tiles lie on an image; tile k is in row `k // columns`, column `k % columns`."""

    mode: TileMode
    image: Size  # height, width in pixels
    tile: Size
    rows: int
    columns: int

    def __len__(self) -> int:
        return self.rows * self.columns

    @property
    def span(self) -> Size:
        """Height and width that the tiles cover, in pixels of the image and its padding."""
        if self.mode == "resize":
            return self.image
        return self.rows * self.tile[0], self.columns * self.tile[1]


def tiling_of(image: Size, tile: Size, mode: TileMode = "resize") -> Tiling:
    """Return how tiles of (height, width) pixels lie on an image of any size.

    In whole numbers, halves rounded up, as the Python 2 of the published code did.
    """
    (height, width), (tall, wide) = image, tile
    rows, columns = -(-height // tall), -(-width // wide)
    if mode == "resize":
        columns = max(1, (2 * width + wide) // (2 * wide))
        rows = max(1, (2 * wide * columns * height + width * tall) // (2 * width * tall))
    return Tiling(mode=mode, image=image, tile=tile, rows=rows, columns=columns)


def check_mode(text: str) -> TileMode:
    """Read the name of a mode.

    Raises:
        DataError: there is no such mode.
    """
    for mode in MODES:
        if text == mode:
            return mode
    raise DataError(
        f"--tiles {text!r} is unknown",
        fix=f"use --tiles {' or --tiles '.join(MODES)}: stretch a photograph to whole tiles, or "
        "add grey around it",
    )


def tiles_of(
    image: UInt8Image, tiling: Tiling, preprocessing: Preprocessing, *, batch: int = 1
) -> Iterator[UInt8Image]:
    """Cut an image into tiles, row by row.

    Args:
        image: (C, H, W), of the size that the tiling was made for.
        tiling: where the tiles lie.
        preprocessing: gives the level of the padding.
        batch: how many tiles at a time.

    Yields:
        (N, C, h, w) uint8, N at most `batch`, C-contiguous.
    """
    assert image.shape[1:] == tiling.image, (image.shape, tiling)
    cut = _stretched if tiling.mode == "resize" else _padded
    for start in range(0, len(tiling), batch):
        places = range(start, min(start + batch, len(tiling)))
        yield np.stack(
            [cut(image, tiling, *divmod(k, tiling.columns), preprocessing) for k in places]
        )


def merge_maps(maps: npt.NDArray[np.float32], tiling: Tiling) -> npt.NDArray[np.float32]:
    """Lay the maps of all tiles, (N, 1, h, w), as their tiles lie: (rows * h, columns * w)."""
    height, width = maps.shape[2:]
    grid = maps.reshape(tiling.rows, tiling.columns, height, width)
    return grid.swapaxes(1, 2).reshape(tiling.rows * height, tiling.columns * width)


def _stretched(
    image: UInt8Image, tiling: Tiling, row: int, column: int, _preprocessing: Preprocessing
) -> UInt8Image:
    """Return one tile of the stretched image, which never exists as a whole.

    Bilinear; the published code took whatever Pillow's default was, then nearest neighbour. The
    filter looks beyond the box, so tiles meet as if they had been cut, up to its rounding.
    """
    (height, width), (rows, columns) = tiling.image, (tiling.rows, tiling.columns)
    top, bottom = (each * height / rows for each in (row, row + 1))  # exact at the last edge
    left, right = (each * width / columns for each in (column, column + 1))
    box, size = (left, top, right, bottom), (tiling.tile[1], tiling.tile[0])
    planes = (Image.fromarray(p).resize(size, Image.Resampling.BILINEAR, box) for p in image)
    return np.stack([np.asarray(plane) for plane in planes])


def _padded(
    image: UInt8Image, tiling: Tiling, row: int, column: int, preprocessing: Preprocessing
) -> UInt8Image:
    """Return one tile of the image, grey where the image has ended."""
    height, width = tiling.tile
    seen = image[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
    padded = np.empty((len(image), height, width), np.uint8)
    padded[:] = np.array(preprocessing.pad_value, np.uint8)[:, None, None]
    padded[:, : seen.shape[1], : seen.shape[2]] = seen
    return padded
