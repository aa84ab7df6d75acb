"""Where the people of a synthetic photograph stand, and whose heads can be seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from crowdrt.contracts import Size
from crowdrt.data.synthetic.people import Wardrobe
from crowdrt.data.synthetic.scenery import HEAD_M, Camera, draw_prop
from crowdrt.data.synthetic.sprites import FEET, FloatImage, Sprite, draw_person, noise_bank
from crowdrt.errors import DataError

VISIBLE = 0.25  # a head is annotated when at least this much of it is seen
TRIES = 12


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


def gather(
    rng: np.random.Generator, size: Size, people_range: tuple[int, int], target: int
) -> tuple[Camera, Wardrobe, list[Person]]:
    """A view and people of whom about `target`, and always a number in range, are seen."""
    wardrobe = Wardrobe.draw(rng)
    area = size[0] * size[1]
    fill = float(rng.uniform(0.04, 0.55))  # of the image, covered by heads that do not overlap
    head_px = float(np.clip(np.sqrt(fill * area / (1.2 * target)), 5, 0.05 * min(size)))
    packed = 0.7 if rng.random() < 0.25 else 0.0
    for attempt in range(TRIES):
        camera = Camera.draw(rng, size, head_px)
        places = _places(
            rng, camera, round(2.2 * target) + 20, closeness=max(packed, attempt / TRIES)
        )
        people = _populate(rng, camera, wardrobe, places, people_range, target)
        if people_range[0] <= len(seen_heads(people, size)) <= people_range[1]:
            return camera, wardrobe, people
        head_px = max(4.5, 0.85 * head_px)
    raise DataError(
        f"{people_range} people could not be seen at once in {size[1]}x{size[0]} px",
        fix="widen the range (--people 50-900), or ask for a larger --size",
    )


def _populate(
    rng: np.random.Generator,
    camera: Camera,
    wardrobe: Wardrobe,
    places: list[tuple[float, float]],
    people_range: tuple[int, int],
    target: int,
) -> list[Person]:
    """People, far ones first, of whom about `target` are seen where there are enough places."""
    num_props = int(rng.integers(0, 5)) if rng.random() < 0.5 else 0
    props = [_prop(rng, camera, *place) for place in places[:num_props]]
    places = places[num_props:]
    streams = rng.spawn(len(places))
    drawn: list[Person] = []
    wanted = target
    for _ in range(15):  # hidden heads do not count, so more people may be needed
        wanted = min(wanted, len(places))
        for k in range(len(drawn), wanted):
            drawn.append(_person(streams[k], camera, wardrobe, *places[k]))
        chosen = sorted(props + drawn[:wanted], key=lambda person: person.feet_row)
        seen = len(seen_heads(chosen, camera.size))
        close = people_range[0] <= seen <= people_range[1] and abs(seen - target) <= 0.03 * target
        if close or (seen < target and wanted == len(places)):
            break
        wanted = max(1, wanted + target - seen)
    return chosen


def _places(
    rng: np.random.Generator, camera: Camera, count: int, *, closeness: float
) -> list[tuple[float, float]]:
    """Up to `count` places x, feet row: in groups, with gaps, nobody inside somebody else.

    `closeness`, 0 to 1, packs them tighter and more evenly.
    """
    height, width = camera.size
    near_row = height + FEET * camera.head_px(height * 1.2)
    rows = np.linspace(camera.far_row, near_row, 400)
    crowding = np.power(HEAD_M * (rows - camera.horizon) / camera.rise, -float(rng.uniform(0.8, 2)))
    row = rng.choice(rows, 12 * count, p=crowding / crowding.sum()) + rng.uniform(-1, 1, 12 * count)
    x = rng.uniform(-0.03 * width, 1.03 * width, 12 * count)
    right, away = camera.ground(x, row)
    keep = rng.random(len(x)) < _crowding(rng, right, away) + closeness
    spacing = float(rng.uniform(0.36, 0.6)) * (1 - 0.5 * closeness)  # metres
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
    return replace(
        sprite,
        colour=sprite.colour[:, ::-1],
        alpha=sprite.alpha[:, ::-1],
        shadow=sprite.shadow[:, ::-1],
        head=sprite.head[:, ::-1],
        centre=(sprite.alpha.shape[1] - 1 - sprite.centre[0], sprite.centre[1]),
    )


def window(person: Person, size: Size) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
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
        inside, part = window(person, size)
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
        enough = max(1.0, VISIBLE * person.sprite.head_area)
        if 0 <= x < size[1] and 0 <= y < size[0] and pixels >= enough:
            heads.append((x, y))
    return np.asarray(heads, np.float32).reshape(-1, 2)
