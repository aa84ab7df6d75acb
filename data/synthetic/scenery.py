"""The camera of a synthetic photograph, and everything in it that is not a person."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from crowdrt.contracts import Size
from crowdrt.data.synthetic.people import choose, tinted
from crowdrt.data.synthetic.sprites import (
    FEET,
    NOISE_SIDE,
    FloatImage,
    Pen,
    Sprite,
    lit_sprite,
    noise_bank,
)

Pixels = npt.NDArray[np.floating[Any]]

HEAD_M = 0.24  # height of a head, crown to chin


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera above flat ground. Rows are pixels from the top of the photograph.

    The ground at `row` lies focal * rise / (row - horizon) metres away, so lengths there appear
    in proportion to (row - horizon).
    """

    size: Size
    horizon: float  # row where the ground vanishes; mostly above the photograph
    focal: float  # pixels
    rise: float  # metres above the ground
    far_row: float  # the crowd's ground begins here; a backdrop stands on it

    @classmethod
    def draw(cls, rng: np.random.Generator, size: Size, head_px: float) -> "Camera":
        """Choose a view in which heads measure about `head_px` in the middle."""
        height, width = size
        near = head_px * float(rng.uniform(1.4, 2.1))
        far = max(4.0, head_px * float(rng.uniform(0.35, 0.75)))
        far_row = height * float(rng.uniform(-0.1, 0.3))
        near_row = height + 6.0 * near  # where somebody stands whose head is at the bottom
        horizon = (far_row * near - near_row * far) / (near - far)
        return cls(
            size=size,
            horizon=horizon,
            focal=width * float(rng.uniform(1.0, 2.0)),
            rise=HEAD_M * (near_row - horizon) / near,
            far_row=far_row,
        )

    def head_px(self, row: float) -> float:
        """Height of the head of somebody whose feet are at `row`."""
        return HEAD_M * (row - self.horizon) / self.rise

    def upright(self, row: float) -> float:
        """How much of a vertical length is seen there: cos of the downward angle."""
        return float(np.cos(np.arctan((row - self.horizon) / self.focal)))

    def ground(self, x: Pixels, row: Pixels) -> tuple[FloatImage, FloatImage]:
        """Pixels -> metres on the ground: to the right, and away."""
        away = self.focal * self.rise / np.maximum(row - self.horizon, 1e-3)
        right = (x - self.size[1] / 2) * away / self.focal
        return np.asarray(right, np.float32), np.asarray(away, np.float32)


GROUNDS: tuple[tuple[tuple[int, int, int], str], ...] = (
    ((112, 110, 108), "asphalt"),
    ((150, 138, 126), "paving"),
    ((118, 106, 102), "paving"),
    ((96, 116, 66), "grass"),
    ((172, 158, 134), "sand"),
    ((86, 94, 106), "paving"),
)


def background(rng: np.random.Generator, camera: Camera) -> FloatImage:
    """Return the empty scene, (H, W, 3) in grey levels."""
    scene = _ground(rng, camera)
    base = int(np.clip(camera.far_row, 0, camera.size[0]))
    if base > 4:
        scene[:base] = _backdrop(rng, base, camera.size[1])
    return scene


def _sample(noise: FloatImage, right: FloatImage, away: FloatImage, per_m: float) -> FloatImage:
    """Noise laid on the ground, `per_m` noise pixels to the metre."""
    rows = (away * per_m).astype(np.int64) % NOISE_SIDE
    return noise[rows, (right * per_m).astype(np.int64) % NOISE_SIDE]


def _ground(rng: np.random.Generator, camera: Camera) -> FloatImage:
    """Asphalt, paving, grass or sand in perspective."""
    height, width = camera.size
    columns = np.arange(width, dtype=np.float32)[None, :]
    rows = np.arange(height, dtype=np.float32)[:, None]
    right, away = camera.ground(columns, rows)
    away = np.broadcast_to(away, (height, width))
    colour, kind = GROUNDS[int(rng.integers(len(GROUNDS)))]
    bank = noise_bank()
    tone = (
        1 + 0.05 * _sample(bank[4], right, away, 14.0) + 0.07 * _sample(bank[3], right, away, 2.5)
    )
    tone += (0.10 if kind == "grass" else 0.04) * _sample(bank[0], right, away, 60.0)
    if kind == "paving":
        tone *= _tiles(rng, camera, right, away)
    elif kind == "asphalt":
        tone += _road_lines(rng, right, away)
    base = np.asarray(colour, np.float32) * np.float32(rng.uniform(0.8, 1.3))
    return np.asarray(base * tone[..., None], np.float32)


def _road_lines(rng: np.random.Generator, right: FloatImage, away: FloatImage) -> FloatImage:
    """White paint: a few long lines, or the bars of a crossing; worn off in places."""
    angle = float(rng.uniform(0, np.pi))
    across = right * np.cos(angle) + away * np.sin(angle)
    along = away * np.cos(angle) - right * np.sin(angle)
    start, length = float(rng.choice(along.ravel())), float(rng.choice([3.5, 1e6]))
    apart = 1.0 if length < 10 else float(rng.uniform(3, 7))
    half = 0.25 if length < 10 else 0.08
    painted = (np.abs(across / apart - np.round(across / apart)) < half / apart) & (
        np.abs(along - start) < length
    )
    worn = np.clip(0.75 + 0.3 * _sample(noise_bank()[3], right, away, 20.0), 0, 1)
    return np.asarray(0.75 * painted * worn, np.float32)


def _tiles(
    rng: np.random.Generator, camera: Camera, right: FloatImage, away: FloatImage
) -> FloatImage:
    """Joints between slabs, fading where they get too fine to see, and slabs of two tones."""
    angle, side = float(rng.uniform(0, np.pi)), float(rng.uniform(0.5, 1.4))
    u = (right * np.cos(angle) + away * np.sin(angle)) / side
    v = (away * np.cos(angle) - right * np.sin(angle)) / side
    pixel = away / camera.focal / side  # one pixel in slabs
    fade = np.clip(1.3 - 9 * pixel * camera.size[0] / 576, 0, 1)
    joint = np.zeros_like(right)
    for axis in (u, v):
        distance = np.abs(axis - np.round(axis))
        joint = np.maximum(joint, np.clip(1.5 - distance / np.maximum(pixel * 1.2, 0.015), 0, 1))
    slab = noise_bank()[0][
        np.floor(v).astype(int) % NOISE_SIDE, np.floor(u).astype(int) % NOISE_SIDE
    ]
    return np.asarray(1 - fade * (0.28 * joint - 0.035 * slab), np.float32)


def _backdrop(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    """Sky, buildings and trees down to the far edge of the ground."""
    skies = ((168, 192, 222), (214, 216, 218), (120, 160, 214), (190, 186, 180))
    sky = np.asarray(skies[int(rng.integers(len(skies)))], float)
    ramp = np.linspace(0, 1, height)[:, None, None]
    clouds = (
        7 * noise_bank()[4][np.arange(height) % NOISE_SIDE][:, np.arange(width) // 3 % NOISE_SIDE]
    )
    picture = sky * (1 - ramp) + 226.0 * ramp + clouds[..., None]
    image = Image.fromarray(np.asarray(np.clip(picture, 0, 255), np.uint8))
    pen = ImageDraw.Draw(image)
    if rng.random() < 0.75:
        _buildings(rng, pen, height, width)
    for _ in range(int(rng.choice([0, 3, 6, 16]))):
        _tree(rng, pen, height, width)
    wall = int(height * (1 - rng.uniform(0.02, 0.15)))
    grey = rng.integers(40, 150) + rng.uniform(-12, 12, 3)
    pen.rectangle((0, wall, width, height), fill=_rgb(grey))
    for _ in range(int(rng.integers(0, 25))):  # stalls, vans, bins, hoardings along the wall
        x, wide, tall = rng.uniform(0, width), rng.uniform(6, 70), rng.uniform(0.08, 0.3) * height
        colour = rng.uniform(30, 235) + rng.uniform(-30, 30, 3)
        pen.rectangle((x, height - tall, x + wide, height), fill=_rgb(colour))
        pen.rectangle((x, height - tall, x + wide, height - 0.6 * tall), fill=_rgb(0.6 * colour))
    image = image.filter(ImageFilter.GaussianBlur(0.8))
    rows, columns = np.arange(height) % NOISE_SIDE, np.arange(width) % NOISE_SIDE
    dirt = (
        1
        + 0.05 * noise_bank()[3][np.ix_(rows, columns)]
        + 0.04 * noise_bank()[0][np.ix_(rows, columns)]
    )
    return np.asarray(np.asarray(image, np.float32) * dirt[..., None], np.float32)


def _buildings(rng: np.random.Generator, pen: ImageDraw.ImageDraw, height: int, width: int) -> None:
    """A row of fronts with windows and signs."""
    left = -int(rng.integers(0, 60))
    while left < width:
        right = left + 20 + int(rng.uniform(0.06, 0.35) * width)
        top = int(height * rng.uniform(-0.6, 0.6))
        level = rng.uniform(70, 190)
        tone = level * np.asarray((1.04, 1.0, 0.95)) + rng.uniform(-9, 9, 3)
        pen.rectangle((left, top, right, height), fill=_rgb(tone))
        step_x, step_y = int(rng.integers(9, 26)), int(rng.integers(10, 30))
        glass = _rgb(tone * rng.uniform(0.35, 0.75))
        for y in range(top + 5, height - 4, step_y):
            for x in range(left + 4, right - step_x // 2, step_x):
                fill = glass if rng.random() < 0.85 else _rgb(tone * 1.2)
                pen.rectangle((x, y, x + 0.6 * step_x, y + 0.6 * step_y), fill=fill)
        if rng.random() < 0.5:
            sign = height * rng.uniform(0.4, 0.85)
            pen.rectangle((left + 6, sign, right - 6, sign + 9), fill=_rgb(rng.uniform(30, 230, 3)))
        left = right + int(rng.integers(0, 12))


def _tree(rng: np.random.Generator, pen: ImageDraw.ImageDraw, height: int, width: int) -> None:
    """Leaves in clumps, dark below and light above, over a trunk."""
    x, crown = rng.uniform(0, width), height * rng.uniform(0.3, 0.6)
    spread = height * rng.uniform(0.15, 0.35) + 8
    pen.rectangle((x - spread / 14, crown, x + spread / 14, height), fill=(58, 46, 38))
    green = np.asarray((46, 64, 36)) * rng.uniform(0.6, 1.1)
    clumps = rng.normal(0, spread / 3, (12, 2))
    for k in range(350):
        dx, dy = clumps[k % 12] + rng.normal(0, spread / 7, 2)
        r = spread * rng.uniform(0.02, 0.07)
        light = float(np.clip(0.5 + k / 450 - 0.5 * dy / spread, 0.35, 1.7)) * rng.uniform(
            0.85, 1.15
        )
        cx, cy = x + dx, crown + 0.8 * dy
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=_rgb(green * light))


def draw_prop(rng: np.random.Generator, *, head_px: float, upright: float) -> Sprite:
    """Draw a lamp post, a flag, a parasol or a planter; in heads, like a person."""
    kind = choose(rng, {"post": 4, "flag": 2, "parasol": 2, "planter": 2})
    colour = _rgb(rng.uniform(30, 220) + rng.uniform(-50, 50, 3))
    up = {"post": 14.0, "flag": 9.0, "parasol": 4.0, "planter": 0.5}[kind]
    side = 0.8 if kind == "post" else 4.5
    pen = Pen(2 * head_px, up=up, down=FEET + 0.2, side=side, upright=upright)
    if kind == "planter":
        pen.polygon([(-3, 5.2), (3, 5.2), (2.7, FEET), (-2.7, FEET)], (128, 122, 114))
        for light in np.linspace(0.6, 1.5, 120).tolist():
            dx, dy = rng.normal(0, 1.2), rng.normal(4, 0.7)
            pen.ellipse(float(np.clip(dx, -3, 3)), dy, 0.35, 0.3, tinted((50, 72, 40), light))
    else:
        metal = tinted((128, 130, 132), float(rng.uniform(0.3, 1.4)))
        pen.polygon([(-0.13, -up + 0.4), (0.13, -up + 0.4), (0.2, FEET), (-0.2, FEET)], metal)
    if kind == "post":
        pen.ellipse(0, -up + 0.6, 0.6, 0.5, (226, 224, 210))
    elif kind == "flag":
        low = -up + float(rng.uniform(2, 4))
        pen.polygon([(0, -up + 0.5), (4, -up + 0.9), (3.8, low + 0.6), (0, low)], colour)
    elif kind == "parasol":
        pen.polygon([(-4.2, -1.4), (0, -3.4), (4.2, -1.4), (3, -0.9), (-3, -0.9)], colour)
        pen.polygon([(-1.4, -1.1), (0, -3.4), (1.4, -1.1)], tinted(colour, 1.3))
    shape = (pen.mask.height // 2, pen.mask.width // 2)
    light = np.linspace(0.8, 1.15, shape[1], dtype=np.float32)[None, :].repeat(shape[0], axis=0)
    return lit_sprite(pen, light, np.zeros(shape, np.bool_), head_px=head_px, enlarge=2)


def _rgb(levels: npt.NDArray[np.float64]) -> tuple[int, int, int]:
    """A colour that Pillow accepts."""
    red, green, blue = np.clip(levels, 0, 255).astype(int).tolist()
    return red, green, blue
