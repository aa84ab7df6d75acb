"""Pictures on their way to a network: decoded, scaled at random, and varied in their colours."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from crowdrt.contracts import Channels
from crowdrt.data.images import read_image

SCALES = (0.6, 1.5)  # of "scaled" crops, evenly in the logarithm


def decode(path: Path, channels: Channels) -> Image.Image:
    """Return a photograph, upright, as a network's channels are."""
    pixels = read_image(path, channels)
    return Image.fromarray(pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0))


def num_bytes(image: Image.Image) -> int:
    """Return how much memory a picture takes."""
    return image.width * image.height * len(image.getbands())


def random_scale(rng: np.random.Generator) -> float:
    """Draw the scale of a "scaled" crop."""
    return float(np.exp(rng.uniform(*np.log(SCALES))))


def vary_colours(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and colour a little; one crop in eight turns grey."""
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.3))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.7, 1.3))
    grey = rng.random() < 0.125
    compress = rng.random() < 0.2
    if image.mode == "RGB":
        image = ImageEnhance.Color(image).enhance(0.0 if grey else rng.uniform(0.6, 1.4))
    if compress:  # cameras differ in how hard they compress
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=int(rng.integers(40, 90)))
        image = Image.open(encoded)
    return image


def to_array(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return a decoded image as uint8 (C, H, W)."""
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
