"""A plain folder of photographs, with the annotated heads beside them where they are known."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crowdrt.contracts import Sample
from crowdrt.data.images import list_images
from crowdrt.errors import DataError

UNREADABLE = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError)


def photo_folder(folder: Path) -> list[Sample]:
    """Read every image that lies directly in `folder`, in natural order."""
    return [Sample(image=image, heads=read_heads(image)) for image in list_images(folder)]


def heads_path(image: Path) -> Path:
    """Return where the heads of an image lie: `street.jpg.heads.json` for `street.jpg`."""
    return image.with_name(f"{image.name}.heads.json")


def read_heads(image: Path) -> npt.NDArray[np.float32] | None:
    """Read the heads beside an image.

    Returns:
        (N, 2) x, y in pixels from 0; None where there is no annotation.

    Raises:
        DataError: the annotation cannot be read.
    """
    path = heads_path(image)
    if not path.exists():
        return None
    try:
        with np.errstate(over="ignore"):  # what overflows is no position, and is refused below
            heads = np.asarray(json.loads(path.read_text("utf-8"))["heads"], np.float32)
    except UNREADABLE as error:
        raise foreign(path, str(error)) from error
    if heads.shape == (0,):
        return np.zeros((0, 2), np.float32)
    if heads.ndim != 2 or heads.shape[1] != 2:
        raise foreign(path, f"an array of shape {heads.shape}")
    if not np.isfinite(heads).all():
        raise foreign(path, "a number that is not finite")
    return heads


def foreign(path: Path, reason: str) -> DataError:
    """Return the error for an annotation that cannot be read."""
    return DataError(
        f"{path} holds no head points: {reason}",
        fix='write {"heads": [[x, y], ...]} in pixels from 0, or remove the file',
    )
