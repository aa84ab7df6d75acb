"""One door to every layout: which data set a path holds is recognised by its content."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from crowdrt.contracts import Sample
from crowdrt.data import folder, shanghaitech, ucf_cc_50
from crowdrt.data.images import check_file, images_in
from crowdrt.errors import DataError

MAX_DEPTH = 3  # a folder of data sets -> ShanghaiTech -> part_A -> train_data
MAX_CHOICES = 8


def open_samples(path: Path) -> list[Sample]:
    """Read an image file, a split of ShanghaiTech, UCF_CC_50, or a plain folder of images.

    A folder of several sets is refused, not guessed at. An image is not decoded here: a damaged
    one is refused where it is read.

    Raises:
        DataError: the path is missing, holds no images, or holds several sets.
    """
    if not path.is_dir():
        check_file(path)
        return [open_image(path)]
    for split in (path, path.resolve().parent):
        if shanghaitech.truth_folder(split) and path.resolve() in (split.resolve(), images(split)):
            return shanghaitech.read_split(split)
    if any(path.glob("*_ann.mat")):
        return ucf_cc_50.ucf_cc_50(path)
    if not images_in(path):
        refuse_choice(path)
    return folder.photo_folder(path)


def images(split: Path) -> Path:
    """Return the folder of a split's images."""
    return (split / "images").resolve()


def open_image(path: Path) -> Sample:
    """Read the annotation of one image from wherever its layout keeps it."""
    if path.parent.name == "images" and (truth := shanghaitech.truth_folder(path.parent.parent)):
        return Sample(image=path, heads=shanghaitech.read_heads(path, truth))
    if ucf_cc_50.annotation_path(path).exists():
        return Sample(image=path, heads=ucf_cc_50.read_heads(path))
    return Sample(image=path, heads=folder.read_heads(path))


def refuse_choice(path: Path) -> None:
    """Refuse a folder whose images lie further down, naming where."""
    choices = list(itertools.islice(image_sets(path, MAX_DEPTH), MAX_CHOICES))
    if choices:
        raise DataError(
            f"{path} holds no images itself, but folders that do",
            fix=f"choose one: {', '.join(str(choice) for choice in choices)}",
        )


def image_sets(path: Path, depth: int) -> Iterator[Path]:
    """Yield the folders below `path` that can be opened."""
    for child in sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != "."):
        if shanghaitech.truth_folder(child) or images_in(child):
            yield child
        elif depth > 1:
            yield from image_sets(child, depth - 1)
