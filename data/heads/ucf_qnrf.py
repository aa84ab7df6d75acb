"""UCF-QNRF: large photographs of very different crowds, in the published layout.

Idrees et al., "Composition Loss for Counting, Density Map Estimation and Localization in Dense
Crowds", ECCV 2018. `UCF-QNRF_ECCV18/Train` (1201 images) and `Test` (334) hold `img_0001.jpg` and
`img_0001_ann.mat`, whose `annPoints` are x, y. That they count from 1, as MATLAB does and as in
UCF_CC_50 by the same authors, is taken for granted: it is published nowhere.
"""

from pathlib import Path

from crowdrt.contracts import Sample
from crowdrt.data.heads.ucf_cc_50 import annotated_folder
from crowdrt.errors import DataError

FOLDERS = {"train": "Train", "test": "Test"}


def ucf_qnrf(root: Path, split: str) -> list[Sample]:
    """Read one split, `train` or `test`, images in natural order; `root` holds `Train/`, `Test/`.

    Raises:
        DataError: the split is not there, or an annotation is missing or damaged.
    """
    folder = root / FOLDERS[split]
    if not folder.is_dir():
        raise DataError(
            f"{root} holds no {FOLDERS[split]}/: it is no UCF-QNRF",
            fix="name the folder that holds Train/img_0001.jpg and Test/img_0001.jpg",
        )
    return annotated_folder(folder)


def is_ucf_qnrf(root: Path) -> bool:
    """Say whether a folder holds both splits."""
    folders = [root / name for name in FOLDERS.values()]
    return all(folder.is_dir() and any(folder.glob("img_*_ann.mat")) for folder in folders)
