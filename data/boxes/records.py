"""Annotated boxes on their way from a file into a `BoxSample`: each checked, its place named."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crowdrt.contracts import BoxSample
from crowdrt.data.images import check_file, opening
from crowdrt.errors import DataError

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels from 0

FAR_PX = 1e6  # no corner of a box lies further away
EXCERPT = 60  # characters of what was found that an error shows


def box_sample(
    image: Path, boxes: Sequence[Box], ignore: Sequence[bool], labels: Sequence[int] | None = None
) -> BoxSample:
    """Return the annotation of one image; without labels every box is a person, label 0."""
    return BoxSample(
        image=image,
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        ignore=np.asarray(ignore, np.bool_),
        labels=np.asarray([0] * len(boxes) if labels is None else labels, np.int64),
    )


def corners(xywh: object, *, source: str) -> Box:
    """Turn [left, top, width, height] into corners.

    Raises:
        DataError: it is no box, or a side of it is zero or negative.
    """
    x, y, width, height = numbers(xywh, source=source)
    if width <= 0 or height <= 0:
        raise DataError(
            f"{source}: the box {excerpt(xywh)} is {width:g} px wide and {height:g} px high",
            fix="write [x, y, width, height] with a positive width and height, or remove the box",
        )
    return x, y, x + width, y + height


def numbers(xywh: object, *, source: str) -> Box:
    """Return the four finite numbers of a box as it was read from JSON."""
    values = xywh if isinstance(xywh, list | tuple) else []
    plain = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    # written so that NaN fails too
    if len(values) != 4 or len(plain) != 4 or not all(abs(v) < FAR_PX for v in plain):
        raise DataError(
            f"{source}: a box was expected, found {excerpt(xywh)}",
            fix="write [x, y, width, height] in pixels: four finite numbers",
        )
    x, y, width, height = map(float, plain)
    return x, y, width, height


def covers_nothing(xywh: object, *, source: str) -> bool:
    """Say whether a box has no area; a negative side is no box and is refused by `corners`."""
    _, _, width, height = numbers(xywh, source=source)
    return min(width, height) == 0


def read_text(path: Path) -> str:
    """Return the text of an annotation file."""
    check_file(path)
    try:
        with opening(path):
            return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no text: byte {error.start} is {error.object[error.start]:#04x}",
            fix="name an annotation file, or save it as UTF-8",
        ) from error


def parse_json(text: str, *, source: str) -> Any:
    """Return the JSON document in `text`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{source} is no JSON: {error}; found {excerpt(text.strip())}",
            fix="copy or download the file again, or correct this place",
        ) from error


def excerpt(found: object) -> str:
    """Return the beginning of what was found, on one line."""
    shown = found if isinstance(found, str) else json.dumps(found, default=str)
    return repr(shown[:EXCERPT] + "...") if len(shown) > EXCERPT else repr(shown)


def find_image(name: str, folders: Iterable[Path], *, source: str) -> Path:
    """Return the image `name` from the first folder that holds it.

    Raises:
        DataError: none of the folders does.
    """
    tried = list(dict.fromkeys(folders))
    with opening(tried[0] / name):
        found = next((folder / name for folder in tried if (folder / name).is_file()), None)
    if found is None:
        raise DataError(
            f"{source} names the image {name}, which lies in none of "
            f"{', '.join(str(folder) for folder in tried)}",
            fix="name the folder that holds the images: --images DIR",
        )
    return found
