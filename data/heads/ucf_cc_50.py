"""UCF_CC_50: fifty grey photographs of very dense crowds, in the published layout.

Idrees et al., "Multi-Source Multi-Scale Counting in Extremely Dense Crowd Images", CVPR 2013. One
folder with `n.jpg` and `n_ann.mat`; 63,974 heads. Papers report five-fold cross-validation.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from crowdrt.contracts import Sample
from crowdrt.data.heads.matlab import read_points
from crowdrt.data.images import list_images


def ucf_cc_50(root: Path) -> list[Sample]:
    """Read all images in natural order; `root` holds them, or holds `UCF_CC_50/`."""
    inner = root / "UCF_CC_50"
    images = list_images(inner if inner.is_dir() else root)
    return [Sample(image=image, heads=read_heads(image)) for image in images]


def read_heads(image: Path) -> npt.NDArray[np.float32]:
    """Read the published points of one image: (N, 2) x, y in pixels from 0."""
    return read_points(annotation_path(image), "annPoints")


def annotation_path(image: Path) -> Path:
    """Return where the annotation of an image lies."""
    return image.with_name(f"{image.stem}_ann.mat")
