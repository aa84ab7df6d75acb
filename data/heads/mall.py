"""Mall: 2000 frames of one camera in a shopping mall, in the published layout.

Chen, Loy, Gong and Xiang, "Feature Mining for Localised Crowd Counting", BMVC 2012. `mall_dataset/`
holds `frames/seq_000001.jpg` to `seq_002000.jpg` (640x480), `mall_gt.mat` (the cell `frame`, of
which `frame{n}.loc` are the heads of frame n as x, y; `count`, their numbers) and
`perspective_roi.mat` (`roi.mask`, 480x640, and the perspective `pMapN`). Frames 1 to 800 train,
801 to 2000 test. Points count from 1: public code rounds them to MATLAB's pixels.

People outside the mask do not count, so a frame's count may be under the published `count`.
Without `perspective_roi.mat` everybody counts.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from crowdrt.contracts import Region, Sample
from crowdrt.data.heads.matlab import points_of, read_value
from crowdrt.data.heads.regions import check_region
from crowdrt.data.images import list_images
from crowdrt.errors import DataError

TRUTH, ROI = "mall_gt.mat", "perspective_roi.mat"
NUM_TRAIN = 800


def mall(root: Path, split: str) -> list[Sample]:
    """Read the frames that train, or those that test; `root` holds `mall_gt.mat`."""
    samples = read_frames(root / "frames")
    if split == "train":
        return [each for each in samples if frame_number(each.image) <= NUM_TRAIN]
    return [each for each in samples if frame_number(each.image) > NUM_TRAIN]


def is_mall(root: Path) -> bool:
    """Say whether a folder is the data set's."""
    return (root / TRUTH).is_file() and (root / "frames").is_dir()


def read_frames(folder: Path) -> list[Sample]:
    """Read all frames of the folder `frames`, in order."""
    root = folder.absolute().parent
    truth, roi = read_truth(root), read_region(root)
    return [read_frame(image, truth, roi) for image in list_images(folder)]


def open_frame(image: Path) -> Sample:
    """Read one frame."""
    root = image.absolute().parent.parent
    return read_frame(image, read_truth(root), read_region(root))


def read_frame(image: Path, truth: list[Any], roi: Region | None) -> Sample:
    """Return one frame with its heads."""
    number, path = frame_number(image), image.absolute().parent.parent / TRUTH
    if not 1 <= number <= len(truth):
        raise DataError(
            f"{path} has no annotation of {image.name}: it knows {len(truth)} frames",
            fix="copy it again from the published data set, or remove the image",
        )
    variable = f"frame{{{number}}}.loc"
    heads = points_of(truth[number - 1], variable, lambda frame: frame["loc"], source=path)
    return Sample(image=image, heads=heads, roi=roi)


def read_truth(root: Path) -> list[Any]:
    """Return the cell `frame`: one structure per frame."""
    return _read_truth(root / TRUTH, changed(root / TRUTH))


@functools.lru_cache(maxsize=1)
def _read_truth(path: Path, _changed: int) -> list[Any]:
    """Keep what was read: one file has the annotations of all frames, which may come singly."""
    frames = read_value(path, "frame")
    if not isinstance(frames, list):
        raise DataError(
            f"{path}: 'frame' is no cell of frames", fix="copy it again from the published data set"
        )
    return frames


def read_region(root: Path) -> Region | None:
    """Return `roi.mask`, one array for all frames, or None where the file was not copied."""
    path = root / ROI
    return _read_region(path, changed(path)) if path.exists() else None


@functools.lru_cache(maxsize=1)
def _read_region(path: Path, _changed: int) -> Region:
    found = read_value(path, "roi")
    mask = found.get("mask") if isinstance(found, dict) else None
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or not mask.size:
        raise DataError(
            f"{path}: 'roi.mask' holds no mask", fix="copy it again from the published data set"
        )
    return check_region(mask != 0, source=path)


def changed(path: Path) -> int:
    """Return when a file was last written, by which a changed one is read again."""
    return path.stat().st_mtime_ns if path.exists() else 0


def frame_number(image: Path) -> int:
    """Return 12 for `seq_000012.jpg`."""
    digits = image.stem.removeprefix("seq_")
    if not (digits.isascii() and digits.isdecimal()):
        raise DataError(
            f"{image} is no frame of Mall",
            fix="frames are named seq_000001.jpg to seq_002000.jpg; move other images elsewhere",
        )
    return int(digits)
