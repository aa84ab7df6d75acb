"""Draws one person of a synthetic crowd as a small picture with an alpha channel.

Lengths are in heads: 1 is the height of this person's head, crown to chin; (0, 0) is the centre
of the head, y points down. An adult is 7 to 7.5 heads tall.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from crowdrt.data.synthetic.people import Colour, Look, Wardrobe, tinted

Points = Sequence[tuple[float, float]]
FloatImage = npt.NDArray[np.float32]

FEET = 6.9  # heads from the centre of the head down to the soles
CHEST = 0.55  # below this, the body is seen foreshortened by a camera above it
NOISE_SIDE = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class Sprite:
    """A drawn person, or a thing without a head."""

    colour: FloatImage  # (h, w, 3) grey levels 0..255, times alpha
    alpha: FloatImage  # (h, w) 0..1
    shadow: FloatImage  # (h, w) 0..1, what it takes from the light of those close behind
    head: npt.NDArray[np.bool_]  # (h, w) where the head is seen, hair and hat included
    head_area: float  # pixels of the whole head, also under the person's own arm or umbrella
    centre: tuple[int, int]  # x, y of the head's centre in the sprite


class Pen:
    """Draws shapes given in heads on an enlarged canvas, and keeps a mask of the head."""

    def __init__(
        self, unit: float, *, up: float, down: float, side: float, upright: float, lean: float = 0
    ) -> None:
        self.unit, self.upright, self.lean = unit, upright, lean
        self.origin = (side * unit, up * unit)
        size = (int(2 * side * unit), max(1, int((up + self.squash(down)) * unit)))
        # Four plain bands, the last one is coverage: averaging them gives colour times alpha.
        self.canvas = Image.new("RGBX", size, (0, 0, 0, 0))
        self.mask = Image.new("L", size, 0)
        self._draw, self._draw_mask = ImageDraw.Draw(self.canvas), ImageDraw.Draw(self.mask)
        self.head_area = 0.0  # canvas pixels
        self.mask_level: int | None = None  # 255 draws the head, 0 covers it, None leaves it

    def squash(self, y: float) -> float:
        """Foreshorten what lies below the chin."""
        return y if y < CHEST else CHEST + (y - CHEST) * self.upright

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Heads -> canvas pixels."""
        x += self.lean * max(0.0, y)
        return self.origin[0] + x * self.unit, self.origin[1] + self.squash(y) * self.unit

    def polygon(self, points: Points, fill: Colour) -> None:
        """A filled polygon."""
        corners = [self.at(x, y) for x, y in points]
        self._draw.polygon(corners, fill=(*fill, 255))
        if self.mask_level is not None:
            self._draw_mask.polygon(corners, fill=self.mask_level)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        """A filled ellipse; only its centre is foreshortened."""
        cx, cy = self.at(x, y)
        box = (cx - rx * self.unit, cy - ry * self.unit, cx + rx * self.unit, cy + ry * self.unit)
        self._draw.ellipse(box, fill=(*fill, 255))
        if self.mask_level is not None:
            self._draw_mask.ellipse(box, fill=self.mask_level)

    def limb(self, points: Points, thickness: float, fill: Colour) -> None:
        """A bent tube with round joints."""
        corners = [self.at(x, y) for x, y in points]
        width = max(1, round(thickness * self.unit))
        self._draw.line(corners, fill=(*fill, 255), width=width)
        if self.mask_level is not None:
            self._draw_mask.line(corners, fill=self.mask_level, width=width)
        for x, y in points:
            self.ellipse(x, y, thickness / 2, thickness / 2, fill)


def draw_person(
    rng: np.random.Generator,
    wardrobe: Wardrobe,
    *,
    head_px: float,
    upright: float,
    down: float = FEET + 0.2,
) -> Sprite:
    """Draw a person whose head is `head_px` tall.

    Args:
        rng: chooses who it is.
        wardrobe: what the whole crowd has in common.
        head_px: height of the head in pixels of the photograph.
        upright: how much of a vertical length the camera sees, cos of its downward angle, 0..1.
        down: heads below the head's centre at which the drawing may end.
    """
    look = Look.draw(rng, wardrobe)
    enlarge = 4 if head_px < 9 else 3 if head_px < 18 else 2
    high = "up" in look.arms or look.carries in ("umbrella", "placard")
    pen = Pen(
        head_px * enlarge,
        up=2.6 if high else 0.85,
        down=down,
        side=1.9,
        upright=upright,
        lean=look.lean,
    )
    if down > 2.5:
        _legs(pen, look, rng)
    _torso(pen, look, rng)
    _arms(pen, look, rng, over_head=False)
    pen.mask_level = 255
    _head(pen, look, rng)
    pen.head_area = pen.mask.histogram()[255]
    pen.mask_level = 0
    _arms(pen, look, rng, over_head=True)
    _held(pen, look, rng)
    return _shaded(pen, look, rng, wardrobe, head_px=head_px, enlarge=enlarge)


def _legs(pen: Pen, look: Look, rng: np.random.Generator) -> None:
    """Two legs, a skirt or shorts, and shoes."""
    stride = float(rng.uniform(0.0, 0.6 if look.view == "side" else 0.2))
    hip = look.shoulder * 0.42
    for sign, shade in ((-1, 0.75), (1, 1.0)):
        knee, foot = sign * (hip + 0.5 * stride), sign * (hip + stride)
        bare = look.legs != "trousers"
        leg = tinted(look.skin if bare else look.bottom, shade)
        pen.limb([(sign * hip, 3.3), (knee, 5.0), (foot, FEET - 0.15)], 0.42, leg)
        pen.ellipse(foot + 0.08, FEET - 0.05, 0.3, 0.15, tinted(look.accent, 0.5))
        if look.legs == "shorts":
            pen.limb([(sign * hip, 3.3), (knee, 4.7)], 0.6, tinted(look.bottom, shade))
    if look.legs == "skirt":
        half = look.shoulder * 0.7
        flare = half * float(rng.uniform(1.0, 1.5))
        pen.polygon([(-half, 2.6), (half, 2.6), (flare, 4.7), (-flare, 4.7)], look.bottom)


def _torso(pen: Pen, look: Look, rng: np.random.Generator) -> None:
    """Neck and clothes."""
    s, drop = look.shoulder, float(rng.uniform(3.0, 3.7))
    tilt = 1 - pen.upright  # from above, the depth of the shoulders shows
    pen.ellipse(0, 0.95, s * 0.96, 0.26 + 0.5 * tilt, look.top)
    outline = [(-0.2, 0.6), (0.2, 0.6), (0.8 * s, 0.8), (s, 1.15), (0.82 * s, 1.7), (0.72 * s, 2.5)]
    lower = [(0.8 * s, drop), (-0.8 * s, drop), (-0.72 * s, 2.5), (-0.82 * s, 1.7), (-s, 1.15)]
    pen.polygon([*outline, *lower, (-0.8 * s, 0.8)], look.top)
    _pattern(pen, look, rng, drop)
    if look.hair_style == "long":
        pen.polygon([(-0.36, 0), (0.36, 0), (0.42, 0.85), (-0.42, 0.85)], tinted(look.hair, 0.85))
    if look.view == "front" and rng.random() < 0.5:  # an open collar
        pen.polygon([(-0.24, 0.6), (0.24, 0.6), (0, 1.1)], tinted(look.skin, 0.85))
    if look.view != "back" or look.hair_style != "long":
        pen.limb([(0, 0.3), (0, 0.66)], 0.38, tinted(look.skin, 0.7))  # in the chin's shadow


def _pattern(pen: Pen, look: Look, rng: np.random.Generator, drop: float) -> None:
    """Stripes, checks, a print, an open jacket over a shirt, a backpack."""
    half, accent = 0.74 * look.shoulder, look.accent
    if look.pattern in ("stripes", "check"):
        step = float(rng.uniform(0.22, 0.45))
        for y in np.arange(0.95, drop - 0.1, step).tolist():
            low = y + 0.4 * step
            pen.polygon([(-half, y), (half, y), (half, low), (-half, low)], accent)
    if look.pattern == "check":
        for x in np.arange(-half, half, 0.36).tolist():
            strip = [(x, 0.9), (x + 0.1, 0.9), (x + 0.1, drop), (x, drop)]
            pen.polygon(strip, tinted(accent, 0.8))
    if look.pattern == "print":
        pen.ellipse(0.05, 1.75, 0.42 * half, 0.32, accent)
        pen.polygon([(-0.3, 2.1), (0.35, 2.1), (0.3, 2.25), (-0.28, 2.25)], tinted(accent, 0.8))
    if look.pattern == "open" and look.view != "back":
        pen.polygon([(-0.16, 0.66), (0.16, 0.66), (0.3, drop), (-0.2, drop)], accent)
    if look.pattern == "backpack" and look.view == "back":
        pen.polygon([(-half, 1.0), (half, 1.0), (0.9 * half, 2.5), (-0.9 * half, 2.5)], accent)
        pen.ellipse(0, 1.05, half * 0.8, 0.25, tinted(accent, 1.15))
    elif look.pattern == "backpack":
        for x in (-0.5, 0.5):
            pen.limb([(x * half, 0.75), (1.2 * x * half, 1.8)], 0.14, accent)


def _arms(pen: Pen, look: Look, rng: np.random.Generator, *, over_head: bool) -> None:
    """Arms that hang or bend lie over the torso; raised ones over the head as well."""
    for sign, pose in zip((-1, 1), look.arms, strict=True):
        if (pose == "up") is not over_head:
            continue
        x = sign * look.shoulder * 0.9
        jitter = float(rng.uniform(-0.1, 0.1))
        elbow, hand = {
            "down": ((x * 1.12, 2.1), (x * 1.08 + jitter, 3.1)),
            "bent": ((x * 1.15, 2.1), (x * 0.2 + jitter, 1.9 + 2 * jitter)),
            "out": ((x * 1.35, 1.9), (x * 1.7, 2.4 + jitter)),
            "up": ((x * 1.35, 0.1), (x * 1.05 + jitter, -1.1 + 3 * jitter)),
        }[pose]
        sleeve = tinted(look.top, 0.93)
        if pose == "bent" and look.view == "back":  # the body hides the forearm
            hand = (x * 0.9, 1.9)
        pen.limb([(x * 0.93, 1.15), elbow], 0.42, tinted(look.top, 0.6))  # the arm's outline
        if look.sleeves == "short":
            pen.limb([(x, 1.05), elbow, hand], 0.26, tinted(look.skin, 0.95))
            pen.limb([(x, 1.05), (0.4 * x + 0.6 * elbow[0], 0.42 + 0.6 * elbow[1])], 0.37, sleeve)
        else:
            pen.limb([(x, 1.05), elbow, hand], 0.33, sleeve)
        if pose != "bent" or look.view != "back":
            pen.ellipse(*hand, 0.13, 0.14, look.skin)


def _head(pen: Pen, look: Look, rng: np.random.Generator) -> None:
    """Hair, face and hat, seen the more from above the steeper the camera looks down."""
    tilt = 1 - pen.upright
    hair = look.skin if look.hair_style == "bald" else look.hair
    pen.ellipse(0, 0.04, 0.36, 0.46, tinted(look.skin if look.view != "back" else hair, 0.9))
    lift = 0.0 if look.view == "front" else 0.05
    pen.ellipse(0, -0.09 + lift + 0.1 * tilt, 0.4, 0.4, hair)
    if look.hair_style == "tied" and look.view != "front":
        pen.ellipse(-0.3 if look.view == "side" else 0.03, 0.2, 0.15, 0.34, tinted(hair, 1.25))
    if look.view == "front":
        _face(pen, look, 0.0, 0.12 + 0.2 * tilt, float(rng.uniform(0.31, 0.36)))
    elif look.view == "side":
        _face(pen, look, 0.16, 0.12 + 0.2 * tilt, 0.24)
        pen.ellipse(-0.03, 0.06, 0.07, 0.1, tinted(look.skin, 0.85))
    if look.view != "back" and rng.random() < 0.45:  # a fringe
        pen.ellipse(float(rng.uniform(-0.15, 0.15)), -0.25, 0.3, 0.16, tinted(hair, 1.1))
    _hat(pen, look)


def _face(pen: Pen, look: Look, x: float, y: float, half: float) -> None:
    """Skin with the marks of eyes, nose and mouth, which show from about 12 px up."""
    pen.ellipse(x, y, half, 0.37, look.skin)
    if pen.unit < 30:
        return
    for side in (-0.48, 0.48):
        eye = x + side * half
        pen.ellipse(eye, y - 0.07, 0.1, 0.06, tinted(look.skin, 0.78))
        pen.ellipse(eye, y - 0.06, 0.055, 0.028, tinted(look.skin, 0.35))
    pen.ellipse(x + 0.02, y + 0.09, 0.05, 0.05, tinted(look.skin, 0.84))
    pen.limb([(x - 0.08, y + 0.2), (x + 0.08, y + 0.2)], 0.04, tinted(look.skin, 0.66))


def _hat(pen: Pen, look: Look) -> None:
    """A cap, a hat with a brim, a beanie, or nothing."""
    colour = look.accent
    if look.hat == "cap":
        pen.ellipse(0, -0.22, 0.42, 0.3, colour)
        if look.view != "back":
            pen.ellipse(0.25 if look.view == "side" else 0, -0.06, 0.36, 0.1, tinted(colour, 0.7))
    elif look.hat == "brim":
        pen.ellipse(0, -0.14, 0.66, 0.19, tinted(colour, 0.8))
        pen.ellipse(0, -0.26, 0.38, 0.26, colour)
    elif look.hat == "beanie":
        pen.ellipse(0, -0.18, 0.43, 0.36, colour)


def _held(pen: Pen, look: Look, rng: np.random.Generator) -> None:
    """A bag on a strap, a placard above the head, or an umbrella that may hide it."""
    if look.carries == "bag":
        x = look.shoulder * 0.8
        pen.limb([(-0.6 * x, 0.8), (x, 2.7)], 0.08, tinted(look.accent, 0.5))
        corners = [(0.6 * x, 2.6), (1.4 * x, 2.6), (1.35 * x, 3.5), (0.65 * x, 3.5)]
        pen.polygon(corners, tinted(look.accent, 0.7))
    elif look.carries == "placard":
        half, low = float(rng.uniform(0.7, 1.5)), float(rng.uniform(-1.1, -0.7))
        pen.limb([(0.8, 1.5), (0.8, low)], 0.09, (120, 96, 70))
        pen.polygon(
            [(-half + 0.4, -2.4), (half, -2.4), (half, low), (-half + 0.4, low)], (232, 230, 222)
        )
        for y in np.arange(-2.2, low - 0.2, 0.4).tolist():
            pen.limb([(-half + 0.7, y), (half - 0.3, y)], 0.14, tinted(look.accent, 0.7))
    elif look.carries == "umbrella":
        y = float(rng.uniform(-0.9, -0.3))
        pen.ellipse(0.1, y, 1.7, 0.5 + 0.9 * (1 - pen.upright), tinted(look.accent, 0.85))
        pen.ellipse(0.1, y - 0.12, 0.9, 0.3 + 0.4 * (1 - pen.upright), look.accent)


def _shaded(
    pen: Pen,
    look: Look,
    rng: np.random.Generator,
    wardrobe: Wardrobe,
    *,
    head_px: float,
    enlarge: int,
) -> Sprite:
    """Give the drawing light, folds and a dark lower end."""
    cx, cy = pen.origin[0] / enlarge, pen.origin[1] / enlarge
    height, width = pen.mask.height // enlarge, pen.mask.width // enlarge
    head = np.asarray(pen.mask.reduce(enlarge))[:height, :width] > 127
    x = ((np.arange(width, dtype=np.float32) + 0.5 - cx) / head_px)[None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5 - cy) / head_px)[:, None]
    shade = _tube(x - look.lean * y, y, look.shoulder, wardrobe)
    shade *= _folds(rng, (height, width), head_px)
    rows = slice(max(0, int(cy - head_px)), max(1, int(cy + head_px)))
    shade[rows] = np.where(head[rows], _ball(x, y[rows], wardrobe), shade[rows])
    return lit_sprite(pen, shade, head, head_px=head_px, enlarge=enlarge)


def lit_sprite(
    pen: Pen, shade: FloatImage, head: npt.NDArray[np.bool_], *, head_px: float, enlarge: int
) -> Sprite:
    """Shrink a drawing `enlarge` times and multiply it by `shade`, which has the final size."""
    height, width = shade.shape
    small = np.asarray(pen.canvas.reduce(enlarge))[:height, :width]
    shadow = Image.fromarray(small[..., 3]).filter(ImageFilter.BoxBlur(0.22 * head_px))
    return Sprite(
        colour=np.minimum(small[..., :3] * shade[..., None], np.float32(255)),
        alpha=np.divide(small[..., 3], 255, dtype=np.float32),
        shadow=np.divide(np.asarray(shadow), 255, dtype=np.float32),
        head=head,
        head_area=pen.head_area / enlarge**2,
        centre=(int(pen.origin[0] / enlarge), int(pen.origin[1] / enlarge)),
    )


def _ball(x: FloatImage, y: FloatImage, wardrobe: Wardrobe) -> FloatImage:
    """Light on a head: from above and from one side."""
    side, strength = wardrobe.light
    nx, ny = np.clip(x / 0.45, -1, 1), np.clip(y / 0.55, -1, 1)
    facing = np.sqrt(np.clip(1 - nx**2 - ny**2, 0, 1))
    return np.asarray(0.68 + 0.32 * facing + strength * (0.2 * nx * side - 0.26 * ny), np.float32)


def _tube(x: FloatImage, y: FloatImage, shoulder: float, wardrobe: Wardrobe) -> FloatImage:
    """Light on a body: bright shoulders, dark towards the ground where others stand close."""
    side, strength = wardrobe.light
    nx = np.clip(x / (1.15 * shoulder), -1, 1)
    around = 0.7 + 0.28 * np.sqrt(1 - nx**2) + 0.22 * strength * side * nx
    down = 1.12 - 0.42 * np.clip((y - 0.9) / 4, 0, 1)
    return np.asarray(around * down, np.float32)


def _folds(rng: np.random.Generator, size: tuple[int, int], head_px: float) -> FloatImage:
    """Soft noise around 1 whose grain grows with the person."""
    bank = noise_bank()[min(3, max(0, int(np.log2(head_px / 5))))]
    top, left = rng.integers(0, NOISE_SIDE // 8, 2).tolist()
    rows, columns = min(size[0], NOISE_SIDE - top), min(size[1], NOISE_SIDE - left)
    folds = np.ones(size, np.float32)
    folds[:rows, :columns] += np.float32(0.055) * bank[top : top + rows, left : left + columns]
    return folds


@lru_cache(maxsize=1)
def noise_bank() -> tuple[FloatImage, ...]:
    """Noise that repeats after `NOISE_SIDE` pixels, with grains of 1, 2, 4, 8 and 16 pixels."""
    rng = np.random.default_rng(20161)
    frequency = np.hypot(np.fft.fftfreq(NOISE_SIDE)[:, None], np.fft.fftfreq(NOISE_SIDE)[None, :])
    bank = []
    for grain in (1, 2, 4, 8, 16):
        white = np.fft.fft2(rng.standard_normal((NOISE_SIDE, NOISE_SIDE)))
        soft = np.fft.ifft2(white * np.exp(-2 * (np.pi * frequency * grain * 0.5) ** 2)).real
        bank.append(np.asarray(soft / soft.std(), np.float32))
    return tuple(bank)
