"""One door to every layout: which data set a path holds is recognised by its content."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from crowdrt.contracts import Sample
from crowdrt.data.heads import folder, mall, shanghaitech, ucf_cc_50, worldexpo
from crowdrt.data.images import check_file, images_in, opening
from crowdrt.errors import DataError
from crowdrt.manifest import sha256_file

MAX_DEPTH = 3  # a folder of data sets -> ShanghaiTech -> part_A -> train_data
MAX_CHOICES = 8


def open_samples(path: Path) -> list[Sample]:
    """Read an image file, a split of a published set, or a plain folder of images.

    The splits are `train_data` or `test_data` of ShanghaiTech, UCF_CC_50, `Train` or `Test` of
    UCF-QNRF, `train_frame`, `test_frame` or one scene of WorldExpo'10, and `frames` of Mall.

    A folder of several sets is refused, not guessed at. An image is not decoded here: a damaged
    one is refused where it is read.

    Raises:
        DataError: the path is missing, holds no images, or holds several sets.
    """
    if path.name in ("", ".."):  # `.` says nothing of where it is
        path = path.resolve()
    with opening(path):
        is_folder = path.is_dir()
    if not is_folder:
        check_file(path)
        return [open_image(path)]
    split = path.parent if path.name == "images" else path
    if shanghaitech.truth_folder(split):
        return shanghaitech.read_split(split)
    if place := worldexpo.place_of(path) or worldexpo.place_of(path.absolute()):
        return worldexpo.worldexpo(*place)
    if path.name == "frames" and mall.is_mall(path.parent):
        return mall.read_frames(path)
    if any(path.glob("*_ann.mat")):
        return ucf_cc_50.annotated_folder(path)
    if not images_in(path):
        refuse_choice(path)
    return folder.photo_folder(path)


def open_image(path: Path) -> Sample:
    """Read the annotation of one image from wherever its layout keeps it."""
    parent = path.absolute().parent
    if parent.name == "images" and (truth := shanghaitech.truth_folder(parent.parent)):
        return Sample(image=path, heads=shanghaitech.read_heads(path, truth))
    if place := worldexpo.place_of(parent):
        return worldexpo.read_frames([path], place.root, place.split)[0]
    if parent.name == "frames" and mall.is_mall(parent.parent):
        return mall.open_frame(path)
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
        is_frames = child.name.endswith("_frame") and worldexpo.place_of(child)
        if shanghaitech.truth_folder(child) or is_frames or images_in(child):
            yield child
        elif depth > 1:
            yield from image_sets(child, depth - 1)


def without_copies(samples: list[Sample], held_out: list[Sample]) -> list[Sample]:
    """Drop the samples whose file is byte-identical with one that is held out for testing."""
    sizes = {file_size(sample) for sample in held_out}
    suspects = [sample for sample in samples if file_size(sample) in sizes]
    sizes = {file_size(sample) for sample in suspects}  # all other files need not be read
    known = {sha256_file(sample.image) for sample in held_out if file_size(sample) in sizes}
    copies = {sample.image for sample in suspects if sha256_file(sample.image) in known}
    return [sample for sample in samples if sample.image not in copies]


def file_size(sample: Sample) -> int:
    """Return the bytes of a photograph's file."""
    return sample.image.stat().st_size
