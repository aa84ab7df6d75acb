"""Synthetic crowd photographs with annotated heads, for where no data set is at hand.

People stand on a ground plane seen by a pinhole camera and are painted from far to near, so that
size, density and occlusion are right. No pixel comes from a real photograph.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from crowdrt.console import track
from crowdrt.contracts import Sample, Size, UInt8Image
from crowdrt.data.people import Wardrobe
from crowdrt.data.scenery import HEAD_M, Camera, background, draw_prop
from crowdrt.data.sprites import FEET, FloatImage, Sprite, draw_person, noise_bank
from crowdrt.errors import DataError
from crowdrt.manifest import sha256_file, write_json, write_whole

GENERATOR = 3  # raise it when the same seed gives other pixels
DEFAULT_SIZE: Size = (576, 864)
DEFAULT_PEOPLE = (50, 900)
VISIBLE = 0.25  # a head is annotated when at least this much of it is seen
MIN_SIDE_PX = 96
PX_PER_PERSON = 200  # of image; denser than this, most heads are hidden


@dataclass(frozen=True, kw_only=True, eq=False)
class Person:
    """A drawn person, or a thing without a head, and where it goes in the photograph."""

    sprite: Sprite
    left: int
    top: int
    feet_row: float  # decides who stands in front of whom

    @property
    def head(self) -> tuple[int, int]:
        """x, y of the head's centre in the photograph."""
        return self.left + self.sprite.centre[0], self.top + self.sprite.centre[1]


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
    check_request(size, people)
    if num_images < 1:
        raise DataError(f"num_images={num_images} makes no photograph", fix="ask for at least 1")
    if seed < 0:
        raise DataError(f"seed={seed} is negative", fix="use a whole number from 0")
    folder = Path(folder)
    numbers = track(range(num_images), "synthetic photographs", total=num_images)
    return [_sample(folder, k, seed=seed, size=size, people=people) for k in numbers]


def crowd_photograph(
    seed: int, *, size: Size = DEFAULT_SIZE, people_range: tuple[int, int] = DEFAULT_PEOPLE
) -> tuple[UInt8Image, npt.NDArray[np.float32]]:
    """Return one photograph, (3, H, W) uint8, and its heads, (N, 2) float32 x, y in pixels.

    Raises:
        DataError: the size is too small, or the range cannot be met at this size.
    """
    check_request(size, people_range)
    rng = np.random.default_rng(seed)
    target = round(float(np.exp(rng.uniform(*np.log(people_range)))))
    camera, wardrobe, people = _crowd(rng, size, people_range, target)
    scene = background(rng, camera)
    _cast_shadows(rng, scene, people, wardrobe)
    _paint(scene, people, camera, haze=float(rng.uniform(0, 0.3)))
    heads = seen_heads(people, size)
    picture = _developed(rng, scene)
    return np.ascontiguousarray(picture.transpose(2, 0, 1)), heads


def check_request(size: Size, people: tuple[int, int]) -> None:
    """Refuse a size or a number of people that no photograph can have."""
    height, width = size
    if min(size) < MIN_SIDE_PX:
        raise DataError(
            f"{width}x{height} px is too small for a synthetic crowd",
            fix=f"use at least {MIN_SIDE_PX} px on each side, for example size=(576, 864)",
        )
    fewest, most = people
    if not 1 <= fewest <= most:
        raise DataError(
            f"people={people} is not a range (fewest, most)",
            fix="use two whole numbers, at least 1, the smaller first: people=(50, 900)",
        )
    room = height * width // PX_PER_PERSON
    if fewest > room or most > 2 * room:
        raise DataError(
            f"people={people} do not fit in {width}x{height} px: the heads would be too small",
            fix=f"ask for at most {room} people, or for a larger size",
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
        with write_whole(image) as temporary:
            Image.fromarray(pixels.transpose(1, 2, 0)).save(temporary, "JPEG", quality=90)
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


def _crowd(
    rng: np.random.Generator, size: Size, people_range: tuple[int, int], target: int
) -> tuple[Camera, Wardrobe, list[Person]]:
    """A view and people of whom about `target`, and always a number in range, are seen."""
    wardrobe = Wardrobe.draw(rng)
    area = size[0] * size[1]
    fill = float(rng.uniform(0.04, 0.55))  # of the image, covered by heads that do not overlap
    head_px = float(np.clip(np.sqrt(fill * area / (1.2 * target)), 5, 0.05 * min(size)))
    for _ in range(12):
        camera = Camera.draw(rng, size, head_px)
        people = _populate(rng, camera, wardrobe, target)
        if people_range[0] <= len(seen_heads(people, size)) <= people_range[1]:
            return camera, wardrobe, people
        head_px = max(4.5, 0.85 * head_px)
    raise DataError(
        f"{people_range} people could not be seen at once in {size[1]}x{size[0]} px",
        fix="widen the range, or ask for a larger size",
    )


def _populate(
    rng: np.random.Generator, camera: Camera, wardrobe: Wardrobe, target: int
) -> list[Person]:
    """People, far ones first, of whom `target` are seen where the ground has room for them."""
    num_props = int(rng.integers(0, 5)) if rng.random() < 0.5 else 0
    places = _places(rng, camera, round(2.2 * target) + 20)
    props = [_prop(rng, camera, *place) for place in places[:num_props]]
    places = places[num_props:]
    streams = rng.spawn(len(places))
    drawn: list[Person] = []
    wanted = target
    for _ in range(8):  # hidden heads do not count, so more people may be needed
        wanted = min(wanted, len(places))
        for k in range(len(drawn), wanted):
            drawn.append(_person(streams[k], camera, wardrobe, *places[k]))
        chosen = sorted(props + drawn[:wanted], key=lambda person: person.feet_row)
        seen = len(seen_heads(chosen, camera.size))
        if abs(seen - target) <= 0.02 * target or (seen < target and wanted == len(places)):
            break
        wanted = max(1, wanted + target - seen)
    return chosen


def _places(rng: np.random.Generator, camera: Camera, count: int) -> list[tuple[float, float]]:
    """Up to `count` places x, feet row: in groups, with gaps, nobody inside somebody else."""
    height, width = camera.size
    near_row = height + FEET * camera.head_px(height * 1.2)
    rows = np.linspace(camera.far_row, near_row, 400)
    crowding = np.power(HEAD_M * (rows - camera.horizon) / camera.rise, -float(rng.uniform(0.8, 2)))
    row = rng.choice(rows, 12 * count, p=crowding / crowding.sum()) + rng.uniform(-1, 1, 12 * count)
    x = rng.uniform(-0.03 * width, 1.03 * width, 12 * count)
    right, away = camera.ground(x, row)
    keep = rng.random(len(x)) < _crowding(rng, right, away)
    spacing = float(rng.uniform(0.36, 0.6))  # metres
    taken: dict[tuple[int, int], list[tuple[float, float]]] = {}
    places = []
    for px, py, gx, gz in zip(x[keep], row[keep], right[keep], away[keep], strict=True):
        if _is_free(taken, float(gx), float(gz), spacing):
            places.append((float(px), float(py)))
            if len(places) == count:
                break
    return places


def _crowding(rng: np.random.Generator, right: FloatImage, away: FloatImage) -> FloatImage:
    """How welcome a place on the ground is, 0..1: groups of some metres, and an aisle or two."""
    noise, size = noise_bank()[4], noise_bank()[4].shape[0]
    metres = float(rng.uniform(0.4, 3.0))  # one grain of noise is 16 px
    shift = rng.integers(0, size, 2)
    u = ((right / metres * 8).astype(int) + shift[0]) % size
    v = ((away / metres * 8).astype(int) + shift[1]) % size
    chance = np.clip(0.5 + float(rng.uniform(0.0, 0.8)) * noise[v, u], 0.02, 1)
    for _ in range(int(rng.integers(0, 3))):
        angle = float(rng.uniform(0, np.pi))
        across = right * np.cos(angle) + away * np.sin(angle)
        middle = rng.choice(across)
        chance = np.where(np.abs(across - middle) < rng.uniform(0.5, 2.5), 0.04 * chance, chance)
    return np.asarray(chance, np.float32)


def _is_free(
    taken: dict[tuple[int, int], list[tuple[float, float]]], x: float, z: float, spacing: float
) -> bool:
    """Take the place x, z on the ground unless somebody stands within `spacing` metres."""
    column, line = int(x // spacing), int(z // spacing)
    for i in (column - 1, column, column + 1):
        for j in (line - 1, line, line + 1):
            for other_x, other_z in taken.get((i, j), ()):
                if (x - other_x) ** 2 + (z - other_z) ** 2 < spacing**2:
                    return False
    taken.setdefault((column, line), []).append((x, z))
    return True


def _person(
    rng: np.random.Generator, camera: Camera, wardrobe: Wardrobe, x: float, feet_row: float
) -> Person:
    """Somebody whose feet are at x, feet_row."""
    upright = camera.upright(feet_row) * float(np.clip(rng.normal(1.0, 0.06), 0.8, 1.15))
    head_px = camera.head_px(feet_row) * float(np.clip(rng.normal(1, 0.05), 0.85, 1.15))
    head_row = feet_row - FEET * head_px * upright
    inside = (camera.size[0] - head_row) / head_px / upright  # heads, down to the lower edge
    down = min(FEET + 0.2, max(1.0, inside + 0.5))
    sprite = draw_person(rng, wardrobe, head_px=head_px, upright=upright, down=down)
    if rng.random() < 0.5:
        sprite = _mirrored(sprite)
    return _standing(sprite, x, head_row, feet_row)


def _prop(rng: np.random.Generator, camera: Camera, x: float, feet_row: float) -> Person:
    """A post, a flag or the like: nobody, but it hides people."""
    upright, head_px = camera.upright(feet_row), camera.head_px(feet_row)
    sprite = draw_prop(rng, head_px=head_px, upright=upright)
    return _standing(sprite, x, feet_row - FEET * head_px * upright, feet_row)


def _standing(sprite: Sprite, x: float, head_row: float, feet_row: float) -> Person:
    """Put a sprite where it belongs."""
    left, top = round(x) - sprite.centre[0], round(head_row) - sprite.centre[1]
    return Person(sprite=sprite, left=left, top=top, feet_row=feet_row)


def _mirrored(sprite: Sprite) -> Sprite:
    """The same person facing the other way."""
    return Sprite(
        colour=sprite.colour[:, ::-1],
        alpha=sprite.alpha[:, ::-1],
        shadow=sprite.shadow[:, ::-1],
        head=sprite.head[:, ::-1],
        centre=(sprite.alpha.shape[1] - 1 - sprite.centre[0], sprite.centre[1]),
    )


def _window(person: Person, size: Size) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where the person lies in the photograph, and the part of its sprite that is inside."""
    height, width = person.sprite.alpha.shape
    top, bottom = max(0, person.top), min(size[0], person.top + height)
    left, right = max(0, person.left), min(size[1], person.left + width)
    inside = (slice(top, max(top, bottom)), slice(left, max(left, right)))
    part = tuple(
        slice(cut.start - start, cut.stop - start)
        for cut, start in zip(inside, (person.top, person.left), strict=True)
    )
    return inside, (part[0], part[1])


def head_owners(people: Sequence[Person], size: Size) -> npt.NDArray[np.int32]:
    """Return (H, W): the index of the person whose head is seen at each pixel, else -1."""
    owners = np.full(size, -1, np.int32)
    for index, person in enumerate(people):
        inside, part = _window(person, size)
        owners[inside][person.sprite.alpha[part] > 0.5] = -1
        owners[inside][person.sprite.head[part]] = index
    return owners


def seen_heads(people: Sequence[Person], size: Size) -> npt.NDArray[np.float32]:
    """Return the centres, (N, 2), of the heads inside the photograph that enough is seen of."""
    owners = head_owners(people, size)
    seen = np.bincount(owners[owners >= 0], minlength=len(people))
    heads = []
    for person, pixels in zip(people, seen, strict=True):
        x, y = person.head
        whole = int(person.sprite.head.sum())
        if 0 <= x < size[1] and 0 <= y < size[0] and pixels >= max(1, VISIBLE * whole):
            heads.append((x, y))
    return np.asarray(heads, np.float32).reshape(-1, 2)


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
        inside, part = _window(person, size)
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
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.9))))
    grain = rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(1, 6))
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
