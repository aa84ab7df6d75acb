"""The camera of a synthetic photograph, and everything in it that is not a person."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from crowdrt.contracts import Size
from crowdrt.data.people import NOISE_SIDE, FloatImage, noise_bank

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

    def ground(self, x: FloatImage, row: FloatImage) -> tuple[FloatImage, FloatImage]:
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
    base = np.asarray(colour, np.float32) * np.float32(rng.uniform(0.7, 1.15))
    return np.asarray(base * tone[..., None], np.float32)


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
    sky = np.asarray(
        ((168, 192, 222), (214, 216, 218), (120, 160, 214))[int(rng.integers(3))], float
    )
    ramp = np.linspace(0, 1, height)[:, None, None]
    picture = np.broadcast_to(sky * (1 - ramp) + 228.0 * ramp, (height, width, 3))
    image = Image.fromarray(np.asarray(picture, np.uint8))
    pen = ImageDraw.Draw(image)
    if rng.random() < 0.75:
        _buildings(rng, pen, height, width)
    for _ in range(int(rng.integers(0, 9))):
        _tree(rng, pen, height, width)
    wall = int(height * (1 - rng.uniform(0.02, 0.15)))
    grey = tuple(int(v) for v in rng.integers(40, 150) + rng.integers(-12, 12, 3))
    pen.rectangle((0, wall, width, height), fill=grey)
    image = image.filter(ImageFilter.GaussianBlur(0.9))
    return np.asarray(image, np.float32) * (1 + 0.03 * noise_bank()[1][:1, :1])


def _buildings(rng: np.random.Generator, pen: ImageDraw.ImageDraw, height: int, width: int) -> None:
    """A row of fronts with windows and signs."""
    left = -int(rng.integers(0, 60))
    while left < width:
        right = left + int(rng.uniform(0.08, 0.35) * width)
        top = int(height * rng.uniform(-0.6, 0.6))
        level = rng.uniform(70, 190)
        tone = level + rng.uniform(-18, 18, 3)
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
    """Leaves from dark to light over a trunk."""
    x, crown = rng.uniform(0, width), height * rng.uniform(0.25, 0.6)
    spread = height * rng.uniform(0.15, 0.35) + 8
    pen.rectangle((x - spread / 14, crown, x + spread / 14, height), fill=(58, 46, 38))
    green = np.asarray((44, 66, 34)) * rng.uniform(0.7, 1.2)
    for light in np.linspace(0.55, 1.5, 130):
        dx, dy = rng.normal(0, spread / 2.6, 2)
        r = spread * rng.uniform(0.04, 0.13)
        cx, cy = x + dx, crown + 0.8 * dy
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=_rgb(green * light))


def _rgb(levels: npt.NDArray[np.float64]) -> tuple[int, int, int]:
    """A colour that Pillow accepts."""
    red, green, blue = np.clip(levels, 0, 255).astype(int).tolist()
    return red, green, blue
