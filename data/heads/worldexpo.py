"""WorldExpo'10: frames of 108 surveillance cameras, in the published layout.

Zhang, Li, Wang and Yang, "Cross-scene Crowd Counting via Deep Convolutional Neural Networks", CVPR
2015. 3380 frames (720x576) of 103 scenes train, about 120 of each of 5 other scenes test. The
first six characters of a frame's name are its scene:

    train_frame/SCENE_....jpg        train_label/SCENE/SCENE_....mat, roi.mat
    test_frame/SCENE/SCENE_....jpg   test_label/SCENE/SCENE_....mat, roi.mat

A label holds `point_position`, heads as x, y, and `point_num`; `roi.mat` holds the corners of the
scene's region as `maskVerticesXCoordinates` and `maskVerticesYCoordinates`. All count from 1:
public code compares both with MATLAB's pixels. Perspective maps (`train_perspective/`) are not
read. People outside the region do not count, in training and in testing. Copies with the test
frames in one folder are read too. Some published labels are -v7.3 files, which are refused with a
command that converts them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from crowdrt.contracts import Region, Sample
from crowdrt.data.heads.matlab import read_points, read_value
from crowdrt.data.heads.regions import polygon_region
from crowdrt.data.images import image_size, images_in, list_images
from crowdrt.errors import DataError

SCENE_CHARACTERS = 6
TEST_SCENES = ("104207", "200608", "200702", "202201", "500717")  # S1 to S5 of the papers
AXES = ("maskVerticesXCoordinates", "maskVerticesYCoordinates")
ROI = "roi.mat"
FAR_PX = 1e6  # no corner of a region lies further away


class Place(NamedTuple):
    """Where in the data set a path lies."""

    root: Path
    split: str  # train or test
    scene: str | None  # None: all of the split


def worldexpo(root: Path, split: str, scene: str | None = None) -> list[Sample]:
    """Read the frames of one split, or of one scene of it, scene by scene in natural order.

    Args:
        root: it holds `train_frame`, `train_label`, `test_frame` and `test_label`.
        split: `train` or `test`.
        scene: its six characters, for example one of `TEST_SCENES`.

    Raises:
        DataError: a part is not there, or damaged.
    """
    frames = root / f"{split}_frame"
    if scene is not None and (frames / scene).is_dir():
        return read_frames(list_images(frames / scene), root, split)
    folders = [frames, *sorted(p for p in frames.glob("*") if p.is_dir() and p.name[0] != ".")]
    images = [image for folder in folders for image in images_in(folder)]
    wanted = [image for image in images if scene in (None, scene_of(image))]
    if not wanted:
        raise DataError(
            f"{frames} holds no frames{'' if scene is None else f' of scene {scene}'}",
            fix=f"the published layout is {split}_frame/ beside {split}_label/SCENE/",
        )
    return read_frames(wanted, root, split)


def read_frames(images: Iterable[Path], root: Path, split: str) -> list[Sample]:
    """Read frames; those of a scene share one region."""
    regions: dict[str, Region] = {}
    samples = []
    for image in images:
        scene = scene_of(image)
        labels = root / f"{split}_label" / scene
        if scene not in regions:
            regions[scene] = read_region(labels / ROI, image)
        heads = read_points(labels / f"{image.stem}.mat", "point_position")
        samples.append(Sample(image=image, heads=heads, roi=regions[scene]))
    return samples


def read_region(path: Path, frame: Path) -> Region:
    """Return a scene's region on its frames, which are all of one size."""
    if not path.is_file():
        raise DataError(
            f"{path} does not exist: nobody knows where on {frame.name} people are to be counted",
            fix="copy it again from the published data set",
        )
    x, y = (np.ravel(read_value(path, axis)) for axis in AXES)
    is_polygon = x.dtype == y.dtype == np.float64 and x.shape == y.shape
    if not is_polygon or not (np.abs([x, y]) < FAR_PX).all():  # written so that NaN fails too
        raise DataError(
            f"{path} holds no polygon: {len(x)} x and {len(y)} y coordinates",
            fix="copy it again from the published data set",
        )
    return polygon_region(np.stack([x, y], axis=1) - 1, image_size(frame), source=path)


def place_of(folder: Path) -> Place | None:
    """Say which split or scene a folder is: `test_frame`, `test_frame/104207`, `test_label/104207`.

    None where it is none of them.
    """
    for parent, scene in ((folder, None), (folder.parent, folder.name)):
        split, _, what = parent.name.partition("_")
        if what in ("frame", "label") and is_split(parent.parent, split):
            return Place(parent.parent, split, scene)
    return None


def is_split(root: Path, split: str) -> bool:
    """Say whether a folder holds a split's frames and labels."""
    return split in ("train", "test") and all(
        (root / f"{split}_{what}").is_dir() for what in ("frame", "label")
    )


def scene_of(image: Path) -> str:
    """Return the scene that a frame shows."""
    return image.name[:SCENE_CHARACTERS]
