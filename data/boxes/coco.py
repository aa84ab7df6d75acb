"""COCO's layout: one JSON document with `images`, `annotations` and `categories`.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; the format is at
https://cocodataset.org/#format-data. A box is [x, y, width, height] in pixels from 0; `iscrowd` 1
marks a region of many people, which is left out of the evaluation. The published
`instances_train2017.json` has two boxes without height (cocoapi's issue 355): a box that covers
nothing is left out, with a word.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crowdrt.console import say
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

FORMAT = "see https://cocodataset.org/#format-data"
PERSON = "person"


def coco(
    path: Path, *, category: str | None = PERSON, images: Path | None = None
) -> list[BoxSample]:
    """Read an `instances_*.json` file.

    Args:
        path: the annotation file.
        category: whose boxes, with label 0; the others are left out. None: all categories, their
            labels from 0 in the order of their numbers, so that COCO's 80 are 0 to 79 and people 0.
        images: the folder of the photographs; None looks where COCO's own files lie, and beside
            the annotation file.

    Returns:
        One sample per image of the file, people on it or not, in the file's order.

    Raises:
        DataError: no such category, a box is none, or an image is missing.
    """
    document = parse_json(read_text(path), source=str(path))
    wanted = wanted_labels(document, category, source=path)
    named = images_by_id(document, source=path)
    found = boxes_by_image(document, wanted, named, source=path)
    folders = [images] if images else image_folders(path)
    return [
        box_sample(find_image(name, folders, source=str(path)), *found[each])
        for each, name in named.items()
    ]


def boxes_by_image(
    document: Any, wanted: Mapping[int | str, int], named: Mapping[Any, str], *, source: Path
) -> dict[Any, tuple[list[Box], list[bool], list[int]]]:
    """Return boxes, whether they are ignored, and labels, by the ids of all images."""
    found: dict[Any, tuple[list[Box], list[bool], list[int]]]
    found = {each: ([], [], []) for each in named}
    num_empty = 0
    for number, entry in enumerate(entries(document, "annotations", source=source), start=1):
        kind = entry.get("category_id")
        if not isinstance(kind, int | str) or kind not in wanted:
            continue
        place = f"{source} annotation {entry.get('id', f'number {number}')}"
        boxes, ignore, labels = found[known_image(entry, named, source=place)]
        if covers_nothing(entry.get("bbox"), source=place):
            num_empty += 1
            continue
        boxes.append(corners(entry.get("bbox"), source=place))
        ignore.append(bool(entry.get("iscrowd")))
        labels.append(wanted[kind])
    if num_empty:
        say(f"{source}: {num_empty} box(es) that cover nothing are left out")
    return found


def image_folders(path: Path) -> list[Path]:
    """Return where the images may lie: `val2017/` beside `annotations/instances_val2017.json`."""
    split = path.stem.removeprefix("instances_")
    parent, root = path.parent, path.absolute().parent.parent
    return [root / split, root / "images", parent / "images", parent / split, parent]


def entries(document: Any, name: str, *, source: Path) -> list[Mapping[str, Any]]:
    """Return one of the document's lists, every element a mapping."""
    found = document.get(name) if isinstance(document, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise DataError(
            f"{source} is no COCO file: {name} is {excerpt(found)}, not a list of {{...}}",
            fix=FORMAT,
        )
    return found


def wanted_labels(document: Any, category: str | None, *, source: Path) -> dict[int | str, int]:
    """Return labels by the numbers of their categories, of one category or of all."""
    listed = {
        str(e.get("name")): known_id(e.get("id"), source=source)
        for e in entries(document, "categories", source=source)
    }
    if category is None:
        order = sorted(listed.values(), key=lambda each: (isinstance(each, str), each))
        return {each: label for label, each in enumerate(order)}
    if category not in listed:
        raise DataError(
            f"{source} has no category {category!r}",
            fix=f"choose one with --category: {', '.join(sorted(listed)) or 'the file lists none'}",
        )
    return {listed[category]: 0}


def known_id(found: object, *, source: Path) -> int | str:
    """Return a category's number, or refuse what is none."""
    if not isinstance(found, int | str):
        raise DataError(f"{source}: a category's id is {excerpt(found)}", fix=FORMAT)
    return found


def images_by_id(document: Any, *, source: Path) -> dict[Any, str]:
    """Return the images' file names by their ids."""
    named = {}
    for entry in entries(document, "images", source=source):
        identity, name = entry.get("id"), entry.get("file_name")
        if not isinstance(identity, int | str) or not isinstance(name, str):
            raise DataError(
                f"{source}: an image needs id and file_name, found {excerpt(entry)}", fix=FORMAT
            )
        named[identity] = name
    if not named:
        raise DataError(f"{source} lists no images", fix=FORMAT)
    return named


def known_image(entry: Mapping[str, Any], named: Mapping[Any, str], *, source: str) -> Any:
    """Return the id of an annotation's image, if the file lists it."""
    identity = entry.get("image_id")
    if not isinstance(identity, int | str) or identity not in named:
        raise DataError(
            f"{source} is of image {identity!r}, which the file does not list",
            fix="remove the annotation, or add the image to `images`",
        )
    return identity
