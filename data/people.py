"""Draws one person of a synthetic crowd as a small picture with an alpha channel.

Lengths are in heads: 1 is the height of this person's head, crown to chin; (0, 0) is the centre
of the head, y points down. An adult is 7 to 7.5 heads tall.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]
FloatImage = npt.NDArray[np.float32]

FEET = 6.9  # heads from the centre of the head down to the soles
CHEST = 0.55  # below this, the body is seen foreshortened by a camera above it
NOISE_SIDE = 512

SKIN: tuple[Colour, ...] = (
    (236, 198, 172),
    (224, 178, 146),
    (205, 156, 122),
    (172, 122, 90),
    (122, 84, 62),
    (84, 58, 46),
)
HAIR: tuple[Colour, ...] = (
    (22, 19, 18),
    (38, 29, 24),
    (70, 48, 34),
    (112, 80, 50),
    (178, 142, 92),
    (150, 148, 146),
)
MUTED: tuple[Colour, ...] = (
    (26, 26, 29),
    (54, 55, 60),
    (30, 38, 62),
    (66, 86, 122),
    (128, 150, 180),
    (233, 233, 231),
    (214, 210, 200),
    (146, 147, 150),
    (186, 168, 140),
    (116, 100, 76),
    (84, 60, 46),
    (104, 38, 44),
    (82, 88, 62),
    (190, 150, 156),
    (62, 104, 110),
    (178, 198, 214),
)
BRIGHT: tuple[Colour, ...] = (
    (196, 38, 40),
    (232, 196, 52),
    (58, 138, 74),
    (222, 112, 40),
    (40, 84, 176),
    (216, 92, 140),
    (66, 176, 190),
)
TROUSERS: tuple[Colour, ...] = (
    (28, 29, 34),
    (44, 56, 84),
    (74, 96, 134),
    (58, 56, 56),
    (120, 104, 80),
    (176, 160, 132),
    (210, 208, 204),
)


@dataclass(frozen=True, kw_only=True)
class Wardrobe:
    """What the people of one photograph have in common; each row of weights sums to 1."""

    skin: npt.NDArray[np.float64]
    hair: npt.NDArray[np.float64]
    top: npt.NDArray[np.float64]  # over MUTED, then BRIGHT
    hats: float  # share of people with something on the head
    raised: float  # share of people with an arm up
    facing: float  # share of people who look at the camera
    light: tuple[float, float]  # where the light comes from: x, and its strength 0..1

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Wardrobe":
        """Choose a crowd: summer or winter, fans in one colour, a demonstration, ..."""
        top = np.concatenate(
            [
                rng.dirichlet(np.full(len(MUTED), 0.8)),
                float(rng.uniform(0.05, 0.35)) * rng.dirichlet(np.full(len(BRIGHT), 0.6)),
            ]
        )
        top += 0.01
        return cls(
            skin=rng.dirichlet((4, 4, 2, 1, 0.7, 0.5)),
            hair=rng.dirichlet((5, 4, 2, 0.8, 0.5, 0.4)),
            top=top / top.sum(),
            hats=float(rng.uniform(0.03, 0.3)),
            raised=float(rng.choice([0.01, 0.03, 0.25])),
            facing=float(rng.uniform(0.15, 0.75)),
            light=(float(rng.uniform(-1, 1)), float(rng.uniform(0.3, 1.0))),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Sprite:
    """One drawn person."""

    colour: FloatImage  # (h, w, 3) grey levels 0..255
    alpha: FloatImage  # (h, w) 0..1
    head: npt.NDArray[np.bool_]  # (h, w) where the head is, hair and hat included
    centre: tuple[int, int]  # x, y of the head's centre in the sprite


class Pen:
    """Draws shapes given in heads on an enlarged canvas, and keeps a mask of the head."""

    def __init__(self, unit: float, *, up: float, down: float, side: float, upright: float) -> None:
        self.unit, self.upright = unit, upright
        self.origin = (side * unit, up * unit)
        size = (int(2 * side * unit), int((up + self.squash(down)) * unit))
        self.canvas = Image.new("RGBA", size, (90, 85, 82, 0))
        self.mask = Image.new("L", size, 0)
        self._draw, self._draw_mask = ImageDraw.Draw(self.canvas), ImageDraw.Draw(self.mask)
        self.on_head = False

    def squash(self, y: float) -> float:
        """Foreshorten what lies below the chin."""
        return y if y < CHEST else CHEST + (y - CHEST) * self.upright

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Heads -> canvas pixels."""
        return self.origin[0] + x * self.unit, self.origin[1] + self.squash(y) * self.unit

    def polygon(self, points: Points, fill: Colour) -> None:
        """A filled polygon."""
        corners = [self.at(x, y) for x, y in points]
        self._draw.polygon(corners, fill=fill)
        self._draw_mask.polygon(corners, fill=255 * self.on_head)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        """A filled ellipse; only its centre is foreshortened."""
        cx, cy = self.at(x, y)
        box = (cx - rx * self.unit, cy - ry * self.unit, cx + rx * self.unit, cy + ry * self.unit)
        self._draw.ellipse(box, fill=fill)
        self._draw_mask.ellipse(box, fill=255 * self.on_head)

    def limb(self, points: Points, thickness: float, fill: Colour) -> None:
        """A bent tube with round joints."""
        corners = [self.at(x, y) for x, y in points]
        width = max(1, round(thickness * self.unit))
        self._draw.line(corners, fill=fill, width=width, joint="curve")
        self._draw_mask.line(corners, fill=255 * self.on_head, width=width, joint="curve")
        for x, y in (points[0], points[-1]):
            self.ellipse(x, y, thickness / 2, thickness / 2, fill)


def tinted(colour: Colour, factor: float) -> Colour:
    """A lighter or darker version of a colour."""
    red, green, blue = (min(255, max(0, round(level * factor))) for level in colour)
    return red, green, blue


def pick(
    rng: np.random.Generator,
    colours: Sequence[Colour],
    weights: npt.NDArray[np.float64] | None = None,
) -> Colour:
    """One of the colours, slightly changed, so that no two people match exactly."""
    base = colours[int(rng.choice(len(colours), p=weights))]
    shift = rng.normal(0, 7, 3) + rng.normal(0, 9)
    red, green, blue = (
        int(min(250, max(8, level + s))) for level, s in zip(base, shift, strict=True)
    )
    return red, green, blue


@dataclass(frozen=True, kw_only=True)
class Look:
    """Everything about one person that does not depend on the camera."""

    skin: Colour
    hair: Colour
    top: Colour
    bottom: Colour
    accent: Colour
    view: str  # front, back, side (facing right)
    hair_style: str  # short, long, bald, tied
    hat: str  # none, cap, brim, beanie
    pattern: str  # plain, stripes, check, print, open, vest
    sleeves: str  # long, short
    legs: str  # trousers, shorts, skirt
    arms: tuple[str, str]  # down, bent, up, out
    shoulder: float  # half the width of the shoulders, in heads

    @classmethod
    def draw(cls, rng: np.random.Generator, wardrobe: Wardrobe) -> "Look":
        """Choose a person."""
        facing = wardrobe.facing
        view = str(rng.choice(["front", "back", "side"], p=[0.8 * facing, 0.8 * (1 - facing), 0.2]))
        hats = wardrobe.hats
        hat = ["none", "cap", "brim", "beanie"]
        up = wardrobe.raised
        arms = rng.choice(
            ["down", "bent", "up", "out"], 2, p=[0.57 - up / 2, 0.36 - up / 2, up, 0.07]
        )
        shoulder = rng.uniform(0.78, 1.02) * (0.68 if view == "side" else 1.0)
        return cls(
            skin=pick(rng, SKIN, wardrobe.skin),
            hair=pick(rng, HAIR, wardrobe.hair),
            top=pick(rng, MUTED + BRIGHT, wardrobe.top),
            bottom=pick(rng, TROUSERS),
            accent=pick(rng, MUTED + BRIGHT),
            view=view,
            hair_style=str(
                rng.choice(["short", "long", "bald", "tied"], p=[0.56, 0.25, 0.06, 0.13])
            ),
            hat=str(rng.choice(hat, p=[1 - hats, 0.5 * hats, 0.25 * hats, 0.25 * hats])),
            pattern=str(
                rng.choice(
                    ["plain", "stripes", "check", "print", "open", "vest"],
                    p=[0.42, 0.12, 0.1, 0.16, 0.14, 0.06],
                )
            ),
            sleeves=str(rng.choice(["long", "short"])),
            legs=str(rng.choice(["trousers", "shorts", "skirt"], p=[0.72, 0.14, 0.14])),
            arms=(str(arms[0]), str(arms[1])),
            shoulder=float(shoulder),
        )


def draw_person(
    rng: np.random.Generator, wardrobe: Wardrobe, *, head_px: float, upright: float
) -> Sprite:
    """Draw a person whose head is `head_px` tall.

    Args:
        rng: chooses who it is.
        wardrobe: what the whole crowd has in common.
        head_px: height of the head in pixels of the photograph.
        upright: how much of a vertical length the camera sees, cos of its downward angle, 0..1.
    """
    look = Look.draw(rng, wardrobe)
    enlarge = 4 if head_px < 9 else 3 if head_px < 18 else 2
    up = 2.3 if "up" in look.arms else 0.85
    pen = Pen(head_px * enlarge, up=up, down=FEET + 0.2, side=1.9, upright=upright)
    _legs(pen, look, rng)
    _torso(pen, look, rng)
    _arms(pen, look, rng, over_head=False)
    _head(pen, look, rng)
    _arms(pen, look, rng, over_head=True)
    return _shaded(pen, look, rng, wardrobe, head_px=head_px, enlarge=enlarge)


def _legs(pen: Pen, look: Look, rng: np.random.Generator) -> None:
    """Two legs, a skirt or shorts, and shoes."""
    stride = float(rng.uniform(0.0, 0.55 if look.view == "side" else 0.2))
    hip = look.shoulder * 0.42
    for sign, shade in ((-1, 0.82), (1, 1.0)):
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
    pen.limb([(0, 0.3), (0, 0.68)], 0.4, tinted(look.skin, 0.72))  # in the chin's shadow


def _pattern(pen: Pen, look: Look, rng: np.random.Generator, drop: float) -> None:
    """Stripes, checks, a print, or an open jacket over a shirt."""
    half = 0.74 * look.shoulder
    if look.pattern in ("stripes", "check"):
        step = float(rng.uniform(0.22, 0.45))
        for y in np.arange(0.95, drop - 0.1, step).tolist():
            pen.polygon(
                [(-half, y), (half, y), (half, y + 0.4 * step), (-half, y + 0.4 * step)],
                look.accent,
            )
    if look.pattern == "check":
        between = tinted(look.accent, 0.8)
        for x in np.arange(-half, half, 0.36).tolist():
            pen.polygon([(x, 0.9), (x + 0.1, 0.9), (x + 0.1, drop), (x, drop)], between)
    if look.pattern == "print":
        pen.ellipse(0.05, 1.75, 0.42 * half, 0.32, look.accent)
        pen.polygon(
            [(-0.3, 2.1), (0.35, 2.1), (0.3, 2.25), (-0.28, 2.25)], tinted(look.accent, 0.8)
        )
    if look.pattern == "open" and look.view != "back":
        pen.polygon([(-0.16, 0.66), (0.16, 0.66), (0.3, drop), (-0.2, drop)], look.accent)
    if look.pattern == "vest" and look.view == "back":  # a backpack
        pen.polygon([(-half, 1.0), (half, 1.0), (half * 0.9, 2.5), (-half * 0.9, 2.5)], look.accent)
        pen.ellipse(0, 1.05, half * 0.8, 0.25, tinted(look.accent, 1.15))


def _arms(pen: Pen, look: Look, rng: np.random.Generator, *, over_head: bool) -> None:
    """Arms that hang or bend lie over the torso; raised ones over the head as well."""
    for sign, pose in zip((-1, 1), look.arms, strict=True):
        if (pose == "up") is not over_head:
            continue
        x = sign * look.shoulder * 0.9
        jitter = float(rng.uniform(-0.1, 0.1))
        elbow, hand = {
            "down": ((x * 1.12, 2.1), (x * 1.08 + jitter, 3.1)),
            "bent": ((x * 1.15, 2.1), (x * 0.2 + jitter, 1.9 + jitter)),
            "out": ((x * 1.35, 1.9), (x * 1.7, 2.4 + jitter)),
            "up": ((x * 1.35, 0.1), (x * 1.05 + jitter, -1.1 + 3 * jitter)),
        }[pose]
        sleeve = tinted(look.top, 0.88)
        pen.limb([(x, 1.05), elbow, hand], 0.28, look.skin if look.sleeves == "short" else sleeve)
        pen.limb([(x, 1.05), elbow], 0.36, sleeve)
        pen.ellipse(*hand, 0.17, 0.17, look.skin)


def _head(pen: Pen, look: Look, rng: np.random.Generator) -> None:
    """Hair, face and hat, seen the more from above the steeper the camera looks down."""
    pen.on_head = True
    tilt = 1 - pen.upright
    hair = look.skin if look.hair_style == "bald" else look.hair
    if look.hair_style == "long":
        pen.polygon([(-0.4, -0.1), (0.4, -0.1), (0.46, 0.75), (-0.46, 0.75)], tinted(hair, 0.9))
    pen.ellipse(0, 0.02, 0.37, 0.47, tinted(look.skin, 0.9))
    lift = 0.0 if look.view == "front" else 0.05
    pen.ellipse(0, -0.07 + lift + 0.1 * tilt, 0.41, 0.42, hair)
    if look.view == "front":
        _face(pen, look, 0.0, 0.1 + 0.22 * tilt, float(rng.uniform(0.30, 0.35)))
    elif look.view == "side":
        _face(pen, look, 0.15, 0.1 + 0.22 * tilt, 0.25)
        pen.ellipse(-0.03, 0.06, 0.07, 0.1, tinted(look.skin, 0.85))
    elif look.hair_style == "tied":
        pen.ellipse(0.02, 0.2, 0.15, 0.3, tinted(hair, 1.35))
    _hat(pen, look)
    pen.on_head = False


def _face(pen: Pen, look: Look, x: float, y: float, half: float) -> None:
    """Skin with the marks of brows, eyes, nose and mouth; details matter above 12 px only."""
    pen.ellipse(x, y, half, 0.38, look.skin)
    if pen.unit < 30:
        return
    dark = tinted(look.skin, 0.45)
    for side in (-0.5, 0.5):
        eye = x + side * half
        pen.ellipse(eye, y - 0.06, 0.075, 0.03, dark)
        pen.limb([(eye - 0.08, y - 0.13), (eye + 0.08, y - 0.13)], 0.035, tinted(look.hair, 1.1))
    pen.ellipse(x + 0.02, y + 0.08, 0.05, 0.05, tinted(look.skin, 0.82))
    pen.limb([(x - 0.09, y + 0.2), (x + 0.09, y + 0.2)], 0.045, tinted(look.skin, 0.62))


def _hat(pen: Pen, look: Look) -> None:
    """A cap, a hat with a brim, a beanie, or nothing."""
    colour = look.accent
    if look.hat == "cap":
        pen.ellipse(0, -0.22, 0.42, 0.3, colour)
        if look.view != "back":
            pen.ellipse(0.25 if look.view == "side" else 0, -0.08, 0.36, 0.1, tinted(colour, 0.75))
    elif look.hat == "brim":
        pen.ellipse(0, -0.14, 0.68, 0.2, tinted(colour, 0.85))
        pen.ellipse(0, -0.26, 0.38, 0.26, colour)
    elif look.hat == "beanie":
        pen.ellipse(0, -0.18, 0.43, 0.36, colour)


def _shaded(
    pen: Pen,
    look: Look,
    rng: np.random.Generator,
    wardrobe: Wardrobe,
    *,
    head_px: float,
    enlarge: int,
) -> Sprite:
    """Shrink the drawing and give it light, folds and a dark lower end."""
    small = np.asarray(pen.canvas.reduce(enlarge), dtype=np.float32)
    head = np.asarray(pen.mask.reduce(enlarge)) > 127
    alpha = small[..., 3] / 255
    cx, cy = pen.origin[0] / enlarge, pen.origin[1] / enlarge
    height, width = alpha.shape
    x = (np.arange(width, dtype=np.float32) + 0.5 - cx)[None, :] / head_px
    y = (np.arange(height, dtype=np.float32) + 0.5 - cy)[:, None] / head_px
    shade = np.where(head, _ball(x, y, wardrobe), _tube(x, y, look.shoulder, wardrobe))
    shade = shade * (1 + _folds(rng, (height, width), head_px) * np.where(head, 0.5, 1.0))
    colour = np.clip(small[..., :3] * shade[..., None], 0, 255).astype(np.float32)
    return Sprite(colour=colour, alpha=alpha, head=head, centre=(int(cx), int(cy)))


def _ball(x: FloatImage, y: FloatImage, wardrobe: Wardrobe) -> FloatImage:
    """Light on a head: from above and from one side."""
    side, strength = wardrobe.light
    nx, ny = np.clip(x / 0.45, -1, 1), np.clip(y / 0.55, -1, 1)
    facing = np.sqrt(np.clip(1 - nx**2 - ny**2, 0, 1))
    return np.asarray(0.72 + 0.3 * facing + strength * (0.16 * nx * side - 0.2 * ny), np.float32)


def _tube(x: FloatImage, y: FloatImage, shoulder: float, wardrobe: Wardrobe) -> FloatImage:
    """Light on a body: bright shoulders, dark towards the ground where others stand close."""
    side, strength = wardrobe.light
    nx = np.clip(x / (1.15 * shoulder), -1, 1)
    around = 0.72 + 0.26 * np.sqrt(1 - nx**2) + 0.2 * strength * side * nx
    down = 1.08 - 0.42 * np.clip((y - 0.9) / 4, 0, 1)
    return np.asarray(around * down, np.float32)


def _folds(rng: np.random.Generator, size: tuple[int, int], head_px: float) -> FloatImage:
    """Soft noise whose grain grows with the person."""
    bank = noise_bank()[min(4, max(0, int(np.log2(head_px / 4))))]
    top, left = rng.integers(0, NOISE_SIDE // 2, 2)
    rows = (np.arange(size[0]) + top) % NOISE_SIDE
    columns = (np.arange(size[1]) + left) % NOISE_SIDE
    return np.asarray(0.06 * bank[np.ix_(rows, columns)], np.float32)


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
