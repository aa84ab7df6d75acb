"""Head points from the .mat files in which the data sets publish them."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crowdrt.errors import DataError
from crowdrt.lazy import require

if TYPE_CHECKING:
    import scipy.io

# What scipy raises on damaged files; its own MatReadError is none of these and is added below.
DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
)


def read_points(
    path: Path, variable: str, locate: Callable[[Any], Any] = lambda value: value
) -> npt.NDArray[np.float32]:
    """Read the head points of one image.

    Args:
        path: the .mat file.
        variable: the MATLAB variable that holds the points.
        locate: finds the (N, 2) array inside the variable.

    Returns:
        (N, 2) x, y in pixels from 0; MATLAB counts from 1.

    Raises:
        DataError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise DataError(
            f"{path} does not exist: its image has no annotation",
            fix="copy it from the data set, or remove the image",
        )
    content = load(path, variable)
    if variable not in content:
        raise DataError(
            f"{path} has no variable {variable!r}", fix="copy it again from the published data set"
        )
    try:
        with np.errstate(over="ignore"):  # what overflows is no position, and is refused below
            points = (np.asarray(locate(content[variable]), np.float64) - 1).astype(np.float32)
    except DAMAGED as error:
        raise foreign(path, variable) from error
    if points.size == 0:
        return np.zeros((0, 2), np.float32)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise foreign(path, variable)
    return points


def load(path: Path, variable: str) -> dict[str, Any]:
    """Read one variable of a .mat file; others may be there, and are not decoded."""
    if TYPE_CHECKING:
        io = scipy.io
    else:
        io = require("scipy.io", extra="cpu")
    try:
        content: dict[str, Any] = io.loadmat(path, appendmat=False, variable_names=[variable])
    except (*DAMAGED, io.matlab.MatReadError) as error:
        raise DataError(
            f"{path} is no MATLAB file that can be read: {error}",
            fix="copy or download it again",
        ) from error
    return content


def foreign(path: Path, variable: str) -> DataError:
    """Return the error for a variable of another shape than the published one."""
    return DataError(
        f"{path}: {variable!r} does not hold x, y points",
        fix="copy it again from the published data set",
    )
