"""From a decoded photograph to what a network is fed; one definition for every stage."""

from pathlib import Path

import numpy as np
from PIL import Image

from crowdrt.contracts import Preprocessing, UInt8Image
from crowdrt.data.images import read_image


def pad_to_stride(image: UInt8Image, preprocessing: Preprocessing) -> UInt8Image:
    """Pad at the bottom and the right until both sides are multiples of the stride.

    The padding has the grey level that normalises to nearly 0, as a convolution's own padding
    does. Positions do not move, so annotated heads stay valid.

    Args:
        image: (C, H, W) with the preprocessing's number of channels.
        preprocessing: gives the stride and the level of the padding.

    Returns:
        (C, H', W'); `image` itself, not a copy, where nothing needs to be added.
    """
    num_channels, height, width = image.shape
    assert num_channels == preprocessing.num_channels, (image.shape, preprocessing.channels)
    extra_rows, extra_columns = -height % preprocessing.stride, -width % preprocessing.stride
    if not extra_rows and not extra_columns:
        return image
    padded = np.empty((num_channels, height + extra_rows, width + extra_columns), np.uint8)
    level = np.array(preprocessing.pad_value, np.uint8)[:, np.newaxis, np.newaxis]
    padded[:, :height, :width] = image
    padded[:, height:] = level
    padded[:, :height, width:] = level
    return padded


def load_feed(path: Path, preprocessing: Preprocessing) -> UInt8Image:
    """Read a photograph as a network's input: (1, C, H, W) uint8, padded to the stride."""
    return pad_to_stride(read_image(path, preprocessing.channels), preprocessing)[np.newaxis]


def resize_short_side(image: UInt8Image, short_side_px: int, *, long_side_px: int) -> UInt8Image:
    """Scale an image until its short side has this many pixels, or its long side its limit.

    Both sides by the same factor, up to rounding; bilinear, over all the pixels that become one.
    Detectors are published with such sizes. Nothing that counts is resized: it changes counts.

    Args:
        image: (C, H, W).
        short_side_px: wanted.
        long_side_px: never exceeded.

    Returns:
        (C, H', W'), C-contiguous.
    """
    height, width = image.shape[1:]
    scale = min(short_side_px / min(height, width), long_side_px / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    planes = (Image.fromarray(p).resize(size, Image.Resampling.BILINEAR) for p in image)
    return np.stack([np.asarray(plane) for plane in planes])
