"""ShanghaiTech, Parts A and B, in the published layout.

Zhang et al., "Single-Image Crowd Counting via Multi-Column Convolutional Neural Network", CVPR
2016. A split is a folder `train_data` or `test_data` with `images/IMG_n.jpg` and
`ground-truth/GT_IMG_n.mat` (`ground_truth` in some copies).

Know before use: Part A's test IMG_98 is byte-identical with its train IMG_121, a leak in the
original data; `datasets.without_copies` drops it from a training set. Some published points lie
outside their image (429 of Part A; 488 of Part B, 279 by less than a pixel): they count, and
density maps leave them out.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crowdrt.contracts import Sample
from crowdrt.data.heads.matlab import read_points
from crowdrt.data.images import list_images
from crowdrt.errors import DataError

Part = Literal["A", "B"]
Split = Literal["train", "test"]

TRUTH_FOLDERS = ("ground-truth", "ground_truth")


def shanghaitech(root: Path, part: Part, split: Split) -> list[Sample]:
    """Read one split of one part.

    Args:
        root: the folder that holds `part_A` and `part_B`, or its parent holding `ShanghaiTech/`.
        part: A is dense (300 + 182 images), B a sparser street (400 + 316).
        split: train or test.
    """
    names = (f"part_{part}", f"part_{part}_final", f"ShanghaiTech/part_{part}")
    for name in names:
        if (root / name).is_dir():
            return read_split(root / name / f"{split}_data")
    raise DataError(
        f"{root} holds no ShanghaiTech part {part}: none of {', '.join(names)} exists",
        fix=f"name the folder that holds part_{part}/{split}_data/images",
    )


def read_split(folder: Path) -> list[Sample]:
    """Read a `train_data` or `test_data` folder, images in natural order."""
    truth = truth_folder(folder)
    if truth is None:
        raise DataError(
            f"{folder} is no split of ShanghaiTech: it lacks images/ or ground-truth/",
            fix="the published layout is images/IMG_1.jpg, ground-truth/GT_IMG_1.mat",
        )
    return [Sample(image=p, heads=read_heads(p, truth)) for p in list_images(folder / "images")]


def truth_folder(split: Path) -> Path | None:
    """Return where the annotations of a split lie; None where this is no split."""
    found = [split / name for name in TRUTH_FOLDERS if (split / name).is_dir()]
    return found[0] if found and (split / "images").is_dir() else None


def read_heads(image: Path, truth: Path) -> npt.NDArray[np.float32]:
    """Read the published points of one image: (N, 2) x, y in pixels from 0."""
    return read_points(truth / f"GT_{image.stem}.mat", "image_info", location)


def location(image_info: Any) -> Any:
    """Return `image_info{1,1}.location`."""
    return image_info[0]["location"]


def held_out_beside(path: Path) -> list[Sample]:
    """Return the test split that lies beside another split, or beside its images/; else []."""
    path = path.resolve()
    split = path.parent if path.name == "images" else path
    test = split.parent / "test_data"
    if split == test or not truth_folder(split) or not truth_folder(test):
        return []
    return read_split(test)
