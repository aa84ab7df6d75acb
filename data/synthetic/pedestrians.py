"""Generated photographs with a box around everybody, for where no boxes are at hand.

The people of `photographs`, but few and whole; written in CrowdHuman's layout, so that whatever
reads that reads these. A full box is drawn around all that is painted of a person, hidden or not,
with what they hold; a visible box around what can be seen of it.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from crowdrt.console import track
from crowdrt.contracts import BoxSample, Size
from crowdrt.data.boxes.crowdhuman import crowdhuman
from crowdrt.data.synthetic.crowd import Person, window
from crowdrt.data.synthetic.photographs import GENERATOR, check_request, photograph
from crowdrt.manifest import reusable, sha256_file, write_manifest, write_whole

ANNOTATION = "annotation_generated.odgt"
PEDESTRIANS = (2, 24)  # in a photograph: apart enough that bodies are seen
SIZE: Size = (384, 512)
VISIBLE = 0.25  # of a person; who is seen less need not be found
SOLID = 0.5  # of a pixel's colour that is the person's, from which on it shows them


def generate_pedestrians(
    folder: Path,
    *,
    num_images: int,
    seed: int,
    size: Size = SIZE,
    people: tuple[int, int] = PEDESTRIANS,
) -> list[BoxSample]:
    """Write `Images/pedestrians_0000.jpg` and so on, and one annotation file.

    Image k depends on `seed` and k alone. What is there and undamaged is kept.

    Args:
        folder: where to write; made when missing.
        num_images: how many photographs.
        seed: any whole number from 0.
        size: height, width in pixels.
        people: fewest and most whose heads are seen.
    """
    check_request(size, people, num_images=num_images, seed=seed)
    annotation = folder / ANNOTATION
    made_from = {
        "generator": GENERATOR, "images": num_images, "seed": seed, "size": size, "people": people
    }  # fmt: skip
    if not (reusable(annotation, made_from=made_from) and undamaged(annotation)):
        numbers = track(range(num_images), "synthetic pedestrians", total=num_images)
        lines = [write_photograph(folder, k, seed, size, people) for k in numbers]
        with write_whole(annotation) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        write_manifest(annotation, kind="annotation", made_from=made_from)
    return crowdhuman(annotation)


def undamaged(annotation: Path) -> bool:
    """Say whether every photograph is there as it was written."""
    try:
        lines = [json.loads(line) for line in annotation.read_text("utf-8").splitlines()]
        images = annotation.parent / "Images"
        return all(sha256_file(images / f"{e['ID']}.jpg") == e["sha256"] for e in lines)
    except OSError:
        return False


def write_photograph(
    folder: Path, number: int, seed: int, size: Size, people: tuple[int, int]
) -> dict[str, object]:
    """Write one photograph and return its line of the annotation."""
    own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    pixels, present = photograph(own_seed, size=size, people_range=people)
    name = f"pedestrians_{number:04d}"
    path = folder / "Images" / f"{name}.jpg"
    encoded = io.BytesIO()  # Pillow misses that its last write to a file was cut short
    Image.fromarray(pixels.transpose(1, 2, 0)).save(encoded, "JPEG", quality=90)
    with write_whole(path) as temporary:
        temporary.write_bytes(encoded.getvalue())
    return {"ID": name, "gtboxes": person_boxes(present, size), "sha256": sha256_file(path)}


def person_boxes(people: Sequence[Person], size: Size) -> list[dict[str, object]]:
    """Return CrowdHuman's record of everybody of whom anything is seen.

    Args:
        people: far to near, things without a head among them.
        size: of the photograph.
    """
    owners = np.full(size, -1, np.int32)
    for index, person in enumerate(people):
        inside, part = window(person, size)
        owners[inside][person.sprite.alpha[part] > SOLID] = index
    records: list[dict[str, object]] = []
    for index, person in enumerate(people):
        visible, whole = owners == index, person.sprite.alpha > SOLID
        if person.sprite.head.any() and visible.any():
            seen = visible.sum() / whole.sum()
            records.append(
                {
                    "tag": "person",
                    "fbox": box_around(whole, left=person.left, top=person.top),
                    "vbox": box_around(visible),
                    "extra": {"ignore": int(seen < VISIBLE)},
                }
            )
    return records


def box_around(mask: npt.NDArray[np.bool_], *, left: int = 0, top: int = 0) -> list[int]:
    """Return [left, top, width, height] of the pixels of a mask that begins at left, top."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    first, last = (int(columns[0]), int(rows[0])), (int(columns[-1]), int(rows[-1]))
    return [left + first[0], top + first[1], last[0] - first[0] + 1, last[1] - first[1] + 1]
