"""CrowdHuman: photographs of crowds with a full, a visible and a head box per person.

Shao et al., "CrowdHuman: A Benchmark for Detecting Human in a Crowd", arXiv:1805.00123. An
annotation file (`annotation_val.odgt`) holds one JSON document per line: `ID`, of which the image
is `Images/ID.jpg`, and `gtboxes`, each with `tag` (person, or mask for a region that is left out),
`fbox`, `vbox`, `hbox` as [x, y, width, height], and `extra` and `head_attr`, whose `ignore` marks
people whom nobody has to find. A full box may reach beyond the image.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from crowdrt.contracts import BoxSample
from crowdrt.data.boxes.records import (
    Box,
    box_sample,
    corners,
    covers_nothing,
    excerpt,
    find_image,
    parse_json,
    read_text,
)
from crowdrt.errors import DataError

BoxKind = Literal["full", "visible", "head"]

KEYS: dict[BoxKind, str] = {"full": "fbox", "visible": "vbox", "head": "hbox"}


def crowdhuman(path: Path, *, box: BoxKind = "full", images: Path | None = None) -> list[BoxSample]:
    """Read an .odgt file.

    Args:
        path: the annotation file.
        box: which of a person's boxes; the published results are of full boxes.
        images: the folder of the photographs; None looks beside the file and in `Images/`.

    Raises:
        DataError: a line is no JSON, a box is none, or an image is missing.
    """
    folders = [images] if images else image_folders(path.parent)
    samples = [
        read_record(record, KEYS[box], folders, source=source) for source, record in records(path)
    ]
    if not samples:
        raise DataError(f"{path} holds no line", fix="copy or download it again")
    return samples


def image_folders(folder: Path) -> list[Path]:
    """Return where the images of an annotation in `folder` may lie, as published."""
    parts = sorted(folder.glob("CrowdHuman_*/Images"))
    return [folder / "Images", folder / "images", folder, *parts]


def records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each line's document with its place, `FILE line 3`."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        source = f"{path} line {number}"
        if not line.strip():
            continue
        record = parse_json(line, source=source)
        if not isinstance(record, dict) or not isinstance(record.get("ID"), str):
            raise DataError(
                f"{source} is no record of CrowdHuman: found {excerpt(record)}",
                fix='each line is {"ID": "273271,1a0d...", "gtboxes": [...]}',
            )
        yield source, record


def read_record(
    record: Mapping[str, Any], key: str, folders: list[Path], *, source: str
) -> BoxSample:
    """Return one line's image and boxes; an image without `gtboxes` is not annotated."""
    image = find_image(f"{record['ID']}.jpg", folders, source=source)
    entries = record.get("gtboxes")
    if entries is None:
        return BoxSample(image=image)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(
            f"{source}: gtboxes holds {excerpt(entries)}", fix="it is a list of boxes: [{...}, ...]"
        )
    boxes: list[Box] = []
    ignore: list[bool] = []
    for k, entry in enumerate(entries):
        ignored = is_ignored(entry, key)
        place = f"{source}, box {k + 1} ({key})"
        found = entry.get(key, entry.get("fbox")) if ignored else entry.get(key)
        if ignored and covers_nothing(found, source=place):
            continue  # masks have no head, and a head box of zeros
        boxes.append(corners(found, source=place))
        ignore.append(ignored)
    return box_sample(image, boxes, ignore)


def is_ignored(entry: Mapping[str, Any], key: str) -> bool:
    """Say whether a box is left out of the evaluation, as the published tool decides it."""
    flags = ["extra", "head_attr"] if key == "hbox" else ["extra"]
    attributes = [entry.get(flag) for flag in flags]
    marked = any(isinstance(a, dict) and bool(a.get("ignore")) for a in attributes)
    return marked or entry.get("tag") != "person"
