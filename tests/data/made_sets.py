"""Small files in the exact layouts of published sets whose own files are not at hand.

Variables and folders are those that public code reads; see the docstrings of the readers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

SIZE = (48, 64)  # height, width of every photograph
REGION = ((9, 5), (56, 5), (56, 40), (9, 40))  # corners as x, y from 1
INSIDE = ((10, 6), (30, 20), (55, 39))  # heads as x, y from 1
OUTSIDE = ((2, 2), (60, 20), (30, 45))


def save_photo(path: Path, seed: int) -> Path:
    """Write a photograph whose pixels vary with the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def worldexpo(root: Path, *, flat: bool = False) -> Path:
    """Write two scenes that train and two that test; frame n of a scene has n heads inside.

    Args:
        root: where to.
        flat: put the test frames in one folder, as some copies do.
    """
    scenes = {"train": ("100100", "200247"), "test": ("104207", "200608")}
    for split, names in scenes.items():
        for scene in names:
            inner = "" if split == "train" or flat else scene
            for number in (1, 2, 3):
                name = f"{scene}_1-01-S20100821.split.{number}"
                seed = int(scene) + number
                save_photo(root / f"{split}_frame" / inner / f"{name}.jpg", seed)
                heads = np.array([*INSIDE[:number], *OUTSIDE], float)
                label = {"point_position": heads, "point_num": len(heads)}
                save(root / f"{split}_label" / scene / f"{name}.mat", label)
            save_polygon(root / f"{split}_label" / scene / "roi.mat", REGION)
    return root


def save_polygon(path: Path, corners: Sequence[tuple[float, float]]) -> None:
    """Write a `roi.mat`: the corners' coordinates as columns."""
    x, y = np.array(corners, float).reshape(-1, 2).T
    columns = {"maskVerticesXCoordinates": x[:, None], "maskVerticesYCoordinates": y[:, None]}
    save(path, columns)


def mall(root: Path, numbers: Sequence[int] = (1, 800, 801, 802)) -> Path:
    """Write some of the frames, with annotations of 802 and the region."""
    for number in numbers:
        save_photo(root / "frames" / f"seq_{number:06d}.jpg", number)
    frames = np.empty((1, 802), object)
    for k in range(frames.size):
        frames[0, k] = {"loc": np.array([*INSIDE[: 1 + k % 3], *OUTSIDE], float)}
    counts = np.array([[len(frame["loc"])] for frame in frames[0]])
    save(root / "mall_gt.mat", {"frame": frames, "count": counts})
    mask = np.zeros(SIZE, np.bool_)
    mask[4:40, 8:56] = True
    save(root / "perspective_roi.mat", {"roi": {"mask": mask}, "pMapN": np.ones(SIZE)})
    return root


def ucf_qnrf(root: Path) -> Path:
    """Write two photographs that train and two that test, with 1 and 2 heads."""
    for seed, split in enumerate(("Train", "Test")):
        for number in (1, 2):
            image = save_photo(root / split / f"img_{number:04d}.jpg", 10 * seed + number)
            save(image.with_name(f"{image.stem}_ann.mat"), {"annPoints": heads_of(number)})
    return root


def shanghaitech(part: Path) -> Path:
    """Write a part with two photographs per split, with 1 and 2 heads."""
    for seed, split in enumerate(("train_data", "test_data")):
        for number in (1, 2):
            save_photo(part / split / "images" / f"IMG_{number}.jpg", 20 * seed + number)
            cell = np.empty((1, 1), object)
            cell[0, 0] = {"location": heads_of(number), "number": number}
            save(part / split / "ground-truth" / f"GT_IMG_{number}.mat", {"image_info": cell})
    return part


def ucf_cc_50(root: Path, num_images: int = 10) -> Path:
    """Write photographs 1 to `num_images`, each with as many heads."""
    for number in range(1, num_images + 1):
        save_photo(root / f"{number}.jpg", number)
        save(root / f"{number}_ann.mat", {"annPoints": heads_of(number)})
    return root


def heads_of(number: int) -> np.ndarray:
    """Return that many heads from 1, at (1, 2), (3, 4) ..."""
    return np.arange(2 * number, dtype=float).reshape(-1, 2) + 1


def save(path: Path, variables: Mapping[str, object]) -> None:
    """Write a .mat file, compressed as MATLAB's -v7 does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, dict(variables), do_compression=True)
