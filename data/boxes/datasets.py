"""One door to every layout with boxes: which data set a path holds is recognised by its content."""

from dataclasses import dataclass
from pathlib import Path

from crowdrt.contracts import BoxSample
from crowdrt.data.boxes.coco import PERSON, coco
from crowdrt.data.boxes.crowdhuman import KEYS, BoxKind, crowdhuman
from crowdrt.data.boxes.mot import SEQINFO, mot_sequence
from crowdrt.data.heads.datasets import refuse_choice
from crowdrt.data.images import SUFFIXES, check_file, images_in, list_images, opening
from crowdrt.errors import DataError

HEAD_BYTES = 1 << 16  # of a file, by which its layout is recognised
ANNOTATIONS = ("*.odgt", "instances_*.json", "annotations/instances_*.json")


@dataclass(frozen=True, kw_only=True)
class BoxOptions:
    """What of an annotation is read; a layout takes what concerns it."""

    images: Path | None = None  # CrowdHuman, COCO: the folder of the photographs
    box: BoxKind = "full"  # CrowdHuman
    category: str | None = PERSON  # COCO; None: all
    min_visibility: float = 0.0  # MOT: people less visible need not be found

    def __post_init__(self) -> None:
        if self.box not in KEYS:
            raise DataError(
                f"CrowdHuman has no {self.box!r} boxes", fix=f"choose from {', '.join(KEYS)}"
            )


DEFAULT = BoxOptions()


def open_box_samples(path: Path, options: BoxOptions = DEFAULT) -> list[BoxSample]:
    """Read CrowdHuman (.odgt), COCO (.json), a MOT sequence, a folder of images or one image.

    A folder of several sequences is refused, not guessed at: MOT17 holds each one three times. An
    image is not decoded here: a damaged one is refused where it is read.

    Raises:
        DataError: the path is missing, holds no images, or an annotation cannot be read.
    """
    with opening(path):
        is_folder = path.is_dir()
    if not is_folder:
        return open_file(path, options)
    if (path / SEQINFO).is_file():
        return mot_sequence(path, min_visibility=options.min_visibility)
    if not images_in(path):
        refuse_annotations(path)
        refuse_choice(path)
    return [BoxSample(image=image) for image in list_images(path)]


def open_file(path: Path, options: BoxOptions) -> list[BoxSample]:
    """Read an annotation file, or an image without annotation."""
    check_file(path)
    if path.suffix.lower() in SUFFIXES:
        return [BoxSample(image=path)]
    with opening(path), path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if path.suffix == ".odgt" or b'"gtboxes"' in head:
        return crowdhuman(path, box=options.box, images=options.images)
    if path.suffix == ".json" or head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return coco(path, category=options.category, images=options.images)
    return [BoxSample(image=path)]


def refuse_annotations(path: Path) -> None:
    """Refuse a folder of sequences or of annotation files, naming them."""
    sequences = sorted(each.parent for each in path.glob(f"*/{SEQINFO}"))
    files = sorted(each for pattern in ANNOTATIONS for each in path.glob(pattern))
    for found, what in ((sequences, "sequences"), (files, "annotation files")):
        if found:
            raise DataError(
                f"{path} holds {what}, and no images itself",
                fix=f"name one or several: {' '.join(str(each) for each in found)}",
            )
