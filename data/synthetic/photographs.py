"""Synthetic crowd photographs with annotated heads, for where no data set is at hand.

People stand on a ground plane seen by a pinhole camera and are painted from far to near, so that
size, density and occlusion are right. No pixel comes from a real photograph.
"""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from crowdrt.console import track
from crowdrt.contracts import Sample, Size, UInt8Image
from crowdrt.data.synthetic.crowd import Person, gather, seen_heads, window
from crowdrt.data.synthetic.people import Wardrobe
from crowdrt.data.synthetic.scenery import Camera, background
from crowdrt.data.synthetic.sprites import FloatImage
from crowdrt.errors import DataError
from crowdrt.manifest import sha256_file, write_json, write_whole

GENERATOR = 5  # raise it when the same seed gives other pixels
DEFAULT_SIZE: Size = (576, 864)
DEFAULT_PEOPLE = (50, 900)
MIN_SIDE_PX = 96
PEOPLE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?", re.ASCII)
PX_PER_PERSON = 200  # of image; denser than this, most heads are hidden


def generate(
    folder: Path,
    *,
    num_images: int,
    seed: int,
    size: Size = DEFAULT_SIZE,
    people: tuple[int, int] = DEFAULT_PEOPLE,
) -> list[Sample]:
    """Write `crowd_0000.jpg` with `crowd_0000.jpg.heads.json` beside it, and so on.

    Image k depends on `seed` and k alone, so a larger set holds the smaller one. Files that are
    there already and would come out the same are kept; other files are left alone.

    Args:
        folder: where to write; made when missing.
        num_images: how many photographs.
        seed: any whole number from 0.
        size: height, width in pixels.
        people: fewest and most annotated heads in a photograph.
    """
    check_request(size, people, num_images=num_images, seed=seed)
    folder = Path(folder)
    numbers = track(range(num_images), "synthetic photographs", total=num_images)
    return [_sample(folder, k, seed=seed, size=size, people=people) for k in numbers]


def parse_people(text: str) -> tuple[int, int]:
    """Read `50-900` as the fewest and the most people in a photograph, `200` as exactly as many."""
    found = PEOPLE.fullmatch(text)
    if found is None:
        raise DataError(
            f"people {text!r} is not FEWEST-MOST",
            fix="use two whole numbers, the smaller first: --people 50-900",
        )
    return int(found[1]), int(found[2] or found[1])


def crowd_photograph(
    seed: int, *, size: Size = DEFAULT_SIZE, people_range: tuple[int, int] = DEFAULT_PEOPLE
) -> tuple[UInt8Image, npt.NDArray[np.float32]]:
    """Return one photograph, (3, H, W) uint8, and its heads, (N, 2) float32 x, y in pixels.

    Raises:
        DataError: the size is too small, or the range cannot be met at this size.
    """
    pixels, people = photograph(seed, size=size, people_range=people_range)
    return pixels, seen_heads(people, size)


def photograph(
    seed: int, *, size: Size, people_range: tuple[int, int]
) -> tuple[UInt8Image, list[Person]]:
    """Return one photograph, (3, H, W) uint8, and who is on it, far to near."""
    check_request(size, people_range)
    rng = np.random.default_rng(seed)
    fewest, most = people_range
    target = fewest + round(float((most - fewest) * rng.random() ** 1.5))
    camera, wardrobe, people = gather(rng, size, people_range, target)
    scene = background(rng, camera)
    _cast_shadows(rng, scene, people, wardrobe)
    _paint(scene, people, camera, haze=float(rng.uniform(0, 0.3)))
    picture = _developed(rng, scene)
    return np.ascontiguousarray(picture.transpose(2, 0, 1)), people


def check_request(
    size: Size, people: tuple[int, int], *, num_images: int = 1, seed: int = 0
) -> None:
    """Refuse a size or a number of people that no photograph can have, or a set that is none."""
    height, width = size
    if num_images < 1:
        raise DataError(f"num_images={num_images} makes no photograph", fix="ask for at least 1")
    if seed < 0:
        raise DataError(f"seed={seed} is negative", fix="use a whole number from 0")
    if min(size) < MIN_SIDE_PX:
        raise DataError(
            f"{width}x{height} px is too small for a synthetic crowd",
            fix=f"use at least {MIN_SIDE_PX} px on each side, for example --size 576x864",
        )
    fewest, most = people
    if not 1 <= fewest <= most:
        raise DataError(
            f"people={people} is not a range (fewest, most)",
            fix="use two whole numbers, at least 1, the smaller first: --people 50-900",
        )
    room = height * width // PX_PER_PERSON
    if fewest > room or most > 2 * room:
        raise DataError(
            f"people={people} do not fit in {width}x{height} px: the heads would be too small",
            fix=f"ask for at most {room} people, --people {max(1, room // 4)}-{room}, or for a "
            "larger --size",
        )


def _sample(folder: Path, number: int, *, seed: int, size: Size, people: tuple[int, int]) -> Sample:
    """One photograph on disk: the one that is there, or a new one."""
    image = folder / f"crowd_{number:04d}.jpg"
    annotation = image.with_name(image.name + ".heads.json")
    own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    made_from = {
        "generator": GENERATOR,
        "seed": own_seed,
        "size": list(size),
        "people": list(people),
    }
    heads = _kept(image, annotation, made_from)
    if heads is None:
        pixels, heads = crowd_photograph(own_seed, size=size, people_range=people)
        encoded = io.BytesIO()  # Pillow misses that its last write to a file was cut short
        Image.fromarray(pixels.transpose(1, 2, 0)).save(encoded, "JPEG", quality=90)
        with write_whole(image) as temporary:
            temporary.write_bytes(encoded.getvalue())
        document = {"heads": heads.tolist(), **made_from, "sha256": sha256_file(image)}
        write_json(annotation, document)
    return Sample(image=image, heads=heads)


def _kept(
    image: Path, annotation: Path, made_from: dict[str, object]
) -> npt.NDArray[np.float32] | None:
    """The heads of a photograph that was made from exactly this and is undamaged, else None."""
    try:
        document = json.loads(annotation.read_text())
        if any(document.get(key) != value for key, value in made_from.items()):
            return None
        if document["sha256"] != sha256_file(image):
            return None
        return np.asarray(document["heads"], np.float32).reshape(-1, 2)
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _cast_shadows(
    rng: np.random.Generator, scene: FloatImage, people: Sequence[Person], wardrobe: Wardrobe
) -> None:
    """Darken the ground under and beside everybody."""
    height, width = scene.shape[:2]
    image = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(image)
    length = float(rng.uniform(0, 1.6)) * wardrobe.light[1]
    side = 1.0 if wardrobe.light[0] < 0 else -1.0
    for person in people:
        x, _ = person.head
        body = person.sprite.alpha.shape[0]
        thick, y = 0.13 * body, person.feet_row
        pen.ellipse((x - thick, y - 0.4 * thick, x + thick, y + 0.3 * thick), fill=150)
        tip = x + side * length * 0.6 * body
        pen.line((x, y, tip, y - 0.15 * body * length), fill=110, width=max(1, round(0.9 * thick)))
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(1.6)), np.float32)
    scene *= 1 - 0.75 * soft[..., None] / 255


def _paint(scene: FloatImage, people: Sequence[Person], camera: Camera, *, haze: float) -> None:
    """Paint everybody onto the scene, far to near, the far ones paler."""
    size = (scene.shape[0], scene.shape[1])
    for person in people:
        inside, part = window(person, size)
        alpha = person.sprite.alpha[part][..., None]
        far = (camera.far_row - camera.horizon) / (person.feet_row - camera.horizon)
        veil = haze * far**1.5
        target = scene[inside]
        target *= 1 - 0.4 * person.sprite.shadow[part][..., None]
        target *= 1 - alpha
        target += person.sprite.colour[part] * (1 - veil) + alpha * (190 * veil)


def _developed(rng: np.random.Generator, scene: FloatImage) -> npt.NDArray[np.uint8]:
    """What light, lens, sensor and compression make of the scene; (H, W, 3)."""
    height, width = scene.shape[:2]
    scene = scene * _light(rng, height, width)[..., None]
    scene *= rng.uniform(0.93, 1.07, 3).astype(np.float32) * (rng.uniform(88, 140) / scene.mean())
    scene = 255 * np.power(np.clip(scene / 255, 0, 1), np.float32(rng.uniform(0.85, 1.15)))
    contrast = np.float32(rng.uniform(0.95, 1.3))
    scene = (scene - scene.mean()) * contrast + scene.mean()
    scene = np.where(scene > 190, 255 - 65 * np.exp((190 - scene) / 65), scene)  # film's shoulder
    if rng.random() < 0.08:
        scene = np.repeat(scene.mean(axis=2, keepdims=True), 3, axis=2)
    image = Image.fromarray(np.asarray(np.clip(scene, 0, 255), np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(float(rng.choice([0.2, 0.4, 0.6, 0.9]))))
    grain = rng.standard_normal((height, width, 1), np.float32) * np.float32(
        rng.choice([0.8, 1.5, 3, 5])
    )
    noisy = np.clip(np.asarray(image, np.float32) + grain, 0, 255)
    return _compressed(np.asarray(noisy, np.uint8), quality=int(rng.integers(55, 93)))


def _light(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    """Uneven light: brighter on one side, darker in the corners, a cloud here and there."""
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    slope = rng.uniform(-0.15, 0.15, 2)
    corner = float(rng.uniform(0, 0.12))
    return np.asarray(1 + slope[0] * x + slope[1] * y - corner * (x**2 + y**2), np.float32)


def _compressed(picture: npt.NDArray[np.uint8], *, quality: int) -> npt.NDArray[np.uint8]:
    """The picture after a camera's JPEG compression."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"), np.uint8)
