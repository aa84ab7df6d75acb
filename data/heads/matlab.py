"""Head points from the .mat files in which the data sets publish them.

Our own small reader, because scipy.io.loadmat (1.17) ends the whole process with a segmentation
fault on some damaged files, and works for a minute on others. Layout: MathWorks, "MAT-File
Format", Level 5: a header of 128 bytes, then elements of a tag (type, size) and data, which nest
and may be compressed. Read are numbers, cells and structures; the rest becomes None.
"""

import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crowdrt.data.images import opening
from crowdrt.errors import DataError

HEADER_BYTES = 128
HDF5_HEADER = b"MATLAB 7.3"
MAX_BYTES = 1 << 24  # decompressed, of all variables; the largest published file has about 3 MB
MAX_ELEMENTS = 1 << 17  # one after the other; the largest published cell has 2000
MATRIX, COMPRESSED = 14, 15  # types of an element
NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
CELL, STRUCT = 1, 2  # classes of a matrix
NUMERIC = range(6, 16)

DAMAGED = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, zlib.error)

Element = tuple[int, bytes]  # type, data


def read_points(
    path: Path, variable: str, locate: Callable[[Any], Any] = lambda value: value
) -> npt.NDArray[np.float32]:
    """Read the head points of one image.

    Args:
        path: the .mat file.
        variable: the MATLAB variable that holds the points.
        locate: finds the (N, 2) array inside the variable; a cell is a list, a structure a dict.

    Returns:
        (N, 2) x, y in pixels from 0; MATLAB counts from 1.

    Raises:
        DataError: the file is missing, damaged, or holds something else.
    """
    return points_of(read_value(path, variable), variable, locate, source=path)


def read_value(path: Path, variable: str) -> Any:
    """Return one variable: an array, a list (a cell) or a dict (a structure)."""
    variables = load(path)
    if variable not in variables:
        raise DataError(
            f"{path} has no variable {variable!r}", fix="copy it again from the published data set"
        )
    return variables[variable]


def points_of(
    value: Any, variable: str, locate: Callable[[Any], Any] = lambda value: value, *, source: Path
) -> npt.NDArray[np.float32]:
    """Return the head points in a variable that was read, (N, 2) from 0; see `read_points`."""
    try:
        with np.errstate(over="ignore"):  # what overflows is no position, and is refused below
            points = (np.asarray(locate(value), np.float64) - 1).astype(np.float32)
    except DAMAGED as error:
        raise foreign(source, variable) from error
    if points.size == 0:
        return np.zeros((0, 2), np.float32)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise foreign(source, variable)
    return points


def foreign(path: Path, variable: str) -> DataError:
    """Return the error for a variable of another shape than the published one."""
    return DataError(
        f"{path}: {variable!r} does not hold x, y points",
        fix="copy it again from the published data set",
    )


def load(path: Path) -> dict[str, Any]:
    """Read every variable of a .mat file."""
    with opening(path):
        if not path.is_file():
            raise DataError(
                f"{path} does not exist: its image has no annotation",
                fix="copy it from the data set, or remove the image",
            )
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    if content.startswith(HDF5_HEADER):
        raise saved_as_hdf5(path)
    try:
        return dict(variables_of(content))
    except DAMAGED as error:
        raise DataError(
            f"{path} is no MATLAB file that can be read: {error}",
            fix="copy or download it again; if you wrote it yourself, save it with -v7, not -v7.3",
        ) from error


def saved_as_hdf5(path: Path) -> DataError:
    """Return the error for a -v7.3 file, with what converts it and its neighbours."""
    again = "p = fullfile(f.folder, f.name); x = load(p); save(p, '-struct', 'x', '-v7'),"
    return DataError(
        f"{path} is an HDF5 file, as MATLAB saves with -v7.3",
        fix=f"convert its folder in MATLAB: for f = dir('{path.parent}/*.mat')', {again} end",
    )


def variables_of(content: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of every variable of a Level 5 file."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    version, mark = content[124:126], content[126:HEADER_BYTES]
    if (version, mark) != (b"\x00\x01", b"IM"):
        raise ValueError("it does not begin as a little-endian Level 5 file does")
    left = MAX_BYTES
    for kind, data in elements(content[HEADER_BYTES:]):
        if kind != COMPRESSED:
            yield matrix((kind, data))
            continue
        inflated = inflate(data, left)
        left -= len(inflated)
        yield from map(matrix, elements(inflated))


def inflate(data: bytes, max_bytes: int) -> bytes:
    """Decompress an element; its checksum proves that it is whole."""
    stream = zlib.decompressobj()
    content = stream.decompress(data, max_bytes) if max_bytes else b""  # 0 would be no limit
    if not stream.eof:
        raise ValueError("a compressed variable is cut short, or absurdly large")
    return content


def elements(data: bytes) -> Iterator[Element]:
    """Yield the elements that lie one after the other in `data`."""
    start = num_elements = 0
    while start < len(data):
        num_elements += 1
        if num_elements > MAX_ELEMENTS:
            raise ValueError(f"more than {MAX_ELEMENTS:,} elements lie one after the other")
        kind, size = (int.from_bytes(data[i : i + 4], "little") for i in (start, start + 4))
        start += 8
        if kind >> 16:  # a small element: size and type share 4 bytes, the data fills the other 4
            kind, size, content = kind & 0xFFFF, kind >> 16, data[start - 4 : start]
        else:
            content = data[start : start + size]
            start += size if kind == COMPRESSED else size + -size % 8
        if size > len(content):
            raise ValueError(f"an element of {size} bytes has only {len(content)}")
        yield kind, content[:size]


def matrix(element: Element) -> tuple[str, Any]:
    """Return the name of a matrix and its value: an array, a list (cell), a dict (structure)."""
    kind, data = element
    if kind != MATRIX:
        raise ValueError(f"an element of type {kind} where a matrix should be")
    if not data:
        return "", np.zeros((0, 0))
    (_, flags), shape_element, (_, name), *parts = elements(data)
    shape = numbers(shape_element).astype(int).tolist()
    value: Any = None
    if flags[0] in NUMERIC:
        value = numbers(parts[0]).reshape(shape, order="F")
    elif flags[0] == CELL:
        value = [matrix(part)[1] for part in parts]
    elif flags[0] == STRUCT and math.prod(shape) == 1:
        value = structure(*parts)
    return name.decode("latin-1"), value


def numbers(element: Element) -> npt.NDArray[np.float64]:
    """Return an element's numbers, which may be stored in a smaller type than the matrix has."""
    kind, data = element
    return np.frombuffer(data, np.dtype(NUMBERS[kind]).newbyteorder("<")).astype(np.float64)


def structure(name_size: Element, names: Element, *values: Element) -> dict[str, Any]:
    """Return a structure's fields; the names lie in slots of equal size, padded with zeros."""
    size = int(numbers(name_size)[0])
    slots = [names[1][i : i + size] for i in range(0, len(names[1]), size)]
    fields = [slot.partition(b"\0")[0].decode("latin-1") for slot in slots]
    return dict(zip(fields, (matrix(value)[1] for value in values), strict=True))
