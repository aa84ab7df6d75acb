"""MOT16, MOT17 and MOT20: street scenes, frame by frame, in the published layout.

Milan et al., "MOT16: A Benchmark for Multi-Object Tracking", arXiv:1603.00831; Dendorfer et al.,
arXiv:2003.09003 (MOT20). A sequence is a folder with `seqinfo.ini`, the frames `img1/000001.jpg`
and, where it is published, `gt/gt.txt`: frame, track, left, top, width, height, a flag (1: count
it), class and visibility (0..1). Coordinates there count from 1 and boxes may reach beyond the
image.

Of the classes, pedestrians are people to be found. People on vehicles, people who sit, mannequins,
reflections and crowds are neither to be found nor a mistake; vehicles and occluders are nothing.
"""

import configparser
import math
from pathlib import Path

from crowdrt.contracts import BoxSample
from crowdrt.data.boxes.records import Box, box_sample, corners, excerpt, read_text
from crowdrt.data.images import list_images
from crowdrt.errors import DataError

PEDESTRIAN = 1
AMBIGUOUS = (2, 7, 8, 12, 13)  # on a vehicle, static, distractor, reflection, crowd
CLASSES = range(1, 14)
NUM_COLUMNS = 9
SEQINFO = "seqinfo.ini"
ROW = "frame,track,left,top,width,height,flag,class,visibility"


def mot_sequence(folder: Path, *, min_visibility: float = 0.0) -> list[BoxSample]:
    """Read one sequence, frames in order.

    Args:
        folder: it holds `seqinfo.ini`.
        min_visibility: people less visible than this need not be found.

    Raises:
        DataError: a row of gt.txt cannot be read, or its frame is missing.
    """
    frames = {frame_number(path): path for path in list_images(folder / image_folder(folder))}
    truth = folder / "gt" / "gt.txt"
    if not truth.exists():  # the annotations of the test sequences are not published
        return [BoxSample(image=path) for path in frames.values()]
    boxes: dict[int, list[Box]] = {frame: [] for frame in frames}
    ignore: dict[int, list[bool]] = {frame: [] for frame in frames}
    for number, line in enumerate(read_text(truth).split("\n"), start=1):
        if not line.strip():
            continue
        source = f"{truth} line {number}"
        frame, box, kind, is_counted, visibility = read_row(line, source=source)
        if frame not in frames:
            raise DataError(
                f"{source} is of frame {frame}, which has no image beside the others in "
                f"{folder / image_folder(folder)}",
                fix="copy the frame there, or remove its rows",
            )
        if kind == PEDESTRIAN or kind in AMBIGUOUS:
            boxes[frame].append(box)
            to_be_found = kind == PEDESTRIAN and is_counted and visibility >= min_visibility
            ignore[frame].append(not to_be_found)
    return [box_sample(path, boxes[frame], ignore[frame]) for frame, path in frames.items()]


def image_folder(folder: Path) -> str:
    """Return the name of the folder of frames, which `seqinfo.ini` gives."""
    path = folder / SEQINFO
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(read_text(path))
        return parser.get("Sequence", "imDir", fallback="img1")
    except configparser.Error as error:
        raise DataError(
            f"{path} cannot be read: {' '.join(str(error).split())}",
            fix="it begins with [Sequence], then lines such as imDir=img1",
        ) from error


def frame_number(path: Path) -> int:
    """Return 12 for `000012.jpg`."""
    if not (path.stem.isascii() and path.stem.isdecimal()):
        raise DataError(
            f"{path} is no frame of a sequence: its name is no number",
            fix="frames are named 000001.jpg, 000002.jpg ...; move other images elsewhere",
        )
    return int(path.stem)


def read_row(line: str, *, source: str) -> tuple[int, Box, int, bool, float]:
    """Return frame, box in pixels from 0, class, flag and visibility."""
    columns = line.split(",")
    if len(columns) < NUM_COLUMNS:
        raise DataError(
            f"{source} has {len(columns)} columns, {NUM_COLUMNS} were expected: {excerpt(line)}",
            fix=f"write {ROW}, as MOT16, MOT17 and MOT20 do",
        )
    try:
        frame, kind = int(columns[0]), int(columns[7])
        left, top, width, height, flag, visibility = (float(columns[k]) for k in (2, 3, 4, 5, 6, 8))
    except ValueError as error:
        raise DataError(f"{source}: {error}; found {excerpt(line)}", fix=f"write {ROW}") from error
    if kind not in CLASSES or not (math.isfinite(flag) and math.isfinite(visibility)):
        raise DataError(
            f"{source}: flag, class and visibility are {', '.join(columns[6:9])}",
            fix="the flag is 0 or 1, the class 1 to 13, the visibility 0 to 1",
        )
    # the published coordinates are of a first pixel called 1
    box = corners([left - 1, top - 1, width, height], source=source)
    return frame, box, kind, flag != 0, visibility
