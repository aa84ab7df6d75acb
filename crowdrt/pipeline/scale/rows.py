"""What goes to the processes that count, and what comes back: one row per photograph."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)  # there are millions of them
class Photo:
    """A photograph by the name under which its row is kept."""

    name: str  # an absolute path, or a URL
    stamp: str | None = None  # changes when the file does; None where nobody could look


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of one photograph; `error` says why the rest is missing."""

    image: str
    stamp: str | None
    sha256: str | None = None  # of the file's bytes
    count: float | None = None  # people
    strips: Sequence[float] | None = None  # people per strip, from the top; see `strips_of`
    height: int | None = None  # px
    width: int | None = None  # px
    engine: str = ""  # `Identity.text`
    error: str | None = None


def strips_of(density: npt.NDArray[np.float32], num_strips: int) -> list[float]:
    """Return the people in strips of equal height, from the top of the map to its bottom.

    A row of cells that lies in two strips is shared between them by its area, so that strips are
    equally high whatever the map's height, and their sum is the map's.

    Args:
        density: (h, w) people per cell.
        num_strips: how many.
    """
    rows = len(density)
    above = np.concatenate([[0.0], np.cumsum(density.sum(axis=1, dtype=np.float64))])
    borders = np.arange(num_strips + 1) * rows / num_strips
    people: list[float] = np.diff(np.interp(borders, np.arange(rows + 1), above)).tolist()
    return people


def utf8(text: str) -> str:
    r"""Return a text as UTF-8 can hold it: a file's name may have bytes that are no characters.

    Those are written as `\udcff`. Where a text has such a byte, or these letters themselves, its
    own backslashes are doubled, so that two names never become one.
    """
    if ESCAPE not in text and (text.isascii() or not BYTES.search(text)):
        return text  # nearly always; the same object, not a copy
    return text.replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode("utf-8")


ESCAPE = r"\ud"
BYTES = re.compile("[\ud800-\udfff]")  # as Python reads bytes that are no UTF-8
