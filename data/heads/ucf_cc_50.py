"""UCF_CC_50: fifty grey photographs of very dense crowds, in the published layout.

Idrees et al., "Multi-Source Multi-Scale Counting in Extremely Dense Crowd Images", CVPR 2013. One
folder with `n.jpg` and `n_ann.mat`; 63,974 heads. Papers report five-fold cross-validation. Which
images are in which fold was drawn at random and is not published; here fold k tests on the k-th
ten images by their numbers.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from crowdrt.contracts import Sample
from crowdrt.data.heads.matlab import read_points
from crowdrt.data.images import list_images
from crowdrt.errors import DataError

FOLDS = range(1, 6)


def ucf_cc_50(root: Path) -> list[Sample]:
    """Read all images in natural order; `root` holds them, or holds `UCF_CC_50/`."""
    inner = root / "UCF_CC_50"
    return annotated_folder(inner if inner.is_dir() else root)


def ucf_cc_50_fold(root: Path, fold: int, split: str) -> list[Sample]:
    """Return the ten images that a fold from 1 to 5 tests on, or the others, on which it trains."""
    if fold not in FOLDS:
        raise DataError(f"UCF_CC_50 has no fold {fold}", fix="use a fold from 1 to 5")
    samples = ucf_cc_50(root)
    size = -(-len(samples) // len(FOLDS))
    test = range((fold - 1) * size, fold * size)
    return [each for k, each in enumerate(samples) if (k in test) == (split == "test")]


def annotated_folder(folder: Path) -> list[Sample]:
    """Read a folder of images, each with its `_ann.mat`, in natural order."""
    return [Sample(image=image, heads=read_heads(image)) for image in list_images(folder)]


def is_ucf_cc_50(root: Path) -> bool:
    """Say whether a folder is the data set's."""
    return any(image.stem.removesuffix("_ann").isdecimal() for image in root.glob("*_ann.mat"))


def read_heads(image: Path) -> npt.NDArray[np.float32]:
    """Read the published points of one image: (N, 2) x, y in pixels from 0."""
    return read_points(annotation_path(image), "annPoints")


def annotation_path(image: Path) -> Path:
    """Return where the annotation of an image lies."""
    return image.with_name(f"{image.stem}_ann.mat")
