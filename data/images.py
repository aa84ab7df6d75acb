"""Photographs from disk: decoded to uint8 (C, H, W), upright, or refused with a reason."""

import contextlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from crowdrt.contracts import Channels, Size, UInt8Image, check_image_size
from crowdrt.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm")

# The decoders that may run: Pillow knows many more, one of which starts another program.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")

# What Pillow's decoders raise on damaged files.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
)


def read_image(path: Path, channels: Channels) -> UInt8Image:
    """Decode one photograph.

    EXIF orientation is applied (the images of the published data sets have none, so their
    annotations stay valid). Transparent pixels become white, as a viewer shows them; 16-bit
    greys are scaled to 8 bits; of an animation the first frame is taken. Colour becomes grey by
    ITU-R 601 luma.

    Returns:
        (3, H, W) RGB or (1, H, W) grey, C-contiguous, owned by the caller.

    Raises:
        DataError: the file is missing, damaged, no image, too small or absurdly large.
    """
    check_file(path)
    return _decoded(path, channels, source=path)


def decode_image(content: bytes, channels: Channels, *, source: Path | str) -> UInt8Image:
    """Decode one photograph that is in memory, as `read_image` does; errors name `source`."""
    return _decoded(io.BytesIO(content), channels, source=source)


def _decoded(file: Path | io.BytesIO, channels: Channels, *, source: Path | str) -> UInt8Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broken metadata does not concern us
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=FORMATS) as image:
                check_image_size((image.height, image.width), source=str(source))
                image.load()
                return to_pixels(image, channels, source=source)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DataError(
                f"{source} has too many pixels for a photograph: {error}",
                fix=f"scale it to at most {Image.MAX_IMAGE_PIXELS:,} pixels, or remove it",
            ) from error
        except DAMAGED as error:
            raise unreadable(source, error) from error


def image_size(path: Path) -> Size:
    """Return the height and width that a file says its image has, without decoding it.

    Raises:
        DataError: the file is missing, or no image.
    """
    check_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoding refuses what is too large
        try:
            with Image.open(path, formats=FORMATS) as image:
                return image.height, image.width
        except (*DAMAGED, Image.DecompressionBombError) as error:
            raise unreadable(path, error) from error


def check_file(path: Path) -> None:
    """Refuse what cannot be opened as a file, before a decoder sees it."""
    with opening(path):
        if path.is_dir():
            raise DataError(
                f"{path} is a folder, an image file was expected", fix=f"name a file in {path}"
            )
        if path.is_symlink() and not path.exists():
            raise DataError(
                f"{path} is a link to {path.readlink()}, where there is nothing",
                fix="link it to the image, or remove it",
            )
        if not path.exists():
            raise DataError(f"{path} does not exist", fix="check the path")
        if not path.is_file():  # reading a pipe would wait for ever
            raise DataError(f"{path} is no ordinary file", fix="save the image to a file first")


@contextlib.contextmanager
def opening(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into an error that names `path`."""
    try:
        yield
    except OSError as error:
        raise cannot_open(path, error) from error


def cannot_open(path: Path | str, error: OSError) -> DataError:
    """Return the error for what the operating system refuses."""
    return DataError(
        f"{path} cannot be opened: {error.strerror or error}",
        fix=f"check the path and who may read it: ls -ld '{path}'",
    )


def unreadable(path: Path | str, error: BaseException) -> DataError:
    """Return the error for a file that the decoders refuse."""
    if isinstance(error, UnidentifiedImageError):
        return DataError(
            f"{path} is not an image that can be read",
            fix="use JPEG, PNG, BMP, TIFF, WebP, GIF, PGM or PPM; `file` tells what it holds",
        )
    if isinstance(error, OSError) and error.strerror:  # Pillow's own have a message only
        return cannot_open(path, error)
    return DataError(
        f"{path} is damaged: {error}", fix="copy or download it again, or remove it from the folder"
    )


def to_pixels(image: Image.Image, channels: Channels, *, source: Path | str) -> UInt8Image:
    """Turn a decoded Pillow image upright and into (C, H, W)."""
    # Broken EXIF says nothing of the orientation: the pixels stay as they are stored.
    with contextlib.suppress(*DAMAGED):
        ImageOps.exif_transpose(image, in_place=True)
    image = eight_bit(image, source=source)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return planes(image, "RGB" if channels == "rgb" else "L")


def planes(image: Image.Image, mode: str) -> UInt8Image:
    """Copy a Pillow image as (C, H, W), one channel per letter of `mode`.

    A strip at a time: the copies that conversion makes of a whole photograph of 8192x8192 px
    would come to 600 MB.
    """
    width, height = image.size
    pixels = np.empty((len(mode), height, width), np.uint8)
    for top in range(0, height, STRIP_ROWS):
        strip = image.crop((0, top, width, min(top + STRIP_ROWS, height))).convert(mode)
        rows = np.asarray(strip).reshape(strip.height, width, len(mode))
        pixels[:, top : top + strip.height] = rows.transpose(2, 0, 1)
    return pixels


STRIP_ROWS = 256


def grey_of(pixels: UInt8Image) -> UInt8Image:
    """Turn decoded RGB, (3, H, W), into the (1, H, W) that `read_image` gives for grey."""
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    return to_pixels(image, "grey", source=Path("decoded pixels"))


def eight_bit(image: Image.Image, *, source: Path | str) -> Image.Image:
    """Scale 16-bit greys to 8 bits; Pillow's own conversion would clip them at 255."""
    if image.mode not in ("F", "LAB") and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if image.mode in ("F", "LAB") or values.min() < 0 or values.max() > 0xFFFF:
        raise DataError(
            f"{source}: pixels of mode {image.mode!r} have no agreed black and white",
            fix="save it as an 8-bit RGB or grey PNG or JPEG",
        )
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def list_images(folder: Path) -> list[Path]:
    """Return the images that lie directly in `folder`, in natural order (2 before 10).

    Raises:
        DataError: the folder is missing, cannot be read, or holds no images; or one of them is a
            broken link or no ordinary file, which would otherwise be missing without a word.
    """
    images = images_in(folder)
    for image in images:
        check_file(image)
    if not images:
        raise DataError(
            f"{folder} holds no images", fix=f"put photographs there: {' '.join(SUFFIXES)}"
        )
    return images


def images_in(folder: Path) -> list[Path]:
    """Return the images that lie directly in `folder`, possibly none; hidden files are no images.

    Raises:
        DataError: the folder is missing or cannot be read.
    """
    with opening(folder):
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise DataError(f"{folder} {what}", fix="name a folder that holds photographs")
        named = [path for path in folder.iterdir() if is_image(path.name)]
        return sorted((path for path in named if not path.is_dir()), key=natural_order)


def is_image(name: str) -> bool:
    """Say whether a file's name is that of an image; hidden files are no images."""
    return name[:1] != "." and name.lower().endswith(SUFFIXES)


def natural_order(path: Path) -> tuple[list[str | int], str]:
    """Return a sort key by which IMG_2 comes before IMG_10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [int(part) if part.isdecimal() else part for part in parts], path.name
