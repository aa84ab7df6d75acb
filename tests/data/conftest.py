"""Small photographs and annotations in the layouts that the readers know."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # for made_sets


@pytest.fixture
def photo():
    """Writes a photograph whose pixels vary; returns its path."""

    def write(path: Path, *, size=(64, 48), seed=0, **options) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(path, **options)
        return path

    return write


@pytest.fixture
def shanghai_split(photo):
    """Writes a split in ShanghaiTech's layout: IMG_1, IMG_2, IMG_10 with 1, 2 and 10 heads."""

    def write(folder: Path, *, truth="ground-truth", numbers: Sequence[int] = (1, 2, 10)) -> Path:
        (folder / truth).mkdir(parents=True)
        for number in numbers:
            photo(folder / "images" / f"IMG_{number}.jpg", seed=number)
            points = np.arange(2 * number, dtype=float).reshape(-1, 2) + 1
            save_image_info(folder / truth / f"GT_IMG_{number}.mat", points)
        return folder

    return write


def save_image_info(path: Path, points: np.ndarray) -> None:
    """Write `image_info{1,1}.location` and `.number`, as published."""
    cell = np.empty((1, 1), object)
    cell[0, 0] = {"location": points, "number": len(points)}
    scipy.io.savemat(path, {"image_info": cell})


@pytest.fixture
def ucf_folder(photo, tmp_path):
    """A folder in UCF_CC_50's layout: images 1, 2 and 10 with as many heads."""
    folder = tmp_path / "UCF_CC_50"
    for number in (1, 2, 10):
        photo(folder / f"{number}.jpg", seed=number)
        points = np.arange(2 * number, dtype=float).reshape(-1, 2) + 1
        scipy.io.savemat(folder / f"{number}_ann.mat", {"annPoints": points})
    return folder
